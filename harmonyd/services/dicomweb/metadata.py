"""Metadata of instances: everything but bulk data, which has a BulkDataURI (PS3.18 section 10.4.1.1.2)."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from twisted.internet.threads import deferToThread

from harmonyd.cache.results import KeptRecord, KeptResults, kept_in
from harmonyd.dimse.dataset_json import file_to_json
from harmonyd.dimse.engine import Instance
from harmonyd.dimse.part10 import read_header
from harmonyd.envelope import Record, ReshapedRecord, Results
from harmonyd.mediatypes import prefers_gzip
from harmonyd.services.base import HttpAnswer
from harmonyd.services.dicomweb.accept import DICOM_JSON, DICOM_XML, JSON, Offer, accepted, choose
from harmonyd.services.dicomweb.exchange import Exchange
from harmonyd.services.dicomweb.native_xml import to_xml
from harmonyd.services.dicomweb.resources import path_of
from harmonyd.services.dicomweb.results import MappedResults, Part, as_http, closing_on_error, multipart, retrieve
from harmonyd.services.dicomweb.single import Data, FilePiece, single, tag_of
from harmonyd.services.http.json_answers import array_answer
from harmonyd.services.http.parts import file_of, require_whole

_CHARSET = re.compile(rb'"00080005":\{"vr":"CS","Value":\[[^]]*\]\}')
_UTF8 = b'"00080005":{"vr":"CS","Value":["ISO_IR 192"]}'
"""The text is in UTF-8, whatever the file has (PS3.18 section F.2). The quotes cannot be those of a value."""
_BASE = "harmonyd-base:"
_MARK = f'"BulkDataURI":"{_BASE}'.encode()
"""Stands for the URL, which depends on how a client calls us."""
OFFERS = (Offer(DICOM_JSON), Offer(JSON), Offer(DICOM_XML, multipart=True))


@dataclass(frozen=True, slots=True)
class _Described:
    """An instance whose JSON says where its bulk data is."""

    path: Path
    name: str
    base_url: str

    async def json(self) -> bytes:
        data: bytes = await deferToThread(described, self.path, self.base_url)
        return data


@dataclass(frozen=True, slots=True)
class _Kept:
    """The same of what is in the cache: made once, for whatever URL."""

    record: KeptRecord
    base_url: str

    @property
    def path(self) -> Path:
        return self.record.path

    @property
    def name(self) -> str:
        return self.record.name

    async def json(self) -> bytes:
        return _at(await self.record.made.text(self.record.instance, _marked), self.base_url)


@dataclass(frozen=True, slots=True)
class _Reshaped:
    """The same, passed through middleware."""

    inner: Record
    reshaped: Callable[[bytes], Awaitable[bytes]]

    @property
    def path(self) -> Path | None:
        return self.inner.path

    @property
    def name(self) -> str:
        return self.inner.name

    async def json(self) -> bytes:
        return await self.reshaped(await self.inner.json())


def _with_bulk(record: Record, base_url: str) -> Record:
    if isinstance(record, ReshapedRecord):
        return _Reshaped(_with_bulk(record.record, base_url), record.reshaped)
    if isinstance(record, KeptRecord):
        return _Kept(record, base_url)
    return _Described(file_of(record), record.name, base_url)


def _marked(path: Path) -> bytes:
    return described(path, _BASE)


def _at(data: bytes, base_url: str) -> bytes:
    """Put the URL in front of each BulkDataURI. The quotes cannot be those of a value."""
    return data.replace(_MARK, b'"BulkDataURI":"' + json.dumps(base_url)[1:-1].encode())


def described(path: Path, base_url: str) -> bytes:
    """Return the metadata of a file as DICOM JSON. Blocking. Raises ``MalformedDataset`` and ``OSError``."""
    header = read_header(path)
    instance = path_of(header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid)
    return _CHARSET.sub(_UTF8, file_to_json(path, f"{base_url}{instance}/bulkdata/"))


async def answer(exchange: Exchange) -> HttpAnswer:
    """Send one data set an instance, from the first that arrives on. Raises what the retrieve raises."""
    offer = choose(accepted(exchange.request), OFFERS)

    async def describe(record: Record) -> Record:
        return _with_bulk(record, exchange.base_url)

    retrieved = await retrieve(exchange)
    kept = kept_in(retrieved)
    if kept is not None and offer.essence != DICOM_XML:
        async with closing_on_error(kept):
            # One instance is waited for; of more the first are sent while the others arrive.
            instances = await kept.whole() if exchange.resource.instance else kept.chosen
            if instances:
                return await _whole(exchange, offer, kept, instances)
    results = MappedResults(retrieved, describe)
    async with closing_on_error(results):
        if offer.essence == DICOM_XML:
            return await multipart(offer, _documents(results), results.aclose)
        written = as_http(await array_answer(results))
        written.headers["Content-Type"] = offer.essence
        return written


async def _whole(exchange: Exchange, offer: Offer, kept: KeptResults, instances: Sequence[Instance]) -> HttpAnswer:
    """Send a document that is made once, and may be compressed already."""
    kept.took(instances)
    gzipped = prefers_gzip(exchange.request.headers.get("accept-encoding", "")) and len(instances) > 1
    finish = partial(_at, base_url=exchange.base_url)
    if len(instances) == 1:
        data = b"[" + finish(await kept.made.text(instances[0], _marked)) + b"]\n"
        tag = tag_of(data)
        return await single(exchange.request, offer.essence, Data(data), tag, kept.aclose)
    name = tag_of(kept.key, exchange.base_url).strip('"')
    document = await kept.made.document(f"{name}.json", instances, _marked, finish, gzipped=gzipped)
    content = FilePiece(document.path, 0, document.length)
    more = {"Vary": "Accept-Encoding"} | ({"Content-Encoding": "gzip"} if gzipped else {})
    return await single(exchange.request, offer.essence, content, document.etag, kept.aclose, more)


async def _documents(results: Results) -> AsyncGenerator[Part, None]:
    async for record in results:
        data = await record.json()
        yield DICOM_XML, await deferToThread(lambda text: to_xml(json.loads(text)), data)
    require_whole(results)
