"""Who asks for a study, series or instance gets it from the disk, from a retrieve that runs, or from the PACS."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from harmonyd.cache.entry import Entry
from harmonyd.cache.key import Key
from harmonyd.cache.made import made_of
from harmonyd.cache.results import KeptResults
from harmonyd.cache.retrieval import Retrieval
from harmonyd.cache.store import CacheStore, InThread
from harmonyd.config.daemon import CacheConfig
from harmonyd.dimse import artifacts
from harmonyd.envelope import Results
from harmonyd.progress import UNWATCHED, Progress

FOLDER = "cache"
"""Below the storage path."""
PATIENCE_SECS = 0.5
"""How long a request for an instance waits for the retrieve of its series before it asks for it by itself."""
MAX_ALONE = 4
"""Instances asked for by themselves while their series arrive."""
SETTLED_SECS = 30.0
"""What is younger is current enough for a client that wants nothing from a cache."""
_REST_SECS = 300.0
_MAX_UNFIT = 1000


@dataclass(frozen=True, slots=True)
class Source:
    """How the PACS is asked on behalf of a request."""

    operation: str
    """get or move."""
    new_id: Callable[[], str]
    perform: Callable[[Key, str | None, Path | None, Progress], Awaitable[Results]]
    """Retrieves under this id, into a folder of its own below the path. Raises what the operation raises.

    Without an id and a path it is the request itself, and nothing is kept.
    """
    progress: Progress = UNWATCHED
    """Of the request."""

    @property
    def is_watched(self) -> bool:
        """Whether it is an operation that somebody watches, and so ends on purpose."""
        return self.progress is not UNWATCHED

    async def alone(self, key: Key) -> Results:
        """Retrieve for this request only. Raises what the operation raises."""
        return await self.perform(key, None, None, self.progress)


class SeriesCache:
    """Belongs to a daemon, and serves all its dicom backends."""

    _log = Logger("harmonyd.cache")

    def __init__(self, reactor: Any, storage: Path, config: CacheConfig, in_thread: InThread) -> None:
        self._reactor = reactor
        self._store = CacheStore(storage / FOLDER, config, in_thread, reactor.seconds)
        self._running: dict[Key, Retrieval] = {}
        """What others may join."""
        self._all: set[Retrieval] = set()
        """What runs, with what has been given up and not ended yet."""
        self._unfit: dict[Key, float] = {}
        """Until when a series is not retrieved ahead: it could not be had, or is too big."""
        self._is_closed = False
        self.answers = dict.fromkeys(("kept", "joined", "retrieved", "passed_by"), 0)
        """Retrieves answered from the disk, by one that ran, by one that fills the cache, and without the cache."""

    async def start(self) -> None:
        """Take over what an earlier run left whole."""
        await self._store.start()

    async def stop(self) -> None:
        """End what runs, and return when it has ended."""
        self._is_closed = True
        for retrieval in list(self._all):
            await retrieval.end()
        await self._store.stop()

    def configure(self, config: CacheConfig) -> None:
        """Keep as ``config`` says from now on."""
        self._store.config = config
        if config.enabled:
            self._store.sweep()
        else:
            self._store.clear()

    # --- for backends

    async def retrieve(self, key: Key, source: Source, *, fresh: bool = False, ahead: bool = True) -> Results:
        """Return all of ``key``. The first instance is there, or the end.

        ``fresh``: what was retrieved before is too old. ``ahead``: the rest of the series will be asked for next.
        Raises what the operation raises.
        """
        if not self._store.config.enabled or self._is_closed:
            self.answers["passed_by"] += 1
            return await source.alone(key)
        if fresh:
            self._forget(key)
        if not key.instance:
            return await self._found(key, source)
        results = await self._instance(key, source)
        if ahead:
            self._retrieve_ahead(key.of_series, source)
        return results

    def invalidate(self, studies: set[str]) -> None:
        """Take note that these have changed; what is read already stays as it is."""
        for study in studies:
            self._store.invalidate(study)
            for retrieval in [each for key, each in self._running.items() if key.study == study]:
                self._part_with(retrieval)

    # --- for people

    def figures(self) -> dict[str, Any]:
        """How much is kept, JSON-ready."""
        figures, config = self._store.figures(), self._store.config
        return {
            "enabled": config.enabled,
            "entries": figures.entries,
            "instances": figures.instances,
            "bytes": figures.bytes,
            "max_bytes": config.max_bytes,
            "retrieving": len(self._running),
        }

    async def clear(self) -> dict[str, Any]:
        """Remove all; what is being read goes when it has been. Return how much that was."""
        figures = self._store.clear()
        for retrieval in list(self._running.values()):
            self._part_with(retrieval)
        await self._store.stop()
        self._log.info("the cache was emptied: {count} instances", count=figures.instances)
        return {"entries": figures.entries, "instances": figures.instances, "bytes": figures.bytes}

    async def give_way(self) -> bool:
        """Remove all that nobody reads: others find the disk full. Tell whether that made room."""
        before = self._store.figures().bytes
        if not before:
            return False
        self._store.complain("the disk is full")
        self._store.clear()
        await self._store.stop()
        return self._store.figures().bytes < before

    def sweep(self) -> None:
        """Remove what is too old."""
        self._store.sweep()

    # --- details

    async def _found(self, key: Key, source: Source) -> Results:
        results = self._present(key, source)
        if results is None and not self._is_closed and await self._store.admits():
            results = self._present(key, source) or self._asked(key, source)
        if results is None:
            self.answers["passed_by"] += 1
            return await source.alone(key)
        return await _ready(results)

    def _present(self, key: Key, source: Source) -> KeptResults | None:
        entry = self._store.find(key)
        if entry is not None:
            return self._held(entry, key, source)
        running = self._running.get(key)
        if running is None:
            return None
        self.answers["joined"] += 1
        return self._following(running, source)

    def _asked(self, key: Key, source: Source) -> KeptResults:
        """What the PACS is asked for now."""
        self.answers["retrieved"] += 1
        return self._following(self._begin(key, source, is_watched=source.is_watched), source)

    async def _instance(self, key: Key, source: Source) -> Results:
        series = key.of_series
        patience = PATIENCE_SECS
        while (running := self._running.get(series)) is not None and self._store.find(key) is None:
            if key.instance in running.entry.instances:
                return self._held(running.entry, key, source)
            if patience <= 0 and self._alone() < MAX_ALONE:
                break
            began = self._reactor.seconds()
            await running.news_within(max(patience, 0.05), self._reactor)
            patience -= max(0.0, self._reactor.seconds() - began)
        known = self._store.find(series)
        results = await self._found(key, source)
        if known is not None and key.instance not in known.instances:
            # It was not there when the series was retrieved.
            self._store.invalidate(key.study)
        return results

    def _alone(self) -> int:
        return sum(1 for key in self._running if key.instance)

    def _held(self, entry: Entry, key: Key, source: Source) -> KeptResults:
        """What is there already."""
        self.answers["kept"] += 1
        self._store.hold(entry)

        def left() -> None:
            self._store.release(entry)

        return KeptResults(key, made_of(entry, self._store), source.operation, left, progress=source.progress)

    def _following(self, retrieval: Retrieval, source: Source) -> KeptResults:
        """What is there already, and what arrives."""
        entry = retrieval.entry
        self._store.hold(entry)
        retrieval.readers += 1
        retrieval.progress.add(source.progress)

        def left() -> None:
            retrieval.readers -= 1
            retrieval.progress.remove(source.progress)
            goes_on = not source.is_watched and self._may_go_on(retrieval)
            if not retrieval.readers and not retrieval.has_ended and not goes_on:
                self._give_up(retrieval)
            self._store.release(entry)

        made = made_of(entry, self._store)
        return KeptResults(entry.key, made, source.operation, left, retrieval, source.progress)

    def _begin(self, key: Key, source: Source, *, is_watched: bool) -> Retrieval:
        id_ = source.new_id()
        folder = self._store.folder
        entry = self._store.begin(key, artifacts.folder_of(folder, source.operation, id_))
        retrieval = Retrieval(entry, self._store)
        self._running[key] = retrieval
        self._all.add(retrieval)
        progress = retrieval.progress if is_watched else UNWATCHED
        retrieval.begin(lambda: source.perform(key, id_, folder, progress), self._ended, self._grew)
        return retrieval

    def _ended(self, retrieval: Retrieval) -> None:
        self._all.discard(retrieval)
        self._leave(retrieval)
        is_whole = retrieval.error is None and retrieval.summary()["complete"]
        if not is_whole and not retrieval.is_given_up:
            self._leave_alone(retrieval.entry.key)

    def _leave(self, retrieval: Retrieval) -> None:
        if self._running.get(retrieval.entry.key) is retrieval:
            del self._running[retrieval.entry.key]

    def _part_with(self, retrieval: Retrieval) -> None:
        """What it brings is not for those who come from now on."""
        self._leave(retrieval)
        if not retrieval.readers:
            retrieval.cancel()

    def _give_up(self, retrieval: Retrieval) -> None:
        self._leave(retrieval)
        retrieval.cancel()

    def _grew(self, retrieval: Retrieval) -> None:
        if not retrieval.readers and not self._fits(retrieval):
            self._leave_alone(retrieval.entry.key)
            self._give_up(retrieval)

    # --- ahead

    def _retrieve_ahead(self, series: Key, source: Source) -> None:
        """Retrieve a series that nobody waits for, unless enough of these run."""
        until = self._unfit.get(series, 0.0)
        if until > self._reactor.seconds() or series in self._running or self._store.find(series) is not None:
            return
        if self._has_room_ahead():
            self._begin(series, source, is_watched=False)

    def _may_go_on(self, retrieval: Retrieval) -> bool:
        """Whether one that nobody reads any more is to be completed."""
        is_wanted = not retrieval.entry.key.instance and not retrieval.entry.is_dropped
        return is_wanted and self._fits(retrieval) and self._has_room_ahead(1)

    def _has_room_ahead(self, more: int = 0) -> bool:
        ahead = sum(1 for each in self._all if not each.readers and not each.entry.key.instance)
        return not self._is_closed and ahead - more < self._store.config.max_prefetches

    def _fits(self, retrieval: Retrieval) -> bool:
        return retrieval.entry.size_bytes <= self._store.config.max_series_bytes

    def _leave_alone(self, key: Key) -> None:
        while len(self._unfit) >= _MAX_UNFIT:
            del self._unfit[next(iter(self._unfit))]
        self._unfit[key] = self._reactor.seconds() + _REST_SECS

    def _forget(self, key: Key) -> None:
        entry = self._store.find(key)
        if entry is not None and self._reactor.seconds() - entry.began_at > SETTLED_SECS:
            self._store.drop(entry)


async def _ready(results: KeptResults) -> Results:
    """Wait for the first instance, or the end. Raises what the operation raises before."""
    try:
        await results.first()
    except BaseException:
        await results.aclose()
        raise
    return results

