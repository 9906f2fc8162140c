"""TLS to a remote node: how the connection is made, and what is thought of the peer's certificate.

The certificate is judged inside of the handshake, so that a peer that is not the right one learns so by an alert and
gets nothing else. Files are read again when they have changed; connections that stand keep what they were made with.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Any

from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import extract_patterns
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from zope.interface import implementer

from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.errors import EngineFailed, TlsFailed
from harmonyd.dimse.tls_failures import NOT_PINNED, NOT_THE_ADDRESS, NOT_THE_NAME, Trouble, tls_failure
from harmonyd.tls import CIPHERS, TlsClient, expected_name, fingerprint, is_address
from harmonyd.tls_port import OPTIONS, said, stamp


class Verdict:
    """What is thought of the peer's certificate, while it is looked at."""

    def __init__(self, settings: TlsClient, host: str) -> None:
        self.settings = settings
        self.name = expected_name(settings, host)
        self.code = 0
        self.text = ""
        self.sha256: str | None = None
        self.is_good = False

    def judge(self, certificate: crypto.X509, code: int, depth: int) -> bool:
        """Once or more for each certificate, the peer's own last; False ends the handshake."""
        if depth == 0:
            self.sha256 = fingerprint(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate))
        if self.settings.pinned_sha256:
            if depth == 0 and self.sha256 not in self.settings.pinned_sha256:
                return self._refuse(NOT_PINNED, "")
        elif code:
            return self._refuse(code, f"error {code} at depth {depth} of its chain")
        elif depth == 0 and not self._is_for_name(certificate):
            return False
        self.is_good = self.is_good or depth == 0
        return True

    def _is_for_name(self, certificate: crypto.X509) -> bool:
        """RFC 6125 section 6: by the subject's alternative names alone."""
        address = is_address(self.name)
        wanted: Any = IPAddress_ID(ipaddress.ip_address(self.name)) if address else DNS_ID(self.name)
        try:
            patterns = extract_patterns(certificate.to_cryptography())
            verify_service_identity(patterns, obligatory_ids=[wanted], optional_ids=[])
        except VerificationError:
            found = ", ".join(sorted(_pattern_text(pattern) for pattern in patterns)) or "no names"
            return self._refuse(NOT_THE_ADDRESS if address else NOT_THE_NAME, f"it has {found}")
        except (CertificateError, ValueError) as error:
            return self._refuse(NOT_THE_NAME, f"its names make no sense: {error}")
        return True

    def _refuse(self, code: int, text: str) -> bool:
        self.code, self.text = code, text
        self.is_good = False
        return False


def _pattern_text(pattern: Any) -> str:
    value = pattern.pattern
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


@implementer(IOpenSSLClientConnectionCreator)
class ClientCreator:
    """TLS connections to one node; each sets ``verdict`` of the protocol that it is for.

    Raises ``EngineFailed`` when our files cannot be used (any more).
    """

    def __init__(self, remote: RemoteNode, settings: TlsClient) -> None:
        self._settings = settings
        self._host = remote.host
        try:
            self._context = _context(settings, _stamps(settings))
        except (OSError, SSL.Error, crypto.Error) as error:
            raise EngineFailed(
                f"The certificates of backend {remote.name} cannot be used: {said(error)}",
                hint="harmonyd check says more; files must be replaced together.",
            ) from error

    def clientConnectionForTLS(self, tls_protocol: Any) -> SSL.Connection:
        verdict = Verdict(self._settings, self._host)
        made = SSL.Connection(self._context, None)
        made.set_app_data(tls_protocol)  # as Twisted does, too, in some of its versions
        if not is_address(verdict.name):
            made.set_tlsext_host_name(verdict.name.encode("ascii"))
        tls_protocol.wrappedProtocol.verdict = verdict
        return made


def _stamps(settings: TlsClient) -> tuple[object, ...]:
    return tuple(stamp(file) for file in (settings.ca_file, settings.cert_file, settings.key_file))


def files_now(settings: TlsClient | None) -> tuple[object, ...]:
    """What is equal as long as the files have not changed. Never raises."""
    try:
        return () if settings is None else _stamps(settings)
    except OSError as error:
        return (said(error),)


@lru_cache(maxsize=64)
def _context(settings: TlsClient, _stamps: object) -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(CIPHERS.encode("ascii"))
    context.set_options(OPTIONS)
    context.set_verify(SSL.VERIFY_PEER, _judge)
    if settings.ca_file is not None:
        context.load_verify_locations(str(settings.ca_file))
    else:
        context.set_default_verify_paths()
    if settings.cert_file is not None and settings.key_file is not None:
        context.use_certificate_chain_file(str(settings.cert_file))
        context.use_privatekey_file(str(settings.key_file))
        context.check_privatekey()
    return context


def _judge(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, _ok: int) -> bool:
    verdict: Verdict = connection.get_app_data().wrappedProtocol.verdict
    return verdict.judge(certificate, code, depth)


def tls_problem(
    remote: RemoteNode, verdict: Verdict, reason: BaseException | None, *, is_secured: bool
) -> TlsFailed | None:
    """Why a connection was lost (for ``reason``) on which no association stood; None when it was not TLS.

    In TLS 1.3 a peer refuses our certificate after the handshake is over for us (``is_secured``).
    """
    has_tls_error = isinstance(reason, SSL.Error)
    if is_secured and not has_tls_error:
        return None
    trouble = Trouble(
        reason=said(reason) if isinstance(reason, SSL.Error) else "",
        verify_code=verdict.code,
        verify_text=verdict.text,
        certificate_sha256=verdict.sha256,
        certificate_accepted=verdict.is_good,
    )
    return tls_failure(remote, trouble)
