"""Queries that would match half an archive are refused before the PACS is asked."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Any

from harmonyd.config.sparing import SelectivityOptions
from harmonyd.dimse.engine import Query
from harmonyd.errors import BadRequest

__all__ = ["TooBroad", "check_selective"]

_WILDCARDS = frozenset("*?")
_DATES = ("StudyDate",)


class TooBroad(BadRequest):
    """The query has no key that narrows it enough."""

    title = "The query is too broad"
    query: Query | None = None
    """Not for the answer."""


def check_selective(query: Query, options: SelectivityOptions, today: datetime.date) -> None:
    """Let a C-FIND pass when one of its keys narrows it. Raises ``TooBroad``.

    A value without wildcards does (PS3.4 section C.2.2.2); one with them where it has letters or digits enough; a range
    of dates where it is short. ``today`` is the end of an open range.
    """
    for keyword in options.keys:
        if _narrows(keyword, _values(query.dataset, keyword), options, today):
            return
    ranges = f", or {' or '.join(_DATES)} of at most {options.max_days} days" if options.max_days else ""
    error = TooBroad(
        "The query would have the PACS look through too much of its archive.",
        hint=f"Give one of {', '.join(key for key in options.keys if key not in _DATES)} (with wildcards: at least "
        f"{options.min_letters} letters or digits{ranges}). The backend's selectivity says so.",
    )
    error.query = query
    raise error


def _narrows(keyword: str, values: Sequence[str], options: SelectivityOptions, today: datetime.date) -> bool:
    if not values:
        return False
    if keyword in _DATES:
        return all(_days(value, today) <= options.max_days for value in values)
    return all(_is_precise(value, options.min_letters) for value in values)


def _is_precise(value: str, min_letters: int) -> bool:
    letters = sum(char.isalnum() for char in value)
    return letters >= min_letters if _WILDCARDS.intersection(value) else letters > 0


def _days(value: str, today: datetime.date) -> float:
    """How many days a date, or a range of them, has."""
    first, hyphen, last = value.partition("-")
    if not hyphen:
        last = first
    begin, end = _date(first), _date(last) if last else today
    return float("inf") if begin is None or end is None else max(1, (end - begin).days + 1)


def _date(text: str) -> datetime.date | None:
    try:
        return datetime.datetime.strptime(text, "%Y%m%d").date()
    except ValueError:
        return None


def _values(dataset: Any, keyword: str) -> list[str]:
    return [text for text in _texts(dataset.get(keyword)) if text]


def _texts(value: Any) -> Iterator[str]:
    if value is None:
        return
    if isinstance(value, str) or not isinstance(value, Sequence):
        yield str(value).strip()
        return
    for each in value:
        yield str(each).strip()
