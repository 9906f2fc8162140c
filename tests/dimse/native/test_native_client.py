"""Opening and ending an association: addresses, the limits of time in each phase, and what is left behind."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from raw_scp import Raw
from scu_kit import Scu
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.errors import AssociationAborted, DimseTimeout, NonsenseAnswer, RemoteUnreachable
from harmonyd.dimse.native import core, find, names
from harmonyd.dimse.native.client import ClientAssociation, open_association
from harmonyd.errors import DeadlinePassed, Unavailable
from harmonyd.testing.processes import free_port

VERIFICATION = [(names.VERIFICATION, names.UNCOMPRESSED)]


@pytest.fixture
def raw() -> Iterator[Any]:
    made: list[Raw] = []

    def start(*args: Any, **kwargs: Any) -> Raw:
        made.append(Raw(*args, **kwargs))
        return made[-1]

    yield start
    for each in made:
        each.close()


async def opened(scu: Scu, node: RemoteNode, secs: float = 10.0) -> ClientAssociation:
    return await open_association(scu.reactor, node, VERIFICATION, scu.reactor.seconds() + secs)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest_twisted.ensureDeferred
async def test_addresses(scu: Scu, peer: Any, host: str) -> None:
    """A node may be named by address or by name, and small messages do not wait for bigger ones."""
    association = await opened(scu, scu.node(peer(), host=host))
    sock = association.connection.transport.getHandle()
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert association.connection.peer == "127.0.0.1"
    await association.release()


@pytest_twisted.ensureDeferred
async def test_ipv6(scu: Scu) -> None:
    """An IPv6 address is one."""
    from pynetdicom import AE

    server: Any = AE("SIX")
    server.add_supported_context(names.VERIFICATION)
    running = server.start_server(("::1", 0), block=False)
    try:
        node = scu.node(host="::1", port=running.server_address[1], aet="SIX")
        assert (await find.echo(scu.means, node, scu.op())).status == 0
        assert scu.pool.idle_count(node) == 1
        await scu.pool.close()
    finally:
        await scu.means.in_thread(running.shutdown)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
@pytest_twisted.ensureDeferred
async def test_refused(scu: Scu, host: str) -> None:
    """Where nobody listens, that is said at once, in words."""
    with pytest.raises(RemoteUnreachable, match="Connection refused"):
        await opened(scu, scu.node(host=host, port=free_port()))


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 300, "\u00e4\u0000b"])
@pytest_twisted.ensureDeferred
async def test_unknown_host(scu: Scu, host: str) -> None:
    """A name without an address, or that cannot be one, is an unknown host."""
    with pytest.raises(RemoteUnreachable, match="unknown"):
        await opened(scu, scu.node(host=host, port=104))


@pytest_twisted.ensureDeferred
async def test_connect_timeout(scu: Scu, raw: Any) -> None:
    """No answer to a connection attempt: a timeout of its own."""
    server = raw(backlog=0)
    server.fill()
    with pytest.raises(DimseTimeout) as raised:
        await opened(scu, scu.node(server, connect_timeout_secs=0.2))
    assert raised.value.extra["timeout"] == "connect"


@pytest_twisted.ensureDeferred
async def test_deadline_while_connecting(scu: Scu, raw: Any) -> None:
    """The operation's deadline is told apart from the connect timeout."""
    server = raw(backlog=0)
    server.fill()
    with pytest.raises(DeadlinePassed) as raised:
        await opened(scu, scu.node(server), secs=0.2)
    assert raised.value.extra["timeout"] == "operation"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("secs", [0.0, 0.1])
@pytest_twisted.ensureDeferred
async def test_cancelled_while_connecting(scu: Scu, raw: Any, host: str, secs: float) -> None:
    """A cancellation is one in every phase, and leaves no attempt behind."""
    server = raw(backlog=0)
    server.fill()
    opening = Deferred.fromCoroutine(opened(scu, scu.node(server, host=host)))
    if secs:
        await deferLater(scu.reactor, secs)
    opening.cancel()
    with pytest.raises(CancelledError):
        await opening


@pytest.mark.parametrize("how", ["timeout", "deadline", "cancel"])
@pytest_twisted.ensureDeferred
async def test_no_answer_to_the_request(scu: Scu, raw: Any, how: str) -> None:
    """A node that connects and does not negotiate is left in time, with an A-ABORT."""
    server = raw()
    node = scu.node(server, association_timeout_secs=0.2 if how == "timeout" else 30.0)
    opening = Deferred.fromCoroutine(opened(scu, node, 0.3 if how == "deadline" else 10))
    connection = await scu.means.in_thread(server.accept)
    if how == "cancel":
        opening.cancel()
    with pytest.raises({"timeout": DimseTimeout, "deadline": DeadlinePassed, "cancel": CancelledError}[how]):
        await opening
    said = await scu.means.in_thread(_all_of, connection)
    assert said.endswith(b"\x07\x00\x00\x00\x00\x04\x00\x00\x00\x00")


def _all_of(connection: socket.socket) -> bytes:
    said = b""
    while piece := connection.recv(65536):
        said += piece
    connection.close()
    return said


@pytest_twisted.ensureDeferred
async def test_a_peer_that_never_lets_go(scu: Scu, raw: Any) -> None:
    """A release that is not answered, and a connection that is not closed, end in seconds; cancelled, even sooner."""
    took = {}
    for cancelled in (True, False):
        server = raw()
        opening = Deferred.fromCoroutine(opened(scu, scu.node(server)))
        connection, acceptor = await scu.means.in_thread(server.negotiate)
        connection.sendall(acceptor.data_to_send())
        association = await opening
        began = scu.reactor.seconds()
        releasing = Deferred.fromCoroutine(association.release())
        if cancelled:
            await deferLater(scu.reactor, 0.1)
            releasing.cancel()
            with pytest.raises(CancelledError):
                await releasing
        else:
            await releasing
        await association.closed
        took[cancelled] = scu.reactor.seconds() - began
    assert took[True] < took[False] < 25


@pytest_twisted.ensureDeferred
async def test_interrupted_while_nobody_waits(scu: Scu, peer: Any) -> None:
    """Whoever uses it next, in whichever way, gets the reason."""
    association = await opened(scu, scu.node(peer()))
    context = association.context(names.VERIFICATION)
    association.interrupt(Unavailable("no more"))
    with pytest.raises(Unavailable):
        association.send(context.id, core.c_echo_rq(1))
    with pytest.raises(Unavailable):
        await association.receive()
    with pytest.raises(Unavailable):
        await association.writable()
    await association.closed


@pytest_twisted.ensureDeferred
async def test_messages_are_bounded(scu: Scu, raw: Any) -> None:
    """What has to be in memory as a whole has a limit."""
    server = raw()
    opening = Deferred.fromCoroutine(opened(scu, scu.node(server)))
    connection, acceptor = await scu.means.in_thread(server.negotiate)
    connection.sendall(acceptor.data_to_send())
    association = await opening
    command = core.Command(core.CommandField.C_FIND_RSP, message_id_being_responded_to=1, status=0xFF00)
    acceptor.send(1, command, has_data=True)
    receiving = Deferred.fromCoroutine(association.response(1))
    pouring = Deferred.fromCoroutine(scu.means.in_thread(_pour, connection, acceptor))
    with pytest.raises(NonsenseAnswer, match="10000000 bytes"):
        await receiving
    await pouring
    await association.closed


def _pour(connection: socket.socket, acceptor: core.Association) -> None:
    try:
        for _ in range(200):
            acceptor.send_data(1, bytes(100_000), False)
            connection.sendall(acceptor.data_to_send())
    except OSError:
        pass
    connection.close()


@pytest.mark.parametrize("goes", [False, True])
@pytest_twisted.ensureDeferred
async def test_gone_before_it_is_used(scu: Scu, raw: Any, eventually: Any, goes: bool) -> None:
    """A peer that releases, and one that goes in the same moment, are both an association that is over."""
    server = raw()
    opening = Deferred.fromCoroutine(opened(scu, scu.node(server)))
    connection, acceptor = await scu.means.in_thread(server.negotiate)
    acceptor.release()
    connection.sendall(acceptor.data_to_send())
    if goes:
        connection.close()
    association = await opening
    await eventually(lambda: association.connection.has_events)
    assert not association.is_open
    with pytest.raises(AssociationAborted):
        await association.receive()
    await association.closed
