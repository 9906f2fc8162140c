"""Running ahead of a reader: the source ends by itself, its failure comes in its place, and closing ends it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from harmonyd.dimse.streams import ItemStream, ahead
from harmonyd.errors import RemoteError


class Source:
    """Yields 1, 2 and 3, with a pause before each that ``go`` ends; notes its end."""

    def __init__(self, error: Exception | None = None) -> None:
        self.pauses: list[Deferred[None]] = []
        self.ended: list[str] = []
        self._error = error

    def go(self, times: int = 1) -> None:
        for _ in range(times):
            self.pauses.pop().callback(None)

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            for number in (1, 2, 3):
                await self._pause()
                yield number
            if self._error is not None:
                raise self._error
            self.ended.append("done")
        except CancelledError:
            await self._pause()  # what an end takes
            self.ended.append("cancelled")
            raise
        except GeneratorExit:
            self.ended.append("closed")
            raise

    async def _pause(self) -> None:
        self.pauses.append(Deferred())
        await self.pauses[-1]


async def _all(items: AsyncGenerator[int, None]) -> list[int]:
    return [item async for item in items]


@pytest_twisted.ensureDeferred
async def test_items_as_they_come() -> None:
    """A reader that waits gets each item at once."""
    source = Source()
    items = ahead(source.items())
    for number in (1, 2, 3):
        waiting = Deferred.fromCoroutine(anext(items))  # type: ignore[arg-type]
        assert not waiting.called
        source.go()
        assert await waiting == number
    assert await _all(items) == []


@pytest_twisted.ensureDeferred
async def test_the_source_does_not_wait() -> None:
    """The source ends although nobody reads what it brought."""
    source = Source()
    items = ahead(source.items())
    waiting = Deferred.fromCoroutine(anext(items))  # type: ignore[arg-type]
    source.go(times=3)
    assert source.ended == ["done"]
    assert await waiting == 1
    assert await _all(items) == [2, 3]


@pytest_twisted.ensureDeferred
async def test_failure_after_the_items() -> None:
    """What the source raises comes after the items before it."""
    source = Source(RemoteError("gone"))
    items = ahead(source.items())
    waiting = Deferred.fromCoroutine(anext(items))  # type: ignore[arg-type]
    source.go(times=3)
    assert await waiting == 1
    assert (await anext(items), await anext(items)) == (2, 3)
    with pytest.raises(RemoteError):
        await anext(items)
    assert await _all(items) == []


@pytest_twisted.ensureDeferred
async def test_failure_before_the_first_item() -> None:
    """A source that fails at once fails the reader."""

    async def failing() -> AsyncGenerator[int, None]:
        raise RemoteError("gone")
        yield 1

    with pytest.raises(RemoteError):
        await _all(ahead(failing()))


@pytest_twisted.ensureDeferred
async def test_closed_between_items() -> None:
    """Closing ends the source, and waits for that."""
    source = Source()
    stream: ItemStream[Any] = ItemStream(lambda _: ahead(source.items()))
    waiting = Deferred.fromCoroutine(anext(aiter(stream)))  # type: ignore[arg-type]
    source.go()
    assert await waiting == 1
    closing = Deferred.fromCoroutine(stream.aclose())
    assert not closing.called
    source.go()
    await closing
    assert source.ended == ["cancelled"]
    await stream.aclose()


@pytest_twisted.ensureDeferred
async def test_reader_cancelled() -> None:
    """A reader that is cancelled while it waits ends the source, and its own end comes after that."""
    source = Source()
    reading = Deferred.fromCoroutine(_all(ahead(source.items())))
    reading.cancel()
    assert not reading.called or source.ended == []
    source.go()
    with pytest.raises(CancelledError):
        await reading
    assert source.ended == ["cancelled"]


@pytest_twisted.ensureDeferred
async def test_never_read() -> None:
    """A stream that was closed before anybody read from it has begun nothing."""
    source = Source()
    await ItemStream(lambda _: ahead(source.items())).aclose()
    assert (source.pauses, source.ended) == ([], [])


@pytest_twisted.ensureDeferred
async def test_closed_as_soon_as_an_item_comes() -> None:
    """A reader that closes within the source's own turn, as it gets its item, ends the source, too."""
    source = Source()
    stream: ItemStream[Any] = ItemStream(lambda _: ahead(source.items()))

    async def read_one() -> None:
        async for _ in stream:
            break
        await stream.aclose()

    reading = Deferred.fromCoroutine(read_one())
    source.go()
    assert reading.called
    assert source.ended == ["closed"]


@pytest_twisted.ensureDeferred
async def test_so_far_ahead_and_no_farther() -> None:
    """With a limit the source waits for the reader; closing ends one that waits."""
    given: list[int] = []
    ended: list[str] = []

    async def source() -> AsyncGenerator[int, None]:
        try:
            for number in range(100):
                given.append(number)
                yield number
        finally:
            ended.append("closed")

    items = ahead(source(), 4)
    assert await anext(items) == 0
    assert given == [0, 1, 2, 3]
    for number in (1, 2):
        assert await anext(items) == number
    assert len(given) == 6
    await items.aclose()
    assert (len(given), ended) == (6, ["closed"])
    assert await _all(ahead(source(), 4)) == list(range(100))
