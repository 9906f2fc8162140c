"""Two connections that are joined: what comes over one leaves over the other, no faster than that takes it.

What waits in between is bounded by Twisted's transports (64 kB a direction): an end that takes no more pauses the
other.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.tcp import Server
from twisted.python.failure import Failure
from zope.interface import implementer

LAST_WORDS_SECS = 2.0
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


@implementer(IPushProducer)
class End(Protocol):
    """One of the two. ``closed`` fires once, with None, when its connection is gone."""

    transport: Any
    last_words_secs: float | None = None
    """How long the peer may take to take what was said before the end; None: as long as it is there."""

    def __init__(self, reactor: Any) -> None:
        self.closed: Deferred[None] = Deferred()
        self.is_connected = False
        self.reason: BaseException | None = None
        """Why the connection was lost."""
        self.received_bytes = 0
        self._reactor = reactor
        self._other: End | None = None
        self._held = bytearray()
        self._is_finishing = False
        self._end_call: Any = None

    def join(self, other: End) -> None:
        """From now on both are one connection. What one of them had to say before is not lost."""
        for one, two in ((self, other), (other, self)):
            one._other = two
            if one.is_connected:
                one.transport.registerProducer(two, True)
        for one, two in ((self, other), (other, self)):
            if one._held:
                two.transport.write(bytes(one._held))
                one._held.clear()
            if two.is_connected:
                one.resumeProducing()
            else:
                one.finish()

    def finish(self) -> None:
        """Say what is left to be said, and close the connection. Safe at any time."""
        if not self.is_connected or self._is_finishing:
            return
        self._is_finishing = True
        if self.last_words_secs is not None:
            self._end_call = self._reactor.callLater(self.last_words_secs, self.cut)
        self.transport.unregisterProducer()
        self.resumeProducing()  # what the peer still sends is thrown away, so that its end is seen
        self.transport.loseConnection()

    def cut(self) -> None:
        """Close the connection without a word. Safe at any time."""
        if self.is_connected:
            self.transport.abortConnection()

    def wire(self) -> Any:
        """The transport that has the socket."""
        return self.transport

    # --- Protocol

    def connectionMade(self) -> None:
        self.is_connected = True
        sock = self.wire().getHandle()
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def dataReceived(self, data: bytes) -> None:
        self._acknowledge()
        self.received_bytes += len(data)
        if self._other is None:
            self._hold(data)
        elif self._other.is_connected:
            self._other.transport.write(data)

    def _hold(self, data: bytes) -> None:
        """Nobody is there yet to get it."""
        self._held += data
        self.pauseProducing()

    def _acknowledge(self) -> None:
        """At once: a peer with Nagle's algorithm waits for it before it sends the rest of a message."""
        sock = self.wire().getHandle()
        if _QUICKACK is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.is_connected = False
        self.reason = reason.value
        if self._end_call is not None and self._end_call.active():
            self._end_call.cancel()
        if self._other is not None:
            self._other.finish()
        self.closed.callback(None)

    # --- IPushProducer, for the other's transport

    def pauseProducing(self) -> None:
        if self.is_connected:
            self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        if self.is_connected:
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The other is gone: ``finish`` is next."""


class SecureEnd(End):
    """One over the network, that has TLS below it."""

    last_words_secs = LAST_WORDS_SECS
    is_secured = False
    """The handshake is over, and all was well in it."""

    def wire(self) -> Any:
        return self.transport.transport


def attach(reactor: Any, sock: socket.socket, protocol: Any, peer: str = "") -> None:
    """Have a protocol speak over a connected socket from now on. Raises OSError when the peer is gone already."""
    sock.setblocking(False)
    # Twisted asks for its own Port there, and uses it for its log prefix only.
    transport: Any = Server(sock, protocol, (peer, 0), None, sock.fileno(), reactor)  # type: ignore[arg-type]
    transport.repstr = f"<DICOM connection from {peer or 'this machine'}>"
    protocol.makeConnection(transport)
