"""Ports, process groups and waiting, for tests that run real programs. Everything here blocks: not for the daemon."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import psutil

from harmonyd.dimse.dcmtk.tools import find_tool

ResultT = TypeVar("ResultT")

# Below the range the kernel takes the ports of outgoing connections from, so that none of those takes ours.
_PORTS = range(20000, 32000)
_given_out: set[int] = set()


@cache
def dcmtk(name: str) -> str:
    """Path of one of DCMTK's own programs. Raises ``ToolMissing``."""
    return str(find_tool(name))


def free_port() -> int:
    """A TCP port on which nothing listens, and that this process has not been given before.

    The workers of one parallel run (pytest-xdist) each have a share of the ports, so that none takes another's.
    """
    share = _share()
    for port in random.sample(share, k=200):
        if port not in _given_out and _can_bind(port, reuse=False):
            _given_out.add(port)
            return port
    raise RuntimeError(f"no free TCP port found between {share.start} and {share.stop}")


def _share() -> range:
    """The ports of this worker, one of ``PYTEST_XDIST_WORKER_COUNT``; all of them in a run without workers."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return _PORTS[worker % count :: count]


def port_is_free(port: int) -> bool:
    """Whether nothing listens on ``port``; connections that are just closing do not count."""
    return _can_bind(port, reuse=True)


def _can_bind(port: int, *, reuse: bool) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        try:
            probe.bind(("", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def wait_until(condition: Callable[[], ResultT], what: str, timeout_secs: float = 30.0) -> ResultT:
    """Poll ``condition`` until it is true and return its value; ``TimeoutError`` that says ``what`` did not happen."""
    give_up = time.monotonic() + timeout_secs
    while not (value := condition()):
        if time.monotonic() > give_up:
            raise TimeoutError(f"not within {timeout_secs:g} s: {what}")
        time.sleep(0.01)
    return value


def group_members(group: int) -> list[int]:
    """The pids in a process group, without zombies."""
    return [process.pid for process in psutil.process_iter() if _group_of(process) == group]


def _group_of(process: psutil.Process) -> int | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getpgid(process.pid)
    except (psutil.Error, ProcessLookupError):
        return None


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group; a group that is gone is fine."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def end_group(process: subprocess.Popen[bytes], grace_secs: float = 5.0) -> int:
    """TERM to the group that ``process`` leads, KILL after the grace; its exit code, when the whole group is gone."""
    signal_group(process.pid, signal.SIGTERM)
    try:
        process.wait(grace_secs)
        wait_until(lambda: not group_members(process.pid), "the group ends after TERM", grace_secs)
    except (subprocess.TimeoutExpired, TimeoutError):
        signal_group(process.pid, signal.SIGKILL)
        process.wait()
        wait_until(lambda: not group_members(process.pid), f"process group {process.pid} is gone", grace_secs)
    return process.returncode


def log_tail(path: Path, lines: int = 40) -> str:
    """The last lines of a log file, for a failure message."""
    if not path.exists():
        return f"({path.name} was never written)"
    return "\n".join(path.read_text("utf-8", "replace").splitlines()[-lines:])
