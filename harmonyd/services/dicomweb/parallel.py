"""Doing the same for many things, a few at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, FirstError, gatherResults

T = TypeVar("T")


async def each_of(things: Iterable[T], work: Callable[[T], Awaitable[None]], at_once: int) -> None:
    """Do ``work`` for each, ``at_once`` at the same time. The first error ends all, and is raised."""
    left = iter(things)

    async def run() -> None:
        for thing in left:
            await work(thing)

    def started(coroutine: Coroutine[Any, Any, None]) -> Deferred[None]:
        return Deferred.fromCoroutine(coroutine)

    workers = [started(run()) for _ in range(at_once)]
    try:
        await gatherResults(workers, consumeErrors=True)
    except FirstError as first:
        cause = first.subFailure.value
        assert cause is not None, "a failure is there because of an exception"
        raise cause from None
    finally:
        # One that has failed may be telling us so just now: it must not be waited for.
        for each in [worker for worker in workers if not worker.called]:
            each.addErrback(lambda _: None)
            each.cancel()
            await each
