# make demo [ONCE=1]   set up, then a PACS with real data and harmonyd, and four requests over HTTP
# make test            set up, then ruff, mypy and all tests, with coverage
# make lint            ruff and mypy alone
# make venv            set up for tests, and no more
# make clean           remove what the other targets made
#
# PYTHON=python3.12    which Python to use; without it the first of python3, python3.14 … that is 3.11 or later
# PYTEST="-k find"     options for pytest

.ONESHELL:
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

PYTHON ?=
ONCE ?=
PYTEST ?=
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
	@exec $(BIN)/python -m harmonyd demo $(if $(ONCE),--once) --config examples/default/config.toml

.PHONY: test
test: dcmtk lint
	@$(BIN)/python -m pytest --cov --cov-report=term $(PYTEST)

.PHONY: lint
lint: $(VENV)/.ready-test
	@$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

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

.PHONY: clean
clean:
	@rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache .hypothesis _trial_temp*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find tmp -mindepth 1 ! -name .gitkeep -delete
