"""The lock on a storage path: one holder at a time, who is named, and never a stale one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harmonyd.daemon.lock import AlreadyRunning, RunLock
from harmonyd.testing.processes import wait_until

HOLD = "import sys, pathlib, harmonyd.daemon.lock as l; l.RunLock(pathlib.Path(sys.argv[1])).take(); sys.stdin.read()"


def _held_by_another(path: Path) -> bool:
    try:
        lock = RunLock(path)
        lock.take()
    except AlreadyRunning:
        return True
    lock.release()
    return False


def test_taken_and_released(tmp_path: Path) -> None:
    """The folder is made, the file says who holds it, and after the release the next one takes it."""
    path = tmp_path / "run" / "harmonyd.lock"
    first, second = RunLock(path), RunLock(path)
    first.take()
    assert path.read_text() == f"{os.getpid()}\n"
    with pytest.raises(AlreadyRunning):
        second.take()
    first.release()
    second.take()
    second.release()


def test_the_holder_is_named(tmp_path: Path) -> None:
    """The error has the other's pid, where the lock is, and what to do."""
    path = tmp_path / "harmonyd.lock"
    lock = RunLock(path)
    lock.take()
    with pytest.raises(AlreadyRunning) as caught:
        RunLock(path).take()
    lock.release()
    assert f"pid {os.getpid()}" in caught.value.detail
    assert str(path) in caught.value.detail
    assert caught.value.hint


def test_a_killed_holder_leaves_nothing(tmp_path: Path) -> None:
    """The lock of a process that was killed is free at once, although its pid is still in the file."""
    path = tmp_path / "harmonyd.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE) as holder:
        wait_until(lambda: path.exists() and _held_by_another(path), "the other process has the lock", 30)
        holder.kill()
    assert path.read_text() == f"{holder.pid}\n"
    lock = RunLock(path)
    lock.take()
    assert path.read_text() == f"{os.getpid()}\n"
    lock.release()


def test_release_without_having_taken(tmp_path: Path) -> None:
    """Releasing is safe at any time, and twice."""
    lock = RunLock(tmp_path / "harmonyd.lock")
    lock.release()
    lock.take()
    lock.release()
    lock.release()


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    """A folder that cannot be made is an OSError that names it."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        RunLock(tmp_path / "file" / "harmonyd.lock").take()
