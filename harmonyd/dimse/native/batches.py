"""Objects of many associations handed over together: what comes while others are made durable is the next batch.

A flush of the disk costs hardly more for several files than for one, and each hand-over costs the same whatever is in
it. Each object has an outcome of its own all the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from twisted.internet.defer import Deferred

from harmonyd.dimse.engine import Arrival

MAX_BATCH = 64
MAX_RUNNING = 2
"""Under way at once: one is flushed while another is journalled. 16 senders get a fifth more done than unbounded."""

_Waiting = tuple[Arrival, "Deferred[None]"]


class Batches:
    """Calls ``handler`` with what there is."""

    def __init__(self, handler: Callable[[Sequence[Arrival]], Awaitable[None]]) -> None:
        self._handler = handler
        self._queue: deque[_Waiting] = deque()
        self._running = 0

    async def take(self, arrival: Arrival) -> None:
        """Return when the handler has taken it. Raises what it raises for this one."""
        taken: Deferred[None] = Deferred()
        self._queue.append((arrival, taken))
        self._work()
        await taken

    def _work(self) -> None:
        while self._queue and self._running < MAX_RUNNING:
            batch = [self._queue.popleft() for _ in range(min(MAX_BATCH, len(self._queue)))]
            self._running += 1
            Deferred.fromCoroutine(self._run(batch))

    async def _run(self, batch: Sequence[_Waiting]) -> None:
        await self._hand_over(batch)
        self._running -= 1
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
