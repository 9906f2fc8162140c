"""Parts of logs: from memory where that is enough, else from the file, in a thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harmonyd.control.api import LogView
from harmonyd.supervision.process import in_thread

MAX_READ_BYTES = 1_000_000
"""More is not read at once."""


async def last_bytes(reactor: Any, log: LogView, length: int) -> bytes:
    """The last ``length`` bytes that had been said when this was called, or as many as there are."""
    length = min(length, MAX_READ_BYTES)
    in_memory = log.ring.tail(length)
    end = _size(log.path)
    if len(in_memory) >= length or log.path is None or end <= len(in_memory):
        return in_memory
    # What the memory does not have was said by an earlier run, or does not fit in it.
    data: bytes = await in_thread(reactor, _read, log.path, max(0, end - length), min(end, length))
    return data if len(data) > len(in_memory) else in_memory


async def from_offset(reactor: Any, log: LogView, offset: int, length: int) -> bytes:
    """``length`` bytes (0: all) from ``offset`` of the file on; of what is in memory when there is no file."""
    length = min(length or MAX_READ_BYTES, MAX_READ_BYTES)
    if log.path is None or not _size(log.path):
        return log.ring.tail(len(log.ring))[offset : offset + length]
    data: bytes = await in_thread(reactor, _read, log.path, offset, length)
    return data


async def from_end(reactor: Any, log: LogView, offset: int, length: int) -> tuple[bytes, int, bool]:
    """supervisor's ``tailFile``: what came after ``offset``, at most ``length`` bytes; the new offset; was it more?"""
    if log.path is None or not _size(log.path):
        return b"", 0, False
    size = _size(log.path)
    length = max(0, min(length, MAX_READ_BYTES))
    has_more = size > offset + length
    wanted = length if has_more else max(0, min(length, size - max(0, offset)))
    data: bytes = await in_thread(reactor, _read, log.path, size - wanted, wanted)
    return data, size, has_more


def _size(path: Path | None) -> int:
    """One system call; 0 for a file that is not there."""
    try:
        return path.stat().st_size if path is not None else 0
    except OSError:
        return 0


def _read(path: Path, offset: int, length: int) -> bytes:
    """Blocking. Nothing, when the file has just gone."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)
    except OSError:
        return b""
