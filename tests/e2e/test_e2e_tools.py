"""Which DCMTK is used: its own programs whatever else has their names, and a clear word when there are none to use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harmonyd.dimse.dcmtk.tools import DAEMON_TOOLS
from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port

pytestmark = pytest.mark.dcmtk

StartDaemon = Callable[..., RunningDaemon]
ONLY_ON_PATH = """
import sys
from harmonyd import cli
from harmonyd.dimse.dcmtk import tools
tools._FALLBACK_DIRS = ()
sys.exit(cli.main())
"""


def _script(folder: Path, name: str, said: str) -> None:
    """A program that says ``said`` to whoever runs it."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho '{said}'\n")
    (folder / name).chmod(0o755)


def _harmonyd(command: str, config: Path, path: Path) -> subprocess.CompletedProcess[str]:
    """A command of ours for which DCMTK is nowhere but on ``path``."""
    return subprocess.run(
        [sys.executable, "-c", ONLY_ON_PATH, command, "--config", str(config)],
        env={**os.environ, "PATH": str(path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


def test_scripts_of_pynetdicom_are_passed_over(daemon: StartDaemon, pacs: RunningPacs, tmp_path: Path) -> None:
    """With a virtual environment's programs of the same names first on PATH, DCMTK's own do the work."""
    scripts = Path(sys.executable).parent
    assert (scripts / "findscu").exists()
    for name in DAEMON_TOOLS:
        _script(tmp_path / "first", name, "usage: findscu.py [options] addr port")
    env = {"PATH": f"{tmp_path / 'first'}:{scripts}:{os.environ['PATH']}"}
    node = {"aet": pacs.aet, "host": "127.0.0.1", "port": pacs.port, "incoming_store_port": free_port()}
    running = daemon(backends={"pacs": node}, env=env)
    assert running.http("POST", "/dicom/echo").json()["success"] is True
    found = running.http("POST", "/dicom/find", json={"PatientID": "98890234", "level": "STUDY"}).json()
    assert found["complete"] is True
    assert found["count"] > 0


@pytest.mark.parametrize("command", ["run", "check"])
def test_missing_tools_are_named(tmp_path: Path, command: str) -> None:
    """Without DCMTK, run and check name every program that is missing, and say how to install them."""
    _script(tmp_path / "bin", "findscu", "usage: findscu.py [options] addr port")
    backends = {"pacs": {"aet": "PACS", "host": "127.0.0.1", "port": 104}}
    ended = _harmonyd(command, write_config(tmp_path, http_port=free_port(), backends=backends), tmp_path / "bin")
    said = ended.stdout + ended.stderr
    assert ended.returncode == 1, said
    for name in DAEMON_TOOLS:
        assert f"{name} not found" in said
    assert "apt-get install dcmtk" in said
    assert "brew install dcmtk" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("command", ["run", "check"])
def test_old_tools_are_named(tmp_path: Path, command: str) -> None:
    """A DCMTK that is too old is named with its version and its place, and what would do."""
    for name in DAEMON_TOOLS:
        _script(tmp_path / "bin", name, f"$dcmtk: {name} v3.6.5 2019-10-28 $")
    backends = {"pacs": {"aet": "PACS", "host": "127.0.0.1", "port": 104}}
    ended = _harmonyd(command, write_config(tmp_path, http_port=free_port(), backends=backends), tmp_path / "bin")
    said = ended.stdout + ended.stderr
    assert ended.returncode == 1, said
    assert f"findscu is too old ({tmp_path / 'bin' / 'findscu'} is 3.6.5)" in said
    assert "DCMTK 3.6.7 or later" in said
    assert "Traceback" not in said


def test_no_dicom_needs_no_tools(tmp_path: Path) -> None:
    """A configuration without any dicom service is fine on a machine without DCMTK."""
    config = write_config(tmp_path, http_port=free_port(), backends={"echo": {"service": "echo"}})
    ended = _harmonyd("check", config, tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
