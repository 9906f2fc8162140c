"""The Prefer header field (RFC 7240)."""

from __future__ import annotations

from dataclasses import dataclass

from harmonyd.mediatypes import split_list

__all__ = ["Preferences", "parse_prefer"]

MAX_WAIT_SECS = 60
"""A client that wants to wait longer for the answer itself gets 202 after so long."""


@dataclass(frozen=True, slots=True)
class Preferences:
    """Those that mean something here."""

    respond_async: bool = False
    wait_secs: int | None = None
    """How long the client would rather wait for the answer itself."""


def parse_prefer(field: str | None) -> Preferences:
    """Read a field value. What is not understood is ignored, as the RFC wants; of two equal ones the first counts."""
    found: dict[str, str] = {}
    for element in split_list(field or ""):
        name, _, value = element.partition(";")[0].partition("=")
        found.setdefault(name.strip().lower(), value.strip().strip('"'))
    wait = found.get("wait", "")
    secs = min(int(wait), MAX_WAIT_SECS) if wait.isascii() and wait.isdigit() and len(wait) < 10 else None
    return Preferences("respond-async" in found, secs)
