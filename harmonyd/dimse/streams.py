"""The stream an operation hands out: an asynchronous generator with its outcome beside it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Generic, TypeVar

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


async def ahead(source: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Yield the items of ``source``, which runs to its end however slowly they are read.

    For small items, and a source that holds what others wait for. What it raises comes after the items before it.
    Closing this closes the source, and returns when that has ended.
    """
    reader = _Reader(source)
    running = Deferred.fromCoroutine(reader.run())
    try:
        while reader.items or not reader.ended:
            if reader.items:
                yield reader.items.popleft()
            else:
                await reader.more()
        if reader.error is not None:
            raise reader.error
    finally:
        if not reader.ended:
            running.cancel()
            await running


class _Reader(Generic[T]):
    """Reads a source to its end and tells one who waits."""

    def __init__(self, source: AsyncGenerator[T, None]) -> None:
        self.items: deque[T] = deque()
        self.ended = False
        self.error: Exception | None = None
        self._source = source
        self._waiter: Deferred[None] | None = None

    async def run(self) -> None:
        try:
            async for item in self._source:
                self.items.append(item)
                self._tell()
        except Exception as error:  # noqa: BLE001 - it is raised where the items are read
            self.error = error
        self.ended = True
        self._tell()

    async def more(self) -> None:
        self._waiter = Deferred(self._forget)
        await self._waiter

    def _tell(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    def _forget(self, _cancelled: Deferred[None]) -> None:
        self._waiter = None
