"""The one thread that owns the journal: what waits for it is committed together, then told together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred

from harmonyd.errors import Unavailable
from harmonyd.spool.journal import Journal

T = TypeVar("T")
MAX_GROUP = 256
MAX_WAITING = 10_000


class Do(Protocol):
    """``Writer.do``, or what stands in front of it."""

    async def __call__(self, work: Callable[[Journal], T], after: Callable[[Journal, T], None] | None = None) -> T: ...


class _Work(Generic[T]):
    """Something to do with the journal. ``do`` may be called again after a group that could not be committed."""

    def __init__(self, do: Callable[[Journal], T], after: Callable[[Journal, T], None] | None) -> None:
        self.do = do
        self.after = after
        self.result: Deferred[T] = Deferred(lambda _: None)
        self._value: T | None = None
        self._error: Exception | None = None

    def run(self, journal: Journal) -> None:
        """Within the group's transaction. Raises only when that has ended with it."""
        self._error = None
        try:
            with journal.savepoint():
                self._value = self.do(journal)
        except Exception as error:
            self._error = error
            if not journal.db.in_transaction:
                raise

    def committed(self, journal: Journal) -> None:
        """The group is on the disk."""
        if self.after is None or self._error is not None:
            return
        try:
            self.after(journal, self._value)  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 - it is told to whoever asked for it
            self._error = error

    def failed(self, error: Exception) -> None:
        """It is not on the disk."""
        self._error = error

    def tell(self) -> None:
        if self.result.called:
            return
        if self._error is not None:
            self.result.errback(self._error)
        else:
            self.result.callback(self._value)  # type: ignore[arg-type]


class Writer:
    """Runs operations on the journal in its own thread, in the order in which they were handed over.

    ``open_journal`` is called in that thread.
    """

    def __init__(self, reactor: Any, open_journal: Callable[[], Journal]) -> None:
        self._reactor = reactor
        self._open = open_journal
        self._queue: queue.SimpleQueue[_Work[Any] | None] = queue.SimpleQueue()
        self._waiting = 0
        self._running = False

    async def start(self) -> None:
        """Open the journal. Raises what ``open_journal`` raises; then nothing runs, and it may be started again."""
        self._opened: Deferred[None] = Deferred()
        self._ended: Deferred[None] = Deferred()
        self._running = True
        threading.Thread(target=self._main, name="harmonyd-spool", daemon=True).start()
        try:
            await self._opened
        except BaseException:
            self._running = False
            raise

    async def stop(self) -> None:
        """Do what was handed over, close the journal, end the thread. Operations handed over later are refused."""
        if self._running:
            self._running = False
            self._queue.put(None)
            await self._ended

    def do(self, work: Callable[[Journal], T], after: Callable[[Journal, T], None] | None = None) -> Deferred[T]:
        """Run ``work`` in a transaction, and ``after`` (with its result) when that is on the disk, outside of any;
        nothing reads the journal between the two. The Deferred fires in the reactor's thread; cancelling it undoes
        nothing.

        Fails with what either raises, StorageFull when the disk is full, Unavailable when too much waits. ``work`` is
        called twice when the first transaction could not be committed.
        """
        item = _Work(work, after)
        if not self._running or self._waiting >= MAX_WAITING:
            why = "too much waits for its journal" if self._running else "it is stopped"
            item.result.errback(Unavailable(f"the spool cannot do this: {why}"))
            return item.result
        self._waiting += 1
        self._queue.put(item)
        return item.result

    # --- in the thread ---

    def _main(self) -> None:
        try:
            journal = self._open()
        except Exception as error:  # noqa: BLE001 - told to whoever waits for the start
            self._reactor.callFromThread(self._opened.errback, error)
            return
        self._reactor.callFromThread(self._opened.callback, None)
        while (group := self._next_group())[-1] is not None:
            self._work(journal, group)
        self._work(journal, group[:-1])
        journal.close()
        self._reactor.callFromThread(self._ended.callback, None)

    def _next_group(self) -> list[Any]:
        """At least one; None, which ends everything, comes last."""
        group = [self._queue.get()]
        while group[-1] is not None and len(group) < MAX_GROUP:
            try:
                group.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return group

    def _work(self, journal: Journal, group: list[_Work[Any]]) -> None:
        if group:
            self._commit(journal, group)
            self._reactor.callFromThread(self._tell, group)

    def _commit(self, journal: Journal, group: list[_Work[Any]]) -> None:
        """Together; if that cannot be, one by one, so that one cannot spoil another."""
        try:
            with journal.transaction():
                for work in group:
                    work.run(journal)
        except Exception as error:  # noqa: BLE001 - the disk is full, or another process holds the journal
            if len(group) == 1:
                group[0].failed(error)
            else:
                for work in group:
                    self._commit(journal, [work])
            return
        for work in group:
            work.committed(journal)

    # --- back in the reactor's ---

    def _tell(self, group: list[_Work[Any]]) -> None:
        self._waiting -= len(group)
        for work in group:
            work.tell()
