"""The endpoint half of C-GET and C-MOVE: what a pipeline's backend brings, one file after the other."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred

from harmonyd.dimse.accept import instance_of
from harmonyd.dimse.engine import Instance
from harmonyd.dimse.part10 import InstanceHeader, read_header
from harmonyd.dimse.serving import Asked, NotServed
from harmonyd.dimse.status import UNABLE_TO_PROCESS
from harmonyd.envelope import Record, ReshapedRecord, ResponseEnvelope, Results
from harmonyd.errors import NotFound
from harmonyd.services.base import Ask
from harmonyd.services.dicom.asked import ONCE, request_for
from harmonyd.services.dicom.auditing import PassedOn, nobody_is_told
from harmonyd.services.dicom.locating import FAILED
from harmonyd.services.dicom.querying import InThread, answered, told_as_status
from harmonyd.services.dicom.request import RETRIEVE


class Retrieving:
    """Answers C-GET and C-MOVE requests of an endpoint. ``ask`` is its pipeline of the moment."""

    def __init__(self, ask: Ask, in_thread: InThread) -> None:
        self._ask = ask
        self._in_thread = in_thread

    async def retrieve(self, asked: Asked) -> Brought:
        """See ``dimse.serving.Handler``."""
        brought = Brought(asked, uuid.uuid4().hex, self._in_thread)
        async with told_as_status(asked, brought.request_id):
            metadata = {ONCE: "true"}
            if asked.destination_aet:
                metadata["move_destination"] = asked.destination_aet
            request = request_for(asked, brought.request_id, RETRIEVE, **metadata)
            request.progress = brought
            with suppress(NotFound):  # nothing matches, which is a success without sub-operations
                brought.begin(await answered(self._ask, asked, request))
        return brought


class Brought:
    """Implements ``Retrieval``, and ``Progress``: what the node counts is how much there is to come."""

    def __init__(self, asked: Asked, request_id: str, in_thread: InThread) -> None:
        self.request_id = request_id
        self.total: int | None = None
        self.missed = 0
        self.missed_uids: tuple[str, ...] = ()
        self.doubt = ""
        self._asked = asked
        self._in_thread = in_thread
        self._response: ResponseEnvelope | None = None
        self._items: AsyncGenerator[Instance, None] | None = None
        self._count = 0
        self._removing: Deferred[None] | None = None
        self.passed_on: PassedOn = nobody_is_told

    def begin(self, response: ResponseEnvelope) -> None:
        """Here is the answer."""
        self._response = response
        if failed := response.metadata.get(FAILED):
            self.doubt = f"there may be more: {failed} could not be asked"

    # --- Progress

    def began(self) -> None:
        """Nobody waits for that."""

    def arrived(self, size_bytes: int) -> None:
        """It is counted when it is passed on."""

    def counted(self, completed: int | None, failed: int | None, warning: int | None, remaining: int | None) -> None:
        """What a node leaves out of its counters is 0, but for what remains."""
        known = (completed or 0) + (failed or 0) + (warning or 0)
        if remaining is not None:
            self.total = known + remaining

    # --- Retrieval

    def __aiter__(self) -> AsyncIterator[Instance]:
        self._items = self._instances()
        return self._items

    def told(self, header: InstanceHeader, problem: str) -> None:
        """See ``Retrieval``."""
        self.passed_on(header, problem)

    async def aclose(self) -> None:
        """See ``Retrieval``."""
        items, self._items = self._items, None
        if items is not None:
            await items.aclose()
        with suppress(OSError):
            await self._removed()
        response, self._response = self._response, None
        if response is not None:
            await response.close()

    async def _instances(self) -> AsyncGenerator[Instance, None]:
        if self._response is None:
            self.total = 0
            return
        results = self._response.results
        async with told_as_status(self._asked, self.request_id):
            if results is None:
                raise NotServed(UNABLE_TO_PROCESS, "the pipeline's answer is no retrieve")
            async for record in results:
                record = _inner(record)
                instance = await self._instance(record)
                self._count += 1
                yield instance
                await self._removed()
                if (discard := getattr(record, "discard", None)) is not None:
                    self._removing = Deferred.fromCoroutine(discard())
            await self._removed()
            self._conclude(results)

    async def _removed(self) -> None:
        """The file before the last one is gone: while it is removed, the next one is sent."""
        removing, self._removing = self._removing, None
        if removing is not None:
            await removing

    async def _instance(self, record: Record) -> Instance:
        instance: Instance | None = getattr(record, "instance", None)
        if instance is not None:
            return instance
        path = record.path
        if path is None:
            raise NotServed(UNABLE_TO_PROCESS, "the pipeline's answer has no files")
        return instance_of(path, await self._in_thread(read_header, path))

    def _conclude(self, results: Results) -> None:
        """What the node says failed, or did not come; at least one where not all did."""
        summary: Mapping[str, Any] = results.summary()
        counts = summary.get("suboperations") or {}
        if self.total is not None:
            self.total -= getattr(results, "repeated", 0)
        not_come = max(0, (self.total or 0) - self._count)
        self.missed = max(counts.get("failed") or 0, not_come, 0 if summary["complete"] else 1)
        self.missed_uids = getattr(results, "failed_uids", ())
        if self.total is None:
            self.total = self._count + self.missed


def _inner(record: Record) -> Record:
    """What middleware makes of its JSON does not change the object."""
    while isinstance(record, ReshapedRecord):
        record = record.record
    return record
