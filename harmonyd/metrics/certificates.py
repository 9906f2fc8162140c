"""When the certificates expire that the configuration names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from harmonyd.config.archive_model import DicomwebBackendOptions
from harmonyd.config.model import Config, DicomBackendOptions, DicomEndpointOptions
from harmonyd.tls import TlsClient, TlsServer, subject_of

MOST_BYTES = 10_000_000
"""Larger files than the bundles of all public authorities are not read."""


@dataclass(frozen=True, slots=True)
class CertificateFile:
    """``where`` and ``name``: whose it is in the configuration; ``key``: ``cert_file`` or ``ca_file``."""

    where: str
    name: str
    key: str
    path: Path


def certificate_files(config: Config) -> list[CertificateFile]:
    """All of them, once each."""
    return [
        CertificateFile(where, name, key, path)
        for where, name, settings in _tls(config)
        for key, path in (("cert_file", settings.cert_file), ("ca_file", settings.ca_file))
        if path is not None
    ]


def _tls(config: Config) -> Iterator[tuple[str, str, TlsClient | TlsServer]]:
    for name, backend in config.backends.items():
        if isinstance(options := backend.options, DicomBackendOptions):
            found = (("backend", options.tls), ("receiver", options.incoming_store_tls))
            yield from ((where, name, settings) for where, settings in found if settings is not None)
        elif isinstance(options, DicomwebBackendOptions):
            yield "backend", name, options.tls
    for name, endpoint in config.endpoints.items():
        if isinstance(receiving := endpoint.options, DicomEndpointOptions) and receiving.tls is not None:
            yield "endpoint", name, receiving.tls
    for name, network in config.networks.items():
        if network.http is not None and network.tls is not None:
            yield "network", name, network.tls
    if config.audit.syslog is not None:
        yield "audit", "syslog", config.audit.syslog.tls


@dataclass(frozen=True, slots=True)
class Known:
    """A certificate in a file."""

    subject: str
    expires: float
    """Seconds since the epoch."""


def certificates_in(path: Path) -> list[Known]:
    """All of a PEM file; empty: nothing usable. Blocks."""
    try:
        with path.open("rb") as file:
            found = x509.load_pem_x509_certificates(file.read(MOST_BYTES))
    except (OSError, ValueError, x509.InvalidVersion):
        return []
    return [Known(subject_of(each), each.not_valid_after_utc.timestamp()) for each in found]


def expiry(path: Path) -> float | None:
    """When the first certificate in a PEM file expires, in seconds since the epoch; None: nothing usable. Blocks."""
    return min((each.expires for each in certificates_in(path)), default=None)
