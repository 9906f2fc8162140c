"""Ports, process groups and waiting."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path

import pytest

from harmonyd.dimse.errors import ToolMissing
from harmonyd.testing import processes

STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.1; done"


def test_free_ports_are_free_and_different() -> None:
    """Each port is handed out once, and can be bound."""
    ports = [processes.free_port() for _ in range(20)]
    assert len(set(ports)) == 20
    assert all(map(processes.port_is_free, ports))


def test_a_port_with_a_listener_is_not_free() -> None:
    """A listener on the loopback address alone makes its port taken."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not processes.port_is_free(listener.getsockname()[1])


def test_waiting_returns_the_value() -> None:
    """The first true value of the condition is returned."""
    values = iter([0, "", None, "there"])
    assert processes.wait_until(lambda: next(values), "a value comes") == "there"


def test_waiting_in_vain_says_for_what() -> None:
    """The error names what did not happen, and how long was waited."""
    with pytest.raises(TimeoutError, match=r"not within 0.05 s: pigs fly"):
        processes.wait_until(lambda: False, "pigs fly", 0.05)


def test_a_group_that_ignores_term_is_killed() -> None:
    """TERM, and after the grace KILL, to the whole group."""
    script = f"({STUBBORN}) & {STUBBORN}"
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert [process.stdout.readline(), process.stdout.readline()] == [b"ready\n"] * 2
    assert len(processes.group_members(process.pid)) >= 2
    assert processes.end_group(process, grace_secs=0.2) == -signal.SIGKILL
    assert processes.group_members(process.pid) == []
    process.stdout.close()


def test_a_group_that_is_gone_can_be_ended() -> None:
    """Ending what has ended already is fine, and gives its exit code."""
    process = subprocess.Popen(["sh", "-c", "exit 4"], start_new_session=True)
    process.wait()
    assert processes.end_group(process) == 4


def test_log_tail_shows_the_end(tmp_path: Path) -> None:
    """The last lines, and a note when there is no such file."""
    log = tmp_path / "x.log"
    assert "never written" in processes.log_tail(log)
    log.write_bytes(b"1\n2\n\xff3\n")
    assert processes.log_tail(log, 2) == "2\n\ufffd3"


def test_only_dcmtks_own_programs_are_taken() -> None:
    """A program that DCMTK does not have is said to be missing."""
    with pytest.raises(ToolMissing):
        processes.dcmtk("dancescu")
