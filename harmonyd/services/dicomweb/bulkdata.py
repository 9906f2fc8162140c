"""Bulk data of an instance (WADO-RS, PS3.18 section 10.4.1.2), where the BulkDataURI of its metadata leads."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian
from twisted.internet.threads import deferToThread

from harmonyd.dimse.part10 import read_header
from harmonyd.errors import NotFound
from harmonyd.services.base import HttpAnswer
from harmonyd.services.dicomweb.accept import ANY, OCTETS, Offer, accepted, choose
from harmonyd.services.dicomweb.exchange import Exchange
from harmonyd.services.dicomweb.frames import answer_frames
from harmonyd.services.dicomweb.pixel_file import judged
from harmonyd.services.dicomweb.results import Held, one_instance
from harmonyd.services.dicomweb.single import (
    Content,
    Data,
    FilePiece,
    cache_headers,
    has_already,
    not_modified,
    single,
)
from harmonyd.services.dicomweb.transcoding import swapped
from harmonyd.services.http.answers import ClosingIterator

OFFERS = (Offer(OCTETS, multipart=True), Offer(OCTETS))
_PIXEL_DATA = "7FE00010"
_KEPT_BYTES = 1 << 20
_SIZES = {
    **dict.fromkeys(("OW", "US", "SS", "AT"), 2),
    **dict.fromkeys(("OF", "OL", "FL", "UL", "SL"), 4),
    **dict.fromkeys(("OD", "OV", "FD", "UV", "SV"), 8),
}
_TEXT = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
"""What a character set is for."""


async def answer(exchange: Exchange) -> HttpAnswer:
    """Send one value: compressed pixels frame by frame, all else as one part. Raises ``NotFound``."""
    ranges = accepted(exchange.request)
    held = await one_instance(exchange)
    try:
        if exchange.resource.bulk == (_PIXEL_DATA,):
            image = await exchange.images.open(held.path, is_kept=held.is_kept)
            if image.is_compressed:
                return await answer_frames(exchange, held, image, range(1, image.frame_count + 1), ranges)
        offer = choose([each for each in ranges if each.essence != ANY or each.multipart], OFFERS)
        tag = await held.tag(exchange, str(offer))
        if has_already(exchange.request, tag):
            return await not_modified(tag, held.results.aclose)
        content: Content
        if exchange.resource.bulk == (_PIXEL_DATA,) and image.is_plain:
            content = FilePiece(held.path, *await deferToThread(image.extent))
        else:
            content = Data(await deferToThread(bulk_value, held.path, exchange.resource.bulk))
        if offer.multipart:
            return streamed(offer, held, content, tag)
        return await single(exchange.request, OCTETS, content, tag, held.results.aclose)
    except BaseException:
        await held.results.aclose()
        raise


def streamed(offer: Offer, held: Held, content: Content, tag: str | None) -> HttpAnswer:
    """Send it as the one part of a multipart answer, of whatever size it is."""
    boundary = f"harmonyd-{secrets.token_hex(16)}"
    fields = f"--{boundary}\r\nContent-Type: {OCTETS}\r\nContent-Length: {content.length}\r\n\r\n"
    head, tail = fields.encode("ascii"), f"\r\n--{boundary}--\r\n".encode("ascii")

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield head
        async with aclosing(content.chunks(0, content.length)) as pieces:
            async for chunk in pieces:
                yield chunk
        yield tail

    whole = ClosingIterator(chunks(), held.results.aclose)
    headers = cache_headers(f"{offer}; boundary={boundary}", f"W/{tag}" if tag else None)
    return HttpAnswer(200, headers, whole, len(head) + content.length + len(tail))


def bulk_value(path: Path, place: Sequence[str]) -> bytes:
    """Return the bytes of a value, numbers in little endian, text in UTF-8. Blocking.

    Raises ``NotFound`` where there is none, and ``MalformedDataset``.
    """
    with judged():
        return _bulk_value(path, place)


def _bulk_value(path: Path, place: Sequence[str]) -> bytes:
    # What is not asked for stays on the disk; of a deflated file there is no place to come back to.
    deflated = read_header(path).transfer_syntax_uid == DeflatedExplicitVRLittleEndian
    ds = dcmread(path, defer_size=None if deflated else _KEPT_BYTES)
    around: Dataset = ds
    for sequence, item in zip(place[0:-1:2], place[1::2], strict=True):
        items: Any = around[int(sequence, 16)].value if int(sequence, 16) in around else []
        if isinstance(items, bytes) or not 1 <= int(item) <= len(items):
            raise _nothing()
        around = items[int(item) - 1]
    tag = int(place[-1], 16)
    raw = around.get_item(tag)
    if raw is None:
        raise _nothing()
    vr = raw.VR or around[tag].VR
    value = _text(around[tag].value) if vr in _TEXT else raw.value
    if vr == "SQ" or not isinstance(value, bytes):
        raise _nothing()
    is_big = ds.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    return swapped(value, _SIZES[vr]) if is_big and vr in _SIZES else value


def _text(value: Any) -> bytes:
    """Text is in UTF-8, whatever the file has."""
    values = [value] if isinstance(value, str) else value
    return "\\".join(map(str, values)).encode("utf-8", "replace")


def _nothing() -> NotFound:
    return NotFound("The instance has no such bulk data.", hint="Take the BulkDataURI from its metadata.")
