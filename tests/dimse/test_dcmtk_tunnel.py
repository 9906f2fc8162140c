"""The way of a DCMTK program to a node with TLS: for that program alone, no faster than its ends, and gone with it."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytest_twisted
from engine_kit import Asking
from raw_scp import Raw
from tls_kit import tls_socket
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.testing import StringTransport

from harmonyd.dimse.accepting import Refusal
from harmonyd.dimse.dcmtk.relay import End
from harmonyd.dimse.dcmtk.tunnel import MAX_UNKNOWN, Tunnel, open_tunnel
from harmonyd.dimse.errors import DimseTimeout
from harmonyd.errors import DeadlinePassed
from harmonyd.supervision.api import OnceChild, OnceSpec
from harmonyd.testing.certificates import Authority, Issued, server_context
from harmonyd.tls import TlsClient

Eventually = Callable[[Callable[[], object]], Awaitable[None]]
TALK = "import socket; s = socket.create_connection(('127.0.0.1', {port})); s.sendall(b'hello'); print(s.recv(100))"


of_dcmtk = pytest.mark.parametrize("asking", ["dcmtk"], indirect=True)
"""The native engine needs no tunnel."""


@contextmanager
def answering(context: ssl.SSLContext) -> Iterator[Any]:
    """A node over TLS that says "welcome" to each caller that says something, and keeps what it was told."""
    raw = Raw()
    raw.heard = []  # type: ignore[attr-defined]

    def serve() -> None:
        while True:
            try:
                sock, _ = raw.socket.accept()
                with context.wrap_socket(sock, server_side=True) as secure:
                    while data := secure.recv(1000):
                        raw.heard.append(data)  # type: ignore[attr-defined]
                        secure.sendall(b"welcome")
            except OSError:
                if raw.socket.fileno() < 0:
                    return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield raw
    raw.socket.shutdown(socket.SHUT_RDWR)
    raw.close()
    thread.join(10)


def started(asking: Asking, tunnel: Tunnel, program: str, stdin: int | None = None) -> OnceChild:
    """A child of ours that is let in."""
    child = asking.supervisor.run_once(OnceSpec("talk", (sys.executable, "-c", program), stdin=stdin))
    tunnel.admit(child, "talk")
    return child


def foreign(port: int) -> bytes:
    """What another process gets that connects and speaks first. Blocking."""
    program = TALK.format(port=port)
    return subprocess.run([sys.executable, "-c", program], check=False, capture_output=True).stdout


def connected(port: int) -> bytes:
    """What we get ourselves, who are not the child either. Blocking."""
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        try:
            sock.sendall(b"intruder")
            return sock.recv(100)
        except ConnectionError:
            return b""


@of_dcmtk
@pytest_twisted.ensureDeferred
async def test_for_the_child_alone(asking: Asking, ca: Authority, server: Issued, told: Any) -> None:
    """Other processes get nothing, and nothing of theirs reaches the node; the log names them."""
    refused: list[Refusal] = []
    with answering(server_context(server)) as node:
        remote = asking.node(node, tls=TlsClient(ca.cert))
        tunnel = await open_tunnel(asking.reactor, remote, asking.reactor.seconds() + 20, refused.append)
        reading, gate = os.pipe()
        child = started(asking, tunnel, f"input(); {TALK.format(port=tunnel.port)}", reading)
        os.close(reading)
        assert await asking.in_thread(foreign, tunnel.port) == b""
        assert await asking.in_thread(connected, tunnel.port) == b""
        assert told("warn: security: pid ")
        assert told("has connected to the port that is for talk alone; it was turned away")
        assert [(each.peer, each.port) for each in refused] == [("127.0.0.1", tunnel.port)] * 2
        assert all("is not talk, which it is for" in each.text for each in refused)
        os.write(gate, b"\n")
        os.close(gate)
        record = await child.exited
        assert record.output == b"b'welcome'\n"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", tunnel.port))
        await tunnel.end()
        assert node.heard == [b"hello"]


@of_dcmtk
@pytest_twisted.ensureDeferred
async def test_a_crowd(asking: Asking, ca: Authority, server: Issued, eventually: Eventually) -> None:
    """Many who have come before keep the child out for no longer than it takes to look at them."""
    with answering(server_context(server)) as node:
        remote = asking.node(node, tls=TlsClient(ca.cert))
        tunnel = await open_tunnel(asking.reactor, remote, asking.reactor.seconds() + 20)
        crowd = [socket.socket() for _ in range(3 * MAX_UNKNOWN)]
        for sock in crowd:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", tunnel.port))
        child = started(asking, tunnel, TALK.format(port=tunnel.port))
        record = await child.exited
        assert record.output == b"b'welcome'\n"
        await tunnel.end()
        assert node.heard == [b"hello"]
        for sock in crowd:
            sock.close()


@of_dcmtk
@pytest_twisted.ensureDeferred
async def test_a_node_that_says_nothing(asking: Asking, ca: Authority, server: Issued) -> None:
    """The operation's deadline ends program and tunnel; so does the program's own patience."""
    with tls_socket(server_context(server)) as silent:
        node = asking.node(silent, tls=TlsClient(ca.cert), association_timeout_secs=1.0)
        with pytest.raises(DeadlinePassed) as late:
            await asking.engine.echo(node, asking.op(0.4))
        assert late.value.extra["timeout"] == "operation"
        with pytest.raises(DimseTimeout) as error:
            await asking.engine.echo(node, asking.op())
        assert error.value.extra["timeout"] == "association"
        assert not asking.left()


@of_dcmtk
@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves(asking: Asking, ca: Authority, server: Issued, eventually: Eventually) -> None:
    """An operation that is cancelled takes program and tunnel with it."""
    with tls_socket(server_context(server)) as silent:
        waiting = Deferred.fromCoroutine(
            asking.engine.echo(asking.node(silent, tls=TlsClient(ca.cert)), asking.op())
        )
        await eventually(lambda: silent.ends)
        waiting.cancel()
        with pytest.raises(CancelledError):
            await waiting
        await eventually(lambda: not asking.left() and not asking.supervisor.once_children())


# --- the relay


class Joined:
    """Two ends over transports that a test looks into."""

    def __init__(self, reactor: Any) -> None:
        self.ends = End(reactor), End(reactor)
        self.transports = StringTransport(), StringTransport()
        for end, transport in zip(self.ends, self.transports, strict=True):
            end.wire = lambda: NoSocket  # type: ignore[method-assign]
            end.makeConnection(transport)


class NoSocket:
    """Where a transport has its socket."""

    family = socket.AF_UNIX

    @classmethod
    def getHandle(cls) -> type[NoSocket]:
        return cls


def test_what_came_before() -> None:
    """It is read no further, and not lost when the other end comes."""
    joined = Joined(None)
    one, other = joined.ends
    one.dataReceived(b"first")
    assert joined.transports[0].producerState == "paused"
    one.join(other)
    assert joined.transports[1].value() == b"first"
    assert joined.transports[0].producerState == "producing"


def test_back_pressure() -> None:
    """An end that takes no more pauses the other one, in both directions."""
    joined = Joined(None)
    joined.ends[0].join(joined.ends[1])
    for taking, giving in ((0, 1), (1, 0)):
        producer = joined.transports[taking].producer
        assert joined.transports[taking].streaming
        producer.pauseProducing()
        assert joined.transports[giving].producerState == "paused"
        producer.resumeProducing()
        assert joined.transports[giving].producerState == "producing"


def test_the_end_of_one() -> None:
    """It is the other's, once that has what was said."""
    joined = Joined(None)
    one, other = joined.ends
    one.join(other)
    one.dataReceived(b"last words")
    one.connectionLost()
    assert joined.transports[1].value() == b"last words"
    assert joined.transports[1].disconnecting
    assert joined.transports[1].producer is None


def test_joined_too_late() -> None:
    """An end whose connection is gone already ends the other."""
    joined = Joined(None)
    one, other = joined.ends
    one.dataReceived(b"last words")
    one.connectionLost()
    one.join(other)
    assert joined.transports[1].value() == b"last words"
    assert joined.transports[1].disconnecting
