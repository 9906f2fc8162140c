"""Permitted hours: how they are written, when they are, and what summer time does to them."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from harmonyd.hours import Hours, Window, parse_window

BERLIN = "Europe/Berlin"


def at(text: str, fold: int = 0) -> float:
    """A moment by the clock in Berlin."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(BERLIN), fold=fold).timestamp()


def hours(*windows: str) -> Hours:
    return Hours(tuple(map(parse_window, windows)), BERLIN)


@pytest.mark.parametrize(
    ("text", "days", "start", "end"),
    [
        ("Mon-Fri 18:00-07:00", {0, 1, 2, 3, 4}, 1080, 420),
        ("18:00-07:00", set(range(7)), 1080, 420),
        ("sat,Sun 00:00-24:00", {5, 6}, 0, 1440),
        ("Fri-Mon 22:30-23:00", {4, 5, 6, 0}, 1350, 1380),
        ("Wed 07:00-07:01", {2}, 420, 421),
        ("Mon-Mon 07:00-08:00", {0}, 420, 480),
    ],
)
def test_how_they_are_written(text: str, days: set[int], start: int, end: int) -> None:
    """Days, or all; a range of days may go over Sunday, and one of times over midnight."""
    assert parse_window(text) == Window(frozenset(days), start, end)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not like"),
        ("always", "not like"),
        ("Mon 18-07", "not like"),
        ("Mon 18:00-07:00 Tue 18:00-07:00", "not like"),
        ("Mon-Foo 18:00-07:00", "Foo is no day"),
        ("Mon, 18:00-07:00", "nothing is no day"),
        ("25:00-07:00", "25:00 is no time"),
        ("18:60-07:00", "18:60 is no time"),
        ("00:00-24:01", "24:01 is no time"),
        ("24:00-07:00", "00:00 of the day after"),
        ("07:00-07:00", "00:00-24:00"),
    ],
)
def test_what_is_no_window(text: str, said: str) -> None:
    """What is wrong is said."""
    with pytest.raises(ValueError, match=said):
        parse_window(text)


def test_a_night_belongs_to_the_day_on_which_it_begins() -> None:
    """Friday's ends on Saturday; Sunday has none, so Monday's small hours are not permitted."""
    nights = hours("Mon-Fri 18:00-07:00")
    permitted = {
        "2026-11-27T17:59": False,  # Friday
        "2026-11-27T18:00": True,
        "2026-11-28T06:59": True,
        "2026-11-28T07:00": False,
        "2026-11-28T18:00": False,
        "2026-11-30T06:00": False,
        "2026-12-01T06:00": True,
    }
    assert {text: nights.permit(at(text)) for text in permitted} == permitted
    assert nights.next_begin(at("2026-11-28T07:00")) == at("2026-11-30T18:00")
    assert nights.next_begin(at("2026-11-27T20:00")) == at("2026-11-27T20:00")


def test_the_next_of_several() -> None:
    """Whichever begins first, a week ahead at most."""
    assert hours("Sat 00:00-24:00", "Thu 12:00-13:00").next_begin(at("2026-11-27T08:00")) == at("2026-11-28T00:00")
    assert hours("Fri 08:00-09:00").next_begin(at("2026-11-27T09:00")) == at("2026-12-04T08:00")


def test_nights_of_summer_time() -> None:
    """18:00 is 18:00 on the wall, whether the night has 12, 13 or 14 hours."""
    nights = hours("18:00-07:00")
    for day, secs in (("2026-03-28", 12), ("2026-03-29", 13), ("2026-10-24", 14), ("2026-10-25", 13)):
        begin = nights.next_begin(at(f"{day}T12:00"))
        assert begin == at(f"{day}T18:00")
        end = at((datetime.fromisoformat(day) + timedelta(days=1)).strftime("%Y-%m-%dT07:00"))
        assert end - begin == secs * 3600
        assert [nights.permit(moment) for moment in (begin - 1, begin, end - 1, end)] == [False, True, True, False]


def test_an_hour_that_is_skipped() -> None:
    """A window that would begin in it begins when it is over."""
    window = hours("02:30-03:15")
    assert window.next_begin(at("2026-03-29T01:00")) == at("2026-03-29T03:00")
    assert window.permit(at("2026-03-29T03:00"))
    wholly_in_it = hours("02:10-02:50")
    assert wholly_in_it.next_begin(at("2026-03-29T01:00")) == at("2026-03-30T02:10")
    assert hours("Sun 02:10-02:50").next_begin(at("2026-03-23T12:00")) == at("2026-04-05T02:10")


def test_an_hour_that_comes_twice() -> None:
    """So does what is permitted in it."""
    window = hours("02:30-02:45")
    first, second = at("2026-10-25T02:30"), at("2026-10-25T02:30", fold=1)
    assert second - first == 3600
    assert window.next_begin(at("2026-10-25T01:00")) == first
    assert window.next_begin(at("2026-10-25T02:50")) == second
    assert window.next_begin(at("2026-10-25T02:50", fold=1)) == at("2026-10-26T02:30")


def test_this_machines_own_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a zone it is what TZ, or /etc/localtime, says."""
    import time

    monkeypatch.setenv("TZ", BERLIN)
    time.tzset()
    try:
        window = Hours((parse_window("02:30-03:15"),))
        assert window.next_begin(at("2026-11-27T01:00")) == at("2026-11-27T02:30")
        assert window.permit(at("2026-07-27T03:00"))
    finally:
        monkeypatch.undo()
        time.tzset()
