"""TLS on a port of ours, whatever is spoken inside: what a caller must prove, and certificates renewed in place.

The files are read again when they have changed, for the connections that come then. Files that cannot be used (any
more) are told in the log, and what was read last goes on to be used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.logger import Logger
from zope.interface import implementer

from harmonyd.errors import Unavailable
from harmonyd.subject import PeerCertificate
from harmonyd.tls import CIPHERS, TlsServer, fingerprint, subject_of

OPTIONS = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION

_MIN_VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
_TLS_RECORD = re.compile(rb"[\x14-\x16]\x03[\x00-\x04]")
_NOT_YET, _EXPIRED = 9, 10
_UNKNOWN_ISSUER = {2, 18, 19, 20, 21}
_CERTIFICATE_ALERTS = {
    *("unknown ca", "bad certificate", "certificate unknown", "certificate expired", "certificate revoked"),
    *("unsupported certificate", "access denied", "decrypt error"),
}
_OLD = ("unsupported protocol", "wrong ssl version", "no protocols available", "unexpected message version")


class NoCommonProtocol(SSL.Error):
    """What the caller would speak inside of TLS (ALPN) is not spoken here."""


@implementer(IOpenSSLServerConnectionCreator)
class ServerConnections:
    """Makes the server's side of TLS connections.

    What is inside (``wrappedProtocol`` of Twisted's TLS protocol) has an attribute ``verify_code``, which is set to
    OpenSSL's number when the caller's certificate is not trusted.
    """

    _log = Logger()

    def __init__(self, settings: TlsServer, protocols: Sequence[bytes] = ()) -> None:
        """``protocols``: what is spoken inside (RFC 7301), best first; who asks for none gets in, too.

        Raises ``Unavailable`` when the files cannot be used.
        """
        self.settings = settings
        self._protocols = protocols
        try:
            self._stamps = self._seen()
            self._context = _context(settings, protocols)
        except (OSError, SSL.Error, crypto.Error) as error:
            raise Unavailable(f"the certificates for TLS cannot be used: {said(error)}") from error

    def serverConnectionForTLS(self, tls_protocol: Any) -> SSL.Connection:
        """Twisted asks for one for each caller."""
        self._read_again()
        made = SSL.Connection(self._context, None)
        made.set_app_data(tls_protocol)
        return made

    def _seen(self) -> tuple[object, ...]:
        settings = self.settings
        return tuple(stamp(file) for file in (settings.cert_file, settings.key_file, settings.ca_file))

    def _read_again(self) -> None:
        try:
            seen = self._seen()
        except OSError as error:
            seen = (said(error),)
        if seen == self._stamps:
            return
        self._stamps = seen
        try:
            self._context = _context(self.settings, self._protocols)
            self._log.info("the certificates for TLS have changed: {file}", file=str(self.settings.cert_file))
        except (OSError, SSL.Error, crypto.Error) as error:
            self._log.error(
                "the certificates for TLS have changed and cannot be used ({why}): those before are; see {file}",
                why=said(error), file=str(self.settings.cert_file),
            )  # fmt: skip


def _context(settings: TlsServer, protocols: Sequence[bytes]) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(_MIN_VERSIONS[settings.min_version])
    context.set_cipher_list(CIPHERS.encode("ascii"))
    context.set_options(OPTIONS | SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_NO_TICKET)
    # Nothing is resumed: each caller proves itself anew.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.use_certificate_chain_file(str(settings.cert_file))
    context.use_privatekey_file(str(settings.key_file))
    context.check_privatekey()
    if protocols:
        context.set_alpn_select_callback(_chooser(protocols))
    if settings.ca_file is not None:
        context.load_verify_locations(str(settings.ca_file))
        context.load_client_ca(str(settings.ca_file).encode())
        required = SSL.VERIFY_FAIL_IF_NO_PEER_CERT if settings.require_client_certificate else 0
        context.set_verify(SSL.VERIFY_PEER | required, _judge)
    return context


def _chooser(protocols: Sequence[bytes]) -> Any:
    def choose(_: SSL.Connection, offered: list[bytes]) -> bytes:
        for protocol in protocols:
            if protocol in offered:
                return protocol
        raise NoCommonProtocol([("SSL routines", "", "no application protocol")])

    return choose


def _judge(connection: SSL.Connection, _: crypto.X509, code: int, __: int, ok: int) -> bool:
    if not ok:
        connection.get_app_data().wrappedProtocol.verify_code = code
    return bool(ok)


def stamp(file: Path | None) -> tuple[int, int, int] | None:
    """What changes when a file does: time, inode, size."""
    if file is None:
        return None
    found = file.stat()
    return found.st_mtime_ns, found.st_ino, found.st_size


def said(error: Exception) -> str:
    """OpenSSL's last word is its most special one."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    reasons = [entry[-1] for entry in error.args[0]] if error.args and isinstance(error.args[0], list) else []
    return str(reasons[-1]) if reasons else ""


def certificate_of(shown: crypto.X509 | None) -> PeerCertificate | None:
    """What a peer has proved to hold; None when it showed none."""
    if shown is None:
        return None
    sha256 = fingerprint(crypto.dump_certificate(crypto.FILETYPE_ASN1, shown))
    try:
        certificate = shown.to_cryptography()
        return PeerCertificate(subject_of(certificate), _names(certificate), sha256)
    except (ValueError, x509.InvalidVersion, x509.DuplicateExtension):
        return PeerCertificate("somebody whose name cannot be read", (), sha256)


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names: list[str] = []
    else:
        kinds = (x509.DNSName, x509.RFC822Name, x509.UniformResourceIdentifier)
        names = [name for kind in kinds for name in found.get_values_for_type(kind)]
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return (*names, *(str(each.value) for each in common))


def is_tls(first_bytes: bytes) -> bool:
    """Whether somebody begins as TLS does (RFC 8446 section 5.1)."""
    return _TLS_RECORD.match(first_bytes) is not None


def handshake_problem(raw_bytes: bytes, reason: str, verify_code: int) -> str:
    """Why somebody who connected to a TLS port of ours has no secure connection, for the log.

    ``raw_bytes``: how it began; ``reason``: OpenSSL's, empty when the connection was closed, or its time was over;
    ``verify_code``: why its certificate is not trusted.
    """
    reason = reason.lower().replace("_", " ")
    if raw_bytes and not is_tls(raw_bytes):
        return "what it sent is not TLS, and this port is for TLS alone"
    if verify_code == _EXPIRED:
        return "its certificate (or one of its authorities') has expired"
    if verify_code == _NOT_YET:
        return "its certificate is not valid yet: check both clocks"
    if verify_code in _UNKNOWN_ISSUER:
        return "its certificate is from no authority in ca_file"
    if verify_code:
        return f"its certificate cannot be trusted (OpenSSL error {verify_code})"
    if "did not return a certificate" in reason:
        return "it has shown no certificate, and require_client_certificate wants one"
    alert = reason.rpartition("alert ")[2] if "alert " in reason else ""
    if alert in _CERTIFICATE_ALERTS:
        return f"it does not accept our certificate (alert: {alert}): it has to trust the authority of cert_file"
    if any(text in reason for text in _OLD):
        return "it speaks no version of TLS that is allowed here"
    if "no shared cipher" in reason:
        return "it has no cipher suite in common with us"
    return f"its TLS handshake failed: {reason}" if reason else "it did not end its TLS handshake"
