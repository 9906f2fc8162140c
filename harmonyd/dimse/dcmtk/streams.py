"""The stream an operation hands out: an asynchronous generator with its outcome beside it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Generic, TypeVar

from harmonyd.dimse.engine import Outcome

T = TypeVar("T")


class ToolStream(Generic[T]):
    """Implements ``OperationStream``. ``produce`` gets the stream, to fill in ``outcome``, ``folder`` and ``debug``."""

    def __init__(self, produce: Callable[[ToolStream[T]], AsyncGenerator[T, None]]) -> None:
        self.outcome = Outcome()
        self.folder: Path | None = None
        self.debug: dict[str, object] | None = None
        self._items = produce(self)

    def __aiter__(self) -> AsyncIterator[T]:
        return self._items

    async def aclose(self) -> None:
        await self._items.aclose()
