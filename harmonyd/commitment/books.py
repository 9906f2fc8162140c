"""The ledger for whoever works in the reactor: one thing after the other, in a thread; opened when first needed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredLock

from harmonyd.commitment.ledger import Ledger

T = TypeVar("T")
NAME = "commitment.sqlite3"


class Books:
    """``storage``: the storage path. ``in_thread`` runs blocking work in the reactor's thread pool."""

    def __init__(self, storage: Path, in_thread: Callable[..., Awaitable[Any]]) -> None:
        self.path = storage / "spool" / NAME
        self._in_thread = in_thread
        self._turn = DeferredLock()
        self._ledger: Ledger | None = None

    @property
    def exists(self) -> bool:
        """Whether there ever was something to write down."""
        return self.path.exists()

    async def do(self, work: Callable[[Ledger], T]) -> T:
        """Raises what ``work`` raises, ``sqlite3.Error``, OSError, ``LedgerUnusable``."""
        done: Deferred[T] = self._turn.run(lambda: Deferred.fromCoroutine(self._do(work)))
        return await done

    async def _do(self, work: Callable[[Ledger], T]) -> T:
        if self._ledger is None:
            self._ledger = await self._in_thread(self._open)
        result: T = await self._in_thread(work, self._ledger)
        return result

    def _open(self) -> Ledger:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Ledger(self.path)

    async def close(self) -> None:
        """Nothing is to be done any more. Safe to call twice."""
        await self._turn.run(lambda: Deferred.fromCoroutine(self._close()))

    async def _close(self) -> None:
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            await self._in_thread(ledger.close)
