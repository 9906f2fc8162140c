"""Bytes of logs, and strings of strangers, as text that an XML document and a terminal can take."""

from __future__ import annotations

import re
from typing import Any

# ECMA-48 control sequences; then what XML 1.0 (section 2.2) has no place for, C1, lone surrogates, and bidi controls,
# with which a terminal shows something else than what is there.
_SEQUENCES = re.compile("\x1b\\[[0-?]*[ -/]*[@-~]|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)|\x1b[@-_]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
_MAX_CONTINUATION_BYTES = 3


def clean(text: str) -> str:
    """Without control characters and terminal sequences; newline and tab stay."""
    return text if text.isprintable() else _CONTROL.sub("", _SEQUENCES.sub("", text))


def shown(data: bytes) -> str:
    """A piece of a log as text. A character that was cut at its beginning is left out; other damage becomes U+FFFD."""
    start = 0
    while start < min(_MAX_CONTINUATION_BYTES, len(data)) and data[start] & 0xC0 == 0x80:
        start += 1
    return clean(data[start:].decode("utf-8", "replace"))


def cleaned(value: Any) -> Any:
    """A value for XML-RPC with every string in it clean; keys are our own."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {key: cleaned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [cleaned(item) for item in value]
    return value
