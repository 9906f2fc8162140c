"""The table ``[audit]``."""

from __future__ import annotations

from typing import Any

import pytest

from harmonyd.config.audit_model import AuditConfig, AuditSyslog
from harmonyd.config.errors import ConfigError
from harmonyd.testing.certificates import Authority
from harmonyd.tls import TlsClient

PROXY = '[proxy]\nid = "x"\n'


def test_without_the_table_there_is_no_trail(loaded: Any) -> None:
    """Nor with one that names no place."""
    assert loaded(main=PROXY).audit == AuditConfig()
    assert not loaded(main=PROXY + "[audit]\nsource_id = 'gw'\n").audit.enabled
    assert not loaded(main=PROXY + "[audit]\nenabled = false\nfile = 'a.log'\n").audit.enabled


def test_values_reach_the_model(loaded: Any, tmp_path: Any) -> None:
    """A place enables it; paths are relative to the file."""
    ca = Authority(tmp_path).cert
    text = (
        "[audit]\nfile = 'audit.log'\nsource_id = 'gw'\nenterprise_site = 'Mercy'\npatient_identifiers = false\n"
        f"buffer_mb = 2\n[audit.syslog]\nhost = 'siem.example'\ntls = {{ca_file = '{ca.name}'}}\n"
    )
    syslog = AuditSyslog("siem.example", 6514, TlsClient(ca_file=ca))
    assert loaded(main=PROXY + text).audit == AuditConfig(
        True, tmp_path / "audit.log", syslog, "gw", "Mercy", False, 2_000_000
    )


def test_all_mistakes_are_told_at_once(loaded: Any) -> None:
    """Nowhere to write to, a collector without a name, keys that nobody knows; TLS is checked as elsewhere."""
    for text, wanted in (
        ("[audit]\nenabled = true\n", {("audit", "enabled")}),
        (
            "[audit]\nbuffer_mb = 0\nfiel = 'x'\nsyslog = {port = 0, udp = true, tls = {ca_file = 'none.pem'}}\n",
            {("audit", "buffer_mb"), ("audit", "fiel"), ("audit.syslog", "host"), ("audit.syslog", "port"),
             ("audit.syslog", "udp"), ("audit.syslog.tls", "ca_file")},
        ),
        ("[audit]\nsyslog = 'siem'\n", {("audit", "syslog")}),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as raised:
            loaded(main=PROXY + text)
        assert {(problem.table, problem.key) for problem in raised.value.problems} == wanted
