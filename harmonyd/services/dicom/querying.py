"""The endpoint half of C-FIND: the question goes through the pipeline, and what is found goes back as it comes."""

from __future__ import annotations

import errno
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from harmonyd.dimse import wire
from harmonyd.dimse.elements import MalformedDataset
from harmonyd.dimse.engine import Received
from harmonyd.dimse.normalized import NormalizedAsked
from harmonyd.dimse.serving import FIND, Asked, NotServed, Pending
from harmonyd.dimse.status import OUT_OF_RESOURCES
from harmonyd.envelope import Record, RequestEnvelope, ResponseEnvelope, Results
from harmonyd.errors import HarmonydError, StorageFull
from harmonyd.privacy import said
from harmonyd.services.base import Ask
from harmonyd.services.dicom.asked import request_for
from harmonyd.services.dicom.refusals import failed_here, not_answered, not_served

MAX_BODY_BYTES = 10_000_000
"""Of an answer that is no stream of records: it is read as a whole."""
_DISK_IS_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_HERE_BYTES = 1024
"""A match that was changed is encoded in a thread when its JSON is longer."""
InThread = Callable[..., Awaitable[Any]]
_log = Logger()


@asynccontextmanager
async def told_as_status(asked: Asked | NormalizedAsked, request_id: str) -> AsyncIterator[None]:
    """Whatever is raised inside becomes a ``NotServed``, and is logged."""
    try:
        yield
    except (CancelledError, GeneratorExit, NotServed):
        raise
    except HarmonydError as error:
        told = not_served(asked.operation, error)
        _say_refused(asked, request_id, told, said(error))
        raise told from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_IS_FULL:
            full = StorageFull("The disk is full.")
            told = not_served(asked.operation, full)
            _say_refused(asked, request_id, told, full.detail)
            raise told from error
        fields: dict[str, Any] = _fields(asked, request_id)
        _log.failure("a question could not be answered, by our fault", **fields)
        raise failed_here(asked.operation) from error


def _say_refused(asked: Asked | NormalizedAsked, request_id: str, told: NotServed, why: str) -> None:
    _log.warn(
        "{op} of {calling} ({peer}) is answered with status 0x{status:04X}: {why}",
        op=asked.name, status=told.status, why=why, **_fields(asked, request_id),
    )  # fmt: skip


def _fields(asked: Asked | NormalizedAsked, request_id: str) -> dict[str, str]:
    known = asked.association
    return {
        "calling": known.calling_aet,
        "peer": known.peer,
        "association_id": known.id,
        "request": request_id,
    }


async def answered(ask: Ask, asked: Asked | NormalizedAsked, request: RequestEnvelope) -> ResponseEnvelope:
    """The pipeline's answer, if it is a success. Raises ``NotServed``, and what the pipeline raises."""
    response = await ask(request)
    if not 200 <= response.status < 300:
        await response.close()
        raise not_answered(asked.operation, response.status)
    return response


class Querying:
    """Answers C-FIND requests of an endpoint. ``ask`` passes an envelope through its pipeline of the moment."""

    def __init__(self, ask: Ask, in_thread: InThread) -> None:
        self._ask = ask
        self._in_thread = in_thread

    async def find(self, asked: Asked) -> AsyncGenerator[Pending, None]:
        """See ``dimse.serving.Handler``."""
        request_id, count = uuid.uuid4().hex, 0
        async with told_as_status(asked, request_id):
            request = request_for(asked, request_id, FIND)
            response = await answered(self._ask, asked, request)
            try:
                matches = self._matches(asked, request, response)
                async with aclosing(matches):
                    async for match in matches:
                        count += 1
                        yield match
            finally:
                await response.close()
        _log.info("C-FIND of {calling} ({peer}) is answered: {count} matches", count=count,
                  **_fields(asked, request_id))  # fmt: skip

    async def _matches(
        self, asked: Asked, request: RequestEnvelope, response: ResponseEnvelope
    ) -> AsyncGenerator[Pending, None]:
        wanted = wire.character_sets(request.normalized or {})
        if response.results is None:
            for text in await _texts(response):
                yield Pending(await self._encoded(text, asked, wanted))
            return
        async for record in response.results:
            yield await self._pending(record, asked, wanted)
        _require_whole(response.results)

    async def _pending(self, record: Record, asked: Asked, wanted: tuple[str, ...]) -> Pending:
        received: Received | None = getattr(record, "received", None)
        if received is not None:
            return Pending(wire.passed_on(received, asked.transfer_syntax_uid), received.status)
        return Pending(await self._encoded(await record.json(), asked, wanted))

    async def _encoded(self, text: bytes, asked: Asked, wanted: tuple[str, ...]) -> bytes:
        if len(text) <= _HERE_BYTES:
            return wire.encoded(text, asked.transfer_syntax_uid, wanted)
        data: bytes = await self._in_thread(wire.encoded, text, asked.transfer_syntax_uid, wanted)
        return data


def _require_whole(results: Results) -> None:
    """Not all of the matches is no success: a caller would take what is missing for not there."""
    summary = results.summary()
    if not summary["complete"]:
        raise NotServed(OUT_OF_RESOURCES, summary.get("incomplete_reason") or "there are more matches")


async def _texts(response: ResponseEnvelope) -> list[bytes]:
    """The matches of an answer that is JSON: a list of data sets, or an object with ``matches``.

    Raises ``MalformedDataset``, and ``PayloadTooLarge``.
    """
    body = b"" if response.body is None else await response.body.read(MAX_BODY_BYTES)
    try:
        found = json.loads(body) if body.strip() else []
    except ValueError as error:
        raise MalformedDataset(f"the answer to a C-FIND is not JSON: {error}") from error
    matches = found.get("matches") if isinstance(found, dict) else found
    if not isinstance(matches, list) or not all(isinstance(match, dict) for match in matches):
        raise MalformedDataset("the answer to a C-FIND is no list of data sets")
    return [json.dumps(match).encode() for match in matches]
