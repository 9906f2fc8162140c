"""What goes on while a child is in a state: one coroutine at a time, which ends with an event."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from harmonyd.supervision.states import Event


class Task:
    """``on_done`` gets the event of a coroutine that ended, ``on_failed`` what one raised; neither after ``end``."""

    def __init__(self, on_done: Callable[[Event], None], on_failed: Callable[[Failure], None]) -> None:
        self._on_done = on_done
        self._on_failed = on_failed
        self._running: Deferred[Event] | None = None

    @property
    def runs(self) -> bool:
        return self._running is not None

    def run(self, coroutine: Coroutine[Deferred[Any], Any, Event]) -> None:
        self._running = running = Deferred.fromCoroutine(coroutine)
        running.addCallbacks(self._done, self._failed)

    def end(self) -> None:
        """Cancel it, if it runs."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()

    def _done(self, event: Event) -> None:
        self._running = None
        self._on_done(event)

    def _failed(self, failure: Failure) -> None:
        if isinstance(failure.value, CancelledError):
            return
        self._running = None
        self._on_failed(failure)
