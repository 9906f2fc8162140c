"""The backend half: a RequestEnvelope becomes a DIMSE operation at a remote node."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from harmonyd.cache.cache import SeriesCache, Source
from harmonyd.cache.key import Key
from harmonyd.cache.results import KeptResults
from harmonyd.commitment.api import Reference, Report
from harmonyd.config.model import DicomBackendOptions
from harmonyd.dimse.engine import (
    Engine,
    Instance,
    Match,
    OperationContext,
    OperationStream,
    Query,
)
from harmonyd.dimse.errors import DimseError
from harmonyd.dimse.waiting import AssociationSlots
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope, Results
from harmonyd.errors import HarmonydError
from harmonyd.permit import UNLIMITED
from harmonyd.pipeline.errors import NotTried
from harmonyd.progress import UNWATCHED, Progress
from harmonyd.services.dicom import request as dicom_request
from harmonyd.services.dicom.asked import ONCE, IdentifierBody
from harmonyd.services.dicom.auditing import Sent, Witness
from harmonyd.services.dicom.commitments import Commitments
from harmonyd.services.dicom.guard import PacsGuard
from harmonyd.services.dicom.holding import HeldResults, Hold, Seen, Showing, admit_files
from harmonyd.services.dicom.keeping import AHEAD, document_for, key_of, new_id, wants_fresh
from harmonyd.services.dicom.managing import Managing
from harmonyd.services.dicom.metering import UNMETERED, Meter, outcome_of_error
from harmonyd.services.dicom.node import move_receiver, remote_node
from harmonyd.services.dicom.objects import ObjectBody
from harmonyd.services.dicom.outcomes import reason_of
from harmonyd.services.dicom.record import OperationRecord, failed
from harmonyd.services.dicom.results import DimseResults, InstanceRecord, MatchRecord, echoed, raise_for_nothing
from harmonyd.services.dicom.running import Running
from harmonyd.services.dicom.selectivity import TooBroad
from harmonyd.services.dicom.storing import store_objects, store_request
from harmonyd.services.dicom.storing_each import EACH, store_each
from harmonyd.services.http.media import JSON, negotiate

DEBUG_VARIABLE = "HARMONY_TEST_DEBUG"
ECHO_SECS = 10.0
"""For a C-ECHO of ours, beside the connect timeout."""
_QUESTIONS = ("find", dicom_request.WORKLIST)
T = TypeVar("T", Match, Instance)


class DicomBackend:
    """One remote node. ``active`` holds the ids of its running operations, whose artifact folders are in use."""

    max_batch = 100
    """Inbound objects that are sent over one association."""
    holds_permits = True
    queryable = True  # see holdings
    _log = Logger()

    def __init__(
        self,
        name: str,
        options: DicomBackendOptions,
        engine: Engine,
        reactor: Any,
        storage: Path,
        *,
        has_retrievers: bool,
        cache: SeriesCache | None = None,
        meter: Meter = UNMETERED,
        witness: Witness = Witness(),  # noqa: B008 - it is frozen
        returned: Callable[[str], None] = lambda name: None,
        commitments: Commitments | None = None,
    ) -> None:
        """``has_retrievers``: somebody can ask it, and so perhaps for a C-MOVE. ``returned``: see ``PacsGuard``."""
        self.name = name
        self.options = options
        self.storage = options.storage_dir or storage
        self._engine = engine
        self._reactor = reactor
        self._has_retrievers = has_retrievers
        self._cache = cache
        self._witness = witness
        self._slots = AssociationSlots(reactor, name, options.max_associations, options.max_queue)
        self.guard = PacsGuard(name, options, reactor, self._own_echo, returned)
        self._seen = Seen(reactor.seconds)
        self.receiver = move_receiver(options)
        self.remote = remote_node(name, options)
        self._running = Running(self.remote, options, reactor, self._slots, self.guard, meter, self._in_thread)
        self.active = self._running.active
        self._managing = Managing(self.remote, options, engine, reactor, self.guard, self._running, commitments)

    async def start(self) -> None:
        """Start the receiver for C-MOVE deliveries when the configuration names its port and a client can ask."""
        self.guard.start()
        options = self.options
        if options.store_scp != "transient" and options.incoming_store_port_set and self._has_retrievers:
            await self._engine.open_receiver(self.receiver)

    async def stop(self) -> None:
        """Operations end with their requests, receivers with the supervisor; here end C-ECHOs of our own."""
        await self.guard.stop()

    async def send(self, request: RequestEnvelope) -> ResponseEnvelope:
        """Perform the operation. For find, get and move the first item has arrived when this returns."""
        fixed = "dimse_op" in request.metadata
        in_path = dicom_request.operation_in_path(request)
        if in_path is not None:
            request.metadata["dimse_op"] = in_path
        if in_path == "store":
            return await self._store(request)
        document = await dicom_request.read_document(request)
        operation = dicom_request.settle_operation(in_path, document, fixed=fixed)
        may_be_kept = operation == dicom_request.RETRIEVE
        if may_be_kept:
            operation = self.options.dimse_retrieve_mode
        request.metadata["dimse_op"] = operation
        hold = self._hold(operation, request)
        try:
            may_be_kept = may_be_kept and request.metadata.get(ONCE) != "true"
            if hold is not None and operation in ("get", "move"):
                return await self._retrieve_held(hold, operation, request, document, may_be_kept=may_be_kept)
            if may_be_kept:
                return await self._retrieve_any(operation, request, document)
            if operation == dicom_request.STEPS:
                return await self._managing.step(request, is_held=hold is not None)
            return await self._perform(operation, request, document, hold)
        except HarmonydError as error:
            if isinstance(error, TooBroad):
                self.too_broad(request, error)
            error.extra.setdefault("operation", operation)
            error.extra.setdefault("backend", self.name)
            if operation == "move" and isinstance(error, DimseError):
                error.extra.setdefault("move_destination_aet", self.receiver.destination_aet)
                error.extra.setdefault("incoming_store_port", self.receiver.port)
            raise

    def too_broad(self, request: RequestEnvelope, error: TooBroad) -> None:
        """Audit a query that the selectivity of this backend does not let pass."""
        self._witness.too_broad(self.remote, request, error)

    def _hold(self, operation: str, request: RequestEnvelope) -> Hold | None:
        """What limits the request; None: nothing. Raises ``Forbidden`` and ``Unauthorized``."""
        limits = request.permit.limits(operation, self.name) if request.permit is not None else UNLIMITED
        if not limits:
            return None
        refused = partial(self._witness.out_of_bounds, self.remote, request, operation)
        return Hold(limits, self._seen, partial(self._found, request), refused)

    async def _found(self, request: RequestEnvelope, query: Query) -> list[dict[str, Any]]:
        """The matches of a question of our own, asked on behalf of a request."""
        asking = request.part(progress=UNWATCHED)
        async with (
            self._running.recorded("find", asking) as (op, summary),
            aclosing(self._engine.find(self.remote, query, op)) as stream,
        ):
            found = [json.loads(match.json) async for match in stream]
            summary.update(success=True, complete=True, count=len(found))
        return found

    async def _retrieve_held(
        self, hold: Hold, operation: str, request: RequestEnvelope, document: Any, *, may_be_kept: bool
    ) -> ResponseEnvelope:
        studies = await hold.studies(dicom_request.build_query(request, document, operation, self.options))
        retrieve = self._retrieve_any if may_be_kept else self._perform
        response = await retrieve(operation, request, document)
        if response.results is not None:
            response.results = HeldResults(response.results, studies)
        return response

    async def _retrieve_any(self, operation: str, request: RequestEnvelope, document: Any) -> ResponseEnvelope:
        if self._cache is not None and (key := key_of(self.remote, request, document)):
            return await self._retrieve_kept(operation, self._cache, key, request)
        return await self._perform(operation, request, document)

    async def send_all(self, requests: Sequence[RequestEnvelope]) -> Sequence[ResponseEnvelope | Exception]:
        """Store inbound objects over one association.

        What middleware made of some goes by itself, and so does what somebody sent who may not store everything.
        """
        try:
            await self.guard.admit_delivery()
        except HarmonydError as error:
            return [error, *[NotTried("The PACS is not asked now") for _ in requests[1:]]]
        paths = [request.body.path for request in requests if isinstance(request.body, ObjectBody)]
        if not paths or len(paths) < len(requests) or any(self._is_limited(request) for request in requests):
            return [await self._answer(request) for request in requests]
        sent = self._witness.store(self.remote, requests[0])
        async with self._running.recorded("store", requests[0]) as (op, summary):
            async with self._changing(sent):
                answers = await store_objects(self._engine, self.remote, paths, op, self._in_thread, sent)
            failed_at = [answer for answer in answers if isinstance(answer, Exception)]
            summary.update(success=not failed_at, complete=not failed_at, stored=len(answers) - len(failed_at))
            if failed_at:
                summary["incomplete_reason"] = f"{len(failed_at)} of {len(answers)} objects were not stored"
            if len(failed_at) == len(answers):
                summary["outcome"] = outcome_of_error(failed_at[0])
            self.guard.note(failed_at[0] if len(failed_at) == len(answers) else None)
        for request, answer in zip(requests, answers, strict=True):
            if not isinstance(answer, NotTried):
                problem = reason_of(answer) if isinstance(answer, Exception) else ""
                sent.told(request, request.metadata.get("sop_instance_uid", ""), problem)
        return answers

    def _is_limited(self, request: RequestEnvelope) -> bool:
        """Whether its study has to be looked at before; the pipeline has looked at what is allowed at all."""
        return request.permit is not None and bool(request.permit.limits("store", self.name))

    async def _answer(self, request: RequestEnvelope) -> ResponseEnvelope | Exception:
        try:
            return await self.send(request)
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one object, the others get their turn
            return error

    async def _perform(
        self, operation: str, request: RequestEnvelope, document: Any, hold: Hold | None = None
    ) -> ResponseEnvelope:
        media_type = negotiate(operation, request.headers.get("accept"))
        if operation == "echo":
            return await self._echo(request, media_type)
        if operation == "store":
            return await self._store(request)
        if operation == dicom_request.COMMIT:
            find = partial(self._found, request)
            return await self._managing.commit(request, document, media_type, find, is_held=hold is not None)
        build = partial(dicom_request.build_query, request, document, operation, self.options)
        query, shows = await hold.query(build) if hold is not None else (build(), None)
        begins = self._witness.query if operation in _QUESTIONS else self._witness.retrieve
        kept = self._running.begin(operation, request, audited=begins(self.remote, request, query))
        if operation in _QUESTIONS:
            # What is shown to a caller is looked at as JSON where not all may be.
            as_received = shows is None and isinstance(request.body, IdentifierBody)
            found = self._engine.find(self.remote, query, replace(kept.op, as_received=as_received))
            found = found if shows is None else Showing(found, shows)

            def record(match: Match) -> MatchRecord:
                made = MatchRecord(match, self._in_thread)
                kept.arrived(made.size_bytes)
                return made

            return await self._respond(kept, media_type, "matches", found, record)
        return await self._retrieve(kept, media_type, query, once=request.metadata.get(ONCE) == "true")

    async def _retrieve_kept(
        self, operation: str, cache: SeriesCache, asked: Key, request: RequestEnvelope
    ) -> ResponseEnvelope:
        async def perform(key: Key, id_: str | None, storage: Path | None, progress: Progress) -> Results:
            query = dicom_request.build_query(request, document_for(key), operation, self.options)
            audited = self._witness.retrieve(self.remote, request, query)
            kept = self._running.begin(operation, request, id_, storage, audited)
            kept = replace(kept, op=replace(kept.op, progress=progress))
            response = await self._retrieve(kept, JSON, query)
            assert response.results is not None
            return response.results

        source = Source(operation, new_id, perform, request.progress)
        fresh = wants_fresh(request)
        ahead = request.metadata.get(AHEAD) != "false" and self._runs_several_retrieves
        results = await cache.retrieve(asked, source, fresh=fresh, ahead=ahead)
        if isinstance(results, KeptResults):
            results.on_read = partial(self._witness.read, request, asked.study, results)
        return ResponseEnvelope(results=results)

    @property
    def _runs_several_retrieves(self) -> bool:
        """Whether one in the background leaves room for another."""
        options = self.options
        takes_turns = options.dimse_retrieve_mode == "move" and options.store_scp in ("persistent", "transient")
        return options.max_associations > 1 and not takes_turns

    async def _retrieve(
        self, kept: OperationRecord, media_type: str, query: Query, *, once: bool = False
    ) -> ResponseEnvelope:
        if kept.operation == "get":
            stream = self._engine.get(self.remote, query, kept.op)
        else:
            stream = self._engine.move(self.remote, self.receiver, query, kept.op)

        def record(instance: Instance) -> InstanceRecord:
            kept.arrived_object(instance.sop_instance_uid, instance.size_bytes)
            kept.audited.arrived(instance)
            return InstanceRecord(instance, self._in_thread)

        return await self._respond(kept, media_type, "instances", stream, record, once=once)

    async def commit(self, references: Sequence[Reference], op: OperationContext, transaction_uid: str) -> Report:
        """See ``Managing.ask``; of our own accord, so the guard is asked, too."""
        self.guard.admit(dicom_request.COMMIT)
        return await self._managing.ask(references, replace(op, slots=self._slots), transaction_uid)

    async def _echo(self, request: RequestEnvelope, media_type: str) -> ResponseEnvelope:
        async with self._running.recorded("echo", request) as (op, _):
            await self._engine.echo(self.remote, op)
            self.guard.note(None, "echo")
        return ResponseEnvelope(results=echoed(self.remote, media_type))

    async def _store(self, request: RequestEnvelope) -> ResponseEnvelope:
        negotiate("store", request.headers.get("accept"))
        hold = self._hold("store", request)
        admit = partial(admit_files, hold, self._in_thread) if hold is not None else None
        try:
            if (request.protocol, request.method) == ("dicom", "C-STORE"):
                await self.guard.admit_delivery()
            sent = self._witness.store(self.remote, request)
            async with self._running.recorded("store", request, sent) as (op, summary):
                store = store_each if request.metadata.get(EACH) == "true" else store_request
                async with self._changing(sent):
                    results = await store(
                        self._engine, self.remote, request, op, self.storage, self._in_thread, sent, admit=admit
                    )
                summary.update(results.summary())
                self.guard.note(None)
        except HarmonydError as error:
            error.extra.setdefault("operation", "store")
            error.extra.setdefault("backend", self.name)
            raise
        return ResponseEnvelope(results=results)

    @asynccontextmanager
    async def _changing(self, sent: Sent) -> AsyncIterator[None]:
        """What is stored changes studies, whatever comes of it."""
        try:
            yield
        finally:
            self._seen.forget(sent.studies)
            if self._cache is not None:
                self._cache.invalidate(sent.studies)

    async def _respond(
        self,
        kept: OperationRecord,
        media_type: str,
        items_key: str,
        stream: OperationStream[T],
        record: Callable[[T], MatchRecord | InstanceRecord],
        *,
        once: bool = False,
    ) -> ResponseEnvelope:
        operation = kept.operation

        async def closed(summary: Mapping[str, Any]) -> None:
            if once and stream.folder is not None:
                await self._in_thread(shutil.rmtree, stream.folder, True)
            await self._running.ended(kept, summary, None if once else stream.folder)

        try:
            first = await anext(aiter(stream), None)
            self.guard.note(None)
            if first is not None:
                kept.measure.first()
            elif operation not in _QUESTIONS:
                raise_for_nothing(operation, stream.outcome)
        except Exception as error:
            self.guard.note(error)
            try:
                await stream.aclose()
            finally:
                await closed(failed(error))
            if isinstance(error, HarmonydError) and stream.debug is not None and _debugging():
                error.extra["debug"] = stream.debug
            raise
        results = DimseResults(
            operation, media_type, items_key, stream, first, record, with_debug=_debugging(), closed=closed
        )
        return ResponseEnvelope(results=results)

    async def _own_echo(self) -> None:
        """That nobody asked for, and that is in no record."""
        id_ = new_id()
        deadline = self._reactor.seconds() + self.options.connect_timeout_secs + ECHO_SECS
        await self._engine.echo(self.remote, OperationContext(id_, id_, deadline, slots=self._slots))

    def figures(self) -> dict[str, Any]:
        """How the node is, and what it has to do."""
        return {**self.guard.figures(), "in_flight": len(self.active), "waiting": self._slots.waiting}

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *args)


def _debugging() -> bool:
    return os.environ.get(DEBUG_VARIABLE) == "1"
