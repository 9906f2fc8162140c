"""Unique identifiers (PS3.5 section 9)."""

from __future__ import annotations

import re

MAX_LENGTH = 64

_UID = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))*")

_LENIENT_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_NOT_IN_NAMES = re.compile(r"[^0-9A-Za-z._-]|^\.+")


def is_uid(text: str) -> bool:
    """Tell whether ``text`` is a UID: at most 64 characters, numeric components without leading zeros between dots."""
    return len(text) <= MAX_LENGTH and _UID.fullmatch(text) is not None


def is_lenient_uid(text: str) -> bool:
    """Tell whether ``text`` is a UID but for leading zeros: what to ask for, since there are archives full of them."""
    return len(text) <= MAX_LENGTH and _LENIENT_UID.fullmatch(text) is not None


def name_of(uid: str, file_name: str) -> str:
    """What an instance is called in a ZIP: its UID; where a sender put something else there, the name of its file."""
    return uid if is_uid(uid) else _NOT_IN_NAMES.sub("_", file_name)
