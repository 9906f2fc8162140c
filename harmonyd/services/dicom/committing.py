"""Storage Commitment as an SCP (PS3.4 Annex J): what is asked, what the backends truly have, and the report of it.

A demand is on the disk before it is answered, and goes from there: it is decided when all backends of the pipeline
have every object, or one of them will not; and reported until the asker has taken it, or it is too old.
"""

from __future__ import annotations

import json
import random as _random
import sqlite3
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.logger import Logger

from harmonyd.commitment.api import CLASS_CONFLICT, NO_SUCH_INSTANCE, PROCESSING_FAILURE, Demand, Place, Reference
from harmonyd.commitment.books import Books
from harmonyd.commitment.ledger import Conflict, Full
from harmonyd.config.model import DicomEndpointOptions
from harmonyd.dimse import commitment
from harmonyd.dimse.elements import MalformedDataset
from harmonyd.dimse.engine import Arrival, OperationContext
from harmonyd.dimse.normalized import (
    ACTION,
    PUSH_MODEL_INSTANCE,
    NormalizedAnswer,
    NormalizedAsked,
    NormalizedEngine,
    NormalizedRequest,
    Perform,
    Unanswered,
)
from harmonyd.dimse.serving import NotServed
from harmonyd.dimse.status import (
    DUPLICATE_TRANSACTION,
    INVALID_ARGUMENT,
    NO_SUCH_ACTION,
    NOT_AUTHORIZED,
    RESOURCE_LIMITATION,
    SUCCESS,
)
from harmonyd.dimse.status import (
    NO_SUCH_INSTANCE as NO_SUCH_SOP_INSTANCE,
)
from harmonyd.errors import DeadlinePassed, HarmonydError
from harmonyd.pipeline.pipeline import Pipeline
from harmonyd.services.dicom.commitments import Commitments
from harmonyd.services.dicom.holdings import held
from harmonyd.services.dicom.managed import envelope_for, text_of
from harmonyd.services.dicom.node import peer_node
from harmonyd.services.dicom.querying import InThread, told_as_status
from harmonyd.spool.backoff import wait_secs
from harmonyd.spool.delivery import reason_of

_FIRST_LOOKS_SECS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_LOOK_SECS = 30.0
"""Between two looks at what the backends have; a delivery brings the next one forward."""
_LEAST_SECS = 0.2
_QUESTION_SECS = 60.0
"""For a backend to say what it has."""
_REPORT_SECS = 60.0
_LONGEST_WAIT_SECS = 3600.0
_AT_ONCE = 4
"""Demands that are looked into."""
_KNOWN_SECS = 24 * 3600.0
"""How long a transaction that was reported is remembered."""
_PLACES_SECS = 30 * 24 * 3600.0
_TRIM_EVERY = 1000
_log = Logger()


Outstanding = Callable[[str, Iterable[str], Iterable[str]], Awaitable[frozenset[str]]]


@dataclass(frozen=True, slots=True)
class CommitmentMeans:
    """What Storage Commitment needs; made once for the daemon."""

    reactor: Any
    books: Books
    commitments: Commitments


class Committing:
    """Of one endpoint. ``current`` returns its options, its pipeline and its engine of the moment."""

    def __init__(
        self,
        name: str,
        means: CommitmentMeans,
        in_thread: InThread,
        current: Callable[[], tuple[DicomEndpointOptions, Pipeline, object]],
        outstanding: Outstanding,
        random: Callable[[], float] = _random.random,
    ) -> None:
        """``outstanding``: see ``spool.api.Spool``."""
        self._name = name
        self._means = means
        self._in_thread = in_thread
        self._current = current
        self._outstanding = outstanding
        self._random = random
        self._running: dict[int, Deferred[None]] = {}
        self._sleepers: set[Deferred[None]] = set()
        self._turns = DeferredSemaphore(_AT_ONCE)
        self._placed = 0

    # --- life

    async def start(self) -> None:
        """Go on with what an earlier run has taken on."""
        if self._means.books.exists:
            for demand in await self._means.books.do(lambda ledger: ledger.demands(self._name)):
                self._begin(demand, None)

    async def stop(self) -> None:
        """What is not done is done by the next run."""
        for task in list(self._running.values()):
            task.cancel()
            with suppress(CancelledError):
                await task

    # --- what comes

    async def arrived(self, arrivals: Iterable[Arrival]) -> None:
        """These objects are in the spool: note where they belong. A failure to do so is only logged."""
        found = {
            each.instance.sop_instance_uid: Place(
                each.instance.sop_class_uid, each.instance.study_instance_uid, each.instance.series_instance_uid
            )
            for each in arrivals
        }
        now = self._means.reactor.seconds()
        try:
            await self._means.books.do(lambda ledger: ledger.place(self._name, found, now))
            self._placed += len(found)
            if self._placed >= _TRIM_EVERY:
                self._placed = 0
                await self._means.books.do(lambda ledger: ledger.trim_places(now - _PLACES_SECS))
        except (HarmonydError, OSError, sqlite3.Error) as error:
            _log.warn("{name} does not note what came: {why}", name=self._name, why=reason_of(error))

    def delivered(self) -> None:
        """A backend has taken something: what waits may be there now."""
        sleepers, self._sleepers = self._sleepers, set()
        for sleeper in sleepers:
            sleeper.callback(None)

    async def requested(self, asked: NormalizedAsked) -> NormalizedAnswer:
        """Answer an N-ACTION. Raises ``NotServed``."""
        _check(asked.request)
        request_id = uuid.uuid4().hex
        async with told_as_status(asked, request_id):
            try:
                text = await self._in_thread(text_of, asked.request)
                document = json.loads(text)
                uid, references = commitment.transaction_of(document), _references(document)
            except MalformedDataset as error:
                raise NotServed(INVALID_ARGUMENT, error.detail) from error
            if not uid or not references:
                raise NotServed(INVALID_ARGUMENT, "a Transaction UID and references are needed")
            envelope = envelope_for(asked, text, request_id, transaction_uid=uid)
            _, pipeline, _ = self._current()
            backends = await pipeline.admit(envelope, asked.service)
            if not backends:
                raise NotServed(NOT_AUTHORIZED, "no backend is left for it")
            sought = _references(envelope.normalized)
            if len(sought) != len(references):
                raise NotServed(INVALID_ARGUMENT, "middleware has changed the number of references")
            new = Demand(
                0, self._name, asked.association.calling_aet, asked.association.called_aet, uid,
                self._means.reactor.seconds(), references, sought, tuple(backends),
            )  # fmt: skip
            demand = await self._taken(new)
        _log.info(
            "{aet} asks for the commitment of {count} objects", aet=demand.aet, count=len(references),
            request=request_id, endpoint=self._name, association_id=asked.association.id,
        )  # fmt: skip
        if demand.id not in self._running:
            options, _, _ = self._current()
            self._begin(demand, asked.ask_back if options.commit_same_association else None)
        return NormalizedAnswer(SUCCESS)

    async def _taken(self, new: Demand) -> Demand:
        try:
            return await self._means.books.do(lambda ledger: ledger.demand(new))
        except Conflict:
            raise NotServed(DUPLICATE_TRANSACTION, "another transaction has this UID") from None
        except Full:
            raise NotServed(RESOURCE_LIMITATION, "too many transactions are open") from None

    # --- a demand

    def _begin(self, demand: Demand, ask_back: Perform | None) -> None:
        task = Deferred.fromCoroutine(self._see_to(demand, ask_back))
        self._running[demand.id] = task
        task.addErrback(self._failed, demand)
        task.addBoth(lambda result: self._running.pop(demand.id, None) and result)

    def _failed(self, failure: Any, demand: Demand) -> None:
        if not failure.check(CancelledError):
            _log.failure("a storage commitment is not seen to, by our fault", failure, endpoint=self._name)

    async def _see_to(self, demand: Demand, ask_back: Perform | None) -> None:
        if demand.reasons is None:
            reasons = await self._decide(demand)
            demand = replace(demand, reasons=reasons)
            await self._means.books.do(lambda ledger: ledger.decided(demand.id, reasons))
        await self._report(demand, ask_back)
        now = self._means.reactor.seconds()
        await self._means.books.do(lambda ledger: ledger.reported(demand.id, now, now - _KNOWN_SECS))

    async def _decide(self, demand: Demand) -> dict[str, int]:
        """The Failure Reasons of what is not committed, by the SOP Instance UID that the asker knows."""
        looks = 0
        while True:
            reasons, is_final = await self._turns.run(lambda: Deferred.fromCoroutine(self._look(demand)))
            options, _, _ = self._current()
            left = demand.received_at + options.commit_wait_secs - self._means.reactor.seconds()
            if is_final or left <= 0:
                return reasons
            wait = _FIRST_LOOKS_SECS[looks] if looks < len(_FIRST_LOOKS_SECS) else _LOOK_SECS
            looks += 1
            await self._sleep(min(wait, max(left, 0.01)))

    async def _look(self, demand: Demand) -> tuple[dict[str, int], bool]:
        """What is missing now, and whether waiting would change nothing."""
        _, pipeline, _ = self._current()
        backends = [pipeline.backends[name] for name in demand.backends if name in pipeline.backends]
        uids = [each.sop_instance_uid for each in demand.references]
        places = await self._means.books.do(lambda ledger: ledger.places(self._name, uids))
        by_sought = {
            sought.sop_instance_uid: places[asked.sop_instance_uid]
            for asked, sought in zip(demand.references, demand.sought, strict=True)
            if asked.sop_instance_uid in places
        }
        found = [await self._held(backend, demand, by_sought) for backend in backends]
        studies = {place.study_instance_uid for place in places.values()}
        under_way = await self._outstanding(self._name, demand.backends, studies)
        can_tell = bool(found) and all(each is not None for each in found)
        reasons: dict[str, int] = {}
        waits = not can_tell
        for asked, sought in zip(demand.references, demand.sought, strict=True):
            reason = PROCESSING_FAILURE if asked.sop_instance_uid in under_way else _reason(sought, found)
            if asked.sop_instance_uid in under_way or (
                reason == NO_SUCH_INSTANCE and asked.sop_instance_uid in places
            ):
                reason, waits = PROCESSING_FAILURE, True  # it came, and is on its way
            if reason:
                reasons[asked.sop_instance_uid] = reason
        return reasons, not reasons or not waits

    async def _held(self, backend: Any, demand: Demand, places: Mapping[str, Place]) -> Mapping[str, str] | None:
        """None: it does not say."""
        deadline = self._means.reactor.seconds() + _QUESTION_SECS
        try:
            return await held(backend, demand.sought, places, f"commit-{demand.id}", deadline)
        except (HarmonydError, OSError) as error:
            _log.warn(
                "{backend} does not say what it has: {why}", backend=backend.name, why=reason_of(error),
                endpoint=self._name,
            )  # fmt: skip
            return None

    async def _sleep(self, secs: float) -> None:
        """Until then, or until something was delivered, but for a moment at least."""
        reactor = self._means.reactor
        sleeper: Deferred[None] = Deferred(self._sleepers.discard)
        self._sleepers.add(sleeper)
        call = reactor.callLater(secs, self._wake, sleeper)
        began = reactor.seconds()
        try:
            await sleeper
        finally:
            if call.active():
                call.cancel()
        rest = began + min(_LEAST_SECS, secs) - reactor.seconds()
        if rest > 0:
            pause: Deferred[None] = Deferred(lambda _: later.cancel())
            later = reactor.callLater(rest, pause.callback, None)
            await pause

    def _wake(self, sleeper: Deferred[None]) -> None:
        if sleeper in self._sleepers:
            self._sleepers.discard(sleeper)
            sleeper.callback(None)

    # --- the report

    async def _report(self, demand: Demand, ask_back: Perform | None) -> None:
        request = await self._in_thread(_event, demand)
        failed = len(demand.reasons or ())
        fields = {"aet": demand.aet, "endpoint": self._name, "failed": failed, "count": len(demand.references)}
        if ask_back is not None and await self._told(ask_back, request, fields):
            return
        reactor, attempts = self._means.reactor, demand.attempts
        while True:
            options, _, _ = self._current()
            if reactor.seconds() > demand.received_at + options.commit_wait_secs + options.commit_report_secs:
                _log.error("{aet} is not told of the commitment it asked for: it does not take the report", **fields)
                return
            if demand.aet not in options.move_destinations:
                _log.error(
                    "{aet} is not told of the commitment it asked for: it is not in move_destinations, and its own"
                    " association has ended", **fields,
                )  # fmt: skip
                return
            if await self._told(lambda asked: self._call(demand, asked), request, fields):
                return
            attempts += 1
            await self._means.books.do(lambda ledger: ledger.tried(demand.id))
            await self._pause(wait_secs(attempts, _LONGEST_WAIT_SECS, self._random()))

    async def _pause(self, secs: float) -> None:
        pause: Deferred[None] = Deferred(lambda _: later.cancel())
        later = self._means.reactor.callLater(secs, pause.callback, None)
        await pause

    async def _told(self, perform: Perform, request: NormalizedRequest, fields: Mapping[str, object]) -> bool:
        try:
            answer = await perform(request)
        except (HarmonydError, Unanswered) as error:
            why = error.detail if isinstance(error, HarmonydError) else str(error)
        else:
            if answer.status == SUCCESS:
                _log.info("{aet} is told: {failed} of {count} objects are not committed", **fields)
                return True
            why = f"it answers with status 0x{answer.status:04X}"
        _log.warn("{aet} does not take the report on its commitment: {why}", why=why, **fields)
        return False

    async def _call(self, demand: Demand, request: NormalizedRequest) -> NormalizedAnswer:
        """Over an association of ours to the asker."""
        options, _, engine = self._current()
        if not isinstance(engine, NormalizedEngine):
            raise DeadlinePassed("the engine of the endpoint cannot report")
        remote = peer_node(demand.aet, options.move_destinations[demand.aet], demand.called_aet)
        id_ = uuid.uuid4().hex
        op = OperationContext(id_, f"commit-{demand.id}", self._means.reactor.seconds() + _REPORT_SECS)
        return await engine.normalized(remote, request, op, as_scp=True)


def _check(request: NormalizedRequest) -> None:
    if request.operation != ACTION or request.type_id != commitment.REQUEST:
        raise NotServed(NO_SUCH_ACTION, "Storage Commitment has action type 1 alone")
    if request.sop_instance_uid != PUSH_MODEL_INSTANCE:
        raise NotServed(NO_SUCH_SOP_INSTANCE, "not the well-known SOP instance of the push model")


def _references(document: Any) -> tuple[Reference, ...]:
    return tuple(Reference(*pair) for pair in commitment.referenced(document))


def _reason(sought: Reference, found: Sequence[Mapping[str, str] | None]) -> int:
    """Of an object at all backends; 0: committed."""
    worst = 0 if found else PROCESSING_FAILURE
    for each in found:
        if each is None:
            worst = worst or PROCESSING_FAILURE
        elif sought.sop_instance_uid not in each:
            return NO_SUCH_INSTANCE
        elif each[sought.sop_instance_uid] not in ("", sought.sop_class_uid):
            worst = CLASS_CONFLICT
    return worst


def _event(demand: Demand) -> NormalizedRequest:
    reasons = demand.reasons or {}
    committed, failed = [], {}
    for each in demand.references:
        pair = (each.sop_class_uid, each.sop_instance_uid)
        if each.sop_instance_uid in reasons:
            failed[pair] = reasons[each.sop_instance_uid]
        else:
            committed.append(pair)
    return commitment.event(demand.transaction_uid, committed, failed)
