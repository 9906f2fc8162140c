"""Who holds a port."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from harmonyd.supervision import ports, socket_diag
from harmonyd.supervision.ports import (
    command,
    command_line,
    connected_by_session,
    established,
    holder_text,
    owned_by_session,
    problem_text,
    socket_between,
    try_port,
)
from harmonyd.testing.processes import free_port

LISTEN = "import socket,sys; s=socket.create_server(('127.0.0.1',int(sys.argv[1]))); print('up',flush=True); input()"


@pytest.fixture
def stranger() -> Iterator[tuple[int, int]]:
    """A process of somebody else, in its own session, that listens: (port, pid)."""
    port = free_port()
    argv = [sys.executable, "-c", LISTEN, str(port)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield port, process.pid
        process.communicate(b"\n")


def test_a_strangers_port_is_named(stranger: tuple[int, int]) -> None:
    """The holder's pid and command line are told, and what to do."""
    port, pid = stranger
    error = try_port(port)
    assert error is not None and error.errno == errno.EADDRINUSE
    assert f"port {port} is held by pid {pid} ({sys.executable} -c" in problem_text(port, error)
    assert "end it, or configure another port" in holder_text(port)


def test_the_owner_of_a_port_is_told_by_its_session(stranger: tuple[int, int]) -> None:
    """Only the session that listens owns the port."""
    port, pid = stranger
    assert owned_by_session(port, pid)
    assert not owned_by_session(port, os.getsid(0))
    assert not owned_by_session(free_port(), pid)


def test_a_free_port_is_no_problem() -> None:
    """Nothing is said of a port that can be used, and trying it leaves it free."""
    port = free_port()
    assert try_port(port) is None
    assert try_port(port) is None
    assert "gone now" in holder_text(port)


def test_a_port_that_may_not_be_used_is_explained() -> None:
    """A privileged port says what the user can change; any other trouble is told by its name."""
    assert "use one from 1024 on" in problem_text(104, PermissionError(errno.EACCES, "Permission denied"))
    assert "No buffer space" in problem_text(104, OSError(errno.ENOBUFS, "No buffer space available"))


def test_established_connections_are_counted(stranger: tuple[int, int]) -> None:
    """An open connection to the port counts, whether it was accepted or not; a closed one does not."""
    port, _ = stranger
    with closing(socket.create_connection(("127.0.0.1", port))):
        assert established(port) == 1
    assert established(port) == 0


def test_command_lines_are_printable(stranger: tuple[int, int]) -> None:
    """What is shown has no control characters and a bounded length; a process that is gone has none."""
    _, pid = stranger
    assert command(pid)[0] == sys.executable
    with subprocess.Popen(["sleep", "100", "\x1b\n"]) as process:
        try:
            assert "\x1b" not in command_line(process.pid)
        finally:
            process.kill()
    assert command(process.pid) == ()
    assert command_line(process.pid) == "?"
    assert len(command_line(os.getpid())) <= 201


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket, socket.socket]]:
    """A listener, who connected to it, and the accepted end."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as caller,
        server.accept()[0] as accepted,
    ):
        yield server, caller, accepted


def test_the_kernel_tells_of_a_connection_what_its_table_does(
    pair: tuple[socket.socket, socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for one connection, and where that is not allowed, by its table of all: the same socket at either end."""
    _, caller, accepted = pair
    here, there = caller.getsockname(), caller.getpeername()
    inodes = [str(os.fstat(each.fileno()).st_ino) for each in (caller, accepted)]
    asked = [socket_between(here, there), socket_between(there, here)]
    assert connected_by_session(here, there, os.getsid(0))

    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not allowed")

    monkeypatch.setattr(socket_diag, "connection", refused)
    assert [socket_between(here, there), socket_between(there, here)] == asked
    told = [(found.inode, found.uid, found.state) for found in asked if found]
    assert told == [(inode, os.getuid(), "01") for inode in inodes]


def test_a_listener_is_not_taken_for_a_connection(pair: tuple[socket.socket, socket.socket, socket.socket]) -> None:
    """Of an end that nobody has connected from, the kernel finds the listener; that is no answer."""
    server = pair[0]
    with pytest.raises(OSError, match=r"another socket|No such file"):
        socket_diag.connection(server.getsockname(), ("127.0.0.1", 1))
    assert socket_between(server.getsockname(), ("127.0.0.1", 1)) is None
    assert ports.connected_by_text(server.getsockname(), ("127.0.0.1", 1)) == "a process that has closed it since"
