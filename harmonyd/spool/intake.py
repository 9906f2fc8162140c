"""Making received files ours. Whatever ends us at whatever point, an object is where it came from, or in the spool.

1. The files are flushed to the disk, then the folders they are in (unless a receiver has done both), and where such a
   folder is new those that it is in: they survive a power loss where they lie.
2. One transaction notes where each lies and where it is to go. From here on it is ours.
3. Each is renamed to its place, in the journal's thread, before anything else can read of it there.

After a crash between 2 and 3 ``recovery`` finishes the move. So 3 need not be flushed: a power loss may undo a rename,
as a whole, and that is the same.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harmonyd.errors import StorageFull
from harmonyd.spool.api import NewEntry
from harmonyd.spool.journal import Journal, NewRow, Totals
from harmonyd.spool.layout import Layout, free_bytes, full_disk_said, new_name, sync
from harmonyd.spool.recovery import say_damaged
from harmonyd.spool.threads import in_thread, in_threads
from harmonyd.spool.writer import Do

SYNC_THREADS = 4
"""Files flushed at once for one batch; the disk does several in little more time than one."""


MAX_ROOTED = 10_000
"""Folders that are remembered as durable."""


class Intake:
    """Takes files over. Raises StorageFull or OSError, then none of the batch is taken and each is where it was."""

    def __init__(self, reactor: Any, layout: Layout, do: Do, saw_free: Callable[[int], None]) -> None:
        self._reactor = reactor
        self._layout = layout
        self._do = do
        self._saw_free = saw_free
        self._rooted: dict[Path, None] = {}
        """Folders whose names are on the disk, up to the spool's own."""
        self._not_placed: list[str] = []
        """Journalled, but neither could they be moved nor could that be taken back: done with the next batch. A crash
        before that makes them ours after all. Touched in the journal's thread alone."""

    async def take(self, endpoint: str, entries: Sequence[NewEntry], backends: Sequence[str]) -> Totals:
        """Take files over for these backends; returns what the spool holds then."""
        if not backends:
            raise ValueError("an entry without a backend would go nowhere")
        now = self._reactor.seconds()
        return await self._take(entries, lambda journal, rows: journal.add(endpoint, rows, backends, now))

    async def put_aside(self, endpoint: str, entry: NewEntry, reason: str) -> Totals:
        """Take over a file that is damaged, and say so in the log."""
        now = self._reactor.seconds()
        ids: list[int] = []
        totals = await self._take(
            [entry], lambda journal, rows: ids.append(journal.add_damaged(endpoint, rows[0], reason, now))
        )
        say_damaged(entry.metadata.get("sop_instance_uid", ""), ids[-1], reason)
        return totals

    async def _take(self, entries: Sequence[NewEntry], add: Callable[[Journal, list[NewRow]], object]) -> Totals:
        rows = await self._settle(entries)
        undone: list[str] = []

        def note(journal: Journal) -> tuple[Totals, int]:
            undone[:] = self._not_placed
            journal.forget_names(undone)
            add(journal, rows)
            return journal.totals(), free_bytes(self._layout.folder)

        def place(journal: Journal, _: object) -> None:
            self._not_placed = [name for name in self._not_placed if name not in undone]
            self._place(journal, rows)

        try:
            with full_disk_said():
                totals, free = await self._do(note, place)
        except BaseException:
            await in_thread(self._reactor, self._drop_copies, [row.source for row in rows])
            raise
        self._saw_free(free)
        copied = [entry.path for entry, row in zip(entries, rows, strict=True) if self._layout.is_copy(row.source)]
        if copied:
            with suppress(OSError):  # they are ours all the same
                await in_thread(self._reactor, _unlink, copied)
        return totals

    async def _settle(self, entries: Sequence[NewEntry]) -> list[NewRow]:
        """Flush the files where they are; those of another file system are copied to ours first."""
        names = [new_name() for _ in entries]
        paths = {name: entry.path for name, entry in zip(names, entries, strict=True) if self._is_settled(entry)}
        others = [(entry, name) for name, entry in zip(names, entries, strict=True) if name not in paths]

        def settle(share: Sequence[tuple[NewEntry, str]]) -> None:
            for entry, name in share:
                paths[name] = self._layout.near(entry.path, name)
                sync(paths[name])

        try:
            with full_disk_said():
                if others:
                    await in_threads(self._reactor, settle, others, SYNC_THREADS)
                    await in_thread(self._reactor, self._sync_folders, [paths[name] for _, name in others])
        except BaseException:
            await in_thread(self._reactor, self._drop_copies, list(paths.values()))
            raise
        return [
            NewRow(name, paths[name], entry.size_bytes, entry.metadata, entry.request_id)
            for entry, name in zip(entries, names, strict=True)
        ]

    def _is_settled(self, entry: NewEntry) -> bool:
        """Folders of other file systems are never in ``_rooted``."""
        return entry.flushed and entry.path.parent in self._rooted

    def _place(self, journal: Journal, rows: Sequence[NewRow]) -> None:
        """In the journal's thread. All or none."""
        placed: list[NewRow] = []
        try:
            with full_disk_said():
                for row in rows:
                    self._layout.place(row.source, row.name)
                    placed.append(row)
        except (OSError, StorageFull):
            for row in placed:
                self._layout.object(row.name).rename(row.source)
            self._take_back(journal, [row.name for row in rows])
            raise

    def _take_back(self, journal: Journal, names: list[str]) -> None:
        try:
            with journal.transaction():
                journal.forget_names(names)
        except (StorageFull, sqlite3.Error):
            self._not_placed += names

    def _sync_folders(self, paths: Iterable[Path]) -> None:
        """Each folder once."""
        for folder in {path.parent for path in paths}:
            sync(folder)
            self._root(folder)

    def _root(self, folder: Path) -> None:
        """Flush the name of a folder that is new, and of those above it: a receiver makes one for each association."""
        new: list[Path] = []
        above = self._layout.folder
        if above not in folder.parents:  # an operation's, made for one: what it is in was there before
            sync(folder.parent)
        while folder not in self._rooted and above in folder.parents:
            sync(folder.parent)
            new.append(folder)
            folder = folder.parent
        if len(self._rooted) > MAX_ROOTED:
            self._rooted.clear()
        self._rooted.update(dict.fromkeys(new))

    def _drop_copies(self, paths: Iterable[Path]) -> None:
        _unlink(path for path in paths if self._layout.is_copy(path))


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
