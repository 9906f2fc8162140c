"""The timers of a child."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from harmonyd.config.daemon import SupervisionConfig
from harmonyd.supervision.states import Timer
from harmonyd.supervision.timers import Timers, duration_secs


@pytest.fixture
def clock() -> Clock:
    """Time stands still until it is told to go on."""
    return Clock()


@pytest.fixture
def fired() -> list[Timer]:
    """What has fired, in order."""
    return []


@pytest.fixture
def timers(clock: Clock, fired: list[Timer]) -> Timers:
    """Timers that note in ``fired`` when they fire."""
    return Timers(clock, fired.append)


def test_a_timer_fires_once(clock: Clock, fired: list[Timer], timers: Timers) -> None:
    """It is armed until it fires, and tells how long that takes."""
    timers.arm(Timer.RETRY, 5)
    clock.advance(2)
    assert timers.due_secs(Timer.RESTART, Timer.RETRY) == 3
    clock.advance(3)
    clock.advance(60)
    assert fired == [Timer.RETRY]
    assert Timer.RETRY not in timers
    assert timers.due_secs(Timer.RETRY) is None


def test_a_cancelled_timer_does_not_fire(clock: Clock, fired: list[Timer], timers: Timers) -> None:
    """Cancelling one leaves the others, and may be done at any time."""
    timers.arm(Timer.STARTUP, 5)
    timers.arm(Timer.GRACE, 5)
    timers.cancel(Timer.STARTUP)
    timers.cancel(Timer.STARTUP)
    clock.advance(5)
    assert fired == [Timer.GRACE]


def test_a_timer_that_is_put_off_begins_anew(clock: Clock, fired: list[Timer], timers: Timers) -> None:
    """It fires the full time after it was put off last."""
    timers.arm(Timer.STARTUP, 5)
    clock.advance(4)
    timers.put_off(Timer.STARTUP, 5)
    clock.advance(4)
    assert not fired
    clock.advance(1)
    assert fired == [Timer.STARTUP]


def test_every_timer_but_restart_has_a_configured_time() -> None:
    """RESTART's time comes from the backoff."""
    for timer in set(Timer) - {Timer.RESTART}:
        assert duration_secs(timer, SupervisionConfig()) > 0
