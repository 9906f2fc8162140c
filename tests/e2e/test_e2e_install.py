"""``make install`` puts a self-contained tree in place, and leaves alone what is the administrator's."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from systemd_kit import ROOT, installed, make

PREFIX = "/opt/gateway"


def files(stage: Path) -> dict[str, bytes]:
    """What was installed but for the environment: path and content."""
    paths = [path for path in stage.rglob("*") if path.is_file() and "site-packages" not in path.parts]
    return {f"/{path.relative_to(stage)}": path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A staging folder, installed into once."""
    yield installed(tmp_path_factory.mktemp("stage"), f"PREFIX={PREFIX}")


def test_everything_is_in_place(stage: Path) -> None:
    """Command, units, user, folders, guide and configuration, and a log rotation."""
    expected = {
        "/opt/gateway/bin/harmonyd",
        "/opt/gateway/lib/harmonyd/bin/python",
        "/opt/gateway/lib/harmonyd/bin/supervisorctl",
        "/opt/gateway/lib/systemd/system/harmonyd.service",
        "/opt/gateway/lib/systemd/system/harmonyd.socket",
        "/opt/gateway/lib/sysusers.d/harmonyd.conf",
        "/opt/gateway/lib/tmpfiles.d/harmonyd.conf",
        "/opt/gateway/share/doc/harmonyd/README.md",
        "/etc/harmonyd/config.toml",
        "/etc/harmonyd/pipelines/receive.toml",
        "/etc/logrotate.d/harmonyd",
    }
    assert expected <= set(files(stage))


def test_no_file_says_where_it_was_made(stage: Path) -> None:
    """Neither the checkout nor the staging folder is in any file, compiled ones included; the prefix is."""
    places = [str(ROOT).encode(), str(stage).encode()]
    found = [path for path in stage.rglob("*") if path.is_file() and any(p in path.read_bytes() for p in places)]
    assert found == []
    unit = (stage / "opt/gateway/lib/systemd/system/harmonyd.service").read_text()
    assert f"ExecStart={PREFIX}/lib/harmonyd/bin/harmonyd run" in unit
    assert "/usr/local" not in unit


def test_the_environment_is_complete_by_itself(stage: Path) -> None:
    """It imports all of harmonyd from itself, with the codecs, and has none of what only tests need."""
    python = stage / "opt/gateway/lib/harmonyd/bin/python"
    program = (
        "import pkgutil, importlib, sys, harmonyd, harmonyd.cli, harmonyd.daemon.process, supervisor.supervisorctl\n"
        "import gdcm, jpeg_ls, numpy, openjpeg, PIL.Image, pylibjpeg\n"
        "print(harmonyd.__file__)\n"
        "print([name for name in ('pytest', 'mypy', 'hypothesis', 'pip') if importlib.util.find_spec(name)])\n"
        "sys.exit(harmonyd.cli.main(['version']))"
    )
    ran = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, check=False, cwd="/")
    assert ran.returncode == 0, ran.stderr
    where, test_tools, version = ran.stdout.splitlines()
    assert where.startswith(str(stage / "opt/gateway/lib/harmonyd/lib"))
    assert test_tools == "[]"
    assert re.fullmatch(r"harmonyd \d+\.\d+.*", version)


def test_nothing_needs_to_be_compiled_at_run_time(stage: Path) -> None:
    """Each module of harmonyd has its compiled file: the service may not write one."""
    [package] = (stage / "opt/gateway/lib/harmonyd").glob("lib/python*/site-packages/harmonyd")
    modules = list(package.rglob("*.py"))
    lacking = [module for module in modules if not list((module.parent / "__pycache__").glob(f"{module.stem}.*.pyc"))]
    assert len(modules) > 50
    assert lacking == []


def test_an_upgrade_keeps_the_configuration(stage: Path) -> None:
    """What the administrator changed stays, what was removed stays away; ours is put beside it, and not read."""
    etc = stage / "etc/harmonyd"
    ours = (etc / "config.toml").read_text()
    (etc / "config.toml").write_text("# mine\n" + ours)
    (etc / "pipelines/receive.toml").unlink()
    installed(stage, f"PREFIX={PREFIX}")
    assert (etc / "config.toml").read_text() == "# mine\n" + ours
    assert (etc / "config.toml.new").read_text() == ours
    assert [path.name for path in sorted((etc / "pipelines").iterdir())] == ["README", "receive.toml.new"]


def test_a_python_that_the_unit_cannot_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in somebody's home is hidden from the unit."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / "systemd/environment.py")
    assert spec is not None
    assert spec.loader is not None
    environment = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(environment)
    python = Path(sys.executable).resolve()
    monkeypatch.setattr(environment, "HIDDEN", (str(python.parent),))
    with pytest.raises(SystemExit, match="the unit cannot see"):
        environment.usable_version(python)


def test_a_python_that_is_not_there_is_told(tmp_path: Path) -> None:
    """Nothing is installed then."""
    done = make("install", f"DESTDIR={tmp_path}", "PYTHON=/nowhere/python3")
    assert done.returncode != 0
    assert "/nowhere/python3" in done.stderr
    assert not (tmp_path / "usr/local/lib/harmonyd").exists()


def test_uninstall_leaves_only_what_is_the_administrators(stage: Path) -> None:
    """Configuration stays; nothing else does."""
    done = make("uninstall", f"DESTDIR={stage}", f"PREFIX={PREFIX}")
    assert done.returncode == 0, done.stderr
    assert all(name.startswith("/etc/harmonyd/") for name in files(stage))
