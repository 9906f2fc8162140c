"""Values of query keys, checked against their VR (PS3.5 section 6.2, PS3.4 section C.2.2.2).

Nothing passes that could reach a log, a tool or the network as something else than one value: control characters and
line separators, lone surrogates, and backslashes where DICOM would read a second value.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from harmonyd.dimse import dates
from harmonyd.dimse.uid import is_lenient_uid

Value = str | int | float

MAX_VALUES = 100
MAX_UIDS = 10_000
MAX_VALUE_BYTES = 65_534
"""What the 16 bit length of most VRs can say (PS3.5 section 7.1.2)."""

TEXT_MAX_CHARS = {
    "AE": 16,
    "CS": 16,
    "LO": 64,
    "SH": 16,
    "ST": 1024,
    "LT": 10240,
    "UC": 10240,
    "UR": 10240,
    "UT": 10240,
}
"""Characters a value may have; UC, UR and UT have no limit in DICOM and get the one of LT here."""
PERSON_NAME_MAX_CHARS = 64
_PERSON_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")

_ASK_TWICE = "ask in several requests"
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BACKSLASH_IS_TEXT = frozenset({"ST", "LT", "UT"})
_LEADING_SPACES_COUNT = frozenset({"ST", "LT", "UT", "UC"})
_WILDCARD_VRS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_LONG_VALUES = frozenset({"UC", "UR", "UT"})

_INTEGERS = {
    "US": (0, 2**16 - 1),
    "SS": (-(2**15), 2**15 - 1),
    "UL": (0, 2**32 - 1),
    "SL": (-(2**31), 2**31 - 1),
    "UV": (0, 2**64 - 1),
    "SV": (-(2**63), 2**63 - 1),
}
_NUMBERS = frozenset({*_INTEGERS, "IS", "DS", "FL", "FD"})
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_AGE = re.compile(r"[0-9]{3}[DWMY]")
_TAG = re.compile(r"([0-9A-Fa-f]{4}),?([0-9A-Fa-f]{4})")


class BadValueError(ValueError):
    """A value that its VR does not allow: ``detail`` completes "KEY: ...", ``hint`` says what to write instead."""

    def __init__(self, detail: str, hint: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint


def check_values(vr: str, raw: Any) -> list[Value]:
    """Return the values that ``raw`` (JSON) means for ``vr``, any but SQ; an empty list is universal matching.

    Raises ``BadValueError``.
    """
    items = raw if isinstance(raw, list) else [raw]
    if not items or (len(items) == 1 and _is_empty(vr, items[0])):
        return []
    if vr not in CHECKS:
        raise BadValueError(f"values of VR {vr} cannot be matched", "leave the value empty")
    _check_count(vr, len(items))
    return _check_size(vr, [_check_one(vr, item) for item in items])


def has_wildcard(vr: str, value: Value) -> bool:
    """Tell whether ``value`` is a pattern (PS3.4 section C.2.2.2.4)."""
    return vr in _WILDCARD_VRS and isinstance(value, str) and ("*" in value or "?" in value)


def _is_empty(vr: str, item: Any) -> bool:
    if vr == "PN" and isinstance(item, dict):
        return all(name in _PERSON_NAME_GROUPS and group in (None, "") for name, group in item.items())
    return item is None or item == ""


def _check_count(vr: str, count: int) -> None:
    limit = MAX_UIDS if vr == "UI" else 1 if vr in _BACKSLASH_IS_TEXT or vr == "UR" else MAX_VALUES
    if count > limit:
        raise BadValueError(f"{count} values are more than the {limit} that VR {vr} may have", _ASK_TWICE)


def _check_size(vr: str, values: list[Value]) -> list[Value]:
    if vr not in _LONG_VALUES:
        size = sum(len(value.encode()) + 1 if isinstance(value, str) else 8 for value in values)
        if size > MAX_VALUE_BYTES:
            raise BadValueError(f"the values are longer than {MAX_VALUE_BYTES} bytes together", _ASK_TWICE)
    return values


def _check_one(vr: str, item: Any) -> Value:
    if _is_empty(vr, item):
        raise BadValueError(
            "an empty value among others", "leave it out, or leave the whole key empty to match anything"
        )
    text = _text_of(vr, item)
    if unsafe := _UNSAFE.search(text):
        raise BadValueError(f"control characters such as {unsafe[0]!a} are not allowed in a query")
    if "\\" in text and vr not in _BACKSLASH_IS_TEXT:
        raise BadValueError("a backslash separates values in DICOM", "give several values as a JSON list")
    stripped = text.rstrip(" ") if vr in _LEADING_SPACES_COUNT else text.strip(" ")
    if not stripped:
        raise BadValueError("only spaces", "leave the value empty to match anything")
    return CHECKS[vr](stripped)


def _text_of(vr: str, item: Any) -> str:
    if isinstance(item, str):
        return item
    if vr == "PN" and isinstance(item, dict):
        return _person_name_text(item)
    if isinstance(item, bool) or not isinstance(item, (int, float)):
        raise BadValueError(f"VR {vr} takes {_expected(vr)}, not {_json_kind(item)}")
    if vr not in _NUMBERS:
        raise BadValueError(f"VR {vr} takes {_expected(vr)}, not a number", "put it in quotes")
    return _number_text(item)


def _number_text(number: int | float) -> str:
    if isinstance(number, float):
        return repr(number)
    if abs(number) >= 2**64:
        raise BadValueError("the number is too large")
    return str(number)


def _expected(vr: str) -> str:
    if vr == "PN":
        return "text, or an object with Alphabetic, Ideographic and Phonetic"
    return "a number" if vr in _NUMBERS else "text"


def _json_kind(item: Any) -> str:
    kinds = {bool: "true or false", dict: "an object", list: "a list in a list"}
    return kinds.get(type(item), type(item).__name__)


def _person_name_text(groups: dict[str, Any]) -> str:
    """Join the component groups of the DICOM JSON model (PS3.18 section F.2.2) as PS3.5 section 6.2.1 does."""
    for name, group in groups.items():
        if name not in _PERSON_NAME_GROUPS:
            raise BadValueError("a person name has only the members Alphabetic, Ideographic and Phonetic")
        if not isinstance(group, (str, type(None))):
            raise BadValueError(f"{name} takes text")
        if group and "=" in group:
            raise BadValueError(f"{name} must not contain =, which separates the groups of a person name")
    return "=".join(groups.get(name) or "" for name in _PERSON_NAME_GROUPS)


def _check_text(vr: str, text: str) -> str:
    limit = TEXT_MAX_CHARS[vr]
    if len(text) > 2 * limit or _length(text) > limit:
        raise BadValueError(f"{len(text)} characters are more than the {limit} that VR {vr} allows")
    return text


def _length(text: str) -> int:
    """Length without asterisks: they stand for any number of characters, none among them."""
    return len(text) - text.count("*")


def _check_ascii(vr: str, text: str) -> str:
    if not text.isascii():
        raise BadValueError(f"VR {vr} allows only ASCII characters")
    return _check_text(vr, text)


def _check_person_name(text: str) -> str:
    name = text.rstrip("=")
    if not name:
        raise BadValueError("only delimiters", "leave the value empty to match anything")
    groups = name.split("=")
    if len(groups) > len(_PERSON_NAME_GROUPS):
        raise BadValueError("a person name has at most three groups between =")
    for group in groups:
        if len(group) > 2 * PERSON_NAME_MAX_CHARS or _length(group) > PERSON_NAME_MAX_CHARS:
            raise BadValueError(f"a group of {len(group)} characters; a person name's has {PERSON_NAME_MAX_CHARS}")
        if group.count("^") > 4:
            raise BadValueError("a person name has at most five components between ^")
    return name


def _check_uid(text: str) -> str:
    if "*" in text or "?" in text:
        raise BadValueError("a UID has no wildcards (PS3.4 section C.2.2.2.4)", "leave it empty to match anything")
    if not is_lenient_uid(text):
        raise BadValueError("not a UID (PS3.5 section 9)", "at most 64 characters: numbers with dots between them")
    return text


def _check_date(text: str) -> str:
    if not (dates.is_date(text) or dates.is_range(text, dates.is_date)):
        raise BadValueError(
            "not a date", _date_hint("YYYYMMDD, for example 20240131, or a range such as 20240101-20241231")
        )
    if dates.is_backwards(text):
        raise BadValueError("the range ends before it begins")
    return text


def _check_time(text: str) -> str:
    if not (dates.is_time(text) or dates.is_range(text, dates.is_time)):
        raise BadValueError("not a time", _date_hint("HHMMSS, for example 143000, or a range such as 080000-120000"))
    return text


def _check_datetime(text: str) -> str:
    if not (dates.is_datetime(text) or dates.is_range(text, dates.is_datetime)):
        raise BadValueError("not a date and time", _date_hint("YYYYMMDDHHMMSS, for example 20240131143000, or a range"))
    return text


def _date_hint(form: str) -> str:
    return f"write {form}; leave it empty to match anything"


def _check_integer_string(text: str) -> str:
    if len(text) > 12 or not _INTEGER.fullmatch(text) or not -(2**31) <= int(text) < 2**31:
        raise BadValueError("not an integer between -2147483648 and 2147483647")
    return text


def _check_decimal_string(text: str) -> str:
    if not _DECIMAL.fullmatch(text) or not math.isfinite(float(text)):
        raise BadValueError("not a decimal number")
    if len(text) > 16:
        raise BadValueError("a decimal number of more than 16 characters", "round it")
    return text


def _check_age(text: str) -> str:
    if not _AGE.fullmatch(text):
        raise BadValueError("not an age", "write three digits and D, W, M or Y, for example 042Y")
    return text


def _check_integer(vr: str, text: str) -> int:
    low, high = _INTEGERS[vr]
    if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
        raise BadValueError(f"not an integer between {low} and {high}")
    return int(text)


def _check_real(vr: str, text: str) -> float:
    number = float(text) if _DECIMAL.fullmatch(text) else math.nan
    if not math.isfinite(number):
        raise BadValueError("not a number")
    if vr == "FD":
        return number
    try:
        return float(struct.unpack("<f", struct.pack("<f", number))[0])
    except OverflowError:
        raise BadValueError("too large for VR FL") from None


def _check_tag(text: str) -> int:
    match = _TAG.fullmatch(text)
    if match is None:
        raise BadValueError("not a tag", "write eight hexadecimal digits, for example 00100020")
    return int(match[1] + match[2], 16)


CHECKS: dict[str, Callable[[str], Value]] = {
    **{vr: partial(_check_text, vr) for vr in TEXT_MAX_CHARS if vr not in ("AE", "CS", "UR")},
    **{vr: partial(_check_ascii, vr) for vr in ("AE", "CS", "UR")},
    **{vr: partial(_check_integer, vr) for vr in _INTEGERS},
    **{vr: partial(_check_real, vr) for vr in ("FL", "FD")},
    "PN": _check_person_name,
    "UI": _check_uid,
    "DA": _check_date,
    "TM": _check_time,
    "DT": _check_datetime,
    "IS": _check_integer_string,
    "DS": _check_decimal_string,
    "AS": _check_age,
    "AT": _check_tag,
}
"""A check for each VR whose values can be matched: it takes text without insignificant spaces, returns the value."""
