"""Messages to systemd: one datagram each, to a path or an abstract socket; never in the way."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from harmonyd.telemetry.notify import Notifier, watchdog_secs


class Manager:
    """The socket that systemd listens on."""

    def __init__(self, address: str | bytes) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.setblocking(False)

    def heard(self) -> list[list[str]]:
        """The lines of each datagram since the last call."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(65536).decode().split("\n"))
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "notify")


@pytest.fixture
def manager(path: str) -> Iterator[Manager]:
    listening = Manager(path)
    yield listening
    listening.close()


def test_the_life_of_a_daemon(manager: Manager, path: str) -> None:
    """Each message is one datagram of assignments, with the status where it changes."""
    notifier = Notifier(path)
    notifier.more_time(90.5)
    notifier.status("Starting")
    notifier.ready("Serving")
    notifier.alive()
    notifier.stopping("Stopping")
    assert manager.heard() == [
        ["EXTEND_TIMEOUT_USEC=90500000"],
        ["STATUS=Starting"],
        ["READY=1", "STATUS=Serving"],
        ["WATCHDOG=1"],
        ["STOPPING=1", "STATUS=Stopping"],
    ]


def test_reloading_comes_with_the_time(manager: Manager, path: str) -> None:
    """RELOADING=1 and the microseconds of the monotonic clock are in one datagram."""
    Notifier(path, monotonic_ns=lambda: 12_345_678_999).reloading("Reloading")
    assert manager.heard() == [["RELOADING=1", "MONOTONIC_USEC=12345678", "STATUS=Reloading"]]


def test_the_same_status_is_told_once(manager: Manager, path: str) -> None:
    """Only a change is a message, also after a status that came with another message."""
    notifier = Notifier(path)
    notifier.ready("Serving")
    for text in ("Serving", "Degraded", "Degraded", "Serving"):
        notifier.status(text)
    assert manager.heard() == [["READY=1", "STATUS=Serving"], ["STATUS=Degraded"], ["STATUS=Serving"]]


def test_a_status_is_one_short_line(manager: Manager, path: str) -> None:
    """Nothing in a text can add an assignment of its own, and its length has a limit."""
    Notifier(path).status("a\nMAINPID=1\r\n\x1b[31m\u2028" + "b" * 1000)
    [[line]] = manager.heard()
    assert line.startswith("STATUS=a MAINPID=1 [31m b")
    assert len(line) < 450


def test_an_abstract_socket(path: str) -> None:
    """An address that starts with @ is in the abstract name space (unix(7))."""
    name = f"harmonyd-test-{uuid.uuid4()}"
    manager = Manager(b"\0" + name.encode())
    Notifier(f"@{name}").alive()
    assert manager.heard() == [["WATCHDOG=1"]]
    manager.close()


@pytest.mark.parametrize("address", [None, ""])
def test_without_a_manager_nothing_happens(address: str | None) -> None:
    """Outside systemd every call is allowed, and none has an effect."""
    notifier = Notifier(address)
    notifier.ready("Serving")
    notifier.stopping("Stopping")
    assert not notifier.enabled


def test_a_manager_that_is_gone_is_no_error(tmp_path: Path) -> None:
    """A socket that nobody listens on does not raise."""
    Notifier(str(tmp_path / "gone")).ready("Serving")


def test_a_manager_that_does_not_read_does_not_block_us(manager: Manager, path: str) -> None:
    """With its queue full, messages are dropped."""
    notifier = Notifier(path)
    for _ in range(2000):
        notifier.alive()
    assert 0 < len(manager.heard()) < 2000
    notifier.alive()
    assert manager.heard() == [["WATCHDOG=1"]]


def test_the_environment_is_taken(manager: Manager, path: str) -> None:
    """The variables are read once and removed, so that no child can speak in our name."""
    environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid()), "LANG": "C"}
    notifier = Notifier.from_environment(environ)
    assert environ == {"LANG": "C"}
    assert notifier.watchdog_secs == 20.0
    notifier.alive()
    assert manager.heard() == [["WATCHDOG=1"]]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "500000"}, 0.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_who_the_watchdog_waits_for(environ: dict[str, str], expected: float | None) -> None:
    """The variables count only when they are meant for this process, and make sense."""
    assert watchdog_secs(environ, 7) == expected
