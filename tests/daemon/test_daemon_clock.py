"""The clock that does not jump."""

from __future__ import annotations

from harmonyd.daemon.clock import steady


def test_it_goes_by_what_passes() -> None:
    """It begins with the time of day, and whatever becomes of that, only what really passes counts."""
    wall, monotonic = [1_000_000.0], [50.0]
    clock = steady(lambda: wall[0], lambda: monotonic[0])
    assert clock() == 1_000_000.0
    wall[0], monotonic[0] = 2_000_000.0, 51.0
    assert clock() == 1_000_001.0
    wall[0], monotonic[0] = 0.0, 52.5
    assert clock() == 1_000_002.5
