"""What the writers of the single media types share."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from twisted.internet.threads import deferToThread

from harmonyd.bodies import CHUNK_BYTES
from harmonyd.envelope import Record, Results
from harmonyd.errors import NotFound
from harmonyd.services.http.errors import IncompleteAnswer
from harmonyd.services.http.lookahead import Lookahead


@dataclass(slots=True)
class Answer:
    """The body of an HTTP answer: its Content-Type, its chunks, and its length in bytes where that is known.

    ``close`` releases what is behind the chunks; to be called whether they were iterated or not.
    """

    content_type: str
    chunks: AsyncIterator[bytes]
    close: Callable[[], Awaitable[None]]
    length: int | None = None


def require_whole(results: Results) -> None:
    """Raise ``IncompleteAnswer`` unless the results, which have ended, are complete."""
    summary = results.summary()
    if not summary["complete"]:
        raise IncompleteAnswer(
            summary.get("incomplete_reason") or f"The {results.operation} did not complete.",
            hint="Accept application/json for an answer that says what is missing.",
            operation=results.operation,
        )


async def first_record(records: Lookahead[Record], results: Results) -> Record:
    """Wait for the first record of a retrieve; raise ``NotFound`` or ``IncompleteAnswer`` when there is none."""
    record = await records.next()
    if record is None:
        require_whole(results)
        raise NotFound("Nothing matched.", operation=results.operation)
    return record


async def unchanged(record: Record) -> Record:
    """The conversion of a ``Lookahead`` that needs the record itself."""
    return record


def file_of(record: Record) -> Path:
    """Return the file of an instance; raises ``IncompleteAnswer`` for a record without one."""
    if record.path is None:
        raise IncompleteAnswer(f"There is no file for {record.name}.")
    return record.path


class InstanceFile:
    """A file on its way to the client. It is read in threads, in as few visits as its size allows.

    The size is taken when it is opened; what is appended later is not sent, and what is missing later is an error.
    """

    def __init__(self, path: Path) -> None:
        self.size_bytes = 0
        self.modified = 0.0
        """Seconds since the epoch."""
        self._path = path
        self._file: BinaryIO | None = None
        self._first = b""
        self._left = 0
        self._closed = False
        self._lock = threading.Lock()

    async def open(self) -> None:
        """Open the file and read its first chunk. Raises ``OSError``."""
        await deferToThread(self._open)

    async def read(self) -> bytes:
        """Return the next chunk of at most ``CHUNK_BYTES``, nothing at the end. Raises ``IncompleteAnswer``."""
        if self._left == 0:
            return b""
        data, self._first = self._first, b""
        data = data or await deferToThread(self._read, min(self._left, CHUNK_BYTES))
        if not data:
            raise IncompleteAnswer(f"The file {self._path.name} became shorter while it was sent.")
        self._left -= len(data)
        return data

    async def close(self) -> None:
        """Close the file. Safe to call twice."""
        if not self._closed:
            await deferToThread(self._close)

    def _open(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._file = self._path.open("rb")
            status = os.fstat(self._file.fileno())
            self.size_bytes = self._left = status.st_size
            self.modified = status.st_mtime
            self._first = self._file.read(min(CHUNK_BYTES, self.size_bytes))
            if len(self._first) == self.size_bytes:
                self._finish()

    def _read(self, size: int) -> bytes:
        # The lock keeps a read, whose waiter was cancelled, apart from the close that follows the cancellation.
        with self._lock:
            if self._file is None or self._closed:
                return b""
            data = self._file.read(size)
            if self._file.tell() >= self.size_bytes:
                self._finish()
            return data

    def _close(self) -> None:
        with self._lock:
            self._finish()

    def _finish(self) -> None:
        self._closed = True
        if self._file is not None:
            self._file.close()
