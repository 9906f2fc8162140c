"""The cache's folder: what is in it, how much, and what goes when there is no room."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from harmonyd.cache.entry import Entry, found_in, remove_all
from harmonyd.cache.key import Key
from harmonyd.config.daemon import CacheConfig
from harmonyd.errors import StorageFull

InThread = Callable[..., Awaitable[Any]]
_SKEW_SECS = 60.0
"""A clock may be set back by so much and nothing is thrown away."""


@dataclass(frozen=True, slots=True)
class Figures:
    """How much is kept."""

    entries: int
    instances: int
    bytes: int
    """With what is arriving, and what goes as soon as nobody reads it any more."""


class CacheStore:
    """Knows every entry. Everything but what says so runs at once, on the reactor's thread."""

    _log = Logger("harmonyd.cache")

    def __init__(self, folder: Path, config: CacheConfig, in_thread: InThread, seconds: Callable[[], float]) -> None:
        """``seconds``: since the epoch."""
        self.folder = folder
        self.config = config
        self.in_thread = in_thread
        self.seconds = seconds
        self._kept: OrderedDict[Key, Entry] = OrderedDict()
        """Those that may be given out, the least recently used first."""
        self._studies: dict[str, set[Entry]] = {}
        """All that are on the disk, by Study Instance UID."""
        self._bytes = 0
        self._removing: set[Deferred[None]] = set()
        self._is_told = False

    async def start(self) -> None:
        """Take over what an earlier run left whole, and remove the rest."""
        if not self.config.enabled:
            await self.in_thread(remove_all, self.folder)
            return
        for entry in await self.in_thread(found_in, self.folder):
            self._add(entry)
            self._count(entry.size_bytes)
            self._kept[entry.key] = entry
        self.sweep()

    async def stop(self) -> None:
        """Return when what is to be removed has been."""
        for removing in list(self._removing):
            await removing

    # --- reading

    def find(self, key: Key) -> Entry | None:
        """Return what is kept that has all of ``key``, and is not too old; it is the most recently used then."""
        for wider in key.wider:
            entry = self._kept.get(wider)
            if entry is None or self._drop_if_old(entry) or next(entry.chosen(key), None) is None:
                continue
            self._kept.move_to_end(wider)
            return entry
        return None

    def hold(self, entry: Entry) -> None:
        """Keep its files until ``release``."""
        entry.holders += 1

    def release(self, entry: Entry) -> None:
        """Let go of it; once for each ``hold``."""
        entry.holders -= 1
        self._remove_if_unused(entry)

    def figures(self) -> Figures:
        """Return how much there is."""
        instances = sum(len(entry.instances) for entry in self._kept.values())
        return Figures(len(self._kept), instances, self._bytes)

    # --- writing

    async def admits(self) -> bool:
        """Tell whether there is room on the disk to keep more, and make some before; say once in the log if not."""
        try:
            free = await self._free_bytes()
            while free < self.config.min_free_bytes and self._drop_oldest():
                await self.stop()
                free = await self._free_bytes()
        except OSError as error:
            self.complain(f"its folder cannot be used: {error.strerror or error}")
            return False
        if free < self.config.min_free_bytes:
            self.complain(f"{free} bytes are free, and min_free_mb asks for {self.config.min_free_bytes}")
            return False
        self._is_told = False
        return True

    def begin(self, key: Key, folder: Path) -> Entry:
        """Return an entry that is about to be filled."""
        entry = Entry(key, folder, self.seconds())
        self._add(entry)
        return entry

    def grew(self, entry: Entry, size_bytes: int) -> None:
        """Take note of a file of an entry."""
        entry.size_bytes += size_bytes
        self._count(size_bytes)
        self._make_room()

    def keep(self, entry: Entry) -> None:
        """Give it out from now on: it is complete. What is below it, or was the same, goes."""
        if entry.is_dropped or not self.config.enabled or entry.size_bytes > self.config.max_series_bytes:
            self.drop(entry)
            return
        for other in list(self._studies.get(entry.key.study, ())):
            if other.is_complete and entry.key.holds(other.key):
                self.drop(other)
        entry.is_complete = True
        self._kept[entry.key] = entry
        self._make_room()
        if not entry.is_dropped:
            Deferred.fromCoroutine(self._describe(entry)).addErrback(
                lambda failure: self._log.failure("an entry of the cache cannot be described", failure=failure)
            )

    def drop(self, entry: Entry) -> None:
        """Give it to nobody any more; its files go with its last holder."""
        if entry.is_dropped:
            return
        entry.is_dropped = True
        if self._kept.get(entry.key) is entry:
            del self._kept[entry.key]
        self._remove_if_unused(entry)

    def invalidate(self, study: str) -> None:
        """Drop all of a study, what is arriving as well: it has changed."""
        for entry in list(self._studies.get(study, ())):
            self.drop(entry)

    def clear(self) -> Figures:
        """Drop everything; return how much that was."""
        figures = self.figures()
        for study in list(self._studies):
            self.invalidate(study)
        return figures

    def sweep(self) -> None:
        """Drop what is too old, or too much."""
        for entry in list(self._kept.values()):
            self._drop_if_old(entry)
        self._make_room()

    def complain(self, why: str) -> None:
        """Say that nothing can be kept, once until it can again."""
        if not self._is_told:
            self._log.warn("the cache keeps nothing for now: {why}", why=why)
        self._is_told = True

    def failed_to_write(self, error: Exception) -> None:
        """Take note that an entry could not be written; a full disk gets what room the cache can give."""
        is_full = isinstance(error, StorageFull) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if is_full:
            self.complain("the disk is full")
            self.clear()

    # --- details

    async def _describe(self, entry: Entry) -> None:
        self.hold(entry)
        try:
            await self.in_thread(entry.write_manifest)
        except OSError as error:
            self.drop(entry)
            self.failed_to_write(error)
        finally:
            self.release(entry)

    async def _free_bytes(self) -> int:
        def free() -> int:
            self.folder.mkdir(parents=True, exist_ok=True)
            space = os.statvfs(self.folder)
            return space.f_bavail * space.f_frsize

        found: int = await self.in_thread(free)
        return found

    def _add(self, entry: Entry) -> None:
        self._studies.setdefault(entry.key.study, set()).add(entry)

    def _count(self, size_bytes: int) -> None:
        self._bytes += size_bytes

    def _make_room(self) -> None:
        while self._bytes > self.config.max_bytes and self._drop_oldest():
            continue

    def _drop_oldest(self) -> bool:
        """Drop the least recently used that nobody reads; False: there is none."""
        entry = next((each for each in self._kept.values() if not each.holders), None)
        if entry is not None:
            self.drop(entry)
        return entry is not None

    def _drop_if_old(self, entry: Entry) -> bool:
        age = self.seconds() - entry.began_at
        if -_SKEW_SECS <= age <= self.config.max_age_secs:
            return False
        self.drop(entry)
        return True

    def _remove_if_unused(self, entry: Entry) -> None:
        of_study = self._studies.get(entry.key.study, set())
        if entry.holders or not entry.is_dropped or entry not in of_study:
            return
        of_study.discard(entry)
        if not of_study:
            self._studies.pop(entry.key.study, None)
        self._count(-entry.size_bytes)
        removing: Deferred[None] = Deferred.fromCoroutine(self._remove(entry))
        self._removing.add(removing)
        removing.addBoth(lambda _: self._removing.discard(removing))

    async def _remove(self, entry: Entry) -> None:
        try:
            await self.in_thread(entry.remove)
        except Exception:  # noqa: BLE001 - nobody waits who could do something about it
            self._log.failure("an entry of the cache cannot be removed")
