"""Noticing files the moment a DCMTK program has closed them (inotify ``IN_CLOSE_WRITE``)."""

# mypy: allow-untyped-calls
# (Twisted's INotify has no types)

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import re
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.inotify import IN_CLOSE_WRITE, IN_CREATE, INotify
from twisted.python._inotify import INotifyError
from twisted.python.failure import Failure
from twisted.python.filepath import FilePath

from harmonyd.dimse.errors import EngineFailed

_DRAIN_READS = 10_000
STALE_SECS = 900.0
"""A file that was not written to for so long is not open any more: storescp ends a silent association before."""
_DIGITS = re.compile(r"(\d+)")


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sort key under which rsp10000.dcm follows rsp9999.dcm."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _DIGITS.split(name)]


class FolderWatch:
    """Reports each file of one folder when it has been closed after writing.

    inotify may drop events under load, so ``sweep`` compares with the folder itself; call it when the writer is gone,
    or has said that all is written.
    """

    def __init__(
        self,
        reactor: Any,
        folder: Path,
        on_file: Callable[[str], None],
        *,
        track_open: bool = False,
        shared: SharedInotify | None = None,
    ) -> None:
        """``track_open``: know which files are still being written, for a ``sweep`` while the writer runs.

        ``shared``: an inotify instance that watches other folders, too. Raises ``EngineFailed`` when the kernel gives
        no watch.
        """
        self._reactor = reactor
        self._folder = folder
        self._on_file = on_file
        self._seen: set[str] = set()
        self._open: set[str] = set()
        self._inotify: INotify | None = None
        self._shared = shared
        mask = IN_CLOSE_WRITE | (IN_CREATE if track_open else 0)
        try:
            self._inotify = _new_inotify(reactor) if shared is None else shared.inotify
            self._inotify.watch(FilePath(os.fsencode(folder)), mask=mask, callbacks=[self._event])
        except INotifyError as error:
            self.close()
            raise _no_watch(folder, error) from error

    def sweep(self, *, writer_gone: bool = False) -> list[str]:
        """Names of files not reported yet, in natural order, less those still being written; they count as reported.

        What the kernel has yet to tell is reported first, and then in the list only if it was forgotten already.
        ``writer_gone``: nothing is being written any more, whatever was heard of it.
        """
        with os.scandir(self._folder) as entries:
            names = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
        # In this order: of each file that was seen here the kernel had already said that it was made.
        self._drain()
        self._open = set() if writer_gone else {name for name in self._open & names if not self._is_stale(name)}
        new = names - self._seen - self._open
        self._seen |= new
        return sorted(new, key=natural_order)

    def forget(self, name: str) -> None:
        """The file has been moved away, or will be before the next ``sweep``: remember it no longer."""
        self._seen.discard(name)

    def close(self) -> None:
        """Stop watching; safe to call twice."""
        watch, self._inotify = self._inotify, None
        if watch is None:
            return
        if self._shared is None:
            _close(self._reactor, watch)
        else:
            with contextlib.suppress(KeyError, INotifyError, OSError):  # gone with its folder
                watch.ignore(FilePath(os.fsencode(self._folder)))

    def _drain(self) -> None:
        """Read all that the kernel has queued: it says which files are still open."""
        for _ in range(_DRAIN_READS):
            if self._inotify is None or not _unread_bytes(self._inotify.fileno()):
                return
            self._inotify.doRead()

    def _is_stale(self, name: str) -> bool:
        """True when the file cannot be open any more, though nobody told: a full queue drops events."""
        try:
            now: float = min(time.time(), self._reactor.seconds())  # a clock that was set makes nothing older
            return now - (self._folder / name).stat().st_mtime > STALE_SECS
        except FileNotFoundError:
            return True

    def _event(self, _watch: object, path: Any, mask: int) -> None:
        name = os.fsdecode(path.basename())
        if mask & IN_CREATE:
            self._open.add(name)
        elif mask & IN_CLOSE_WRITE:
            self._open.discard(name)
            if name not in self._seen:
                self._seen.add(name)
                self._on_file(name)


class SharedInotify:
    """One inotify instance for many folders: a user may have 128 of these, and many more folders watched."""

    def __init__(self, reactor: Any, what_for: Path) -> None:
        """Raises ``EngineFailed``."""
        self._reactor = reactor
        try:
            self.inotify = _new_inotify(reactor)
        except INotifyError as error:
            raise _no_watch(what_for, error) from error

    def close(self) -> None:
        """Stop watching; call it once."""
        _close(self._reactor, self.inotify)


def _new_inotify(reactor: Any) -> INotify:
    inotify = INotify(reactor)
    inotify.startReading()
    return inotify


def _close(reactor: Any, inotify: INotify) -> None:
    inotify.stopReading()
    # The kernel takes milliseconds to close an inotify descriptor.
    reactor.callInThread(inotify.connectionLost, Failure(ConnectionDone()))


def _no_watch(folder: Path, error: Exception) -> EngineFailed:
    return EngineFailed(
        f"The folder {folder} cannot be watched: {error}",
        hint="Raise fs.inotify.max_user_instances and fs.inotify.max_user_watches (sysctl).",
    )


def _unread_bytes(descriptor: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, count)
    return count[0]
