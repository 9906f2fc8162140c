"""Unique identifiers (PS3.5 section 9)."""

from __future__ import annotations

import re

MAX_LENGTH = 64

_UID = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))*")

_LENIENT_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")


def is_uid(text: str) -> bool:
    """Tell whether ``text`` is a UID: at most 64 characters, numeric components without leading zeros between dots."""
    return len(text) <= MAX_LENGTH and _UID.fullmatch(text) is not None


def is_lenient_uid(text: str) -> bool:
    """Tell whether ``text`` is a UID but for leading zeros: what to ask for, since there are archives full of them."""
    return len(text) <= MAX_LENGTH and _LENIENT_UID.fullmatch(text) is not None
