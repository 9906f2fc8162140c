"""The daemon's clock: the time of day at its start, and then only what really passes.

Twisted's reactor measures with ``time.time``: a wall clock that is set forward ends every deadline at once, and one
that is set back stops every timer, systemd's watchdog among them, until it has caught up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def steady(
    wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
) -> Callable[[], float]:
    """A clock in seconds since 1970 as they were known when this was called; it never jumps, and never goes back."""
    began = wall() - monotonic()
    return lambda: began + monotonic()


def use_steady_clock(reactor: Any) -> None:
    """Let a reactor measure with ``steady``: all its timers, and whoever asks it for ``seconds``. Before the first."""
    reactor.seconds = steady()
