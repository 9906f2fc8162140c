"""``[audit]``: where the audit trail goes, and what it says of patients."""

from __future__ import annotations

from pathlib import Path

from harmonyd.config import checks, tls
from harmonyd.config.audit_model import AuditConfig, AuditSyslog
from harmonyd.config.fields import Section

SYSLOG_TLS_PORT = 6514
"""RFC 5425 section 4.1."""
_MB = 1000**2


def audit(section: Section, base: Path) -> AuditConfig:
    """``base`` is the folder of config.toml."""
    default = AuditConfig()
    file = section.text("file", "", checks.path)
    syslog = _syslog(section.table("syslog"), base) if "syslog" in section else None
    enabled = section.flag("enabled", bool(file) or "syslog" in section)
    if enabled and not file and "syslog" not in section:
        section.problem("enabled", "the audit trail leads nowhere", "add file, or [audit.syslog]")
    section.raw("syslog")
    result = AuditConfig(
        enabled=enabled,
        file=(base / file).resolve() if file else None,
        syslog=syslog,
        source_id=section.text("source_id", default.source_id, checks.plain_text),
        enterprise_site=section.text("enterprise_site", default.enterprise_site, checks.plain_text),
        patient_identifiers=section.flag("patient_identifiers", default.patient_identifiers),
        max_backlog_bytes=section.integer("buffer_mb", default.max_backlog_bytes // _MB, 1, 1_000_000) * _MB,
    )
    section.finish()
    return result


def _syslog(section: Section, base: Path) -> AuditSyslog:
    if section.is_table:
        section.require("host")
    result = AuditSyslog(
        section.text("host", "localhost", checks.host),
        section.port("port", SYSLOG_TLS_PORT),
        tls.client(section.table("tls"), base),
    )
    section.finish()
    return result
