"""Options of a dicom backend that protect its PACS: circuit breaker, permitted hours, selectivity of queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zoneinfo import ZoneInfo

from harmonyd.config import keywords
from harmonyd.config.fields import Section
from harmonyd.config.sparing import BreakerOptions, SelectivityOptions
from harmonyd.hours import Hours, parse_window

KEYS = (
    *("breaker", "health_echo_secs", "permitted_hours", "permitted_hours_for", "permitted_hours_zone", "selectivity"),
)
KINDS = ("echo", "find", "retrieve", "store")
_LONGEST_SECS = 24 * 3600.0


def options(section: Section) -> Mapping[str, Any]:
    """Fields of ``DicomBackendOptions``."""
    return {
        "breaker": _breaker(section.table("breaker")),
        "health_echo_secs": _echo_secs(section),
        "hours": _hours(section),
        "selectivity": _selectivity(section),
    }


def _breaker(section: Section) -> BreakerOptions:
    default = BreakerOptions()
    open_secs = section.number("open_secs", default.open_secs, 0.1, _LONGEST_SECS)
    result = BreakerOptions(
        failures=section.integer("failures", default.failures, 0, 10_000),
        open_secs=open_secs,
        max_open_secs=section.number("max_open_secs", max(default.max_open_secs, open_secs), 0.1, _LONGEST_SECS),
    )
    if section.sound and result.max_open_secs < result.open_secs:
        section.problem("max_open_secs", "less than open_secs", "raise it, or lower open_secs")
    section.finish()
    return result


def _echo_secs(section: Section) -> float:
    secs = section.number("health_echo_secs", 0.0, 0.0, _LONGEST_SECS)
    if 0 < secs < 1:
        section.problem("health_echo_secs", "too often", "allowed: 1 to 86400, or 0 for not at all")
    return secs


def _hours(section: Section) -> Hours | None:
    texts = section.strings("permitted_hours", _window)
    zone = section.text("permitted_hours_zone", "", _zone)
    kinds = section.strings("permitted_hours_for", _kind)
    if "permitted_hours" not in section:
        for key in ("permitted_hours_zone", "permitted_hours_for"):
            if key in section:
                section.problem(key, "there are no hours that it is about", "give permitted_hours, or remove it")
        return None
    if not section.sound:
        return None
    if not texts:
        section.problem("permitted_hours", "empty: nothing would ever be permitted", "name some, or remove the key")
        return None
    return Hours(tuple(map(parse_window, texts)), zone, kinds)


def _window(value: str) -> str | None:
    try:
        parse_window(value)
    except ValueError as error:
        return str(error)
    return None


def _zone(value: str) -> str | None:
    try:
        ZoneInfo(value)
    except (ValueError, OSError, KeyError):  # KeyError: ZoneInfoNotFoundError
        return "not a time zone of this machine, such as Europe/Berlin (they are in the package tzdata)"
    return None


def _kind(value: str) -> str | None:
    return None if value in KINDS else f"not one of {', '.join(KINDS)}"


def _selectivity(parent: Section) -> SelectivityOptions | None:
    if parent.raw("selectivity") is None:
        return None
    section, default = parent.table("selectivity"), SelectivityOptions()
    keys = section.strings("keys", _keyword)
    result = SelectivityOptions(
        keys=keys if "keys" in section else default.keys,
        min_letters=section.integer("min_letters", default.min_letters, 1, 64),
        max_days=section.integer("max_days", default.max_days, 0, 100_000),
    )
    if section.sound and not result.keys:
        section.problem("keys", "empty: every query would be refused", "name some, or remove the key")
    section.finish()
    return result


def _keyword(value: str) -> str | None:
    tag = None if keywords.is_tag(value) else keywords.tag_of(value)
    if tag is None:
        near = keywords.nearest_keyword(value)
        return "not a DICOM keyword" + (f": did you mean {near}?" if near else "")
    return keywords.textless(tag)
