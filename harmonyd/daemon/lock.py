"""One daemon for one storage path: two would end each other's children and take each other's files."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from harmonyd.errors import HarmonydError

LOCK_NAME = "harmonyd.lock"
"""In the folder ``run`` below the storage path."""


class AlreadyRunning(HarmonydError):
    """Another daemon uses this storage path."""

    title = "Already running"


class RunLock:
    """An advisory lock on a file that holds our pid; the kernel releases it whatever ends us."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def holder(self) -> int | None:
        """The pid of the daemon that has the lock; None when nobody has it, or we may not see who."""
        try:
            with self._path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read(32))
        except (OSError, ValueError):
            return None
        return None

    def take(self) -> None:
        """Take the lock. Raises ``AlreadyRunning`` with the other's pid, or OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise AlreadyRunning(
                f"The storage path is in use by another harmonyd (pid {holder}; lock {self._path})",
                hint="Stop that one, or give this one its own storage path.",
            ) from None
        self._descriptor = descriptor
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Give the lock up; safe to call when it was not taken."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
