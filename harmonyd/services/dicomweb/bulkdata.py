"""Bulk data of an instance (WADO-RS, PS3.18 section 10.4.1.2), where the BulkDataURI of its metadata leads."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian
from twisted.internet.threads import deferToThread

from harmonyd.bodies import CHUNK_BYTES
from harmonyd.dimse.part10 import read_header
from harmonyd.errors import NotFound
from harmonyd.services.base import HttpAnswer
from harmonyd.services.dicomweb.accept import ANY, OCTETS, Offer, accepted, choose
from harmonyd.services.dicomweb.exchange import Exchange
from harmonyd.services.dicomweb.frames import answer_frames
from harmonyd.services.dicomweb.pixel_file import PixelFile, judged
from harmonyd.services.dicomweb.results import Held, Part, headers, multipart, one_instance
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
            image = await deferToThread(PixelFile, held.path)
            if image.is_compressed:
                frames = range(1, image.frame_count + 1)
                return await answer_frames(image, frames, ranges, held.results.aclose)
        offer = choose([each for each in ranges if each.essence != ANY or each.multipart], OFFERS)
        if exchange.resource.bulk == (_PIXEL_DATA,) and image.is_plain:
            start, length = await deferToThread(image.extent)
            return streamed(offer, held, start, length)
        value = await deferToThread(bulk_value, held.path, exchange.resource.bulk)
        if offer.multipart:
            return await multipart(offer, _one(value), held.results.aclose)
        await held.results.aclose()
        return HttpAnswer(200, headers(OCTETS), _chunk(value), len(value))
    except BaseException:
        await held.results.aclose()
        raise


async def _one(value: bytes) -> AsyncGenerator[Part, None]:
    yield OCTETS, value


async def _chunk(value: bytes) -> AsyncGenerator[bytes, None]:
    yield value


def streamed(offer: Offer, held: Held, start: int, length: int) -> HttpAnswer:
    """Send a piece of the file as it is, of whatever size."""
    content_type, head, tail = OCTETS, b"", b""
    if offer.multipart:
        boundary = f"harmonyd-{secrets.token_hex(16)}"
        content_type = f"{offer}; boundary={boundary}"
        fields = f"--{boundary}\r\nContent-Type: {OCTETS}\r\nContent-Length: {length}\r\n\r\n"
        head, tail = fields.encode("ascii"), f"\r\n--{boundary}--\r\n".encode("ascii")

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield head
        for offset in range(start, start + length, CHUNK_BYTES):
            yield await deferToThread(_piece, held.path, offset, min(CHUNK_BYTES, start + length - offset))
        yield tail

    whole = ClosingIterator(chunks(), held.results.aclose)
    return HttpAnswer(200, headers(content_type), whole, len(head) + length + len(tail))


def _piece(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


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
