"""Options of Storage Commitment: of a dicom endpoint that is asked, and of a dicom backend that we ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harmonyd.config.asking import COMMIT
from harmonyd.config.fields import Section

ENDPOINT_KEYS = ("commit_wait_secs", "commit_report_secs", "commit_same_association")
BACKEND_KEYS = ("commit", "release", "commit_timeout_ms", "commit_hold_ms")
OFF, AFTER_FORWARDING = "off", "after_forwarding"
STORED, COMMITTED = "stored", "committed"
_DAY_SECS = 24 * 3600.0


def endpoint_options(section: Section) -> Mapping[str, Any]:
    """Fields of ``DicomEndpointOptions``."""
    for key in ENDPOINT_KEYS:
        if key in section and COMMIT not in (section.raw("services") or ()):
            section.warn(key, f'it has no effect without "{COMMIT}" in services')
    return {
        "commit_wait_secs": section.number("commit_wait_secs", 600.0, 0.0, _DAY_SECS),
        "commit_report_secs": section.number("commit_report_secs", 2 * _DAY_SECS, 1.0, 30 * _DAY_SECS),
        "commit_same_association": section.flag("commit_same_association", True),
    }


def backend_options(section: Section, *, is_native: bool) -> Mapping[str, Any]:
    """Fields of ``DicomBackendOptions``."""
    commit = section.choice("commit", OFF, [OFF, AFTER_FORWARDING])
    release = section.choice("release", STORED, [STORED, COMMITTED])
    if commit != OFF and not is_native:
        section.problem("commit", "the dcmtk engine knows no Storage Commitment", 'set engine = "native", which does')
    if commit == OFF and release == COMMITTED:
        what = "nothing would ever be released: no commitment is asked for"
        section.problem("release", what, f'set commit = "{AFTER_FORWARDING}"')
    return {
        "commit": commit,
        "release": release,
        "commit_timeout_secs": section.milliseconds("commit_timeout_ms", 3600.0),
        "commit_hold_secs": section.milliseconds("commit_hold_ms", 5.0, least=0),
    }
