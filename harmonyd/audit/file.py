"""The file of messages, one a line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

MODE = 0o640


class AuditFile:
    """Appended to, for one thread. It is opened anew when it was renamed or removed (logrotate)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1
        self._is_to_be_reopened = False

    def append(self, lines: Sequence[bytes]) -> None:
        """All of them, on the disk when this returns; or none, and OSError."""
        if self._file < 0 or self._is_to_be_reopened or not self._is_current():
            self._is_to_be_reopened = False
            self.close()
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
        size = os.fstat(self._file).st_size
        try:
            left = memoryview(b"".join(line + b"\n" for line in lines))
            while left:
                left = left[os.write(self._file, left) :]
            os.fdatasync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, size)
            raise

    def reopen(self) -> None:
        """With the next line; from any thread."""
        self._is_to_be_reopened = True

    def close(self) -> None:
        """Let go of the file."""
        descriptor, self._file = self._file, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._file))
        except OSError:
            return False
