"""Certificates for tests: an authority, and what it issues."""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path

    @property
    def sha256(self) -> str:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.cert.read_text())).hexdigest()


class Authority:
    """Issues certificates into a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._builder(self._name, self._key, 3650).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.cert = written(folder, name, made.sign(self._key, hashes.SHA256()), self._key).cert

    def issue(self, name: str, sans: Sequence[str] = ("localhost", "127.0.0.1"), days: float = 365) -> Issued:
        """``days`` from now it expires; negative: it has."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        builder = self._builder(subject, key, days)
        if sans:
            builder = builder.add_extension(x509.SubjectAlternativeName([_san(each) for each in sans]), critical=False)
        return written(self._folder, name, builder.sign(self._key, hashes.SHA256()), key)

    def _builder(self, subject: x509.Name, key: Any, days: float) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=400))
            .not_valid_after(now + timedelta(days=days))
        )


def _san(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def self_signed(folder: Path, name: str = "alone", key: Any = None) -> Issued:
    """A certificate without an authority."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(subject, subject, key.public_key(), 1, now - timedelta(1), now + timedelta(100))
    return written(folder, name, made.sign(key, hashes.SHA256()), key)


def written(folder: Path, name: str, certificate: x509.Certificate, key: Any) -> Issued:
    """The two files, ``NAME.crt`` and ``NAME.key``."""
    made = Issued(folder / f"{name}.crt", folder / f"{name}.key")
    made.cert.write_bytes(certificate.public_bytes(Encoding.PEM))
    made.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return made


def server_context(
    issued: Issued, *, client_ca: Path | None = None, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    """What a TLS server of Python's needs; ``client_ca``: it requires client certificates."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, newest)
    context.load_cert_chain(issued.cert, issued.key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


def client_context(
    ca: Authority | None, own: Issued | None = None, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    """What a TLS client of Python's needs; without ``ca`` it trusts nobody's certificates."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, newest)
    if ca is not None:
        context.load_verify_locations(ca.cert)
    if own is not None:
        context.load_cert_chain(own.cert, own.key)
    return context


def _context(kind: int, newest: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(kind)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = newest
    if newest < ssl.TLSVersion.TLSv1_2:
        context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def of_version_2(cert: Path) -> str:
    """The same as X.509 version 2 (PEM), which is in nobody's use; its signature is not right any more."""
    der = ssl.PEM_cert_to_DER_cert(cert.read_text())
    return ssl.DER_cert_to_PEM_cert(der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020101"), 1))
