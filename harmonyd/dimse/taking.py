"""From files that a storescp has closed to objects that are somebody's: checked to the end, in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from harmonyd.dimse.engine import Arrival, ObjectHandler
from harmonyd.dimse.part10 import DamagedFile, InstanceHeader, check_complete
from harmonyd.dimse.threads import Threads
from harmonyd.waiters import Waiters

MAX_BATCH = 64
MAX_BATCHES = 3
"""Under way at once: one is checked while the one before is made durable."""


class Source(Protocol):
    """Where files come from. Everything is called on the reactor's thread."""

    def arrival(self, path: Path, header: InstanceHeader) -> Arrival:
        """What is known of an object."""
        ...

    async def damaged(self, path: Path, reason: str) -> None:
        """The file is not whole: do with it what is right. Raises OSError and what the handler raises."""
        ...

    def settled(self, path: Path) -> None:
        """The file was taken, put aside, or is gone."""
        ...

    def failed(self, path: Path) -> None:
        """Nobody took it: it lies there, to be offered again later."""
        ...


@dataclass(frozen=True, slots=True)
class _Checked:
    source: Source
    path: Path
    header: InstanceHeader | None
    problem: str = ""
    is_gone: bool = False
    unread: OSError | None = None
    """It could not be looked at, which says nothing about it."""


class Taking:
    """Hands files to ``handler``, in the order in which they were added. ``name`` is for the log."""

    _log = Logger()

    def __init__(self, threads: Threads, handler: ObjectHandler, name: str) -> None:
        self._threads = threads
        self._handler = handler
        self._name = name
        self._queue: deque[tuple[Source, Path]] = deque()
        self._known: set[Path] = set()
        """What waits or is under way."""
        self._running: set[Deferred[None]] = set()
        self._damaged: set[Deferred[None]] = set()
        """Apart from the batches: what becomes of a damaged file may depend on how its association ends."""
        self._idle: Waiters[None] = Waiters()
        self._turn = DeferredLock()
        """Of the batch that is handed over; those behind it may be checked meanwhile."""

    def add(self, source: Source, path: Path) -> None:
        """A file is closed. Nothing happens when it is known: a sweep also finds what waits for its turn."""
        if path not in self._known:
            self._known.add(path)
            self._queue.append((source, path))
            self._work()

    async def all_settled(self) -> None:
        """Return when nothing waits and nothing is under way."""
        while self._queue or self._running or self._damaged:
            await self._idle.wait()

    def _work(self) -> None:
        while self._queue and len(self._running) < MAX_BATCHES:
            batch = [self._queue.popleft() for _ in range(min(MAX_BATCH, len(self._queue)))]
            self._begin(self._take(batch), self._running)

    def _begin(self, work: Coroutine[Any, Any, None], among: set[Deferred[None]]) -> None:
        running = Deferred.fromCoroutine(work)
        among.add(running)
        running.addBoth(self._taken, running)

    def _taken(self, result: object, running: Deferred[None]) -> None:
        self._running.discard(running)
        self._damaged.discard(running)
        if isinstance(result, Failure):
            self._log.failure("{name} failed at taking objects, by our fault", result, name=self._name)
        self._work()
        if not self._queue and not self._running and not self._damaged:
            self._idle.fire(None)

    async def _take(self, batch: Sequence[tuple[Source, Path]]) -> None:
        turn = self._turn.acquire()
        try:
            await self._take_in(turn, batch)
        finally:
            turn.addCallback(lambda _: self._turn.release())

    async def _take_in(self, turn: Deferred[DeferredLock], batch: Sequence[tuple[Source, Path]]) -> None:
        try:
            checked: list[_Checked] = await self._threads.in_thread(_check, batch)
        except Exception as error:  # noqa: BLE001 - as below
            self._failed([_Checked(source, path, None) for source, path in batch], error)
            return
        whole = [item for item in checked if item.header is not None]
        arrivals = [item.source.arrival(item.path, item.header) for item in whole if item.header is not None]
        await turn
        try:
            if arrivals:
                await self._handler(arrivals)
        except Exception as error:  # noqa: BLE001 - whatever it is, the files still lie there
            self._failed(whole, error)
        else:
            self._settled(whole)
        for item in checked:
            if item.unread is not None:
                self._failed([item], item.unread)
            elif item.header is None:
                self._begin(self._not_whole(item), self._damaged)

    async def _not_whole(self, item: _Checked) -> None:
        try:
            if not item.is_gone:
                await item.source.damaged(item.path, item.problem)
        except Exception as error:  # noqa: BLE001 - as above
            self._failed([item], error)
        else:
            self._settled([item])

    def _settled(self, items: Sequence[_Checked]) -> None:
        for item in items:
            self._known.discard(item.path)
            item.source.settled(item.path)

    def _failed(self, items: Sequence[_Checked], error: Exception) -> None:
        for item in items:
            self._known.discard(item.path)
            item.source.failed(item.path)
        self._log.error(
            "{count} objects that {name} received are not taken yet, and stay where they were received: {error}",
            count=len(items), name=self._name, error=error,
        )  # fmt: skip


def _check(batch: Sequence[tuple[Source, Path]]) -> list[_Checked]:
    return [_check_one(source, path) for source, path in batch]


def _check_one(source: Source, path: Path) -> _Checked:
    try:
        return _Checked(source, path, check_complete(path))
    except FileNotFoundError:
        return _Checked(source, path, None, is_gone=True)
    except DamagedFile as damage:
        return _Checked(source, path, None, damage.detail)
    except OSError as error:
        return _Checked(source, path, None, unread=error)
