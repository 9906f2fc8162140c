"""Dates and times in queries: single values and ranges (PS3.5 section 6.2; PS3.4 section C.2.2.2.5)."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable

_DA = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})")
_TM = re.compile(r"(?:[01][0-9]|2[0-3])(?:[0-5][0-9](?:(?:[0-5][0-9]|60)(?:\.[0-9]{1,6})?)?)?")
_DT = re.compile(
    r"([0-9]{4})(?:([0-9]{2})(?:([0-9]{2})(?:([0-9]{2})(?:[0-5][0-9](?:(?:[0-5][0-9]|60)(?:\.[0-9]{1,6})?)?)?)?)?)?"
    r"(?:[+-](?:0[0-9]|1[0-4])[0-5][0-9])?"
)


def is_date(text: str) -> bool:
    """Tell whether ``text`` is a date that exists, as YYYYMMDD."""
    match = _DA.fullmatch(text)
    return match is not None and _exists(int(match[1]), int(match[2]), int(match[3]))


def is_time(text: str) -> bool:
    """Tell whether ``text`` is a time, HH[MM[SS[.FFFFFF]]]."""
    return _TM.fullmatch(text) is not None


def is_datetime(text: str) -> bool:
    """Tell whether ``text`` is a date and time, YYYY[MM[DD[HH[MM[SS[.FFFFFF]]]]]] with an optional offset from UTC."""
    match = _DT.fullmatch(text)
    if match is None or (match[4] is not None and int(match[4]) > 23):
        return False
    return _exists(int(match[1]), int(match[2] or 1), int(match[3] or 1))


def _exists(year: int, month: int, day: int) -> bool:
    try:
        datetime.date(year, month, day)
    except ValueError:
        return False
    return True


def is_range(text: str, single: Callable[[str], bool]) -> bool:
    """Tell whether ``text`` is FROM-TO, FROM- or -TO with ends that ``single`` accepts.

    A hyphen may also begin an offset from UTC, so each one is tried as the range's.
    """
    for index, char in enumerate(text):
        if char != "-":
            continue
        start, end = text[:index], text[index + 1 :]
        if (start or end) and (not start or single(start)) and (not end or single(end)):
            return True
    return False


def is_backwards(text: str) -> bool:
    """Tell whether a range of dates (VR DA) ends before it begins."""
    start, hyphen, end = text.partition("-")
    return bool(hyphen and start and end and end < start)
