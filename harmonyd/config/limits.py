"""Middleware that limits callers: ``type = "rate_limit"`` and ``type = "concurrency"``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harmonyd.config.fields import Section

_BY = ("subject", "address")


def rate_limit(section: Section) -> Mapping[str, Any]:
    """``requests``, ``per_secs``, ``burst`` (where it is not given: ``requests``), ``by``, ``max_callers``."""
    section.require("requests")
    requests = section.integer("requests", 1, 1, 1_000_000)
    options = {
        "requests": requests,
        "per_secs": section.number("per_secs", 60.0, 0.1, 24 * 3600.0),
        "burst": section.integer("burst", requests, 1, 1_000_000),
        "by": section.choice("by", "subject", _BY),
        "max_callers": section.integer("max_callers", 10_000, 1, 1_000_000),
    }
    section.finish()
    return options


def concurrency(section: Section) -> Mapping[str, Any]:
    """``limit`` and ``by``."""
    section.require("limit")
    options = {"limit": section.integer("limit", 1, 1, 100_000), "by": section.choice("by", "subject", _BY)}
    section.finish()
    return options
