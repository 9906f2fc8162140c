"""Where the control interface listens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import closing

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from harmonyd.control.listening import CannotControl
from harmonyd.testing.processes import free_port

LISTEN_AND_DIE = """
import os, signal, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("mode", [0o660, 0o600, 0o666])
@pytest_twisted.ensureDeferred
async def test_the_socket_has_the_mode_that_was_set(serve, folder, mode) -> None:
    """Whatever the umask is; and the umask is as before."""
    before = os.umask(0o027)
    try:
        await serve(mode=mode)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (folder / "control.sock").stat().st_mode & 0o777 == mode


@pytest_twisted.ensureDeferred
async def test_a_folder_that_is_not_there_is_made(serve, folder) -> None:
    """The first start needs no preparation."""
    await serve(socket=folder / "run" / "h" / "c.sock")
    assert (folder / "run" / "h" / "c.sock").is_socket()


@pytest_twisted.ensureDeferred
async def test_the_socket_of_a_dead_daemon_is_replaced(serve, folder) -> None:
    """One that SIGKILL left behind does not stop the next start."""
    killed = await deferToThread(
        subprocess.run, [sys.executable, "-c", LISTEN_AND_DIE, str(folder / "control.sock")], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert (folder / "control.sock").is_socket()
    assert await (await serve()).call("supervisor.getVersion") == "3.0"


@pytest_twisted.ensureDeferred
async def test_the_socket_of_a_living_daemon_is_never_replaced(serve) -> None:
    """The second says so; the first goes on, also when the second is told to stop."""
    client = await serve()
    with pytest.raises(CannotControl, match="Another process listens"):
        await serve()
    assert await client.call("supervisor.getVersion") == "3.0"


@pytest_twisted.ensureDeferred
async def test_one_that_listens_and_does_not_accept_is_alive(serve, folder) -> None:
    """A daemon that is busy, or stopped in a debugger, is not dead."""
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(folder / "control.sock"))
        listener.listen(0)
        with closing(socket.socket(socket.AF_UNIX)) as waiting:
            waiting.connect(str(folder / "control.sock"))
            with pytest.raises(CannotControl, match="Another process listens"):
                await serve()


@pytest_twisted.ensureDeferred
async def test_what_is_no_socket_is_not_removed(serve, folder) -> None:
    """A mistyped path costs nobody a file."""
    (folder / "control.sock").write_text("precious")
    with pytest.raises(CannotControl, match="no socket"):
        await serve()
    assert (folder / "control.sock").read_text() == "precious"


@pytest_twisted.ensureDeferred
async def test_a_folder_that_cannot_be_used(serve, folder) -> None:
    """Said with the reason, and what to change."""
    (folder / "file").touch()
    with pytest.raises(CannotControl, match="Cannot listen") as caught:
        await serve(socket=folder / "file" / "c.sock")
    assert "[control]" in caught.value.hint


@pytest_twisted.ensureDeferred
async def test_the_socket_goes_with_its_server(serve, folder) -> None:
    """Removed at stop; one that is gone, or was replaced by somebody, does no harm."""
    client = await serve()
    await client.server.stop()
    assert not (folder / "control.sock").exists()
    client = await serve()
    (folder / "control.sock").unlink()
    await client.server.stop()
    client = await serve()
    (folder / "control.sock").unlink()
    (folder / "control.sock").write_text("somebody else's")
    await client.server.stop()
    assert (folder / "control.sock").exists()


@pytest_twisted.ensureDeferred
async def test_a_taken_tcp_port_is_told_with_its_holder(serve) -> None:
    """As for every port: who has it, and what to change."""
    port = free_port()
    with closing(socket.socket()) as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        with pytest.raises(CannotControl, match=rf"port {port} is held by pid {os.getpid()}"):
            await serve(bind_address="127.0.0.1", bind_port=port, username="a", password="b")


@pytest_twisted.ensureDeferred
async def test_stop_closes_idle_connections(serve) -> None:
    """A client that keeps its connection does not hold the daemon up."""
    client = await serve()
    with closing(socket.socket(socket.AF_UNIX)) as idle:
        idle.connect(str(client.path))
        assert await client.call("supervisor.getVersion") == "3.0"
        await client.server.stop()
        assert idle.recv(1) == b""
