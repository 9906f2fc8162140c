"""Noticing files the moment a DCMTK program has closed them (inotify ``IN_CLOSE_WRITE``)."""

# mypy: allow-untyped-calls
# (Twisted's INotify has no types)

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.inotify import IN_CLOSE_WRITE, IN_CREATE, INotify
from twisted.python.filepath import FilePath

_DRAIN_READS = 4
_DIGITS = re.compile(r"(\d+)")


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sort key under which rsp10000.dcm follows rsp9999.dcm."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name)]


class FolderWatch:
    """Reports each file of one folder when it has been closed after writing.

    inotify may drop events under load, so ``sweep`` compares with the folder itself; call it when the writer is gone,
    or has said that all is written.
    """

    def __init__(
        self, reactor: Any, folder: Path, on_file: Callable[[str], None], *, track_open: bool = False
    ) -> None:
        """``track_open``: know which files are still being written, for a ``sweep`` while the writer runs."""
        self._folder = folder
        self._on_file = on_file
        self._seen: set[str] = set()
        self._open: set[str] = set()
        self._inotify: INotify | None = INotify(reactor)
        self._inotify.startReading()
        mask = IN_CLOSE_WRITE | (IN_CREATE if track_open else 0)
        self._inotify.watch(FilePath(os.fsencode(folder)), mask=mask, callbacks=[self._event])

    def sweep(self) -> list[str]:
        """Names of files not reported yet, in natural order, less those still being written; they count as reported."""
        self._drain()
        with os.scandir(self._folder) as entries:
            names = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
        new = names - self._seen - self._open
        self._seen |= new
        return sorted(new, key=natural_order)

    def forget(self, name: str) -> None:
        """The file has been moved away, or will be before the next ``sweep``: remember it no longer."""
        self._seen.discard(name)

    def close(self) -> None:
        """Stop watching; safe to call twice."""
        watch, self._inotify = self._inotify, None
        if watch is not None:
            watch.loseConnection()

    def _drain(self) -> None:
        # What the kernel has queued already says which files are still open.
        for _ in range(_DRAIN_READS):
            if self._inotify is not None:
                self._inotify.doRead()

    def _event(self, _watch: object, path: Any, mask: int) -> None:
        name = os.fsdecode(path.basename())
        if mask & IN_CREATE:
            self._open.add(name)
        else:
            self._open.discard(name)
            if name not in self._seen:
                self._seen.add(name)
                self._on_file(name)
