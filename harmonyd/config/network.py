"""``[network.NAME]`` after validation."""

from __future__ import annotations

from dataclasses import dataclass

from harmonyd.tls import TlsServer


@dataclass(frozen=True, slots=True)
class HttpListener:
    """Where a network listens for HTTP. ``bind_address``: IPv4, IPv6, or ``systemd:NAME`` for a passed socket.

    ``bind_port`` is 0 for a passed socket: its unit has the port.
    """

    bind_address: str
    bind_port: int


@dataclass(frozen=True, slots=True)
class DicomDefaults:
    """``[network.N.dicom]``: defaults for the dicom endpoints of the pipelines on that network."""

    bind_address: str | None = None
    bind_port: int | None = None
    aet: str | None = None


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    name: str
    http: HttpListener | None
    dicom: DicomDefaults = DicomDefaults()
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and CIDR blocks whose X-Forwarded-For is believed."""
    middleware: tuple[str, ...] = ()
    """What each HTTP request passes first, but for those to ``/livez`` and ``/readyz``."""
    tls: TlsServer | None = None
    """For HTTP; None: it is served without."""
    hsts_max_age_secs: int = 365 * 24 * 3600
    """How long a browser that was here over TLS asks for nothing without (RFC 6797 section 6.1.1); 0: not told."""
