"""The endpoint half: what a store SCP received goes into the spool, and from there through the endpoint's pipeline."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from harmonyd.config.asking import COMMIT
from harmonyd.config.model import DicomEndpointOptions
from harmonyd.dimse.engine import Arrival, Association, Engine, EnginesByName, StoreScp, StoreScpConfig
from harmonyd.dimse.part10 import claimed_uid
from harmonyd.envelope import RequestEnvelope
from harmonyd.pipeline.pipeline import Pipeline
from harmonyd.services.base import Backend
from harmonyd.services.dicom.at_once import deliver_one
from harmonyd.services.dicom.auditing import Witness
from harmonyd.services.dicom.committing import CommitmentMeans, Committing
from harmonyd.services.dicom.forwarding import Forwarding
from harmonyd.services.dicom.inbound_audit import InboundWitness
from harmonyd.services.dicom.objects import ObjectBody, json_view
from harmonyd.services.dicom.outcomes import spool_result
from harmonyd.services.dicom.questions import Questions
from harmonyd.spool.api import Delivered, Entry, NewEntry, Result, Spool
from harmonyd.subject import Caller, from_text, to_text
from harmonyd.tracing import Span, begin, of_association

InThread = Callable[..., Awaitable[Any]]
T = TypeVar("T")


def scp_config(name: str, options: DicomEndpointOptions) -> StoreScpConfig:
    """What the receiver of an endpoint needs to know; as long as it is equal, the same receiver can go on."""
    return StoreScpConfig(
        name,
        options.local_aet,
        options.bind_addr,
        options.port,
        options.max_pdu,
        options.association_timeout_secs,
        options.store_scp,
        options.allowed_calling_aets,
        options.max_associations,
        options.max_associations_per_peer,
        options.acknowledge,
        options.tls,
        options.services,
    )


class DicomEndpoint:
    """Receives objects for one pipeline. It is the receiver's ``ObjectHandler``, and the spool's ``Deliverer``."""

    def __init__(
        self,
        name: str,
        options: DicomEndpointOptions,
        engines: EnginesByName,
        pipeline: Pipeline,
        spool: Spool,
        in_thread: InThread,
        own: Backend | None = None,
        witness: Witness = Witness(),  # noqa: B008 - it is frozen
        commitment: CommitmentMeans | None = None,
    ) -> None:
        """``pipeline`` has at least one backend; ``own`` is one of these that lives and ends with this endpoint.

        ``commitment`` None: nobody asks for any, and nobody is asked.
        """
        self.name = name
        self._options = options
        self._pipeline = pipeline
        self._own = own
        self._inbound = InboundWitness(name, witness.batches)
        self._started: Backend | None = None
        """Of its own."""
        self._in_thread = in_thread
        self._spool = spool
        self._running: set[Deferred[Any]] = set()
        self._engines = engines
        self._mode = (options.engine, options.store_scp)
        engine = engines[options.engine]
        self._committing = self._forwarding = None
        if commitment is not None:
            self._committing = Committing(name, commitment, in_thread, self._current, spool.outstanding)
            self._forwarding = Forwarding(name, commitment, lambda: self._pipeline.backends, spool.retry)
        self._questions = Questions(
            lambda request: self._pipeline.handle(request),
            in_thread,
            options,
            witness,
            self._committing,
            commitment.commitments if commitment is not None else None,
        )
        self._scp: StoreScp = engine.store_scp(scp_config(name, options), self, spool.admission, self._questions)

    async def start(self) -> None:
        """Deliver what is in the spool, and receive. Raises what starting a receiver, or a backend, raises."""
        await self._start_own()
        if self._forwarding is not None:
            await self._forwarding.start()
        self._spool.attach(self.name, self, in_order=self._options.in_order)
        await self._scp.start()
        if self._committing is not None:
            await self._committing.start()

    def _current(self) -> tuple[DicomEndpointOptions, Pipeline, Engine]:
        return self._options, self._pipeline, self._engines[self._options.engine]

    async def stop(self) -> None:
        """Receive and deliver nothing any more; what is in the spool stays there."""
        await self._scp.stop()
        await self._spool.detach(self.name)
        await self.present_deliveries_end()
        if self._committing is not None:
            await self._committing.stop()
        if self._forwarding is not None:
            await self._forwarding.stop()
        started, self._started = self._started, None
        if started is not None:
            await started.stop()

    async def _start_own(self) -> None:
        before, self._started = self._started, self._own
        if self._own is not None and self._own is not before:
            await self._own.start()
        if before is not None and before is not self._own:
            await before.stop()

    def change(self, options: DicomEndpointOptions, pipeline: Pipeline, own: Backend | None = None) -> None:
        """Pass the next object through ``pipeline``, and from the next ``resume`` on receive as ``options`` say."""
        self._options = self._questions.options = options
        self._pipeline = pipeline
        self._own = own

    async def arrange(self) -> None:
        """Deliver to the backends, and in the order, that the last ``change`` named."""
        await self._start_own()
        await self._spool.rearrange(self.name, in_order=self._options.in_order)

    async def pause(self) -> None:
        """Receive nothing any more; what was received is delivered all the while."""
        await self._scp.pause()

    async def resume(self) -> None:
        """Receive again, with another kind of receiver if need be. Raises what starting one raises."""
        config = scp_config(self.name, self._options)
        mode = (self._options.engine, self._options.store_scp)
        if mode == self._mode:
            await self._scp.resume(config)
            return
        await self._scp.stop()
        self._mode = mode
        self._scp = self._engines[self._options.engine].store_scp(
            config, self, self._spool.admission, self._questions
        )
        await self._scp.start()

    async def handed_on(self) -> None:
        """Return when nothing that was received waits for its delivery."""
        await self._scp.taken()
        await self._spool.emptied(self.name)

    async def present_deliveries_end(self) -> None:
        """Return when what is being delivered now was taken or refused."""
        for delivery in list(self._running):
            ended: Deferred[None] = Deferred()
            delivery.addBoth(_passing(ended))
            await ended

    # --- dimse.engine.ObjectHandler

    async def __call__(self, arrivals: Sequence[Arrival]) -> None:
        entries = [_entry(arrival) for arrival in arrivals]
        span = begin(
            f"receive {self.name}",
            of_association(arrivals[0].association.id) if arrivals else None,
            "consumer",
            harmonyd__endpoint=self.name,
            harmonyd__association=arrivals[0].association.id if arrivals else "",
            harmonyd__count=len(arrivals),
        )
        try:
            with self._inbound.receiving(arrivals):
                await self._spool.take(self.name, entries, list(self._pipeline.backends))
            await self._note(arrivals)
        except BaseException as error:
            span.end(type(error).__name__)
            raise
        span.end()

    async def deliver_now(self, arrival: Arrival) -> None:
        """See ``ObjectHandler``. To all backends at once; what some of them have is not taken back from them."""
        new, began = _entry(arrival), time.time()
        entry = Entry(0, self.name, new.path, new.size_bytes, began, new.metadata, new.request_id)
        with self._inbound.receiving([arrival]):
            await self._run(deliver_one(self._pipeline, entry, self._outcomes))
        await self._note([arrival])

    async def _note(self, arrivals: Sequence[Arrival]) -> None:
        if self._committing is not None and COMMIT in self._options.services:
            await self._committing.arrived(arrivals)

    async def damaged(self, path: Path, association: Association, reason: str) -> None:
        uid = await self._in_thread(claimed_uid, path)
        metadata = {**_metadata(association), "sop_instance_uid": uid, "study_instance_uid": ""}
        entry = NewEntry(path, await self._in_thread(_size, path), metadata, uuid.uuid4().hex)
        await self._spool.put_aside(self.name, entry, reason)
        self._inbound.damaged(association, reason)

    # --- spool.api.Deliverer

    def backends(self) -> Mapping[str, int]:
        return {name: getattr(backend, "max_batch", 1) for name, backend in self._pipeline.backends.items()}

    async def deliver(self, backend: str, entries: Sequence[Entry]) -> Sequence[Result]:
        forwarding = self._forwarding

        async def send(some: Sequence[Entry]) -> list[Result]:
            outcomes = await self._run(self._outcomes(self._pipeline, backend, some))
            return [spool_result(outcome) for outcome in outcomes]

        watched = forwarding is not None and forwarding.watches(backend)
        results = await forwarding.deliver(backend, entries, send) if forwarding and watched else await send(entries)
        if self._committing is not None and any(isinstance(result, Delivered) for result in results):
            self._committing.delivered()
        return results

    async def _run(self, work: Coroutine[Any, Any, T]) -> T:
        delivery = Deferred.fromCoroutine(work)
        self._running.add(delivery)
        try:
            return await delivery
        finally:
            self._running.discard(delivery)

    async def _outcomes(
        self, pipeline: Pipeline, backend: str, entries: Sequence[Entry]
    ) -> Sequence[Exception | None]:
        requests: dict[int, RequestEnvelope] = {}
        outcomes: dict[int, Exception | None] = {}
        for number, entry in enumerate(entries):
            try:
                requests[number] = await self._request(pipeline, entry)
            except OSError as error:  # of this file alone
                outcomes[number] = error
        span = self._delivery_span(backend, list(requests.values()))
        try:
            delivered = await pipeline.deliver(backend, list(requests.values()))
            failed = sum(outcome is not None for outcome in delivered)
            span.end("not delivered" if failed else "", harmonyd__failed=failed)
        finally:
            span.end("ended")
            for request in requests.values():
                await request.body.close()
        outcomes.update(zip(requests, delivered, strict=True))
        if getattr(pipeline.backends[backend], "is_http", False):
            self._inbound.handed_on(backend, requests.values(), delivered)
        return [outcomes[number] for number in range(len(entries))]

    def _delivery_span(self, backend: str, requests: Sequence[RequestEnvelope]) -> Span:
        """Of a batch; it belongs to the association that brought the first of them."""
        span = begin(
            f"deliver {self.name} {backend}",
            requests[0].trace if requests else None,
            "producer",
            harmonyd__endpoint=self.name,
            harmonyd__backend=backend,
            harmonyd__count=len(requests),
            harmonyd__request=requests[0].id if requests else "",
        )
        for request in requests:
            request.trace = span.trace
        return span

    async def _request(self, pipeline: Pipeline, entry: Entry) -> RequestEnvelope:
        request = _envelope(entry)
        if pipeline.middleware:
            request.normalized = await self._in_thread(json_view, entry.path)
        return request


def _passing(ended: Deferred[None]) -> Callable[[Any], Any]:
    def done(result: Any) -> Any:
        ended.callback(None)
        return result

    return done


def _size(path: Path) -> int:
    return path.stat().st_size


def _metadata(association: Association) -> dict[str, str]:
    return {
        "called_aet": association.called_aet,
        "calling_aet": association.calling_aet,
        "peer_address": association.peer,
        "association_id": association.id,
        **({"peer_certificate": to_text(association.certificate)} if association.certificate else {}),
    }


def _entry(arrival: Arrival) -> NewEntry:
    instance = arrival.instance
    metadata = {
        **_metadata(arrival.association),
        "move_originator_aet": arrival.move_originator_aet,
        "sop_class_uid": instance.sop_class_uid,
        "sop_instance_uid": instance.sop_instance_uid,
        "study_instance_uid": instance.study_instance_uid,
        "series_instance_uid": instance.series_instance_uid,
        "transfer_syntax_uid": instance.transfer_syntax_uid,
    }
    return NewEntry(instance.path, instance.size_bytes, metadata, uuid.uuid4().hex, arrival.flushed)


def _envelope(entry: Entry) -> RequestEnvelope:
    return RequestEnvelope(
        protocol="dicom",
        method="C-STORE",
        uri=f"dicom://{entry.metadata['called_aet']}/{entry.metadata['sop_instance_uid']}",
        path="/",
        body=ObjectBody(entry.path, entry.size_bytes),
        headers={"content-type": "application/dicom"},
        metadata={**entry.metadata, "dimse_op": "store"},
        id=entry.request_id,
        caller=Caller(
            entry.metadata.get("peer_address", ""),
            from_text(entry.metadata.get("peer_certificate", "")),
            entry.metadata.get("calling_aet", ""),
        ),
        trace=of_association(entry.metadata.get("association_id", "")),
    )
