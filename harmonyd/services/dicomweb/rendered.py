"""Pictures of studies, series, instances and frames (WADO-RS, PS3.18 sections 10.4.1.1.3 and 10.4.1.1.5)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

from twisted.internet.threads import deferToThread

from harmonyd.dimse.part10 import read_header
from harmonyd.envelope import Results
from harmonyd.errors import NotFound
from harmonyd.services.base import HttpAnswer
from harmonyd.services.dicomweb.accept import Accepted, Offer, accepted, choose
from harmonyd.services.dicomweb.asking import Found
from harmonyd.services.dicomweb.bulkdata import bulk_value
from harmonyd.services.dicomweb.codec_pool import Codecs
from harmonyd.services.dicomweb.entities import first_value
from harmonyd.services.dicomweb.exchange import Exchange
from harmonyd.services.dicomweb.pixel_file import PixelFile
from harmonyd.services.dicomweb.rendering import JPEG, PNG, Rendering, parse_rendering
from harmonyd.services.dicomweb.results import (
    Held,
    Part,
    closing_on_error,
    multipart,
    one_instance,
    retrieve,
)
from harmonyd.services.dicomweb.searching import warning
from harmonyd.services.dicomweb.single import Data, has_already, not_modified, single
from harmonyd.services.http.parts import file_of, require_whole

_SINGLE = (Offer(JPEG), Offer(PNG))
_DOCUMENT = Offer("application/pdf")
_SEVERAL = (Offer(JPEG, multipart=True), Offer(PNG, multipart=True))
_ENCAPSULATED_PDF_STORAGE = "1.2.840.10008.5.1.4.1.1.104.1"
_ENCAPSULATED_DOCUMENT = "00420011"
_NO_PICTURES = frozenset({"SR", "PR", "KO", "DOC", "RTPLAN", "RTSTRUCT", "REG", "FID", "AU", "ECG"})


async def rendered(exchange: Exchange) -> HttpAnswer:
    """Send the frame that is named, or the first of the instance, as one picture; of a series or study every frame.

    An instance that encapsulates a PDF is rendered as that.
    Several are parts of multipart/related. Raises ``NotFound``, ``NotAcceptable`` and ``BadRequest``.
    """
    how, warnings = parse_rendering(exchange.request.query, thumbnail=False)
    ranges = accepted(exchange.request)
    resource = exchange.resource
    if not resource.instance:
        answer = await _all_of(exchange, how, _form(ranges, several=True))
    elif resource.frames:
        offer = _form(ranges, several=len(resource.frames) > 1)
        answer = await _frames_of(exchange, await one_instance(exchange), resource.frames, how, offer)
    else:
        answer = await _instance(exchange, how, ranges)
    return _with_warnings(answer, warnings, exchange)


async def thumbnail(exchange: Exchange) -> HttpAnswer:
    """Send one small picture: of the frame, of the instance, or of what is in the middle of the series.

    Raises ``NotFound`` for a study or series without an image.
    """
    how, warnings = parse_rendering(exchange.request.query, thumbnail=True)
    offer = _form(accepted(exchange.request), several=False)
    uids = exchange.resource.uids if exchange.resource.instance else await _representative(exchange)
    held = await one_instance(exchange, uids, ahead=False)
    answer = await _frames_of(exchange, held, exchange.resource.frames[:1] or (1,), how, offer)
    return _with_warnings(answer, warnings, exchange)


def _form(ranges: Sequence[Accepted], *, several: bool) -> Offer:
    """JPEG or PNG. Some clients accept image/jpeg where only parts can be meant: these count as accepted."""
    if several:
        ranges = [Accepted(each.essence, True, each.syntax, each.quality) for each in ranges]
    return choose(ranges, _SEVERAL if several else (*_SINGLE, *_SEVERAL))


def _with_warnings(answer: HttpAnswer, warnings: Sequence[str], exchange: Exchange) -> HttpAnswer:
    if warnings:
        answer.headers["Warning"] = ", ".join(warning(text, exchange) for text in warnings)
    return answer


async def _instance(exchange: Exchange, how: Rendering, ranges: Sequence[Accepted]) -> HttpAnswer:
    # What no instance is rendered as is refused before the PACS is asked.
    choose(ranges, (*_SINGLE, *_SEVERAL, _DOCUMENT))
    held = await one_instance(exchange)
    async with closing_on_error(held.results):
        header = await deferToThread(read_header, held.path)
        if header.sop_class_uid != _ENCAPSULATED_PDF_STORAGE:
            return await _frames_of(exchange, held, (1,), how, _form(ranges, several=False))
        choose(ranges, (_DOCUMENT,))
        data = await deferToThread(bulk_value, held.path, (_ENCAPSULATED_DOCUMENT,))
        tag = await held.tag(exchange, str(_DOCUMENT))
        return await single(exchange.request, _DOCUMENT.essence, Data(data), tag, held.results.aclose)


async def _frames_of(exchange: Exchange, held: Held, frames: Sequence[int], how: Rendering, offer: Offer) -> HttpAnswer:
    close = held.results.aclose
    async with closing_on_error(held.results):
        tag = await held.tag(exchange, how, str(offer))
        if has_already(exchange.request, tag):
            return await not_modified(tag, close)
        image = await exchange.images.open(held.path, is_kept=held.is_kept)
        image.require(frames)
        if offer.multipart:
            pictures = _pictures(exchange.codecs, image, frames, how, offer.essence)
            return await multipart(offer, pictures, close, tag)
        data = await exchange.codecs.picture(image, frames[0], offer.essence, how)
        return await single(exchange.request, offer.essence, Data(data), tag, close)


async def _all_of(exchange: Exchange, how: Rendering, offer: Offer) -> HttpAnswer:
    results = await retrieve(exchange)
    return await multipart(offer, _pictures_of(exchange.codecs, results, how, offer.essence), results.aclose)


async def _pictures_of(codecs: Codecs, results: Results, how: Rendering, media_type: str) -> AsyncGenerator[Part, None]:
    async for record in results:
        try:
            image = await deferToThread(PixelFile, Path(file_of(record)))
        except NotFound:
            continue  # a report among the images
        async for part in _pictures(codecs, image, range(1, image.frame_count + 1), how, media_type):
            yield part
    require_whole(results)


async def _pictures(
    codecs: Codecs, image: PixelFile, frames: Sequence[int], how: Rendering, media_type: str
) -> AsyncGenerator[Part, None]:
    for frame in frames:
        yield media_type, await codecs.picture(image, frame, media_type, how)


async def _representative(exchange: Exchange) -> Mapping[str, str]:
    """The UIDs of an instance that stands for a study or series."""
    uids = dict(exchange.resource.uids)
    if "SeriesInstanceUID" not in uids:
        keys = {**uids, "SeriesInstanceUID": None, "Modality": None, "return": "requested"}
        series = [match async for match in exchange.asker.find("SERIES", keys, Found())]
        images = [each for each in series if first_value(each, "Modality") not in _NO_PICTURES]
        uids["SeriesInstanceUID"] = _uid(images[:1], "SeriesInstanceUID")
    keys = {**uids, "SOPInstanceUID": None, "InstanceNumber": None, "return": "requested"}
    found = [match async for match in exchange.asker.find("IMAGE", keys, Found())]
    found.sort(key=lambda match: int(first_value(match, "InstanceNumber") or 0))
    uids["SOPInstanceUID"] = _uid(found[len(found) // 2 :], "SOPInstanceUID")
    return uids


def _uid(matches: Sequence[Mapping[str, object]], keyword: str) -> str:
    uid = first_value(matches[0], keyword) if matches else None
    if not uid:
        raise NotFound("There is no image here.")
    return str(uid)
