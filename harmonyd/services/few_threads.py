"""A share of the process's threads, for work that may hang: a network file system does without its server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore


class FewThreads:
    """Calls functions in threads, so many at once; the others wait. Like what it wraps, it is awaited.

    A call that is cancelled ends for who waits for it. Its thread cannot be ended, and counts until it has.
    """

    def __init__(self, in_thread: Callable[..., Awaitable[Any]], limit: int) -> None:
        self._in_thread = in_thread
        self._free = DeferredSemaphore(limit)

    async def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """What the function returns or raises."""
        await self._free.acquire()
        done: Deferred[Any] = Deferred(lambda _: None)
        Deferred.fromCoroutine(self._called(function, args)).addBoth(self._ended, done)
        return await done

    async def _called(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return await self._in_thread(function, *args)

    def _ended(self, outcome: Any, done: Deferred[Any]) -> None:
        self._free.release()
        if not done.called:  # or else nobody waits any more
            done.callback(outcome)
