"""Frames of an image, as parts (WADO-RS, PS3.18 section 10.4.1.3): uncompressed, or compressed as they are stored."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from twisted.internet.threads import deferToThread

from harmonyd.services.base import HttpAnswer
from harmonyd.services.dicomweb.accept import ANY, OCTETS, Accepted, Offer, accepted, not_acceptable
from harmonyd.services.dicomweb.codec_pool import Codecs
from harmonyd.services.dicomweb.exchange import Exchange
from harmonyd.services.dicomweb.pixel_file import PixelFile
from harmonyd.services.dicomweb.results import Held, Part, multipart, one_instance
from harmonyd.services.dicomweb.single import Data, has_already, not_modified, single

_UNCOMPRESSED = ("1.2.840.10008.1.2.1", "*")


async def answer(exchange: Exchange) -> HttpAnswer:
    """Send the frames that the path lists. Raises ``NotFound`` for one that is not there, and ``NotAcceptable``."""
    ranges = accepted(exchange.request)
    held = await one_instance(exchange)
    try:
        image = await exchange.images.open(held.path, is_kept=held.is_kept)
        return await answer_frames(exchange, held, image, exchange.resource.frames, ranges)
    except BaseException:
        await held.results.aclose()
        raise


async def answer_frames(
    exchange: Exchange, held: Held, image: PixelFile, frames: Sequence[int], ranges: Sequence[Accepted]
) -> HttpAnswer:
    """Send ``frames`` of ``image``, which is what is held."""
    image.require(frames)
    close = held.results.aclose
    offer, as_stored = chosen_form(image, ranges)
    content_type = offer.essence if not as_stored else f"{offer.essence}; transfer-syntax={image.syntax}"
    tag = await held.tag(exchange, content_type)
    if has_already(exchange.request, tag):
        return await not_modified(tag, close)
    parts = _parts(exchange.codecs, image, frames, content_type, as_stored=as_stored)
    if offer.multipart or len(frames) > 1:
        return await multipart(Offer(offer.essence, multipart=True), parts, close, tag)
    _, content = await anext(parts)
    return await single(exchange.request, content_type, Data(content), tag, close)


def chosen_form(image: PixelFile, ranges: Sequence[Accepted]) -> tuple[Offer, bool]:
    """Return the media type of a frame, and whether it is as stored.

    Without a preference frames are uncompressed (PS3.18 section 8.7.3.3.1); ``*/*`` as a type, or ``*`` as a transfer
    syntax, takes them as they are stored. Raises ``NotAcceptable``.
    """
    stored = image.stored_types
    octets = Offer(OCTETS, multipart=True)
    if not ranges:
        return octets, False
    for each in ranges:
        form = Offer(each.essence, each.multipart)
        if each.essence in stored and each.syntax in (None, "*", str(image.syntax)):
            return form, True
        if each.essence.endswith("/*") and each.essence != ANY:
            if stored and stored[0].startswith(each.essence[:-1]) and each.syntax in (None, "*", str(image.syntax)):
                return Offer(stored[0], each.multipart), True
            continue
        if each.essence == ANY or (each.essence == OCTETS and each.syntax == "*"):
            if stored and each.multipart and each.syntax in (None, "*", str(image.syntax)):
                return Offer(stored[0], multipart=True), True
            return octets, False
        if each.essence == OCTETS and (each.syntax is None or each.syntax in _UNCOMPRESSED):
            return form, False
    raise not_acceptable([octets, *(Offer(each, multipart=True) for each in stored)])


async def _parts(
    codecs: Codecs, image: PixelFile, frames: Sequence[int], content_type: str, *, as_stored: bool
) -> AsyncGenerator[Part, None]:
    for frame in frames:
        if as_stored or not image.is_compressed:
            yield content_type, await deferToThread(image.stored if as_stored else image.octets, frame)
        else:
            yield content_type, await codecs.octets(image, frame)
