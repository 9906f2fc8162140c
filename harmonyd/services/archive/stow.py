"""STOW-RS: files in one multipart request after the other, and what the archive says of each (PS3.18 section 10.5)."""

from __future__ import annotations

import json
import uuid
import xml.etree.ElementTree as ET
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harmonyd.bodies import FileBody
from harmonyd.dimse import status as dimse_status
from harmonyd.dimse.engine import OperationContext, StoreResult
from harmonyd.dimse.errors import NonsenseAnswer
from harmonyd.dimse.part10 import InstanceHeader, read_header
from harmonyd.errors import PayloadTooLarge
from harmonyd.services.archive.answer import Answer
from harmonyd.services.archive.client import Client
from harmonyd.services.archive.credentials import InThread
from harmonyd.services.archive.errors import error_of
from harmonyd.services.archive.parts import DICOM
from harmonyd.services.archive.search import JSON

MAX_ANSWER_BYTES = 16 * 1000**2
_REFERENCED, _FAILED, _OTHER_FAILURES = "00081199", "00081198", "0008119A"
_UID, _FAILURE_REASON, _WARNING_REASON = "00081155", "00081197", "00081196"
_EACH_BY_ITSELF = frozenset({400, 406, 409, 413, 415, 422})
"""Refusals that may be about one object of many."""
_STATUSES = {413: dimse_status.CANNOT_UNDERSTAND, 415: dimse_status.SOP_CLASS_NOT_SUPPORTED}


@dataclass(frozen=True, slots=True)
class Object:
    """A file to send."""

    path: Path
    header: InstanceHeader


class MultipartFiles:
    """Files as a ``multipart/related`` body whose length is known."""

    length: int | None

    def __init__(self, objects: Sequence[Object], boundary: str) -> None:
        self._objects = objects
        head = f"\r\n--{boundary}\r\nContent-Type: {DICOM}\r\n\r\n".encode("ascii")
        self._head, self._tail = head, f"\r\n--{boundary}--\r\n".encode("ascii")
        sizes = sum(each.header.size_bytes for each in objects)
        self.length = len(head) * len(objects) + sizes + len(self._tail)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Each file is open while it is sent. Raises OSError."""
        for each in self._objects:
            yield self._head
            body = FileBody(each.path.open("rb"), each.header.size_bytes)
            try:
                async for chunk in body.chunks():
                    yield chunk
            finally:
                await body.close()
        yield self._tail

    async def read(self, limit_bytes: int) -> bytes:
        """Never: it is for sending."""
        raise PayloadTooLarge(f"It is not read into memory, be it under {limit_bytes} bytes or not")

    async def close(self) -> None:
        """There is nothing open that ``chunks`` does not close."""


class Storer:
    """Of one archive. ``prefix`` of STOW-RS; no request has more objects or bytes, unless one object has."""

    def __init__(self, client: Client, prefix: str, max_objects: int, max_bytes: int, in_thread: InThread) -> None:
        self._client = client
        self._path = f"{prefix}/studies"
        self._max_objects = max_objects
        self._max_bytes = max_bytes
        self._in_thread = in_thread

    async def store(self, files: Sequence[Path], op: OperationContext) -> AsyncGenerator[StoreResult, None]:
        """One result each, in order. Raises what says nothing about the objects; those without a result may be there.

        To send them again does no harm: an instance is known by its UID.
        """
        objects = await self._in_thread(_look_at, files)
        for batch in self._batches(objects):
            for result in await self._send(batch, op):
                yield result

    def _batches(self, objects: Sequence[Object]) -> Iterator[list[Object]]:
        batch: list[Object] = []
        size = 0
        for each in objects:
            if batch and (len(batch) >= self._max_objects or size + each.header.size_bytes > self._max_bytes):
                yield batch
                batch, size = [], 0
            batch.append(each)
            size += each.header.size_bytes
        if batch:
            yield batch

    async def _send(self, batch: Sequence[Object], op: OperationContext) -> list[StoreResult]:
        boundary = f"harmonyd-{uuid.uuid4().hex}"
        kind = f'multipart/related; type="{DICOM}"; boundary={boundary}'
        answer = await self._client.post(self._path, kind, JSON, lambda: MultipartFiles(batch, boundary), op.deadline)
        try:
            told = await self._told(answer)
            if told is None and answer.status in _EACH_BY_ITSELF and len(batch) > 1:
                await answer.drop()
                return [result for each in batch for result in await self._send([each], op)]
            if told is None:
                await answer.drop()
                return self._untold(batch, answer)
        finally:
            await answer.close()
        return [_result(each, *told.get(each.header.sop_instance_uid, _unmentioned(told))) for each in batch]

    async def _told(self, answer: Answer) -> dict[str, tuple[int, str]] | None:
        """By SOP Instance UID: status and text; None where the answer tells nothing of single instances."""
        if answer.status not in (200, 202, 400, 409):
            return None
        body = await answer.read(MAX_ANSWER_BYTES)
        media = answer.media_type
        kind = media.essence if media is not None else ""
        try:
            if kind in (JSON, "application/json"):
                return verdicts(json.loads(body)) if body.strip() else None
            if kind in ("application/dicom+xml", "application/xml", "text/xml"):
                return verdicts(of_xml(body)) if body.strip() else None
        except (ValueError, RecursionError, ET.ParseError) as error:
            if answer.status in (200, 202):
                raise NonsenseAnswer(
                    f"The archive of backend {self._client.name} answered a store with what cannot be read",
                    hint="The objects may be there; they are sent again, which does no harm.",
                ) from error
        return None

    def _untold(self, batch: Sequence[Object], answer: Answer) -> list[StoreResult]:
        status = answer.status
        if status in (200, 201, 204):
            # PS3.18 section 10.5.3.1: 200 says that all were stored.
            return [_result(each, dimse_status.SUCCESS, "Success") for each in batch]
        if status in _EACH_BY_ITSELF:
            code = _STATUSES.get(status, dimse_status.CANNOT_UNDERSTAND)
            return [_result(each, code, f"the archive answered {status}") for each in batch]
        raise error_of(self._client.name, "a store", status, answer.headers.get("retry-after"))


def _look_at(files: Sequence[Path]) -> list[Object]:
    return [Object(path, read_header(path)) for path in files]


def _result(each: Object, status: int, text: str) -> StoreResult:
    header = each.header
    return StoreResult(header.sop_class_uid, header.sop_instance_uid, status, text)


def _unmentioned(told: Mapping[str, Any]) -> tuple[int, str]:
    """An answer that names instances, and not this one."""
    if told:
        return dimse_status.PROCESSING_FAILURE, "the archive's answer does not mention it"
    return dimse_status.SUCCESS, "Success"


def verdicts(answer: Any) -> dict[str, tuple[int, str]]:
    """By SOP Instance UID, status and text (PS3.18 table 10.5.3-2). Raises ``ValueError``."""
    document = answer[0] if isinstance(answer, list) and answer else answer
    if not isinstance(document, dict):
        raise ValueError("no data set")
    found: dict[str, tuple[int, str]] = {}
    for item in _items(document, _REFERENCED):
        warning = _number(item, _WARNING_REASON)
        status = warning if warning is not None and _is_warning(warning) else dimse_status.SUCCESS
        found[_text(item, _UID)] = (status, dimse_status.text("store", status))
    for item in (*_items(document, _FAILED), *_items(document, _OTHER_FAILURES)):
        reason = _number(item, _FAILURE_REASON)
        is_one = reason is not None and dimse_status.category(reason) is dimse_status.StatusCategory.FAILURE
        status = reason if is_one and reason is not None else dimse_status.PROCESSING_FAILURE
        found[_text(item, _UID)] = (status, dimse_status.text("store", status))
    return found


def _is_warning(code: int) -> bool:
    return dimse_status.category(code) is dimse_status.StatusCategory.WARNING


def _items(document: Mapping[str, Any], tag: str) -> list[dict[str, Any]]:
    values = _values(document, tag)
    return [item for item in values if isinstance(item, dict)]


def _values(document: Mapping[str, Any], tag: str) -> list[Any]:
    entry = document.get(tag)
    values = entry.get("Value") if isinstance(entry, dict) else None
    return values if isinstance(values, list) else []


def _text(item: Mapping[str, Any], tag: str) -> str:
    values = _values(item, tag)
    return str(values[0]) if values else ""


def _number(item: Mapping[str, Any], tag: str) -> int | None:
    text = _text(item, tag)
    return int(text) if text.isdecimal() and int(text) <= 0xFFFF else None


def of_xml(body: bytes) -> dict[str, Any]:
    """The Native DICOM Model (PS3.19 section A.1) as JSON has it, as far as a store's answer needs it.

    Raises ``ValueError`` and ``ParseError``.
    """
    if b"<!" in body.replace(b"<!--", b""):
        raise ValueError("a document type is declared")
    return _dataset(ET.fromstring(body))  # nothing is declared in it, so nothing is expanded


def _dataset(element: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for attribute in element:
        items = [_dataset(each) for each in attribute if _local(each) == "Item"]
        values = [each.text or "" for each in attribute if _local(each) == "Value"]
        found[str(attribute.get("tag", "")).upper()] = {"vr": attribute.get("vr"), "Value": items or values}
    return found


def _local(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]
