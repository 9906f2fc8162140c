"""A network in memory on a ``Clock``, and remote nodes on it that do only what a test has them do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import IHostnameResolver, IReactorPluggableNameResolver, IReactorTCP
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from harmonyd.dimse.native import core

BUFFER_BYTES = 64 * 1024
"""What a transport takes before it pauses its producer."""


@implementer(IReactorTCP, IReactorPluggableNameResolver, IHostnameResolver)
class FakeNet(Clock):
    """A reactor with connections that are ``links``, and threads that do their work at once."""

    def __init__(self) -> None:
        super().__init__()
        self.nameResolver = self
        self.links: list[Link] = []
        self.connectors: list[Connector] = []
        self.is_quiet = True
        """Every connection attempt is answered at once."""
        self._todo: deque[Callable[[], None]] = deque()

    @property
    def open_links(self) -> list[Link]:
        return [link for link in self.links if not link.is_gone]

    def soon(self, function: Callable[[], None]) -> None:
        """As in ``settle``."""
        self._todo.append(function)

    def settle(self) -> None:
        """Carry everything that is on its way."""
        while self._todo:
            self._todo.popleft()()

    # --- IHostnameResolver

    def resolveHostName(self, receiver: Any, hostName: str, portNumber: int = 0, *_: Any, **__: Any) -> Any:  # noqa: N803
        receiver.resolutionBegan(None)
        receiver.addressResolved(IPv4Address("TCP", "10.0.0.2", portNumber))
        receiver.resolutionComplete()
        return receiver

    # --- IReactorTCP

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None) -> Any:  # noqa: N803
        connector = Connector(self, host, port, factory, timeout)
        self.connectors.append(connector)
        factory.doStart()
        factory.startedConnecting(connector)
        if self.is_quiet:
            self.soon(connector.succeed)
        return connector

    def listenTCP(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    # --- threads

    def getThreadPool(self) -> Any:
        return self

    def callInThreadWithCallback(self, result: Callable[..., None], function: Callable[..., Any], *args: Any) -> None:
        try:
            value = function(*args)
        except BaseException:  # noqa: BLE001 - as a thread pool
            result(False, Failure())
        else:
            result(True, value)

    def callFromThread(self, function: Callable[..., None], *args: Any) -> None:
        self.soon(lambda: function(*args))


class Connector:
    """A connection that is being made."""

    def __init__(self, net: FakeNet, host: str, port: int, factory: Any, timeout_secs: float) -> None:
        self.net, self.host, self.port, self.factory = net, host, port, factory
        self._timeout = net.callLater(timeout_secs, self.fail, ConnectionLost())
        self.is_over = False

    def succeed(self) -> None:
        """The peer accepts the connection."""
        if not self._end():
            return
        protocol = self.factory.buildProtocol(self.getDestination())
        if protocol is not None:
            link = Link(self.net, self.port, protocol)
            self.net.links.append(link)
            protocol.makeConnection(link)

    def refuse(self) -> None:
        self.fail(ConnectionRefusedError())

    def fail(self, error: Exception) -> None:
        if self._end():
            self.factory.clientConnectionFailed(self, Failure(error))

    def _end(self) -> bool:
        was_over, self.is_over = self.is_over, True
        if self._timeout.active():
            self._timeout.cancel()
        return not was_over

    def stopConnecting(self) -> None:
        self._end()

    disconnect = stopConnecting

    def getDestination(self) -> IPv4Address:
        return IPv4Address("TCP", self.host, self.port)


class Link:
    """Our transport, and the peer behind it, which reads and answers only when it is told to."""

    def __init__(self, net: FakeNet, port: int, protocol: Any) -> None:
        self.net, self.port, self._protocol = net, port, protocol
        self.is_gone = False
        self.peer = core.Association.acceptor(16384)
        self.heard: list[core.Event] = []
        """By the peer."""
        self.is_peer_reading = True
        self.max_held_bytes = 0
        self._out = bytearray()
        self._in = bytearray()
        self._is_paused = False
        self._producer: Any = None
        self._closes = ""
        self._is_peer_over = False

    # --- ITransport

    def write(self, data: bytes) -> None:
        if not self.is_gone and not self._closes:
            self._out += data
            self.max_held_bytes = max(self.max_held_bytes, len(self._out))
            if len(self._out) > BUFFER_BYTES and self._producer is not None:
                self._producer.pauseProducing()
            self.net.soon(self._deliver)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None

    def pauseProducing(self) -> None:
        self._is_paused = True

    def resumeProducing(self) -> None:
        self._is_paused = False
        self.net.soon(self._give)

    def loseConnection(self) -> None:
        self._closes = "both"
        self.net.soon(self._deliver)

    def loseWriteConnection(self) -> None:
        self._closes = self._closes or "ours"
        self.net.soon(self._deliver)

    def abortConnection(self) -> None:
        self.net.soon(lambda: self._lose(ConnectionLost()))

    def setTcpNoDelay(self, on: bool) -> None: ...

    def setTcpKeepAlive(self, on: bool) -> None: ...

    def getHandle(self) -> None: ...

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "10.0.0.1", self.port)

    # --- between the two

    def _deliver(self) -> None:
        if self.is_gone or not self.is_peer_reading:
            return
        data, was_full = bytes(self._out), len(self._out) > BUFFER_BYTES
        self._out.clear()
        if data:
            self.heard += self.peer.receive(data)
            self._answer()
        if was_full and self._producer is not None:
            self._producer.resumeProducing()
        if self._closes and not self._out:
            self.heard += self.peer.receive_eof()
            self.drop()

    def _answer(self) -> None:
        """What the peer has to say, and what follows from it."""
        if self._is_peer_over:
            return
        self._in += self.peer.data_to_send()
        self._is_peer_over = self.peer.closing and not self.peer.artim
        self.net.soon(self._give)

    def _give(self) -> None:
        if self.is_gone or self._is_paused:
            return
        data = bytes(self._in)
        self._in.clear()
        if data:
            self._protocol.dataReceived(data)
        if self._is_peer_over and not self._in and not self._is_paused:
            self._lose(ConnectionDone())

    def _lose(self, error: Exception) -> None:
        if not self.is_gone:
            self.is_gone = True
            self._protocol.connectionLost(Failure(error))

    # --- what the peer does

    def drop(self) -> None:
        """The peer closes the connection."""
        self._is_peer_over = True
        self.net.soon(self._give)

    def say(self) -> None:
        """Send what ``peer`` was made to say."""
        self._answer()

    def read_on(self) -> None:
        """The peer reads again."""
        self.is_peer_reading = True
        self.net.soon(self._deliver)

    def accept(self) -> None:
        """Everything that is proposed, in the first transfer syntax; with all the roles."""
        request = self.peer.request
        assert request is not None

        def support(uid: str) -> core.Support:
            syntaxes = [syntax for each in request.contexts for syntax in each.transfer_syntaxes]
            return core.Support(tuple(dict.fromkeys(syntaxes)), requestor_scp=True)

        self.peer.accept(core.negotiate(request.contexts, support, request.user_information.roles))
        self.say()
