"""``[audit]`` after validation; a part of ``model.Config``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harmonyd.tls import TlsClient


@dataclass(frozen=True, slots=True)
class AuditSyslog:
    """A collector of audit messages."""

    host: str
    port: int
    tls: TlsClient


@dataclass(frozen=True, slots=True)
class AuditConfig:
    enabled: bool = False
    file: Path | None = None
    syslog: AuditSyslog | None = None
    source_id: str = ""
    """AuditSourceID (PS3.15 section A.5.2); empty: the id of the configuration."""
    enterprise_site: str = ""
    patient_identifiers: bool = True
    max_backlog_bytes: int = 256 * 1000**2
    """Of what waits on disk for the collector."""
