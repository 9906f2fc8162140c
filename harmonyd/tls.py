"""What TLS is to us, as a client and as a server, whichever library speaks for it.

BCP 195 (RFC 9325), as the secure transport connection profiles of PS3.15 Annex B have it: TLS 1.2 with ephemeral keys
and authenticated encryption, or TLS 1.3; no renegotiation, no compression.
"""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

CIPHERS = ":".join(
    f"ECDHE-{signature}-{cipher}"
    for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    for signature in ("ECDSA", "RSA")
)
"""Of TLS 1.2, in OpenSSL's names (RFC 9325 section 4.2, RFC 7905); all suites of TLS 1.3 will do."""

EXPIRY_WARNING_DAYS = 30
"""So long before a certificate expires it is said that it will."""


@dataclass(frozen=True, slots=True)
class TlsClient:
    """How a connection of ours is secured. Validated by the configuration; paths are absolute, the files PEM."""

    ca_file: Path | None = None
    """Whose certificates are trusted; None: those of the system's authorities."""
    cert_file: Path | None = None
    """Our own certificate, and what leads to its authority; None: we show none."""
    key_file: Path | None = None
    server_name: str | None = None
    """The name or address that must be in the certificate; None: that which is connected to."""
    pinned_sha256: tuple[str, ...] = ()
    """SHA-256 of certificates, in hex. When there are any, the peer must have one of them, and nothing else counts."""


@dataclass(frozen=True, slots=True)
class TlsServer:
    """How connections to a port of ours are secured. Validated by the configuration; absolute paths, PEM files."""

    cert_file: Path
    """Our certificate, and what leads to its authority."""
    key_file: Path
    ca_file: Path | None = None
    """Whose certificates callers may have; None: they are not asked for one."""
    require_client_certificate: bool = False
    """Never without ``ca_file``. False with one: who has a certificate must have one that is trusted."""
    min_version: str = "1.2"
    """"1.2" or "1.3"."""


def client_context(settings: TlsClient) -> ssl.SSLContext:
    """The standard library's context for these settings, from the files as they are now.

    Where certificates are pinned it takes any: compare its ``fingerprint`` after the handshake. Raises OSError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.hostname_checks_common_name = False
    if settings.pinned_sha256:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings.ca_file is not None:
        context.load_verify_locations(settings.ca_file)
    else:
        context.load_default_certs()
    if settings.cert_file is not None:
        context.load_cert_chain(settings.cert_file, settings.key_file, password="")
    return context


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a certificate (DER), as it is pinned."""
    return hashlib.sha256(certificate).hexdigest()


def subject_of(certificate: x509.Certificate) -> str:
    """For people (RFC 4514)."""
    try:
        return certificate.subject.rfc4514_string()
    except ValueError:  # OpenSSL takes Latin-1 for the letters of a TeletexString, and once wrote such
        return "somebody whose name cannot be read"


def expected_name(settings: TlsClient, host: str) -> str:
    """The name that the certificate must have, and that the peer is told we look for (RFC 6066 section 3)."""
    return (settings.server_name or host).removesuffix(".")


def is_address(name: str) -> bool:
    """It is no name: it has to be in the certificate as an IP address, and no peer is told of it."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
