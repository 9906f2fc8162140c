"""A request body while it arrives: in memory while it is small, else in a file that has no name."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import BinaryIO, cast

from twisted.internet.threads import deferToThread

from harmonyd.bodies import BytesBody, EmptyBody, FileBody, too_large
from harmonyd.envelope import Body

__all__ = ["MEMORY_BYTES", "Spool"]

MEMORY_BYTES = 64 * 1024
"""Bodies up to this size stay in memory."""


class Spool:
    """Takes a body of at most ``limit_bytes``; the file goes to ``folder`` and vanishes with its last descriptor.

    Writes happen on the reactor thread, in the pieces that a socket delivers (64 KiB at most): they go to the page
    cache and cost microseconds while the disk keeps up. Reading back, and freeing the file, happen in threads.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._memory = bytearray()
        self._file: BinaryIO | None = None
        self._length = 0

    def write(self, data: bytes) -> None:
        """Append ``data``. Raises ``PayloadTooLarge``, or ``OSError`` when the disk does not take it."""
        if self._length + len(data) > self._limit_bytes:
            raise too_large(self._limit_bytes)
        if self._file is None and self._length + len(data) > MEMORY_BYTES:
            self._move_to_file()
        self._length += len(data)
        if self._file is None:
            self._memory += data
        else:
            self._file.write(data)

    def take(self) -> Body:
        """Hand the whole body over and be empty. Raises ``OSError`` when the disk does not take its end."""
        file, memory = self._file, bytes(self._memory)
        if file is not None:
            file.flush()
            self._file = None
            return FileBody(file, self._length)
        self._memory = bytearray()
        return BytesBody(memory) if memory else EmptyBody()

    def discard(self) -> None:
        """Drop what arrived."""
        self._memory = bytearray()
        if self._file is not None:
            # What could not be flushed fails again here, and nobody needs it any more.
            deferToThread(self._file.close).addErrback(lambda _: None)
            self._file = None

    def _move_to_file(self) -> None:
        self._file = cast("BinaryIO", tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115 - outlives this call
        self._file.write(self._memory)
        self._memory = bytearray()
