"""gzip for text, where the client prefers it (RFC 9110 sections 8.4 and 12.5.3): JSON, XML and HTML, never pixels."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

from twisted.internet.threads import deferToThread

from harmonyd.mediatypes import parse_media_type, prefers_gzip
from harmonyd.services.base import HttpAnswer
from harmonyd.services.http.answers import ClosingIterator
from harmonyd.web.fields import add_vary

_LEAST_BYTES = 1000
"""A shorter body is not worth it."""
_IN_REACTOR_BYTES = 64 * 1024
"""What takes well below a millisecond; a larger piece goes through a thread."""
_LEVEL = 1
"""Metadata shrinks to a ninth at some 300 MB/s; level 6 makes a fifteenth of it, and takes four times as long."""
_GZIP = 31
_TEXT = frozenset(
    {
        "application/json",
        "application/problem+json",
        "application/dicom+json",
        "application/x-ndjson",
        "application/dicom+xml",
        "text/html",
    }
)
_NOT_MODIFIED = 304
_BOUND_TO_BYTES = frozenset({"content-encoding", "content-digest", "content-md5", "digest"})
"""Fields that would be wrong for other bytes."""
_WHOLE = frozenset({200, 201, 202, 404, 409})
"""Statuses whose bodies are no part of something, nor none at all."""


def compressed(answer: HttpAnswer, request_headers: Mapping[str, str]) -> HttpAnswer:
    """Return ``answer`` with its body in gzip if it is text, not short, and the client prefers that; else as it is.

    ``Vary`` tells caches either way, with a 304, too (RFC 9110 section 15.4.5). An ETag becomes a weak one: the bytes
    are others (RFC 9110 section 8.8.3.3).
    """
    fields = {name.lower(): value for name, value in answer.headers.items()}
    if answer.status == _NOT_MODIFIED:
        return HttpAnswer(answer.status, add_vary(answer.headers, "Accept-Encoding"), answer.chunks, answer.length)
    media = parse_media_type(fields.get("content-type", ""))
    if media is None or media.essence not in _TEXT or "no-transform" in fields.get("cache-control", ""):
        return answer
    headers = add_vary(answer.headers, "Accept-Encoding")
    if not _BOUND_TO_BYTES.isdisjoint(fields):
        return HttpAnswer(answer.status, headers, answer.chunks, answer.length)
    chunks = answer.chunks
    is_short = answer.length is not None and answer.length < _LEAST_BYTES
    takes = prefers_gzip(request_headers.get("accept-encoding", ""))
    if chunks is None or is_short or not takes or answer.status not in _WHOLE:
        return HttpAnswer(answer.status, headers, chunks, answer.length)

    async def close() -> None:
        closer = getattr(chunks, "aclose", None)
        if closer is not None:
            await closer()

    headers = {name: value for name, value in headers.items() if name.lower() != "accept-ranges"}
    headers |= {name: _weak(value) for name, value in headers.items() if name.lower() == "etag"}
    headers["Content-Encoding"] = "gzip"
    return HttpAnswer(answer.status, headers, ClosingIterator(_gzip(chunks), close))


def _weak(etag: str) -> str:
    return etag if etag.startswith("W/") else f"W/{etag}"


async def _gzip(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """What has come in goes out; an answer that fails has no end, as it would have none without gzip."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)

    def pack(chunk: bytes) -> bytes:
        return packer.compress(chunk) + packer.flush(zlib.Z_SYNC_FLUSH)

    async for chunk in chunks:
        yield pack(chunk) if len(chunk) <= _IN_REACTOR_BYTES else await deferToThread(pack, chunk)
    yield packer.flush()
