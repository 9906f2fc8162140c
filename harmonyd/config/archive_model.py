"""Options of a ``dicomweb`` backend after validation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harmonyd.tls import TlsClient

if TYPE_CHECKING:
    from harmonyd.config.model import DicomBackendOptions


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret is; it is in no configuration. Exactly one of the two is set."""

    file: Path | None = None
    variable: str = ""
    """Of the environment."""


@dataclass(frozen=True, slots=True)
class Basic:
    """RFC 7617."""

    username: str
    password: Secret


@dataclass(frozen=True, slots=True)
class Bearer:
    """RFC 6750."""

    token: Secret


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """RFC 6749 section 4.4."""

    token_url: str
    client_id: str
    client_secret: Secret
    scope: str = ""
    tls: TlsClient = field(default_factory=TlsClient)


@dataclass(frozen=True, slots=True)
class DicomwebBackendOptions:
    """A DICOMweb server (PS3.18) that is asked for what a dicom backend asks a PACS for."""

    url: str
    """Without a trailing slash."""
    node: DicomBackendOptions
    """What it has in common with a dicom backend: timeouts, limits, protection. Nothing of it speaks DIMSE."""
    qido_prefix: str = ""
    """Path below ``url``, with a leading slash; empty: none. So are the next two."""
    wado_prefix: str = ""
    stow_prefix: str = ""
    tls: TlsClient = field(default_factory=TlsClient)
    """Of https."""
    credentials: Basic | Bearer | ClientCredentials | None = field(default=None)
    page_size: int = 500
    """Matches asked for at once."""
    fuzzy_matching: bool = False
    """Ask for fuzzy matching of names (PS3.18 section 8.3.4.2)."""
    max_instance_bytes: int = 4 * 1000**3
    """Largest instance that is received."""
    max_store_objects: int = 50
    """Of one STOW-RS request."""
    max_store_bytes: int = 200 * 1000**2
    """The same in bytes; a larger object goes alone."""
