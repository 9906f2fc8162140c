"""Blocking work out of the reactor's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.threads import deferToThreadPool

T = TypeVar("T")


async def in_thread(reactor: Any, function: Callable[..., T], *args: Any) -> T:
    """Call this in a thread of the reactor's pool."""
    result: T = await deferToThreadPool(reactor, reactor.getThreadPool(), function, *args)
    return result


async def in_threads(reactor: Any, function: Callable[[Sequence[Any]], Any], items: Sequence[Any], most: int) -> None:
    """Call ``function`` with equal shares of ``items``, in so many threads at once. Returns when all have ended.

    Raises the first error.
    """
    shares = [items[start::most] for start in range(min(most, len(items)))]
    pool = reactor.getThreadPool()
    running: list[Deferred[Any]] = [deferToThreadPool(reactor, pool, function, share) for share in shares]
    for success, result in await DeferredList(running, consumeErrors=True):
        if not success:
            result.raiseException()
