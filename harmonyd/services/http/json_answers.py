"""The JSON spellings of a result: one object, a bare array of DICOM JSON (PS3.18 Annex F), or one record a line.

Records go out as they arrive; those that arrived together go out together, without waiting for more.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from twisted.logger import Logger

from harmonyd.envelope import Record, Results
from harmonyd.errors import HarmonydError
from harmonyd.services.http import media
from harmonyd.services.http.errors import IncompleteAnswer
from harmonyd.services.http.lookahead import Lookahead
from harmonyd.services.http.parts import Answer, require_whole

_BATCH_BYTES = 64 * 1024
"""Records are joined up to this size."""

_log = Logger()
_Ending = Callable[[HarmonydError | None], bytes]


async def object_answer(results: Results, request_id: str) -> Answer:
    """``application/json``: the records under ``items_key`` and the summary, well formed whatever happens under way."""
    records = Lookahead(results, _json)
    head: dict[str, Any] = {"operation": results.operation}
    if results.items_key is None:
        while await records.next() is not None:
            pass
        data = json.dumps({**head, **results.summary(), **head}, default=str).encode() + b"\n"
        return Answer(media.JSON, _one(data), records.aclose, len(data))
    opening = json.dumps({**head, results.items_key: []})[:-2].encode()
    batch = await _batch(records)
    chunks = _list(records, batch, opening, lambda error: _object_end(results, error, request_id))
    return Answer(media.JSON, chunks, records.aclose)


async def array_answer(results: Results) -> Answer:
    """``application/dicom+json``: a bare array; cut when the results are not whole."""
    records = Lookahead(results, _json)
    batch = await _batch(records)
    if not batch:
        require_whole(results)
    chunks = _list(records, batch, b"[", lambda error: _array_end(results, error))
    return Answer(media.DICOM_JSON, chunks, records.aclose)


async def lines_answer(results: Results) -> Answer:
    """``application/x-ndjson``: one record a line, sent as it arrives; cut when the results are not whole."""
    records = Lookahead(results, _json)
    batch = await _batch(records)
    if not batch:
        require_whole(results)
    return Answer(media.NDJSON, _lines(results, records, batch), records.aclose)


async def _json(record: Record) -> bytes:
    return await record.json()


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _batch(records: Lookahead[bytes]) -> list[bytes]:
    """Wait for a record and take those that are ready with it; empty at the end."""
    first = await records.next()
    batch = [] if first is None else [first]
    size = len(first or b"")
    while batch and size < _BATCH_BYTES and records.ready():
        record = await records.next()
        assert record is not None
        batch.append(record)
        size += len(record)
    return batch


async def _list(records: Lookahead[bytes], batch: list[bytes], opening: bytes, end: _Ending) -> AsyncIterator[bytes]:
    """Yield ``opening``, the records with commas between them, and what ``end`` returns, unless it raises."""
    error: HarmonydError | None = None
    before = opening
    while batch:
        yield before + b",\n".join(batch)
        before = b",\n"
        try:
            batch = await _batch(records)
        except HarmonydError as failure:
            error, batch = failure, []
    yield (opening if before is opening else b"") + end(error)


async def _lines(results: Results, records: Lookahead[bytes], batch: list[bytes]) -> AsyncIterator[bytes]:
    while batch:
        yield b"".join(map(_line, batch))
        try:
            batch = await _batch(records)
        except HarmonydError as error:
            raise _cut(error) from error
    require_whole(results)


def _line(record: bytes) -> bytes:
    # A line feed in JSON text is white space between tokens: inside a string it is always escaped (RFC 8259 section 7).
    return record.replace(b"\n", b" ") + b"\n"


def _array_end(results: Results, error: HarmonydError | None) -> bytes:
    if error is not None:
        raise _cut(error) from error
    require_whole(results)
    return b"]\n"


def _cut(error: HarmonydError) -> IncompleteAnswer:
    return IncompleteAnswer(error.detail, hint=error.hint, **error.extra)


def _object_end(results: Results, error: HarmonydError | None, request_id: str) -> bytes:
    members = dict(results.summary())
    if error is not None:
        said = "{operation} failed under way: {reason}"
        _log.warn(said, operation=results.operation, reason=error, request=request_id)
        reason = members.get("incomplete_reason") or error.detail
        members = {**error.extra, **members, "success": False, "complete": False, "incomplete_reason": reason}
        members |= {"error": error.told} | ({"hint": error.hint} if error.hint else {})
    members.pop("operation", None)
    members.pop(results.items_key or "", None)
    return b"], " + json.dumps(members, default=str)[1:].encode() + b"\n"
