"""A PACS for the tests of the cache, whose instances arrive when the test says so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from harmonyd.cache.cache import SeriesCache, Source
from harmonyd.cache.key import Key
from harmonyd.config.daemon import CacheConfig
from harmonyd.dimse.artifacts import folder_of
from harmonyd.dimse.engine import Instance
from harmonyd.dimse.streams import Mailbox
from harmonyd.progress import UNWATCHED, Progress

SERIES = Key("pacs", "1.2", "1.2.3")


def one(number: int, series: Key = SERIES) -> Key:
    return series._replace(instance=f"{series.series}.{number}")


async def at_once(function: Any, *args: Any) -> Any:
    """Instead of a thread."""
    return function(*args)


@dataclass(frozen=True)
class Arrived:
    instance: Instance


class FakeRetrieve:
    """One C-GET; implements ``Results``. ``bring`` instances, then ``finish`` it."""

    operation = "get"
    media_type = "application/json"
    items_key: str | None = "instances"

    def __init__(self, key: Key, folder: Path | None) -> None:
        self.key = key
        self.folder = folder
        self.progress = UNWATCHED
        self.is_closed = False
        self._items: Mailbox[Arrived] = Mailbox()
        self._complete = False

    def bring(self, *numbers: int, size: int = 10) -> None:
        for number in numbers:
            uid = f"{self.key.series}.{number}"
            path = (self.folder or Path()) / uid
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                path.write_bytes(bytes([number]) * size)
            self._items.put(Arrived(Instance(path, "1.9", uid, "1.2", size, self.key.study, self.key.series)))

    def finish(self, error: Exception | None = None, *, complete: bool = True) -> None:
        self._complete = complete and error is None
        self._items.end(error)

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for item in self._items:
            yield item

    def summary(self) -> Mapping[str, Any]:
        reason = {} if self._complete else {"incomplete_reason": "some failed"}
        return {"success": True, "complete": self._complete, **reason}

    async def aclose(self) -> None:
        self.is_closed = True


class FakePacs:
    """A cache in front of a PACS that remembers what it is asked for."""

    def __init__(self, folder: Path, config: CacheConfig | None = None) -> None:
        self.folder = folder
        self.clock = Clock()
        self.clock.advance(1000)
        self.asked: list[FakeRetrieve] = []
        self.cache = self.started(config or CacheConfig(min_free_bytes=1))
        self._ids = (f"{number:032x}" for number in count(1))
        self.source = Source("get", lambda: next(self._ids), self._perform)

    def started(self, config: CacheConfig) -> SeriesCache:
        """One more cache over the same folder."""
        cache = SeriesCache(self.clock, self.folder, config, at_once)
        self.done(cache.start())
        return cache

    async def _perform(self, key: Key, id_: str | None, storage: Path | None, progress: Progress) -> Any:
        retrieve = FakeRetrieve(key, None if storage is None or id_ is None else folder_of(storage, "get", id_))
        retrieve.progress = progress
        self.asked.append(retrieve)
        return retrieve

    def ask(self, key: Key = SERIES, **how: bool) -> Deferred[Any]:
        """A request; it has results when the first instance is there."""
        return Deferred.fromCoroutine(self.cache.retrieve(key, self.source, **how))

    def kept(self, key: Key = SERIES, *numbers: int) -> None:
        """Have it retrieved, and let go of it."""
        asked = self.ask(key, ahead=False)
        self.asked[-1].bring(*(numbers or (1, 2)))
        self.asked[-1].finish()
        self.done(self.done(asked).aclose())

    @property
    def levels(self) -> list[str]:
        return [retrieve.key.level for retrieve in self.asked]

    @staticmethod
    def done(waiting: Any) -> Any:
        """The result of something that is done already. Raises what it raised."""
        found: list[Any] = []
        deferred = waiting if isinstance(waiting, Deferred) else Deferred.fromCoroutine(waiting)
        deferred.addBoth(found.append)
        assert found, "it is not done yet"
        if hasattr(found[0], "raiseException"):
            found[0].raiseException()
        return found[0]


async def names(results: Any) -> list[str]:
    """The names of all that is read, to the end."""
    return [record.name async for record in results]
