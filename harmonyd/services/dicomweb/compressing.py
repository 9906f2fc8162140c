"""gzip for JSON and XML, where the client takes it (RFC 9110 section 8.4): text of answers, not pixels."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from http import HTTPStatus

from twisted.internet.threads import deferToThread

from harmonyd.mediatypes import split_list
from harmonyd.services.base import HttpAnswer
from harmonyd.services.http.answers import ClosingIterator

_LEAST_BYTES = 1000
"""A shorter body is not worth it."""
_IN_REACTOR_BYTES = 16 * 1024
_LEVEL = 5
_GZIP = 31
_TEXT = (
    "application/dicom+json",
    "application/json",
    "application/dicom+xml",
    'multipart/related; type="application/dicom+xml"',
)


def compressed(answer: HttpAnswer, headers: Mapping[str, str]) -> HttpAnswer:
    """Return ``answer`` with its body in gzip if it is text, not short, and the client takes that; else as it is."""
    chunks = answer.chunks
    is_text = answer.headers.get("Content-Type", "").startswith(_TEXT)
    is_short = answer.length is not None and answer.length < _LEAST_BYTES
    is_done = answer.status != HTTPStatus.OK or "Content-Encoding" in answer.headers
    if chunks is None or not is_text or is_short or is_done or not takes_gzip(headers.get("accept-encoding", "")):
        return answer

    async def close() -> None:
        closer = getattr(chunks, "aclose", None)
        if closer is not None:
            await closer()

    fields = {**answer.headers, "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    fields.pop("Accept-Ranges", None)
    if fields.get("ETag", "").startswith('"'):
        fields["ETag"] = f"W/{fields['ETag']}"  # the bytes are others now (RFC 9110 section 8.8.1)
    return HttpAnswer(answer.status, fields, ClosingIterator(_gzip(chunks), close))


def takes_gzip(accept_encoding: str) -> bool:
    """Tell whether a client that sends this Accept-Encoding takes gzip."""
    weights: dict[str, str] = {}
    for element in split_list(accept_encoding):
        name, _, parameter = element.partition(";")
        weights[name.strip().lower()] = parameter.replace(" ", "").lower()
    found = weights.get("gzip", weights.get("*"))
    return found is not None and found not in ("q=0", "q=0.0", "q=0.00", "q=0.000")


async def _gzip(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """What has come in goes out; an answer that fails has no end, as it would have none without gzip."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)

    def pack(chunk: bytes) -> bytes:
        return packer.compress(chunk) + packer.flush(zlib.Z_SYNC_FLUSH)

    async for chunk in chunks:
        yield pack(chunk) if len(chunk) <= _IN_REACTOR_BYTES else await deferToThread(pack, chunk)
    yield packer.flush()
