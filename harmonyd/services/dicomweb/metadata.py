"""Metadata of instances: everything but bulk data, which has a BulkDataURI (PS3.18 section 10.4.1.1.2)."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.threads import deferToThread

from harmonyd.dimse.dataset_json import file_to_json
from harmonyd.dimse.part10 import read_header
from harmonyd.envelope import Record, Results
from harmonyd.services.base import HttpAnswer
from harmonyd.services.dicomweb.accept import DICOM_JSON, DICOM_XML, JSON, Offer, accepted, choose
from harmonyd.services.dicomweb.exchange import Exchange
from harmonyd.services.dicomweb.native_xml import to_xml
from harmonyd.services.dicomweb.resources import path_of
from harmonyd.services.dicomweb.results import MappedResults, Part, as_http, closing_on_error, multipart, retrieve
from harmonyd.services.http.json_answers import array_answer
from harmonyd.services.http.parts import file_of, require_whole

_CHARSET = re.compile(rb'"00080005":\{"vr":"CS","Value":\[[^]]*\]\}')
_UTF8 = b'"00080005":{"vr":"CS","Value":["ISO_IR 192"]}'
"""The text is in UTF-8, whatever the file has (PS3.18 section F.2). The quotes cannot be those of a value."""
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


def described(path: Path, base_url: str) -> bytes:
    """Return the metadata of a file as DICOM JSON. Blocking. Raises ``MalformedDataset`` and ``OSError``."""
    header = read_header(path)
    instance = path_of(header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid)
    return _CHARSET.sub(_UTF8, file_to_json(path, f"{base_url}{instance}/bulkdata/"))


async def answer(exchange: Exchange) -> HttpAnswer:
    """Send one data set an instance, from the first that arrives on. Raises what the retrieve raises."""
    offer = choose(accepted(exchange.request), OFFERS)

    async def describe(record: Record) -> Record:
        return _Described(file_of(record), record.name, exchange.base_url)

    results = MappedResults(await retrieve(exchange), describe)
    async with closing_on_error(results):
        if offer.essence == DICOM_XML:
            return await multipart(offer, _documents(results), results.aclose)
        written = as_http(await array_answer(results))
        written.headers["Content-Type"] = offer.essence
        return written


async def _documents(results: Results) -> AsyncGenerator[Part, None]:
    async for record in results:
        data = await record.json()
        yield DICOM_XML, await deferToThread(lambda text: to_xml(json.loads(text)), data)
    require_whole(results)
