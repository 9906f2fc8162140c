"""TLS of dicom backends and endpoints: what is wrong with the files is told here, not by the first handshake."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from harmonyd.config import checks
from harmonyd.config.fields import Section
from harmonyd.tls import EXPIRY_WARNING_DAYS, TlsClient, TlsServer, subject_of

WARN_BEFORE = timedelta(days=EXPIRY_WARNING_DAYS)
_FINGERPRINT = re.compile(r"[0-9a-f]{64}\Z")
_T = TypeVar("_T")


def client(section: Section, base: Path, now: datetime | None = None) -> TlsClient:
    """The table ``tls``; without one, its defaults. ``base`` is the folder of config.toml."""
    now = now or datetime.now(UTC)
    pins = section.strings("pinned_sha256", _pin)
    settings = TlsClient(
        ca_file=_path(section, "ca_file", base),
        cert_file=_path(section, "cert_file", base),
        key_file=_path(section, "key_file", base),
        server_name=section.text("server_name", "", checks.host) or None,
        pinned_sha256=tuple(_bare(pin) for pin in pins),
    )
    section.finish()
    if settings.pinned_sha256 and settings.ca_file is not None:
        section.warn("ca_file", "it has no effect: a pinned certificate needs no authority")
    _check_authorities(section, settings, now)
    _check_own(section, settings, now)
    return settings


def server(section: Section, base: Path, now: datetime | None = None) -> TlsServer:
    """A table for a port of ours. ``base`` is the folder of config.toml."""
    now = now or datetime.now(UTC)
    if section.is_table:
        section.require("cert_file", "key_file")
    ca_file = _path(section, "ca_file", base)
    settings = TlsServer(
        cert_file=_path(section, "cert_file", base) or base,
        key_file=_path(section, "key_file", base) or base,
        ca_file=ca_file,
        require_client_certificate=section.flag("require_client_certificate", ca_file is not None),
        min_version=section.choice("min_version", "1.2", ["1.2", "1.3"]),
    )
    section.finish()
    if settings.require_client_certificate and ca_file is None:
        what = "nothing says which certificates are trusted"
        section.problem("require_client_certificate", what, "give their authority's certificate as ca_file")
    _check_authorities(section, settings, now)
    if section.sound:
        _check_own(section, settings, now)
    return settings


def _path(section: Section, key: str, base: Path) -> Path | None:
    name = section.text(key, "", checks.path)
    return (base / name).resolve() if name else None


def _bare(pin: str) -> str:
    return pin.replace(":", "").lower()


def _pin(value: str) -> str | None:
    if _FINGERPRINT.match(_bare(value)):
        return None
    return "not a SHA-256 fingerprint: 64 hex digits, as openssl x509 -noout -fingerprint -sha256 shows"


def _check_authorities(section: Section, settings: TlsClient | TlsServer, now: datetime) -> None:
    certificates = _read(section, "ca_file", settings.ca_file, x509.load_pem_x509_certificates) or []
    for certificate in certificates:
        if certificate.not_valid_after_utc <= now:
            section.warn("ca_file", f"{subject_of(certificate)} expired on {_day(certificate)}")
        elif certificate.not_valid_after_utc <= now + WARN_BEFORE:
            section.warn("ca_file", f"{subject_of(certificate)} expires on {_day(certificate)}")


def _check_own(section: Section, settings: TlsClient | TlsServer, now: datetime) -> None:
    if settings.cert_file is None and settings.key_file is None:
        return
    for name, other in (("cert_file", settings.key_file), ("key_file", settings.cert_file)):
        if other is not None and name not in section:
            section.problem(name, "missing", "a certificate needs its key, and a key its certificate")
    chain = _read(section, "cert_file", settings.cert_file, x509.load_pem_x509_certificates)
    key = _read(section, "key_file", settings.key_file, _key)
    if not chain:
        return
    if key is not None and key != _public(chain[0].public_key()):
        section.problem("key_file", "not the key of the certificate in cert_file", "give the one that belongs to it")
    elif key is not None and settings.cert_file is not None and settings.key_file is not None:
        _check_usable(section, settings.cert_file, settings.key_file)
    _check_dates(section, chain[0], now)


def _check_usable(section: Section, cert_file: Path, key_file: Path) -> None:
    """OpenSSL takes no keys that are too short for its level of security, for one."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_file, key_file, password="")
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        section.problem("cert_file", f"OpenSSL does not take it: {reason}", "renew it")


def _check_dates(section: Section, certificate: x509.Certificate, now: datetime) -> None:
    if certificate.not_valid_after_utc <= now:
        section.problem("cert_file", f"the certificate expired on {_day(certificate)}", "renew it")
    elif certificate.not_valid_after_utc <= now + WARN_BEFORE:
        section.warn("cert_file", f"the certificate expires on {_day(certificate)}: renew it")
    elif certificate.not_valid_before_utc > now:
        since = certificate.not_valid_before_utc.date().isoformat()
        section.warn("cert_file", f"the certificate is valid from {since} only; or the clock is wrong")


def _read(section: Section, key: str, path: Path | None, parse: Callable[[bytes], _T]) -> _T | None:
    if path is None:
        return None
    try:
        return parse(path.read_bytes())
    except OSError as error:
        section.problem(key, f"cannot be read: {error.strerror}", "paths are relative to config.toml's folder")
    except TypeError:
        section.problem(key, "the key is encrypted", "give one without a password, that only harmonyd can read")
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        section.problem(key, "nothing usable in it", "PEM is needed: -----BEGIN … and -----END …")
    return None


def _key(pem: bytes) -> bytes:
    return _public(load_pem_private_key(pem, None).public_key())


def _public(key: object) -> bytes:
    # A certificate may have a kind of key without it; of those that TLS knows, every one has it.
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return encoded


def _day(certificate: x509.Certificate) -> str:
    return certificate.not_valid_after_utc.date().isoformat()
