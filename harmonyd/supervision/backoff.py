"""When a failed child is tried again, and when it is given up. Pure: time and randomness are arguments."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

JITTER = 0.2
"""Each delay is spread by this share either way, so that children that failed together do not come back together."""
FAST_FAILURE_WINDOW_SECS = 60.0


class Backoff:
    """Doubling delays for one child.

    ``random`` returns numbers from 0 to 1. After ``give_up_after`` failures within 60 s the child is given up; it stays
    so, whatever further failure comes, until ``reset``.
    """

    def __init__(
        self, initial_secs: float, max_secs: float, give_up_after: int, random: Callable[[], float]
    ) -> None:
        self._random = random
        self._recent: deque[float] = deque()
        self.configure(initial_secs, max_secs, give_up_after)
        self._doublings = 0
        self._given_up = False

    def configure(self, initial_secs: float, max_secs: float, give_up_after: int) -> None:
        """Go by these from the next failure on; what was counted counts."""
        self._initial_secs = initial_secs
        self._max_secs = max_secs
        self._recent = deque(self._recent, maxlen=give_up_after)

    def failed(self, now: float) -> float | None:
        """Count a failure at ``now`` (seconds); return the delay before the next try, or None: give up."""
        self._recent.append(now)
        full = len(self._recent) == self._recent.maxlen
        self._given_up |= full and now - self._recent[0] <= FAST_FAILURE_WINDOW_SECS
        return None if self._given_up else self._next_delay()

    def reset(self) -> None:
        """Forget all failures: the child was stable, or an operator started it."""
        self._recent.clear()
        self._doublings = 0
        self._given_up = False

    def _next_delay(self) -> float:
        delay = min(self._max_secs, self._initial_secs * 2.0**self._doublings)
        if delay < self._max_secs:
            self._doublings += 1
        return delay * (1 + JITTER * (2 * self._random() - 1))
