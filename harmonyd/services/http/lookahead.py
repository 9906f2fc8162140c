"""Reads a result stream one record ahead, so that what is ready can be told from what has to be waited for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from harmonyd.envelope import Record, Results

T = TypeVar("T")


class Lookahead(Generic[T]):
    """Records of ``results``, each passed through ``convert`` (which never returns None). At most one is read ahead."""

    def __init__(self, results: Results, convert: Callable[[Record], Awaitable[T]]) -> None:
        self._results = results
        self._iterator = aiter(results)
        self._convert = convert
        self._pending: Deferred[T | None] | None = None

    async def next(self) -> T | None:
        """Wait for the next record; None at the end, where it is called for the last time. Raises what failed."""
        pending = self._begin()
        self._pending = None
        return await pending

    def ready(self) -> bool:
        """Tell whether ``next`` would return a record at once. Starts to read it if that has not happened yet."""
        pending = self._begin()
        return pending.called and pending.result is not None and not isinstance(pending.result, Failure)

    async def aclose(self) -> None:
        """Stop reading and close the results. Safe to call twice."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.addErrback(lambda _: None)
            pending.cancel()
            await pending
        closer = getattr(self._iterator, "aclose", None)
        if closer is not None:
            await closer()
        await self._results.aclose()

    def _begin(self) -> Deferred[T | None]:
        if self._pending is None:
            self._pending = Deferred.fromCoroutine(self._pull())
        return self._pending

    async def _pull(self) -> T | None:
        try:
            record = await anext(self._iterator)
        except StopAsyncIteration:
            return None
        return await self._convert(record)
