"""Reads ``multipart/related`` request bodies (RFC 2387, RFC 2046 section 5.1) part by part into files.

The kept libraries are for form data: of their push parsers that of ``multipart`` 2.0 refuses the padding that RFC 2046
allows after a boundary, that of ``python-multipart`` 0.0.34 refuses a preamble. So the grammar is here: a push parser
without I/O, and a spooler that feeds it in threads and writes what it finds.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from twisted.internet.threads import deferToThread

from harmonyd.envelope import Body
from harmonyd.errors import BadRequest, PayloadTooLarge, StorageFull, UnsupportedMediaType
from harmonyd.mediatypes import parse_media_type

DEFAULT_MAX_PARTS = 10_000
DEFAULT_MAX_HEADER_BYTES = 16 * 1024

_MAX_BOUNDARY_CHARACTERS = 70
"""RFC 2046 section 5.1.1."""
_MAX_PADDING_BYTES = 256
_BATCH_BYTES = 1024 * 1024
"""What is gathered before a thread parses and writes it: one visit a megabyte."""
_BINARY_ENCODINGS = frozenset({"binary", "8bit", "7bit"})


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a body: its file, its size, and its header fields with names in lower case."""

    path: Path
    size_bytes: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PartBegin:
    """The header of a part has been read; its content follows as ``bytes``, then ``PartEnd``."""

    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The part that was begun is whole."""


Event = PartBegin | bytes | PartEnd


class MultipartParser:
    """A push parser without I/O: chunks of any size in, events out, the same parts wherever the stream is split.

    A preamble and an epilogue are skipped, blanks and tabs after a boundary ignored. ``feed`` and ``close`` raise
    ``BadRequest`` that says what is wrong.
    """

    def __init__(self, boundary: str, *, max_header_bytes: int = DEFAULT_MAX_HEADER_BYTES) -> None:
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        # The line break before a boundary belongs to it; one before the stream makes the first like the others.
        self._buffer = b"\r\n"
        self._position = 0
        self._max_header_bytes = max_header_bytes
        self._step: Callable[[], bool] = self._preamble
        self._events: list[Event] = []
        self._parts = 0
        self._finished = False

    def feed(self, data: bytes) -> list[Event]:
        """Return what ``data`` brings: no more content than that and what was held back for a boundary."""
        if self._finished:
            return []
        self._buffer = self._buffer[self._position :] + data
        self._position = 0
        while self._step():
            pass
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Raise ``BadRequest`` unless the closing boundary has been read, after one part at least."""
        if not self._finished:
            where = f"in or after part {self._parts}" if self._parts else "before its first part"
            raise BadRequest(f"The multipart body ends {where}, without the closing boundary.")
        if not self._parts:
            raise BadRequest("The multipart body has no parts.")

    # Each step reads on from the position and says whether the next one can go on, or more data has to come first.

    def _preamble(self) -> bool:
        if self._skip_to_delimiter() is None:
            return False
        self._step = self._boundary_end
        return True

    def _boundary_end(self) -> bool:
        """What follows a boundary: "--" after the last one, else optional blanks and a line break."""
        ahead = self._buffer[self._position : self._position + _MAX_PADDING_BYTES + 2]
        if ahead.startswith(b"--"):
            self._finished = True
            return False
        line, line_break, _ = ahead.partition(b"\r\n")
        # Without its end the line may stop in the middle of the break, or of the closing "--".
        known = line if line_break else line.removesuffix(b"\r")
        if known.strip(b" \t") and (line_break or known != b"-"):
            raise BadRequest("A boundary in the multipart body is followed by other text on its line.")
        if not line_break:
            if len(ahead) == _MAX_PADDING_BYTES + 2:
                raise BadRequest("A boundary in the multipart body is followed by too much padding.")
            return False
        self._position += len(line) + 2
        self._parts += 1
        self._step = self._header
        return True

    def _header(self) -> bool:
        """A part's header: lines up to an empty one. The break of that one stays: see ``_content_begin``."""
        if self._buffer.startswith(b"\r\n", self._position):
            block = b""
        else:
            end = self._buffer.find(b"\r\n\r\n", self._position)
            if (len(self._buffer) - 4 if end < 0 else end) - self._position > self._max_header_bytes:
                raise BadRequest(f"The header of part {self._parts} is longer than {self._max_header_bytes} bytes.")
            if end < 0:
                return False
            block = self._buffer[self._position : end]
            self._position = end + 2
        self._events.append(PartBegin(self._fields(block)))
        self._step = self._content_begin
        return True

    def _content_begin(self) -> bool:
        """The empty line after the header; without any content its break can be the one of the next boundary."""
        ahead = self._buffer[self._position : self._position + len(self._delimiter)]
        if len(ahead) < len(self._delimiter) and self._delimiter.startswith(ahead):
            return False
        if ahead != self._delimiter:
            self._position += 2
        self._step = self._content
        return True

    def _content(self) -> bool:
        start = self._position
        end = self._skip_to_delimiter()
        data = self._buffer[start : self._position if end is None else end]
        if data:
            self._events.append(data)
        if end is None:
            return False
        self._events.append(PartEnd())
        self._step = self._boundary_end
        return True

    def _skip_to_delimiter(self) -> int | None:
        """Move behind the next delimiter and return its start; else move to where one could still begin."""
        found = self._buffer.find(self._delimiter, self._position)
        if found >= 0:
            self._position = found + len(self._delimiter)
            return found
        start = max(self._position, len(self._buffer) - len(self._delimiter) + 1)
        while (start := self._buffer.find(b"\r", start)) >= 0:
            if self._delimiter.startswith(self._buffer[start:]):
                self._position = start
                return None
            start += 1
        self._position = len(self._buffer)
        return None

    def _fields(self, block: bytes) -> dict[str, str]:
        fields: dict[str, str] = {}
        # A line that starts with a blank continues the one before it (RFC 5322 section 2.2.3).
        unfolded = block.replace(b"\r\n ", b" ").replace(b"\r\n\t", b" ")
        for line in unfolded.split(b"\r\n") if block else ():
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or not name or name != name.strip():
                raise BadRequest(f"The header of part {self._parts} has a line that is not a header field.")
            fields[name.lower()] = value.strip()
        return fields


async def read_parts(
    body: Body,
    content_type: str,
    directory: Path,
    *,
    part_type: str = "application/dicom",
    max_parts: int = DEFAULT_MAX_PARTS,
    max_header_bytes: int = DEFAULT_MAX_HEADER_BYTES,
) -> list[Part]:
    """Write the parts of ``body`` to files ``part-000001`` … in ``directory``, which exists.

    A part may leave its Content-Type out; one of another type than ``part_type`` is refused. When it fails, no file is
    left. Raises ``UnsupportedMediaType`` when ``content_type`` is not multipart/related of ``part_type``,
    ``BadRequest`` for a body that is not well formed or not whole, ``PayloadTooLarge`` for too many parts, and
    ``StorageFull``.
    """
    parser = MultipartParser(_boundary(content_type, part_type), max_header_bytes=max_header_bytes)
    spooler = _Spooler(parser, directory, part_type, max_parts)
    batch: list[bytes] = []
    size = 0
    try:
        async for chunk in body.chunks():
            batch.append(chunk)
            size += len(chunk)
            if size >= _BATCH_BYTES:
                await deferToThread(spooler.feed, batch)
                batch, size = [], 0
        await deferToThread(spooler.feed, batch)
        return await deferToThread(spooler.finish)
    except OSError as error:
        await deferToThread(spooler.discard)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("The disk is full.", hint="Free space below the storage path.") from error
        raise
    except Exception:
        await deferToThread(spooler.discard)
        raise


class _Spooler:
    """Writes what a parser finds into files. Its methods block: they are called in threads, one at a time.

    The lock keeps a write, whose waiter was cancelled, apart from the ``discard`` that follows the cancellation.
    """

    def __init__(self, parser: MultipartParser, directory: Path, part_type: str, max_parts: int) -> None:
        self._parser = parser
        self._directory = directory
        self._part_type = part_type
        self._max_parts = max_parts
        self._parts: list[Part] = []
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._headers: Mapping[str, str] = {}
        self._discarded = False

    def feed(self, chunks: list[bytes]) -> None:
        with self._lock:
            if not self._discarded:
                for event in self._parser.feed(b"".join(chunks)):
                    self._write(event)

    def finish(self) -> list[Part]:
        with self._lock:
            self._parser.close()
            return self._parts

    def discard(self) -> None:
        with self._lock:
            self._discarded = True
            if self._file is not None:
                self._file.close()
                self._path(len(self._parts) + 1).unlink(missing_ok=True)
            for part in self._parts:
                part.path.unlink(missing_ok=True)

    def _write(self, event: Event) -> None:
        if isinstance(event, PartBegin):
            self._begin(event.headers)
        elif self._file is not None:
            if isinstance(event, bytes):
                self._file.write(event)
            else:
                self._end(self._file)

    def _begin(self, headers: Mapping[str, str]) -> None:
        number = len(self._parts) + 1
        if number > self._max_parts:
            raise PayloadTooLarge(
                f"The multipart body has more than {self._max_parts} parts.", hint="Send them in several requests."
            )
        _check_part(number, headers, self._part_type)
        self._headers = headers
        self._file = self._path(number).open("xb")

    def _end(self, file: BinaryIO) -> None:
        number, size = len(self._parts) + 1, file.tell()
        file.close()
        self._file = None
        self._parts.append(Part(self._path(number), size, self._headers))
        announced = self._headers.get("content-length")
        if announced is not None and announced != str(size):
            raise BadRequest(f"Part {number} has {size} bytes, but its Content-Length says {announced[:20]!r}.")

    def _path(self, number: int) -> Path:
        return self._directory / f"part-{number:06}"


def _boundary(content_type: str, part_type: str) -> str:
    media = parse_media_type(content_type)
    if media is None or media.essence != "multipart/related":
        raise UnsupportedMediaType("The request body is not multipart/related.")
    if media.parameters.get("type", part_type).lower() != part_type:
        raise UnsupportedMediaType(f'The parts have to be {part_type}: multipart/related; type="{part_type}".')
    boundary = media.parameters.get("boundary", "")
    if not boundary:
        raise BadRequest("The Content-Type names no boundary.", hint="Add the parameter: multipart/related; boundary=…")
    if len(boundary) > _MAX_BOUNDARY_CHARACTERS or not boundary.isascii() or not boundary.isprintable():
        raise BadRequest(f"The boundary is not up to {_MAX_BOUNDARY_CHARACTERS} ASCII characters.")
    return boundary


def _check_part(number: int, headers: Mapping[str, str], part_type: str) -> None:
    declared = headers.get("content-type")
    if declared is not None:
        media = parse_media_type(declared)
        if media is None or media.essence != part_type:
            raise BadRequest(f"Part {number} is {declared[:80]!r}, not {part_type}.")
    encoding = headers.get("content-transfer-encoding", "binary").lower()
    if encoding not in _BINARY_ENCODINGS:
        raise BadRequest(f"Part {number} has the transfer encoding {encoding[:40]!r}; HTTP bodies are sent as binary.")
