"""Objects of many associations handed over together: what comes while others are journalled is the next batch.

A hand-over costs nearly the same whatever is in it: one transaction, one flush of the disk. Each object has an outcome
of its own all the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from twisted.internet.defer import Deferred

from harmonyd.dimse.engine import Arrival

MAX_BATCH = 64

_Waiting = tuple[Arrival, "Deferred[None]"]


class Batches:
    """Calls ``handler`` with what there is."""

    def __init__(self, handler: Callable[[Sequence[Arrival]], Awaitable[None]]) -> None:
        self._handler = handler
        self._queue: deque[_Waiting] = deque()
        self._is_running = False

    async def take(self, arrival: Arrival) -> None:
        """Return when the handler has taken it. Raises what it raises for this one."""
        taken: Deferred[None] = Deferred()
        self._queue.append((arrival, taken))
        self._work()
        await taken

    def _work(self) -> None:
        if self._queue and not self._is_running:
            batch = [self._queue.popleft() for _ in range(min(MAX_BATCH, len(self._queue)))]
            self._is_running = True
            Deferred.fromCoroutine(self._run(batch))

    async def _run(self, batch: Sequence[_Waiting]) -> None:
        await self._hand_over(batch)
        self._is_running = False
        self._work()

    async def _hand_over(self, batch: Sequence[_Waiting]) -> None:
        """Never raises. One by one when it cannot be together, so that one does not spoil another."""
        try:
            await self._handler([arrival for arrival, _ in batch])
        except Exception as error:  # noqa: BLE001 - it is told to whoever asked for it
            if len(batch) == 1:
                batch[0][1].errback(error)
                return
            for one in batch:
                await self._hand_over([one])
            return
        for _, taken in batch:
            taken.callback(None)
