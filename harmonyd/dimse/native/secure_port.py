"""TLS on a port of ours: callers prove themselves inside of the handshake, before anything of DICOM is read."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer

from harmonyd.dimse.associate import printable
from harmonyd.dimse.native import connection as connections
from harmonyd.dimse.native.secure import OverTls, said
from harmonyd.dimse.tls_failures import inbound_problem
from harmonyd.tls import fingerprint, subject_of
from harmonyd.tls_port import ServerConnections


class SecurePort(ServerConnections):
    """Secures the connections to one port."""

    def wrap(self, connection: SecureInbound) -> Any:
        """What stands between a transport and this connection."""
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


@implementer(IHandshakeListener)
class SecureInbound(OverTls):
    """A connection that a peer began; ARTIM counts for its handshake, too."""

    raw_bytes = b""
    """How the peer began, before anything was deciphered."""
    verify_code = 0
    """Why its certificate is not trusted (OpenSSL's number)."""

    def inbound_problem(self) -> str:
        """What went wrong in TLS; empty when nothing did."""
        if self._is_secured and not isinstance(self._reason, SSL.Error):
            return ""
        reason = said(self._reason) if isinstance(self._reason, SSL.Error) else ""
        return inbound_problem(self.raw_bytes, reason, self.verify_code)

    def handshakeCompleted(self) -> None:
        self._is_secured = True
        self.proof = _proof(self.transport.getHandle())
        self._begin()

    def _connected(self) -> None:
        self._give_until(connections.ARTIM_SECS)


def _proof(handle: SSL.Connection) -> str:
    version, certificate = handle.get_protocol_version_name(), handle.get_peer_certificate()
    if certificate is None:
        return version
    subject = subject_of(certificate.to_cryptography())
    sha256 = fingerprint(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate))
    return f"{version}, certificate of {printable(subject)}, SHA-256 {sha256}"
