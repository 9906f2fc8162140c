"""Studies, series and instances as DICOM files (WADO-RS, PS3.18 section 10.4.1.1)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.threads import deferToThread

from harmonyd.cache.results import KeptResults, kept_in
from harmonyd.dimse.engine import Instance
from harmonyd.envelope import Record, Results
from harmonyd.services.base import HttpAnswer
from harmonyd.services.dicomweb import metadata
from harmonyd.services.dicomweb.accept import DICOM, ZIP, Offer, accepted, choose, syntaxes
from harmonyd.services.dicomweb.codec_pool import Codecs
from harmonyd.services.dicomweb.exchange import Exchange
from harmonyd.services.dicomweb.results import MappedResults, as_http, closing_on_error, retrieve
from harmonyd.services.dicomweb.single import FilePiece, single, tag_of
from harmonyd.services.http.dicom_answers import multipart_answer, single_answer
from harmonyd.services.http.parts import file_of
from harmonyd.services.http.zip_answer import zip_answer

_WRITERS = {Offer(DICOM, multipart=True): multipart_answer, Offer(ZIP): zip_answer, Offer(DICOM): single_answer}
OFFERS = (*_WRITERS, *metadata.OFFERS)
_KEPT = 2
"""Transcoded files that may still be on their way to the client."""


async def answer(exchange: Exchange) -> HttpAnswer:
    """Send instances from the first that arrives on, as stored unless only other transfer syntaxes are accepted.

    Who accepts JSON or XML gets metadata (PS3.18 section 8.7.3.2).
    Raises ``NotFound``, ``NotAcceptable`` and what the operation raises.
    """
    ranges = accepted(exchange.request)
    offer = choose(ranges, OFFERS)
    if offer in metadata.OFFERS:
        return await metadata.answer(exchange)
    wanted = syntaxes(ranges, offer)
    results = await retrieve(exchange)
    kept = kept_in(results)
    if kept is not None and offer == Offer(DICOM) and "*" in wanted:
        async with closing_on_error(kept):
            instances = await kept.whole()
            if instances is not None and len(instances) == 1:
                return await _file(exchange, kept, instances[0])
    if "*" not in wanted:
        results = transcoding(results, wanted, exchange.codecs)
    async with closing_on_error(results):
        return as_http(await _WRITERS[offer](results))


async def _file(exchange: Exchange, kept: KeptResults, instance: Instance) -> HttpAnswer:
    """Send one instance from the cache, or a part of it."""
    kept.took([instance])
    content = FilePiece(instance.path, 0, instance.size_bytes)
    tag = tag_of(await kept.made.fingerprint(instance))
    return await single(exchange.request, DICOM, content, tag, kept.aclose)


@dataclass(frozen=True, slots=True)
class TranscodedRecord:
    """An instance in another transfer syntax."""

    path: Path
    original: Record

    @property
    def name(self) -> str:
        return self.original.name

    async def json(self) -> bytes:
        return await self.original.json()


def transcoding(results: Results, wanted: Sequence[str], codecs: Codecs) -> Results:
    """Return ``results`` in one of the transfer syntaxes ``wanted``; what was written for that is removed again."""
    made: deque[Path] = deque()

    async def convert(record: Record) -> Record:
        source = file_of(record)
        path = await codecs.transcoded(source, wanted)
        if path == source:
            return record
        made.append(path)
        if len(made) > _KEPT:
            await deferToThread(made.popleft().unlink, missing_ok=True)
        return TranscodedRecord(path, record)

    async def after() -> None:
        while made:
            await deferToThread(made.popleft().unlink, missing_ok=True)

    return MappedResults(results, convert, after)
