# make demo [ONCE=1]   set up, then a PACS with real data and harmonyd, and four requests over HTTP
# make test            set up, then ruff, mypy and all tests, with coverage; those that are about an engine over both
# make viewer          install the OHIF viewer into .viewer, and a Chromium; 'make test' does it
# make interop         install further DICOM implementations into .interop, and run all of tests/interop
# make lint            ruff and mypy alone
# make audit           compare the installed dependencies with published advisories; needs the network (SECURITY.md)
# make venv            set up for tests, and no more
# make install         harmonyd with its own environment, units and configuration; then read systemd/README.md
# make uninstall       remove what install put there, except configuration and data
# make clean           remove what the other targets made
#
# PREFIX=/usr/local    where install puts things; DESTDIR=/tmp/stage for packagers
# PYTHON=python3.12    which Python to use; without it the first of python3, python3.14 … that is 3.11 or later
# PYTEST="-k find"     options for pytest
# JOBS=0               tests one after the other, in one process; else in one more than there are processors
# ENGINE=native        for the demo: speak DIMSE without DCMTK's programs

.ONESHELL:
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

PYTHON ?=
PREFIX ?= /usr/local
DESTDIR ?=
ONCE ?=
ENGINE ?=
PYTEST ?=
JOBS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
DCMTK := echoscu findscu getscu movescu storescu storescp dcmqrscp dcmqridx

# The shell functions that the set-up shares. A machine without root or a password-less sudo is never asked for one.
define setup
say() { echo "harmonyd: $$*" >&2; }
give_up() { say "$$*"; exit 1; }
as_root() { if [ "$$(id -u)" = 0 ]; then "$$@"; else sudo -n "$$@"; fi; }
may_install() { command -v apt-get >/dev/null && as_root true 2>/dev/null; }
apt_install() {
    say "installing $$* with apt-get"
    local install="env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends"
    as_root $$install "$$@" >/dev/null 2>&1 && return
    as_root apt-get update -qq >/dev/null && as_root $$install "$$@" >/dev/null
}
endef

.PHONY: help
help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

.PHONY: demo
demo: dcmtk $(VENV)/.ready-demo
	@exec $(BIN)/python -m harmonyd demo $(if $(ONCE),--once) $(if $(ENGINE),--engine $(ENGINE)) --config examples/default/config.toml

# Many a test waits more than it works, so there is one worker more than there are processors. A file's tests stay in one.
IN_PARALLEL := -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: test
test: dcmtk orthanc viewer systemd lint
	@$(BIN)/python -m pytest $(IN_PARALLEL) --cov --cov-report=term $(PYTEST)
	$(if $(findstring tests/,$(PYTEST)),,$(MAKE) test-native)

# What an engine does, end to end, once more over the native one: the run before had DCMTK's programs. Without coverage,
# which has each daemon take half as much time again; the native engine's own tests were in the run before.
NATIVE_TESTS := find charsets store pacs_failures cancel limits slow_reader retrieve injection requests pipelines \
    move move_concurrent move_wrong inbound reload_inbound shared spool_backends spool_crash spool_full_disk
.PHONY: test-native
test-native: $(VENV)/.ready-test
	@export HARMONYD_TEST_ENGINE=native
	$(BIN)/python -m pytest $(IN_PARALLEL) $(NATIVE_TESTS:%=tests/e2e/test_e2e_%.py) $(PYTEST) \
	    || [ $$? = 5 ]  # nothing that PYTEST chooses

.PHONY: lint
lint: $(VENV)/.ready-test
	@$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

# In an environment of its own: what audits is no dependency.
.PHONY: audit
audit: $(VENV)/.ready-demo
	@$(setup)
	[ -x .audit/bin/pip-audit ] || { python3 -m venv .audit && .audit/bin/pip install --quiet pip-audit; }
	$(PIP) freeze --exclude-editable --exclude harmonyd > .audit/requirements.txt
	.audit/bin/pip-audit --strict --no-deps --disable-pip --requirement .audit/requirements.txt \
	    || give_up "pip-audit found something, or could not ask (SECURITY.md)"

.PHONY: venv
venv: $(VENV)/.ready-test

# The test set-up has all that the demo needs.
$(VENV)/.ready-demo: setup.cfg pyproject.toml | python
	@if [ "$(VENV)/.ready-test" -nt setup.cfg ]; then touch $@; exit 0; fi
	echo "harmonyd: installing into $(VENV)" >&2
	$(PIP) install -e .
	touch $@

$(VENV)/.ready-test: setup.cfg pyproject.toml | python
	@echo "harmonyd: installing into $(VENV), with what the tests need" >&2
	$(PIP) install -e '.[test]'
	touch $@

# A virtual environment that does not work (moved, its Python gone, its making interrupted) is made again.
.PHONY: python
python:
	@$(setup)
	if $(BIN)/python -m pip --version >/dev/null 2>&1; then exit 0; fi
	found=
	for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi
	done
	[ -n "$$found" ] || give_up "needs Python 3.11 or later: 'sudo apt-get install python3 python3-venv' (Debian 12, Ubuntu 24.04) or 'brew install python', or name one with 'make PYTHON=...'"
	if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then
	    may_install && apt_install python3-venv || true
	    "$$found" -c 'import ensurepip, venv' 2>/dev/null || give_up "$$found has no venv module: 'sudo apt-get install python3-venv'"
	fi
	rm -rf $(VENV)
	"$$found" -m venv $(VENV)

# pynetdicom installs scripts of the same names: a program is DCMTK's only when its version says so.
.PHONY: dcmtk
dcmtk:
	@$(setup)
	missing() {
	    local name path PATH="$$PATH:/usr/bin:/usr/local/bin:/opt/dcmtk/bin"
	    for name in $(DCMTK); do
	        while read -r path; do
	            case "$$("$$path" --version 2>/dev/null </dev/null | head -n 1)" in '$$dcmtk: '*) continue 2;; esac
	        done < <(type -aP "$$name" || true)
	        echo "$$name"
	    done
	}
	lacking=$$(missing)
	[ -n "$$lacking" ] || exit 0
	if may_install; then apt_install dcmtk || true; lacking=$$(missing); fi
	[ -z "$$lacking" ] || give_up "needs DCMTK 3.6.7 or later ("$$lacking" not found): 'sudo apt-get install dcmtk' (Debian, Ubuntu) or 'brew install dcmtk'"

# Another PACS for the tests. It is started by them only: as a service it would take the port of many a PACS.
.PHONY: orthanc
orthanc:
	@$(setup)
	plugin=/usr/share/orthanc/plugins/libOrthancDicomWeb.so
	if PATH="$$PATH:/usr/sbin" command -v Orthanc >/dev/null && [ -e "$$plugin" ]; then exit 0; fi
	may_install || give_up "its tests need Orthanc: 'sudo apt-get install orthanc orthanc-dicomweb', and 'sudo systemctl disable --now orthanc'"
	as_root ln -sf /dev/null /etc/systemd/system/orthanc.service
	apt_install orthanc orthanc-dicomweb

# A DICOMweb viewer for the tests, and a browser with its driver. Nothing of the viewer is kept outside .viewer.
.PHONY: viewer
viewer:
	@$(setup)
	declare -A has=([chromium]=chromium [chromedriver]=chromium-driver)
	[ .viewer/.ready -nt tests/viewer/install.sh ] || has[npm]=npm
	lacking=()
	for program in "$${!has[@]}"; do command -v "$$program" >/dev/null || lacking+=("$${has[$$program]}"); done
	[ $${#lacking[@]} = 0 ] || { may_install && apt_install "$${lacking[@]}"; } || give_up "its tests need: $${lacking[*]}"
	[ -n "$${has[npm]:-}" ] || exit 0
	say "installing the OHIF viewer into .viewer"
	bash tests/viewer/install.sh .viewer
	touch .viewer/.ready

# Implementations that are no part of 'make test'; nothing of them is kept outside .interop but Debian's packages.
.PHONY: interop
interop: dcmtk orthanc $(VENV)/.ready-test .interop/.ready
	@$(BIN)/python -m pytest tests/interop -m "peers or not peers" $(PYTEST)

.interop/.ready: tests/interop/peers/install.sh tests/interop/peers/Dcm4cheNode.java
	@$(setup)
	declare -A has=([node]=nodejs [npm]=npm [javac]=default-jdk-headless [odil]=odil)
	lacking=()
	for program in "$${!has[@]}"; do command -v "$$program" >/dev/null || lacking+=("$${has[$$program]}"); done
	[ -e /usr/share/java/pixelmed.jar ] || lacking+=(libpixelmed-java)
	[ $${#lacking[@]} = 0 ] || { may_install && apt_install "$${lacking[@]}"; } || give_up "its tests need: $${lacking[*]}"
	say "installing further implementations into .interop"
	bash tests/interop/peers/install.sh .interop
	touch $@

# What the tests need that boot a systemd of their own; they run as root only.
.PHONY: systemd
systemd:
	@$(setup)
	[ "$$(id -u)" = 0 ] || exit 0
	declare -A has=([unshare]=util-linux [ip]=iproute2 [systemctl]=systemd [curl]=curl [/usr/bin/python3]=python3)
	lacking=
	for program in "$${!has[@]}"; do command -v "$$program" >/dev/null || lacking+=" $${has[$$program]}"; done
	[ -z "$$lacking" ] || { may_install && apt_install $$lacking; } || give_up "its tests as root need:$$lacking"

INSTALLED := lib/harmonyd bin/harmonyd share/doc/harmonyd lib/systemd/system/harmonyd.service \
    lib/systemd/system/harmonyd.socket lib/sysusers.d/harmonyd.conf lib/tmpfiles.d/harmonyd.conf

# A configuration that is there already is left as it is; what is new in ours is put beside it as *.new.
.PHONY: install
install: $(VENV)/.ready-demo
	@$(setup)
	umask 022
	to="$(DESTDIR)$(PREFIX)" etc="$(DESTDIR)/etc"
	put() { sed 's|/usr/local/|$(PREFIX)/|g' "$$1" | install -D -m 644 /dev/stdin "$$2"; }
	install -d "$$to/lib" "$$to/bin"
	$(BIN)/python systemd/environment.py "$$to/lib/harmonyd" --final "$(PREFIX)/lib/harmonyd" \
	    $(if $(PYTHON),--python "$(PYTHON)")
	chmod -R a+rX "$$to/lib/harmonyd"
	ln -sfn ../lib/harmonyd/bin/harmonyd "$$to/bin/harmonyd"
	for unit in service socket; do put systemd/harmonyd.$$unit "$$to/lib/systemd/system/harmonyd.$$unit"; done
	for kind in sysusers tmpfiles; do put systemd/$$kind.d/harmonyd.conf "$$to/lib/$$kind.d/harmonyd.conf"; done
	put systemd/README.md "$$to/share/doc/harmonyd/README.md"
	first=; [ -e "$$etc/harmonyd/config.toml" ] || first=yes
	(cd etc && find harmonyd -type f) | while read -r file; do
	    if cmp -s "etc/$$file" "$$etc/$$file"; then continue; fi
	    if [ -n "$$first" ]; then put "etc/$$file" "$$etc/$$file"; continue; fi
	    put "etc/$$file" "$$etc/$$file.new"
	    say "the configuration is left as it is; see what is new in $$etc/$$file.new"
	done
	[ -e "$$etc/logrotate.d/harmonyd" ] || put systemd/logrotate.d/harmonyd "$$etc/logrotate.d/harmonyd"
	say "installed in $$to; what to do next: systemd/README.md"

.PHONY: uninstall
uninstall:
	@cd "$(DESTDIR)$(PREFIX)" && rm -rf $(INSTALLED)
	rm -f "$(DESTDIR)/etc/logrotate.d/harmonyd"
	echo "harmonyd: left: $(DESTDIR)/etc/harmonyd, /var/lib/harmonyd, /var/log/harmonyd, the user harmonyd" >&2

.PHONY: clean
clean:
	@rm -rf $(VENV) .audit .interop .viewer build dist *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache .hypothesis _trial_temp*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find tmp -mindepth 1 ! -name .gitkeep -delete
