"""JSON text from a client, decoded strictly (RFC 8259), with bounds that keep hostile input cheap."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from harmonyd.errors import BadRequest

MAX_DEPTH = 32
MAX_DIGITS = 40

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_HINT = "send one JSON object in UTF-8"


def decode_json(data: bytes) -> Any:
    """Decode ``data``: UTF-8, with or without a byte order mark. Empty input, or only white space, gives None.

    Raises ``BadRequest`` with ``extra['position']`` (the byte, or line and column) for invalid UTF-8, malformed JSON,
    NaN and infinities, a member name that occurs twice in one object, numbers with more than 40 digits, and nesting
    deeper than 32.
    """
    text = _decode_utf8(data)
    if not text.strip(" \t\r\n"):
        return None
    _check_depth(text)
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        position = _position(error.lineno, error.colno)
        detail = f"The body is not valid JSON: {error.msg} at {position}"
        raise BadRequest(detail, hint=_HINT, position=position) from None


def _decode_utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"The body is not valid UTF-8 at byte {error.start}", hint=_HINT, position=f"byte {error.start}"
        ) from None


def _position(line: int, column: int) -> str:
    return f"line {line}, column {column}"


def _check_depth(text: str) -> None:
    """Refuse deep nesting before a recursive decoder sees it."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for token in _TOKEN.finditer(text):
        if token[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise _too_deep(text, token.start())
        elif token[0] in "]}":
            depth -= 1


def _too_deep(text: str, offset: int) -> BadRequest:
    line_start = text.rfind("\n", 0, offset) + 1
    position = _position(text.count("\n", 0, offset) + 1, offset - line_start + 1)
    return BadRequest(f"The JSON is nested deeper than {MAX_DEPTH} levels at {position}", position=position)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON text. Two members of one name would leave open which of them counts (RFC 8259 section 4)."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _twice(name for name, _ in pairs)
    return members


def _twice(names: Iterable[str]) -> BadRequest:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            break
        seen.add(name)
    member = ascii(name[:64])
    return BadRequest(f"The JSON names the member {member} twice in one object", position=f"member {member}")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise BadRequest(f"The JSON holds a number of {len(digits)} digits", position=f"number of {len(digits)} digits")
    return int(digits)


def _real(digits: str) -> float:
    number = float(digits)
    if len(digits) > MAX_DIGITS or not math.isfinite(number):
        position = f"number of {len(digits)} characters"
        raise BadRequest("The JSON holds a number that is too large or too long", position=position)
    return number


def _constant(name: str) -> float:
    raise BadRequest(f"The JSON holds {name}, which is not a JSON value (RFC 8259 section 6)", position=f"value {name}")


_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_int=_integer, parse_float=_real, parse_constant=_constant)
