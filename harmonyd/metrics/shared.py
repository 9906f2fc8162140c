"""An answer that takes its time: found once for all who ask at the same time, whoever of them leaves."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from harmonyd.waiters import Waiters

T = TypeVar("T")


class Shared(Generic[T]):
    """``find`` never runs twice at once: where it does not come back, it is not asked again."""

    def __init__(self, reactor: Any, find: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._reactor = reactor
        self._find = find
        self._waiters: Waiters[T] = Waiters()
        self._is_running = False

    async def get(self, secs: float) -> T:
        """Raises what ``find`` raises, and Twisted's ``TimeoutError`` after ``secs``."""
        waiting = self._waiters.wait()
        waiting.addTimeout(secs, self._reactor)
        if not self._is_running:
            self._is_running = True
            Deferred.fromCoroutine(self._find()).addBoth(self._found)
        return await waiting

    def _found(self, result: T | Failure) -> None:
        self._is_running = False
        if isinstance(result, Failure):
            error = result.value
            self._waiters.fail(error if isinstance(error, Exception) else RuntimeError(type(error).__name__))
        else:
            self._waiters.fire(result)
