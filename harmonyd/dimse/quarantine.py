"""The quarantine folder: what an earlier run left goes there, and how much of it may be what nobody asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from harmonyd.dimse.accept import quarantine
from harmonyd.dimse.threads import Threads

COUNT_SECS = 60.0
"""How old the size of the quarantine may be: somebody may have emptied it."""


class Quota:
    """How much of what nobody asked for may lie in quarantine. Counts what is in the folder, whatever put it there."""

    def __init__(self, threads: Threads, folder: Path, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._threads = threads
        self._folder = folder
        self._used = 0
        self._counted_at: float | None = None

    def __call__(self, more: int) -> bool:
        """Count so many bytes more; return whether there may be yet more."""
        self._used += more
        return self._used < self.max_bytes

    async def count(self) -> None:
        """Look again, if the last look is too old."""
        now = self._threads.reactor.seconds()
        if self._counted_at is None or now - self._counted_at > COUNT_SECS:
            self._counted_at = now
            self._used = await self._threads.in_thread(_bytes_in, self._folder)


def put_aside(paths: Sequence[Path], quarantine_folder: Path) -> None:
    """Quarantine what an earlier run left: files, and folders with files, that nothing writes to. Blocking."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            put_aside(list(path.iterdir()), quarantine_folder)
            path.rmdir()
        else:
            quarantine(path, quarantine_folder, "was delivered for a C-MOVE before harmonyd was ended")


def _bytes_in(folder: Path) -> int:
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return 0
    total = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # somebody empties it
            total += path.lstat().st_size
    return total

