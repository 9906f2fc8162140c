"""How late the reactor is: a timer that looks at the clock each second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

INTERVAL_SECS = 1.0


class LoopLag:
    """Tells ``observe`` how many seconds later than it should a timer was called. ``now`` never runs backwards."""

    def __init__(
        self, reactor: Any, observe: Callable[[float], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._reactor = reactor
        self._observe = observe
        self._now = now
        self._call: Any = None
        self._due = 0.0

    def start(self) -> None:
        """Look from now on. Safe to call twice."""
        if self._call is None:
            self._wait()

    def stop(self) -> None:
        """Look no more. Safe to call twice."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _wait(self) -> None:
        self._due = self._now() + INTERVAL_SECS
        self._call = self._reactor.callLater(INTERVAL_SECS, self._look)

    def _look(self) -> None:
        self._observe(max(0.0, self._now() - self._due))
        self._wait()
