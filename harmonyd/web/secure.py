"""HTTPS: what stands between the wire and an HTTP connection on a network with TLS."""

# mypy: allow-untyped-calls
# (most methods of Twisted's classes have no types)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure

from harmonyd.subject import PeerCertificate
from harmonyd.tls import TlsServer
from harmonyd.tls_port import ServerConnections, certificate_of, handshake_problem, said

PROTOCOLS = (b"http/1.1",)
"""For ALPN (RFC 7301 section 6)."""
OnRefusal = Callable[[str, str], None]
"""Told of an address from which there is no secure connection, and why."""
_LOGGED = 10
_LOGGED_PER_SECS = 60.0


class SecureTransport(BufferingTLSTransport):
    """TLS as the transport of an HTTP connection (``wrappedProtocol``), which has an attribute ``is_secured``."""

    factory: Any
    wrappedProtocol: Any  # noqa: N815
    raw_bytes = b""
    """How the client began, before anything was deciphered."""
    _is_refused = False

    def dataReceived(self, data: bytes) -> None:
        """Decipher; what is not TLS from its first byte is not given to OpenSSL at all."""
        if self._is_refused:
            return
        if not self.raw_bytes:
            self.raw_bytes = data[:3]
            if data[:1] != b"\x16":
                self._refuse(data)
                return
        super().dataReceived(data)

    def _refuse(self, data: bytes) -> None:
        self._is_refused = True
        if not data[:1].isalpha():
            self.abortConnection()
            return
        # Somebody who speaks HTTP can read what is wrong. That it ends is seen to by the connection inside.
        wire(self).write(self.factory.plain_answer())
        wire(self).loseWriteConnection()

    def loseWriteConnection(self) -> None:
        """Send close_notify; what the client still sends is read until it closes, too (RFC 8446 section 6.1)."""
        self.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell of a handshake that did not come to its end."""
        if not self.wrappedProtocol.is_secured:
            cause = (self._reason or reason).value
            why = said(cause) if isinstance(cause, SSL.Error) else ""
            problem = handshake_problem(self.raw_bytes, why, self.wrappedProtocol.verify_code)
            self.factory.tell(self.getPeer(), problem, is_silent=not self.raw_bytes)
        super().connectionLost(reason)


class _SecureFactory(TLSMemoryBIOFactory):
    """Puts ``SecureTransport`` around what ``inside`` makes."""

    protocol = SecureTransport

    def __init__(self, reactor: Any, inside: Any, connections: ServerConnections, door: Door) -> None:
        creator: Any = connections
        super().__init__(creator, False, inside, reactor)
        self.plain_answer = door.plain_answer
        self.tell = door.tell

    def buildProtocol(self, addr: Any) -> Any:
        made = self.wrappedFactory.buildProtocol(addr)
        return None if made is None else self.protocol(self, made)

    def registerProtocol(self, p: Any) -> None:
        """Do nothing, where the base class keeps a list: the site has one."""

    def unregisterProtocol(self, p: Any) -> None:
        """Do nothing."""


class Door(Factory):
    """What listens for a network: the way to ``inside`` is plain or through TLS, for connections that come from now."""

    noisy = False
    _log = Logger("harmonyd.web")

    def __init__(self, reactor: Any, inside: Any, plain_answer: Callable[[], bytes], on_refusal: OnRefusal) -> None:
        """``plain_answer``: for who speaks HTTP without TLS where TLS is needed.

        ``on_refusal`` hears of what is logged of handshakes.
        """
        self._on_refusal = on_refusal
        self.plain_answer = plain_answer
        self._reactor = reactor
        self._inside = inside
        self._way = inside
        self._told = 0
        self._told_since = 0.0

    def use(self, connections: ServerConnections | None) -> None:
        """TLS for those who come from now on; None: without."""
        self._way = self._inside
        if connections is not None:
            self._way = _SecureFactory(self._reactor, self._inside, connections, self)

    @property
    def is_secure(self) -> bool:
        """Whether new connections have TLS."""
        return self._way is not self._inside

    def buildProtocol(self, addr: Any) -> Any:
        """Return what ``inside`` makes of it, or None to hang up."""
        return self._way.buildProtocol(addr)

    def tell(self, peer: Any, problem: str, *, is_silent: bool) -> None:
        """Log a handshake that failed; ten lines a minute, and how many more there were."""
        if is_silent:  # a probe that asks whether somebody listens
            return
        now = self._reactor.seconds()
        if now - self._told_since >= _LOGGED_PER_SECS:
            if self._told > _LOGGED:
                self._log.warn("{count} more TLS handshakes had failed", count=self._told - _LOGGED)
            self._told, self._told_since = 0, now
        self._told += 1
        if self._told <= _LOGGED:
            host = str(getattr(peer, "host", ""))
            self._log.warn("no TLS with {peer}: {problem}", peer=host, problem=problem)
            self._on_refusal(host, problem)


def connections_for(settings: TlsServer | None) -> ServerConnections | None:
    """Raises ``Unavailable`` when the files cannot be used."""
    return ServerConnections(settings, PROTOCOLS) if settings is not None else None


def wire(transport: Any) -> Any:
    """The TCP connection under a transport."""
    return transport.transport if isinstance(transport, SecureTransport) else transport


def peer_certificate(transport: Any) -> PeerCertificate | None:
    """What the client has proved to hold; None without TLS, or when it showed none."""
    return certificate_of(transport.getPeerCertificate()) if isinstance(transport, SecureTransport) else None
