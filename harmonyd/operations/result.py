"""The answer of an operation in a file: written as it is made, and sent as often as it is asked for."""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO

from harmonyd.bodies import CHUNK_BYTES
from harmonyd.services.base import HttpAnswer, HttpRequest
from harmonyd.services.http.answers import ClosingIterator
from harmonyd.web.stream import BrokenAnswer, close_stream

__all__ = ["Result", "kept", "write_result"]

InThread = Callable[..., Awaitable[Any]]
MakeRoom = Callable[[], Awaitable[bool]]
"""Frees what others can do without on a full disk; tells whether there was some."""
_GATHER_BYTES = 256 * 1024
"""Written at once: a thread's turn costs more than a small write."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True, slots=True)
class Result:
    """Status and header of an answer, and where its body is; ``path`` is None for an answer without one."""

    status: int
    headers: Mapping[str, str]
    path: Path | None
    size_bytes: int
    tag: str
    """Entity tag (RFC 9110 section 8.8.3)."""


class _Writer:
    """A file that is written in threads. Whoever waits may be cancelled: what is under way then ends by itself."""

    def __init__(self, path: Path, in_thread: InThread, make_room: MakeRoom) -> None:
        self._path = path
        self._in_thread = in_thread
        self._make_room = make_room
        self._file: BinaryIO | None = None
        self._at = 0
        self._lock = threading.Lock()
        self._is_closed = False

    async def write(self, data: bytes) -> None:
        """Raises OSError."""
        try:
            await self._in_thread(self._write, data)
        except OSError as error:
            if error.errno not in _FULL or not await self._make_room():
                raise
            await self._in_thread(self._write, data)

    async def close(self) -> None:
        """Raises OSError for what could not be written."""
        await self._in_thread(self._close)

    def _write(self, data: bytes) -> None:
        with self._lock:
            if not self._is_closed:
                if self._file is None:
                    self._file = self._path.open("wb", buffering=0)
                self._file.seek(self._at)  # a part of the same may be there
                left = memoryview(data)
                while left:
                    left = left[self._file.write(left) or 0 :]
                self._at += len(data)

    def _close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._file is not None:
                self._file.close()


async def _no_room() -> bool:
    return False


async def write_result(
    answer: HttpAnswer,
    path: Path,
    tag: str,
    in_thread: InThread,
    reserve: Callable[[int], None],
    make_room: MakeRoom = _no_room,
) -> Result:
    """Write the body of ``answer`` to ``path``.

    ``reserve`` is told of each piece before it is written, and may raise. Raises that, OSError, and what the answer's
    chunks raise; what was written has to be removed then.
    """
    if answer.chunks is None:
        return Result(answer.status, answer.headers, None, 0, tag)
    writer = _Writer(path, in_thread, make_room)
    size = 0
    try:
        async for data in _gathered(answer.chunks):
            size += len(data)
            reserve(len(data))
            await writer.write(data)
    finally:
        try:
            await close_stream(answer.chunks)
        finally:
            await writer.close()
    if answer.length is not None and size != answer.length:
        raise BrokenAnswer(f"The answer has {size} bytes; it was announced with {answer.length}.")
    return Result(answer.status, answer.headers, path if size else None, size, tag)


async def _gathered(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    waiting: list[bytes] = []
    size = 0
    async for chunk in chunks:
        waiting.append(chunk)
        size += len(chunk)
        if size >= _GATHER_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if size:
        yield b"".join(waiting)


async def kept(result: Result, request: HttpRequest, in_thread: InThread) -> HttpAnswer:
    """Return the answer that is kept, or the range of it that is asked for (RFC 9110 section 14). Raises OSError."""
    headers = {name.lower(): value for name, value in result.headers.items()}
    if result.path is None:
        return HttpAnswer(result.status, headers, length=0)
    tag = headers.setdefault("etag", result.tag)
    headers["accept-ranges"] = "bytes"
    status, first, length = result.status, 0, result.size_bytes
    wanted = _range(request.headers, tag, result.size_bytes) if status == HTTPStatus.OK else None
    if wanted is not None:
        first, length = wanted
        if length <= 0:
            where = {"content-range": f"bytes */{result.size_bytes}"}
            return HttpAnswer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, where, length=0)
        status = HTTPStatus.PARTIAL_CONTENT
        headers["content-range"] = f"bytes {first}-{first + length - 1}/{result.size_bytes}"
    file = _Reader(await in_thread(result.path.open, "rb"), in_thread)
    return HttpAnswer(status, headers, ClosingIterator(file.chunks(first, length), file.close), length)


def _range(headers: Mapping[str, str], tag: str, size: int) -> tuple[int, int] | None:
    """First byte and length of the one range asked for; None when there is none, or it is not to be heeded."""
    found = _RANGE.fullmatch(headers.get("range", "").replace(" ", ""))
    if found is None or found[1] == found[2] == "" or headers.get("if-range", tag) != tag:
        return None
    if not found[1]:
        length = min(int(found[2]), size)
        return size - length, length
    first = int(found[1])
    last = min(int(found[2]) if found[2] else size - 1, size - 1)
    if found[2] and int(found[2]) < first:
        return None
    return first, last - first + 1


class _Reader:
    """An open file, read in threads. It stays whole when its name is removed meanwhile."""

    def __init__(self, file: BinaryIO, in_thread: InThread) -> None:
        self._file = file
        self._in_thread = in_thread
        self._lock = threading.Lock()

    async def chunks(self, first: int, length: int) -> AsyncIterator[bytes]:
        """Yield the bytes from ``first`` on."""
        while length > 0 and (data := await self._in_thread(self._read, first, min(length, CHUNK_BYTES))):
            first, length = first + len(data), length - len(data)
            yield data

    async def close(self) -> None:
        """Safe to call twice."""
        if not self._file.closed:
            await self._in_thread(self._close)

    def _read(self, first: int, size: int) -> bytes:
        # The lock keeps a read, whose waiter was cancelled, apart from the close that follows the cancellation.
        with self._lock:
            if self._file.closed:
                return b""
            self._file.seek(first)
            return self._file.read(size)

    def _close(self) -> None:
        with self._lock:
            self._file.close()
