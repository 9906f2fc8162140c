"""TLS on a port of ours: callers prove themselves inside of the handshake, before anything of DICOM is read."""

from __future__ import annotations

from typing import Any, Protocol

from OpenSSL import SSL
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol

from harmonyd.dimse.associate import printable
from harmonyd.dimse.tls_failures import inbound_problem
from harmonyd.subject import PeerCertificate
from harmonyd.tls_port import ServerConnections, certificate_of, said


class Caller(Protocol):
    """A protocol for a connection that a peer began, as far as it has to do with TLS."""

    raw_bytes: bytes
    """How the peer began, before anything was deciphered."""
    verify_code: int
    """Why its certificate is not trusted (OpenSSL's number); 0: nothing is wrong with it."""


def caller_problem(caller: Caller, reason: BaseException | None, *, is_secured: bool) -> str:
    """Why its connection was lost (for ``reason``), for the log; empty when it was not TLS."""
    if is_secured and not isinstance(reason, SSL.Error):
        return ""
    return inbound_problem(caller.raw_bytes, said(reason) if isinstance(reason, SSL.Error) else "", caller.verify_code)


class SecurePort(ServerConnections):
    """Secures the connections to one port."""

    def wrap(self, connection: Caller) -> Any:
        """What stands between a transport and this protocol."""
        creator: Any = self
        inside: Any = Factory.forProtocol(lambda: connection)
        around: Any = TLSMemoryBIOFactory(creator, False, inside)
        around.protocol = _Noting
        return around.buildProtocol(None)


class _Noting(TLSMemoryBIOProtocol):
    """Notes how the peer begins."""

    def dataReceived(self, data: bytes) -> None:
        connection: Any = self.wrappedProtocol
        connection.raw_bytes = connection.raw_bytes or data[:3]
        super().dataReceived(data)  # type: ignore[no-untyped-call]


def shown_by(handle: SSL.Connection) -> tuple[str, PeerCertificate | None]:
    """What a caller has shown of itself: for the log, and its certificate."""
    version, found = handle.get_protocol_version_name(), certificate_of(handle.get_peer_certificate())
    if found is None:
        return version, None
    return f"{version}, certificate of {printable(found.subject)}, SHA-256 {found.sha256}", found
