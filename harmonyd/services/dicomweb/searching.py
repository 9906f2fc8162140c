"""The answer to a search: DICOM JSON, or one XML document a result (PS3.18 sections 10.6.3 and 10.6.4)."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from twisted.internet.threads import deferToThread

from harmonyd.bodies import CHUNK_BYTES
from harmonyd.services.base import HttpAnswer
from harmonyd.services.dicomweb.accept import DICOM_JSON, DICOM_XML, JSON, Offer, accepted, choose
from harmonyd.services.dicomweb.asking import BACKEND
from harmonyd.services.dicomweb.completing import Completer
from harmonyd.services.dicomweb.entities import fill, first_value, json_key
from harmonyd.services.dicomweb.exchange import Exchange
from harmonyd.services.dicomweb.native_xml import to_xml
from harmonyd.services.dicomweb.resources import path_of
from harmonyd.services.dicomweb.search import search
from harmonyd.services.dicomweb.search_query import parse_search

OFFERS = (Offer(DICOM_JSON), Offer(JSON), Offer(DICOM_XML, multipart=True))
_LEVELS = {"studies": "STUDY", "series": "SERIES", "instances": "IMAGE"}
_CHARSET = json_key("SpecificCharacterSet")
_RETRIEVE_URL = json_key("RetrieveURL")


async def answer(exchange: Exchange) -> HttpAnswer:
    """Search. 204 when nothing matches (PS3.18 table 10.6.3-1). Raises ``BadRequest`` and what the PACS raises."""
    offer = choose(accepted(exchange.request), OFFERS)
    level = _LEVELS[exchange.resource.kind]
    query = parse_search(exchange.request.query, level)
    page = await search(exchange.asker, query, exchange.resource.uids, exchange.options.max_results)
    if exchange.options.complete_attributes:
        await Completer(exchange.asker, exchange.counted).complete(page, level)
    for record in page.records:
        _finish(record, level, exchange)
    headers = {"Cache-Control": "no-store"}
    if page.warnings:
        headers["Warning"] = ", ".join(warning(text, exchange) for text in page.warnings)
    if page.total is not None:
        headers["X-Total-Count"] = str(page.total)
    if not page.records:
        return HttpAnswer(204, headers)
    content_type, data = await deferToThread(documents, page.records, offer)
    return HttpAnswer(200, {**headers, "Content-Type": content_type}, _chunks(data), len(data))


def warning(text: str, exchange: Exchange) -> str:
    """Return a value for Warning (PS3.18 section 8.3.4.4): code 299, the service, and the text."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    clean = printable.encode("ascii", "replace").decode().replace("\\", "/").replace('"', "'")
    return f'299 {exchange.base_url or "harmonyd"} "{clean}"'


def add_warnings(answer: HttpAnswer, texts: Sequence[str], exchange: Exchange) -> None:
    """Add ``texts`` to the Warning field."""
    if texts:
        there = [answer.headers["Warning"]] if "Warning" in answer.headers else []
        answer.headers["Warning"] = ", ".join([*there, *(warning(text, exchange) for text in texts)])


def failures(exchange: Exchange) -> list[str]:
    """Return what has to be said about backends that failed, where several were asked."""
    return [f"The PACS {name} did not answer: {why}" for name, why in exchange.asker.failed.items()]


def _finish(record: dict[str, Any], level: str, exchange: Exchange) -> None:
    backend = record.pop(BACKEND, None)
    below = f"/{backend}" if backend in exchange.options.path_backends else ""
    base_url = exchange.base_url + below
    fill(record, level)
    study, series, instance = (
        first_value(record, keyword) or "" for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    path = path_of(study, series if level != "STUDY" else "", instance if level == "IMAGE" else "")
    if _CHARSET in record:
        record[_CHARSET] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    record[_RETRIEVE_URL] = {"vr": "UR", "Value": [base_url + path]}


def documents(records: list[dict[str, Any]], offer: Offer) -> tuple[str, bytes]:
    """Return the Content-Type and body for data sets in the DICOM JSON Model. Blocking."""
    if offer.essence != DICOM_XML:
        ordered = [dict(sorted(record.items())) for record in records]
        return offer.essence, json.dumps(ordered, ensure_ascii=False).encode("utf-8", "replace")
    boundary = f"harmonyd-{secrets.token_hex(16)}"
    parts = [f"--{boundary}\r\nContent-Type: {DICOM_XML}\r\n\r\n".encode() + to_xml(record) for record in records]
    return f"{offer}; boundary={boundary}", b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()])


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]
