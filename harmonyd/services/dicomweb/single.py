"""An answer of one piece, of which a client may want a part, or nothing where it has it (RFC 9110 sections 13 and 14).

There is no Last-Modified: when an object changed is known to nobody but the PACS.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from twisted.internet.threads import deferToThread

from harmonyd import __version__
from harmonyd.bodies import CHUNK_BYTES
from harmonyd.errors import RangeNotSatisfiable
from harmonyd.mediatypes import split_list
from harmonyd.services.base import HttpAnswer, HttpRequest
from harmonyd.services.http.answers import ClosingIterator
from harmonyd.services.http.errors import IncompleteAnswer

_RANGE = re.compile(r"bytes=\s*(?:([0-9]{1,18})\s*-\s*([0-9]{0,18})|-\s*([0-9]{1,18}))\s*", re.IGNORECASE)
Close = Callable[[], Awaitable[None]]


class Content(Protocol):
    """What is sent."""

    @property
    def length(self) -> int: ...

    def chunks(self, start: int, length: int) -> AsyncGenerator[bytes, None]:
        """Yield a part of it."""
        ...


@dataclass(frozen=True, slots=True)
class Data:
    """In memory."""

    data: bytes

    @property
    def length(self) -> int:
        return len(self.data)

    async def chunks(self, start: int, length: int) -> AsyncGenerator[bytes, None]:
        yield self.data if length == len(self.data) else self.data[start : start + length]


@dataclass(frozen=True, slots=True)
class FilePiece:
    """In a file, which is read in threads."""

    path: Path
    at: int
    length: int

    async def chunks(self, start: int, length: int) -> AsyncGenerator[bytes, None]:
        begin, end = self.at + start, self.at + start + length
        if length <= CHUNK_BYTES:
            yield await deferToThread(_read_alone, self.path, begin, length)
            return
        # It stays open: another one may get its name, or remove it.
        file = await deferToThread(self.path.open, "rb")
        try:
            for offset in range(begin, end, CHUNK_BYTES):
                yield await deferToThread(_read, file, offset, min(CHUNK_BYTES, end - offset))
        finally:
            await deferToThread(file.close)


def _read_alone(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        return _read(file, offset, length)


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    data = os.pread(file.fileno(), length, offset)
    if len(data) < length:
        raise IncompleteAnswer("A file became shorter while it was sent.")
    return data


def tag_of(*parts: object) -> str:
    """Return an entity-tag made of what decides the content (RFC 9110 section 8.8.3), our version among it."""
    return f'"{hashlib.sha256(repr((__version__, *parts)).encode()).hexdigest()[:32]}"'


def cache_headers(content_type: str, tag: str | None) -> dict[str, str]:
    """Return the header of an answer: what is about a patient is for the one who asked, and asks again each time.

    Without a tag nobody could ask whether it is still the same, and so nobody keeps it.
    """
    if tag is None:
        return {"Content-Type": content_type, "Cache-Control": "no-store"}
    return {"Content-Type": content_type, "Cache-Control": "private, no-cache", "ETag": tag}


def has_already(request: HttpRequest, tag: str | None) -> bool:
    """Tell whether the client has what ``tag`` stands for (If-None-Match)."""
    given = request.headers.get("if-none-match")
    if tag is None or given is None or request.method not in ("GET", "HEAD"):
        return False
    known = [each.removeprefix("W/") for each in split_list(given)]
    return known == ["*"] or tag.removeprefix("W/") in known


async def not_modified(tag: str | None, close: Close) -> HttpAnswer:
    """Answer that the client has it."""
    await close()
    return HttpAnswer(304, {name: value for name, value in cache_headers("", tag).items() if name != "Content-Type"})


async def single(
    request: HttpRequest,
    content_type: str,
    content: Content,
    tag: str | None,
    close: Close,
    more: Mapping[str, str] | None = None,
) -> HttpAnswer:
    """Send ``content``, or the part of it that is asked for. ``close`` is awaited at the end.

    Raises ``RangeNotSatisfiable``, without closing.
    """
    if has_already(request, tag):
        return await not_modified(tag, close)
    headers = {**cache_headers(content_type, tag), "Accept-Ranges": "bytes", **(more or {})}
    wanted = wanted_range(request, content.length, tag)
    start, end = wanted or (0, content.length)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{content.length}"
    chunks = ClosingIterator(content.chunks(start, end - start), close)
    return HttpAnswer(200 if wanted is None else 206, headers, chunks, end - start)


def wanted_range(request: HttpRequest, length: int, tag: str | None) -> tuple[int, int] | None:
    """Return begin and end of the one range that is asked for; None: all of it, as for several ranges.

    Raises ``RangeNotSatisfiable``.
    """
    given = _RANGE.fullmatch(request.headers.get("range", ""))
    if given is None or request.method != "GET":
        return None
    condition = request.headers.get("if-range")
    if condition is not None and (tag is None or tag.startswith("W/") or condition.strip() != tag):
        return None
    first, last, suffix = given.groups()
    if suffix is not None:
        start, end = max(0, length - int(suffix)), length
    else:
        start, end = int(first), min(length, int(last) + 1) if last else length
        if last and int(last) < int(first):
            return None
    if start >= length or start >= end:
        raise RangeNotSatisfiable(f"There are {length} bytes.", content_range=f"bytes */{length}")
    return start, end
