"""The bodies every protocol needs: nothing, bytes in memory, a file. They implement ``harmonyd.envelope.Body``."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from typing import BinaryIO

from twisted.internet.threads import deferToThread

from harmonyd.errors import PayloadTooLarge

__all__ = ["CHUNK_BYTES", "BytesBody", "EmptyBody", "FileBody"]

CHUNK_BYTES = 256 * 1024
"""Largest chunk that a body yields."""


class BytesBody:
    """A body that is small enough to be in memory."""

    length: int | None

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes in chunks of at most ``CHUNK_BYTES``."""
        for start in range(0, len(self._data), CHUNK_BYTES):
            yield self._data[start : start + CHUNK_BYTES]

    async def read(self, limit_bytes: int) -> bytes:
        """Return the whole body; raise ``PayloadTooLarge`` beyond ``limit_bytes``."""
        if len(self._data) > limit_bytes:
            raise too_large(limit_bytes)
        return self._data

    async def close(self) -> None:
        """Do nothing: there is nothing to release."""


class EmptyBody(BytesBody):
    """No body."""

    def __init__(self) -> None:
        super().__init__(b"")


class FileBody:
    """A body in a file, which is read (and closed) in a thread of the reactor's pool.

    Takes over ``file``, a buffered binary file that can seek; it is read from its start.
    """

    length: int | None

    def __init__(self, file: BinaryIO, length: int | None = None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self.length = os.fstat(file.fileno()).st_size if length is None else length

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the file in chunks of at most ``CHUNK_BYTES``, each read when it is asked for. Raises ``OSError``."""
        offset = 0
        while data := await deferToThread(self._read_at, offset, CHUNK_BYTES):
            offset += len(data)
            yield data

    async def read(self, limit_bytes: int) -> bytes:
        """Return the whole file; raise ``PayloadTooLarge`` beyond ``limit_bytes``. Raises ``OSError``."""
        data = await deferToThread(self._read_at, 0, limit_bytes + 1)
        if len(data) > limit_bytes:
            raise too_large(limit_bytes)
        return data

    async def close(self) -> None:
        """Close the file, in a thread: the kernel may take long to free a big one that is unlinked."""
        if not self._file.closed:
            await deferToThread(self._close)

    def _read_at(self, offset: int, size: int) -> bytes:
        # The lock keeps a read, whose waiter was cancelled, apart from the close that follows the cancellation.
        with self._lock:
            if self._file.closed:
                return b""
            self._file.seek(offset)
            return self._file.read(size)

    def _close(self) -> None:
        with self._lock:
            self._file.close()


def too_large(limit_bytes: int) -> PayloadTooLarge:
    """Return the error for a body beyond ``limit_bytes``."""
    return PayloadTooLarge(
        f"The request body is larger than {limit_bytes} bytes, the limit for its kind.",
        hint="Send less at once, or raise max_json_bytes or max_body_bytes in [limits] of the configuration.",
        limit_bytes=limit_bytes,
    )
