"""The stream an operation hands out: an asynchronous generator with its outcome beside it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Generic, Self, TypeVar

from twisted.internet.defer import Deferred

from harmonyd.dimse.engine import Outcome

T = TypeVar("T")


class ItemStream(Generic[T]):
    """Implements ``OperationStream``. ``produce`` gets the stream, to fill in ``outcome``, ``folder`` and ``debug``."""

    def __init__(self, produce: Callable[[ItemStream[T]], AsyncGenerator[T, None]]) -> None:
        self.outcome = Outcome()
        self.folder: Path | None = None
        self.debug: dict[str, object] | None = None
        self._items = produce(self)

    def __aiter__(self) -> AsyncIterator[T]:
        return self._items

    async def aclose(self) -> None:
        await self._items.aclose()


class Mailbox(Generic[T]):
    """Items for one reader, who waits for them; ``end`` it with what is to be raised behind the last one, if anything.

    For small items: there is no bound, but for those who await ``room``.
    """

    def __init__(self, most: int = 0) -> None:
        """``most``: so many items are enough."""
        self.has_ended = False
        self.is_abandoned = False
        """Nobody reads any more."""
        self._most = most
        self._reader: Deferred[None] | None = None
        self._items: deque[T] = deque()
        self._error: Exception | None = None
        self._waiter: Deferred[None] | None = None

    def put(self, item: T) -> None:
        """One more."""
        self._items.append(item)
        self._tell()

    async def room(self) -> None:
        """Wait while there are enough. One waits at a time."""
        if self._most and len(self._items) >= self._most:
            self._reader = Deferred()
            await self._reader

    def end(self, error: Exception | None = None) -> None:
        """There will be no more."""
        self.has_ended, self._error = True, error
        self._tell()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self.has_ended:
                raise StopAsyncIteration
            self._waiter = Deferred(self._forget)
            await self._waiter
        item = self._items.popleft()
        if self._reader is not None and len(self._items) <= self._most // 2:
            reader, self._reader = self._reader, None
            reader.callback(None)
        return item

    def _tell(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    def _forget(self, _cancelled: Deferred[None]) -> None:
        self._waiter = None


async def ahead(source: AsyncGenerator[T, None], most: int = 0) -> AsyncGenerator[T, None]:
    """Yield the items of ``source``, which runs to its end however slowly they are read (or is ``most`` items ahead).

    For small items, and a source that holds what others wait for. What it raises comes after the items before it.
    Closing this closes the source, and returns when that has ended.
    """
    box: Mailbox[T] = Mailbox(most)
    running = Deferred.fromCoroutine(_fill(box, source))
    try:
        async for item in box:
            yield item
    finally:
        if not box.has_ended:
            box.is_abandoned = True
            running.cancel()
            await running


async def _fill(box: Mailbox[T], source: AsyncGenerator[T, None]) -> None:
    try:
        async with aclosing(source):
            async for item in source:
                box.put(item)
                # The reader may have gone within ``put``: then nothing was waiting that could have been cancelled.
                if box.is_abandoned:
                    break
                await box.room()
    except Exception as error:  # noqa: BLE001 - it is raised where the items are read
        box.end(error)
    else:
        box.end()
