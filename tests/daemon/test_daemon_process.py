"""The process: what keeps it from starting is said in a sentence, never with a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from harmonyd.testing.config_files import write_config
from harmonyd.testing.processes import free_port

ECHO = {"echo": {"service": "echo"}}


def _run(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harmonyd", "run", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_storage_path_that_is_a_file(tmp_path: Path) -> None:
    """A storage path that cannot be a folder is named; the exit status is 1."""
    (tmp_path / "file").write_bytes(b"")
    storage = {"storage": {"options": {"path": str(tmp_path / "file")}}}
    ran = _run(write_config(tmp_path, http_port=free_port(), backends=ECHO, sections=storage))
    assert ran.returncode == 1
    assert str(tmp_path / "file") in ran.stderr
    assert "Traceback" not in ran.stderr


def test_stopped_while_it_starts(tmp_path: Path) -> None:
    """A signal before it is up stops it all the same."""
    config = write_config(tmp_path, http_port=free_port(), backends=ECHO)
    command = [sys.executable, "-m", "harmonyd", "run", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()  # the first line comes while it starts
        os.kill(process.pid, signal.SIGTERM)
        said += process.stdout.read()
        assert process.wait(30) == 0
    assert "Traceback" not in said
