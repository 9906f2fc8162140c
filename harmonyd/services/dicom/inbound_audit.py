"""What the audit trail is told of objects that come in, and of those that go on over HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from harmonyd.audit.api import Node
from harmonyd.audit.batches import Batches, Way
from harmonyd.dimse.engine import Arrival, Association, NotDelivered
from harmonyd.envelope import RequestEnvelope
from harmonyd.pipeline.errors import NotTried
from harmonyd.services.dicom.outcomes import reason_of


class InboundWitness:
    """Tells of one endpoint. What the same sender sends of the same study is told together."""

    def __init__(self, endpoint: str, batches: Batches | None) -> None:
        self._endpoint = endpoint
        self._batches = batches

    @contextmanager
    def receiving(self, arrivals: Sequence[Arrival]) -> Iterator[None]:
        """They are ours when the block ends, and are not when it raises."""
        try:
            yield
        except BaseException as error:
            self._tell(arrivals, _reason(error))
            raise
        self._tell(arrivals, "")

    def _tell(self, arrivals: Sequence[Arrival], problem: str) -> None:
        for arrival in arrivals:
            instance = arrival.instance
            study, patient = instance.study_instance_uid, instance.patient_id
            self._add(arrival.association, study, patient, instance.sop_class_uid, problem)

    def damaged(self, association: Association, reason: str) -> None:
        """An object was received, and is not whole."""
        self._add(association, "", "", "", reason)

    def _add(self, association: Association, study: str, patient: str, sop_class: str, problem: str) -> None:
        if self._batches is None:
            return
        peer = association.calling_aet, association.peer
        source = Node(peer[0] or peer[1] or "unknown", *peer, is_requestor=True)
        way = Way(source, Node(aet=association.called_aet), is_new=True)
        self._batches.add((self._endpoint, peer), way, study, patient, sop_class, problem)

    def handed_on(
        self, backend: str, requests: Iterable[RequestEnvelope], outcomes: Iterable[Exception | None]
    ) -> None:
        """An HTTP server has these, or has not. Whose they are is not known without a look into them."""
        if self._batches is None:
            return
        for request, outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, NotTried):
                continue
            metadata = request.metadata
            way = Way(Node(), Node(backend), request.id, request.caller, request.subject, says_begin=True)
            key = (self._endpoint, backend, request.caller)
            problem = reason_of(outcome) if outcome is not None else ""
            study, sop_class = metadata.get("study_instance_uid", ""), metadata.get("sop_class_uid", "")
            self._batches.add(key, way, study, "", sop_class, problem)


def _reason(error: BaseException) -> str:
    if isinstance(error, NotDelivered):
        return error.reason
    return reason_of(error) if isinstance(error, Exception) else "ended before it was done"
