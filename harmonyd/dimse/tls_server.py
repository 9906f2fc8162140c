"""TLS on a port of ours: callers prove themselves inside of the handshake, before anything of DICOM is read.

The files are read again when they have changed, for the connections that come then. Files that cannot be used (any
more) are told in the log, and what was read last goes on to be used.
"""

from __future__ import annotations

from typing import Any, Protocol

from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer

from harmonyd.dimse.associate import printable
from harmonyd.dimse.tls_client import OPTIONS, said, stamp
from harmonyd.dimse.tls_failures import inbound_problem
from harmonyd.errors import Unavailable
from harmonyd.tls import CIPHERS, TlsServer, fingerprint, subject_of

_MIN_VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
_Stamps = tuple[object, ...]


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


@implementer(IOpenSSLServerConnectionCreator)
class SecurePort:
    """Secures the connections to one port."""

    _log = Logger()

    def __init__(self, settings: TlsServer) -> None:
        """Raises ``Unavailable`` when the files cannot be used."""
        self.settings = settings
        try:
            self._stamps = self._seen()
            self._context = _context(settings)
        except (OSError, SSL.Error, crypto.Error) as error:
            raise Unavailable(f"the certificates for TLS cannot be used: {said(error)}") from error

    def wrap(self, connection: Caller) -> Any:
        """What stands between a transport and this protocol."""
        creator: Any = self
        inside: Any = Factory.forProtocol(lambda: connection)
        around: Any = TLSMemoryBIOFactory(creator, False, inside)
        around.protocol = _Noting
        return around.buildProtocol(None)

    def serverConnectionForTLS(self, tls_protocol: Any) -> SSL.Connection:
        self._read_again()
        made = SSL.Connection(self._context, None)
        made.set_app_data(tls_protocol)
        return made

    def _seen(self) -> _Stamps:
        settings = self.settings
        return tuple(stamp(file) for file in (settings.cert_file, settings.key_file, settings.ca_file))

    def _read_again(self) -> None:
        try:
            seen: _Stamps = self._seen()
        except OSError as error:
            seen = (said(error),)
        if seen == self._stamps:
            return
        self._stamps = seen
        try:
            self._context = _context(self.settings)
            self._log.info("the certificates for TLS have changed: {file}", file=str(self.settings.cert_file))
        except (OSError, SSL.Error, crypto.Error) as error:
            self._log.error(
                "the certificates for TLS have changed and cannot be used ({why}): those before are; see {file}",
                why=said(error), file=str(self.settings.cert_file),
            )  # fmt: skip


def _context(settings: TlsServer) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(_MIN_VERSIONS[settings.min_version])
    context.set_cipher_list(CIPHERS.encode("ascii"))
    context.set_options(OPTIONS | SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_NO_TICKET)
    # Nothing is resumed: each caller proves itself anew.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.use_certificate_chain_file(str(settings.cert_file))
    context.use_privatekey_file(str(settings.key_file))
    context.check_privatekey()
    if settings.ca_file is not None:
        context.load_verify_locations(str(settings.ca_file))
        context.load_client_ca(str(settings.ca_file).encode())
        required = SSL.VERIFY_FAIL_IF_NO_PEER_CERT if settings.require_client_certificate else 0
        context.set_verify(SSL.VERIFY_PEER | required, _judge)
    return context


def _judge(connection: SSL.Connection, _: crypto.X509, code: int, __: int, ok: int) -> bool:
    if not ok:
        connection.get_app_data().wrappedProtocol.verify_code = code
    return bool(ok)


class _Noting(TLSMemoryBIOProtocol):
    """Notes how the peer begins."""

    def dataReceived(self, data: bytes) -> None:
        connection: Any = self.wrappedProtocol
        connection.raw_bytes = connection.raw_bytes or data[:3]
        super().dataReceived(data)  # type: ignore[no-untyped-call]


def proof_of(handle: SSL.Connection) -> str:
    """What a caller has shown of itself, for the log."""
    version, certificate = handle.get_protocol_version_name(), handle.get_peer_certificate()
    if certificate is None:
        return version
    subject = subject_of(certificate.to_cryptography())
    sha256 = fingerprint(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate))
    return f"{version}, certificate of {printable(subject)}, SHA-256 {sha256}"
