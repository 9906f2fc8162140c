"""Hours of the week in which something is permitted, by the clock on the wall.

What counts is what a clock there shows: an hour that a change to summer time leaves out is never permitted, one that
comes twice is permitted twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

__all__ = ["DAYS", "Hours", "Window", "parse_window"]

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY_MINUTES = 24 * 60
_WINDOW = re.compile(r"(?:(?P<days>[A-Za-z][A-Za-z,-]*) +)?(?P<start>\d\d:\d\d)-(?P<end>\d\d:\d\d)\Z")
_STEP_SECS = 60
_AHEAD_DAYS = 16
"""Each window has a day of the week, and at most one in a row is skipped."""


@dataclass(frozen=True, slots=True)
class Window:
    """``start`` and ``end`` in minutes after midnight; with ``end`` before ``start`` it ends on the day after."""

    days: frozenset[int]
    """On which it begins; 0 is Monday."""
    start: int
    end: int


def parse_window(text: str) -> Window:
    """Return ``Mon-Fri 18:00-07:00``, ``Sat,Sun 00:00-24:00`` or ``18:00-07:00`` as a window.

    Raises ``ValueError`` with what is wrong.
    """
    match = _WINDOW.match(text)
    if match is None:
        raise ValueError('not like "Mon-Fri 18:00-07:00" or "18:00-07:00"')
    start, end = _minutes(match["start"]), _minutes(match["end"])
    if start == end:
        raise ValueError("it begins when it ends; the whole day is 00:00-24:00")
    if start == _DAY_MINUTES:
        raise ValueError("nothing begins at 24:00; write 00:00 of the day after")
    return Window(frozenset(_days(match["days"] or "Mon-Sun")), start, end)


def _minutes(text: str) -> int:
    hours, minutes = int(text[:2]), int(text[3:])
    if minutes > 59 or hours * 60 + minutes > _DAY_MINUTES:
        raise ValueError(f"{text} is no time of a day")
    return hours * 60 + minutes


def _days(text: str) -> Iterator[int]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        begin = _day(first)
        until = _day(last) if "-" in part else begin
        yield from ((begin + ahead) % 7 for ahead in range((until - begin) % 7 + 1))


def _day(name: str) -> int:
    if name.title() not in DAYS:
        raise ValueError(f"{name or 'nothing'} is no day; days are {', '.join(DAYS)}")
    return DAYS.index(name.title())


@dataclass(frozen=True, slots=True)
class Hours:
    """The windows, and what is meant. ``zone``: a name of the IANA time zone database; "": this machine's."""

    windows: tuple[Window, ...]
    zone: str = ""
    kinds: tuple[str, ...] = ()
    """Of operations, that are not permitted outside of them; empty: all."""

    def concern(self, kind: str) -> bool:
        """Tell whether operations of this kind are bound to the hours."""
        return not self.kinds or kind in self.kinds

    def permit(self, now: float) -> bool:
        """Tell whether ``now`` (seconds since the epoch) is in one of the windows."""
        return _in_one(self.windows, datetime.fromtimestamp(now, _zone(self.zone)))

    def next_begin(self, now: float) -> float:
        """``now`` where that is in one of the windows, else when the next one begins; that is within two weeks."""
        if self.permit(now):
            return now
        today = datetime.fromtimestamp(now, _zone(self.zone)).date()
        begins = (begin for ahead in range(_AHEAD_DAYS) for begin in self._begins_on(today + timedelta(days=ahead)))
        return min(begin for begin in begins if begin > now)

    def _begins_on(self, day: date) -> Iterator[float]:
        for window in self.windows:
            if day.weekday() in window.days:
                wall = datetime.combine(day, time(window.start // 60, window.start % 60), _zone(self.zone))
                yield from self._moments(wall)

    def _moments(self, wall: datetime) -> Iterator[float]:
        """When a clock shows this: once, or twice where it was set back.

        Where it skips it: the first moment after that in which something is permitted, if there is one.
        """
        first, second = wall.timestamp(), wall.replace(fold=1).timestamp()
        if first <= second:
            yield from {first, second}
            return
        # The clock jumps over it between the two.
        moments = range(int(second), int(first) + 1, _STEP_SECS)
        yield from [float(each) for each in moments if self.permit(each)][:1]


def _in_one(windows: Sequence[Window], wall: datetime) -> bool:
    minutes, day = wall.hour * 60 + wall.minute, wall.weekday()
    for window in windows:
        is_overnight = window.end < window.start
        has_begun = day in window.days and minutes >= window.start
        goes_on = is_overnight and (day - 1) % 7 in window.days and minutes < window.end
        if (has_begun and (is_overnight or minutes < window.end)) or goes_on:
            return True
    return False


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo | None:
    return ZoneInfo(name) if name else None
