"""The timers of one child: at most one of each kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.base import DelayedCall

from harmonyd.config.daemon import SupervisionConfig
from harmonyd.supervision.states import Timer


def duration_secs(timer: Timer, config: SupervisionConfig) -> float:
    """How long a timer runs, of those whose time is configured: RESTART's is up to ``backoff``."""
    return {
        Timer.STARTUP: config.startup_deadline_secs,
        Timer.STABLE: config.stable_after_secs,
        Timer.RETRY: config.fatal_retry_secs,
        Timer.GRACE: config.stop_grace_secs,
    }[timer]


class Timers:
    """``on_fire`` is called with the timer, which is not armed any more then. ``clock`` provides ``IReactorTime``."""

    def __init__(self, clock: Any, on_fire: Callable[[Timer], None]) -> None:
        self._clock = clock
        self._on_fire = on_fire
        self._calls: dict[Timer, DelayedCall] = {}

    def __contains__(self, timer: Timer) -> bool:
        return timer in self._calls

    def arm(self, timer: Timer, delay_secs: float) -> None:
        self._calls[timer] = self._clock.callLater(delay_secs, self._fire, timer)

    def put_off(self, timer: Timer, delay_secs: float) -> None:
        """Let an armed timer fire this long from now."""
        self._calls[timer].reset(delay_secs)

    def cancel(self, timer: Timer) -> None:
        """Do nothing when it is not armed."""
        call = self._calls.pop(timer, None)
        if call is not None:
            call.cancel()

    def due_secs(self, *timers: Timer) -> float | None:
        """In how many seconds the first of these that is armed will fire; None: none is."""
        calls = (self._calls[timer] for timer in timers if timer in self._calls)
        return next((call.getTime() - self._clock.seconds() for call in calls), None)

    def _fire(self, timer: Timer) -> None:
        del self._calls[timer]
        self._on_fire(timer)
