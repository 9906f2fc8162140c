"""What the retrieves share: records made into others on their way, one single instance, parts of a multipart answer."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harmonyd.cache.results import kept_in
from harmonyd.envelope import Record, Results
from harmonyd.errors import NotFound
from harmonyd.services.base import HttpAnswer
from harmonyd.services.dicomweb.accept import Offer
from harmonyd.services.dicomweb.exchange import Exchange
from harmonyd.services.dicomweb.single import cache_headers, tag_of
from harmonyd.services.http.answers import ClosingIterator
from harmonyd.services.http.parts import Answer, file_of, require_whole


class MappedResults:
    """``Results`` whose records are made from others; ``after`` is awaited when no more are wanted."""

    items_key: str | None = "instances"

    def __init__(
        self,
        results: Results,
        convert: Callable[[Record], Awaitable[Record]],
        after: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.operation = results.operation
        self.media_type = results.media_type
        self._results = results
        self._convert = convert
        self._after = after

    async def __aiter__(self) -> AsyncIterator[Record]:
        async for record in self._results:
            yield await self._convert(record)

    def summary(self) -> Mapping[str, Any]:
        """Those of the results behind."""
        return self._results.summary()

    async def aclose(self) -> None:
        """Close the results behind. Safe to call twice."""
        try:
            await self._results.aclose()
        finally:
            if self._after is not None:
                await self._after()


async def retrieve(exchange: Exchange) -> Results:
    """Retrieve what the path names. Raises ``NotFound`` and what the operation raises."""
    return await exchange.asker.retrieve(exchange.resource.level, exchange.resource.uids)


@dataclass(frozen=True, slots=True)
class Held:
    """The file of one instance, which stays as long as the results are open."""

    path: Path
    results: Results

    @property
    def is_kept(self) -> bool:
        """Whether the file is in the cache, and so never changes."""
        return kept_in(self.results) is not None

    async def tag(self, exchange: Exchange, *parts: object) -> str | None:
        """Return an entity-tag for what the path and ``parts`` make of it; None for one that comes anew each time."""
        instances = await kept.whole() if (kept := kept_in(self.results)) else None
        if kept is None or not instances:
            return None
        resource = exchange.resource
        fingerprint = await kept.made.fingerprint(instances[0])
        return tag_of(fingerprint, resource.kind, resource.frames, resource.bulk, *parts)


@asynccontextmanager
async def closing_on_error(results: Results) -> AsyncIterator[None]:
    """Close ``results`` when what is inside fails."""
    try:
        yield
    except BaseException:
        await results.aclose()
        raise


async def one_instance(exchange: Exchange, uids: Mapping[str, str] | None = None, *, ahead: bool = True) -> Held:
    """Retrieve one instance whole; ``ahead``: more of its series may be asked for next.

    Raises ``NotFound``, ``IncompleteAnswer`` and what the operation raises.
    """
    results = await exchange.asker.retrieve("IMAGE", uids or exchange.resource.uids, ahead=ahead)
    async with closing_on_error(results):
        paths = [file_of(record) async for record in results]
        require_whole(results)
        if not paths:
            raise NotFound("The PACS does not have this instance.")
        return Held(paths[0], results)


Part = tuple[str, bytes]
"""Content-Type and content."""


async def multipart(
    offer: Offer, parts: AsyncGenerator[Part, None], close: Callable[[], Awaitable[None]], tag: str | None = None
) -> HttpAnswer:
    """Answer with one part each (RFC 2387); the closing boundary only when the parts ended without an error.

    Waits for the first part, so that what is wrong with it can still become a problem detail. Raises ``NotFound`` when
    there is none.
    """
    boundary = f"harmonyd-{secrets.token_hex(16)}"

    async def close_all() -> None:
        try:
            await parts.aclose()
        finally:
            await close()

    try:
        first = await anext(parts, None)
        if first is None:
            raise NotFound("There is nothing of this kind here.")
    except BaseException:
        await close_all()
        raise
    chunks = ClosingIterator(_framed(first, parts, boundary), close_all)
    weak = f"W/{tag}" if tag else None  # the boundary is another one each time
    return HttpAnswer(200, cache_headers(f"{offer}; boundary={boundary}", weak), chunks)


async def _framed(first: Part, parts: AsyncIterator[Part], boundary: str) -> AsyncGenerator[bytes, None]:
    yield _part(b"", boundary, first)
    async for part in parts:
        yield _part(b"\r\n", boundary, part)
    yield f"\r\n--{boundary}--\r\n".encode("ascii")


def _part(before: bytes, boundary: str, part: Part) -> bytes:
    content_type, content = part
    fields = f"--{boundary}\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n\r\n"
    return before + fields.encode("ascii") + content


def headers(content_type: str) -> dict[str, str]:
    """Return the header of an answer: what is in an archive about a patient is not for a cache on the way."""
    return cache_headers(content_type, None)


def as_http(answer: Answer) -> HttpAnswer:
    """Return what a writer of ``services.http`` made as an HTTP answer."""
    return HttpAnswer(200, headers(answer.content_type), ClosingIterator(answer.chunks, answer.close), answer.length)
