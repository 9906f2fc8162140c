"""The bodies every protocol needs: nothing, bytes in memory, a file. They implement ``harmonyd.envelope.Body``."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import BinaryIO

from twisted.internet.threads import deferToThread

from harmonyd.errors import PayloadTooLarge

__all__ = ["CHUNK_BYTES", "BytesBody", "EmptyBody", "FileBody", "FilesBody", "ObjectBody"]

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


class ObjectBody:
    """A received object as a body: the file is opened when it is first read, and can be sent from where it lies."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.length: int | None = size_bytes
        self._file: FileBody | None = None

    def _opened(self) -> FileBody:
        if self._file is None:
            self._file = FileBody(self.path.open("rb"))
        return self._file

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._opened().chunks():
            yield chunk

    async def read(self, limit_bytes: int) -> bytes:
        return await self._opened().read(limit_bytes)

    async def close(self) -> None:
        if self._file is not None:
            await self._file.close()


class FilesBody:
    """Objects in files, for whoever takes files; as bytes the one, or ``multipart/related`` of all (RFC 2387)."""

    def __init__(self, paths: Sequence[Path], boundary: str, length: int | None = None) -> None:
        """``boundary``: "" for the bytes of a single file. ``length``: of the whole, where that is known."""
        self.paths = tuple(paths)
        self.length: int | None = length
        self._boundary = boundary
        self._open: FileBody | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield file by file, each read when it is asked for. Raises ``OSError``."""
        before = f"--{self._boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        for path in self.paths:
            if self._boundary:
                yield before
            self._open = FileBody(await deferToThread(path.open, "rb"))
            async for chunk in self._open.chunks():
                yield chunk
            await self.close()
            if self._boundary:
                yield b"\r\n"
        if self._boundary:
            yield f"--{self._boundary}--\r\n".encode()

    async def read(self, limit_bytes: int) -> bytes:
        """Return the whole body; raise ``PayloadTooLarge`` beyond ``limit_bytes``. Raises ``OSError``."""
        data = b""
        async for chunk in self.chunks():
            data += chunk
            if len(data) > limit_bytes:
                raise too_large(limit_bytes)
        return data

    async def close(self) -> None:
        """Close the file that is being read. Safe to call twice."""
        opened, self._open = self._open, None
        if opened is not None:
            await opened.close()


def too_large(limit_bytes: int) -> PayloadTooLarge:
    """Return the error for a body beyond ``limit_bytes``."""
    return PayloadTooLarge(
        f"The request body is larger than {limit_bytes} bytes, the limit for its kind.",
        hint="Send less at once, or raise max_json_bytes or max_body_bytes in [limits] of the configuration.",
        limit_bytes=limit_bytes,
    )
