"""What the audit trail is told of operations at a remote node: who asked, what went where, what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from harmonyd.audit.api import AuditEvent, AuditKind, Auditor, Node, Outcome, Queried, Transferred, no_audit, node_of
from harmonyd.audit.batches import Batches, Way, outcome_of
from harmonyd.dimse.accepting import Refusal
from harmonyd.dimse.engine import Association, Instance, Query, QueryModel, RemoteNode, StoreResult
from harmonyd.dimse.part10 import InstanceHeader
from harmonyd.dimse.status import StatusCategory, category
from harmonyd.envelope import RequestEnvelope, Results
from harmonyd.services.dicom.selectivity import TooBroad
from harmonyd.subject import Caller

EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
_FIND = {
    QueryModel.PATIENT_ROOT: "1.2.840.10008.5.1.4.1.2.1.1",
    QueryModel.STUDY_ROOT: "1.2.840.10008.5.1.4.1.2.2.1",
    QueryModel.WORKLIST: "1.2.840.10008.5.1.4.31",
}
_MOST_STUDIES = 1000
"""Of one operation, that have messages of their own."""
PassedOn = Callable[[InstanceHeader, str], None]
"""Told of an object that was to go on, and why it did not."""


def nobody_is_told(header: InstanceHeader, problem: str) -> None:
    """Where there is no audit trail."""


class Audited(Protocol):
    """An operation, until it has ended."""

    def admitted(self) -> None:
        """It is not refused, and begins."""
        ...

    def arrived(self, instance: Instance) -> None:
        """An instance was received."""
        ...

    def ended(self, summary: Mapping[str, Any]) -> None:
        """Once, when the outcome is known."""
        ...


class _Nothing:
    def admitted(self) -> None:
        pass

    def arrived(self, instance: Instance) -> None:
        pass

    def ended(self, summary: Mapping[str, Any]) -> None:
        pass


UNAUDITED: Audited = _Nothing()
"""What concerns no patient."""


@dataclass(frozen=True, slots=True)
class Witness:
    """Tells the audit trail of one backend's operations."""

    audit: Auditor = no_audit
    batches: Batches | None = None
    """For what is delivered in pieces."""

    def query(self, remote: RemoteNode, request: RequestEnvelope, query: Query) -> Audited:
        """A C-FIND begins."""
        return _Query(self.audit, remote, request, query)

    def retrieve(self, remote: RemoteNode, request: RequestEnvelope, query: Query) -> Audited:
        """A C-GET or C-MOVE begins."""
        return _Retrieve(self.audit, remote, request, query)

    def store(self, remote: RemoteNode, request: RequestEnvelope) -> Sent:
        """C-STOREs begin."""
        return Sent(remote, request, self)

    def kept(self, request: RequestEnvelope, header: InstanceHeader) -> None:
        """A client has sent an object, and it is kept here. Those of one client and study are told together."""
        if self.batches is not None:
            way = self._from_caller(request)
            key = ("kept", request.caller, request.subject)
            self.batches.add(key, way, header.study_instance_uid, header.patient_id, header.sop_class_uid)

    @staticmethod
    def _from_caller(request: RequestEnvelope) -> Way:
        source = node_of(request.caller, request.subject)
        return Way(source, Node(), request.id, request.caller, request.subject, is_new=True)

    def passed_on(self, association: Association, destination: RemoteNode, request_id: str) -> PassedOn:
        """A C-MOVE to a third node: what is told of each object that was sent there, or was not."""
        batches = self.batches
        if batches is None:
            return nobody_is_told
        caller = Caller(association.peer, association.certificate, association.calling_aet)
        there = Node(destination.aet, destination.aet, destination.host)
        way = Way(Node(aet=association.called_aet), there, request_id, caller, says_begin=True)

        def told(header: InstanceHeader, problem: str) -> None:
            study, patient = header.study_instance_uid, header.patient_id
            batches.add(("moved", request_id), way, study, patient, header.sop_class_uid, problem)

        return told

    def unknown_destination(self, association: Association, aet: str) -> None:
        """Somebody wants objects to be sent where they may not go."""
        event = AuditEvent(
            AuditKind.SECURITY_ALERT,
            Outcome.MINOR_FAILURE,
            f"a C-MOVE to {aet or 'nobody'} is refused: it is no move destination here",
            caller=Caller(association.peer, association.certificate, association.calling_aet),
            details={"alert": "restricted-function", "Called AE Title": association.called_aet},
        )
        self.audit(event)

    def too_broad(self, remote: RemoteNode, request: RequestEnvelope, error: TooBroad) -> None:
        """A C-FIND was not begun."""
        if error.query is not None:
            self.query(remote, request, error.query).ended({"complete": False, "error": error.detail})

    def out_of_bounds(self, remote: RemoteNode, request: RequestEnvelope, operation: str, what: str) -> None:
        """Somebody who may do this with some data asked for other. What is forbidden altogether is told elsewhere."""
        details = {"alert": "restricted-function", "node": remote.host, "Backend": remote.name}
        self.audit(
            AuditEvent(
                AuditKind.SECURITY_ALERT,
                Outcome.MINOR_FAILURE,
                f"{operation} at {remote.name} is refused: {what}",
                request.id,
                request.caller,
                request.subject,
                details,
            )
        )

    def refused(self, refusal: Refusal) -> None:
        """Somebody called who may not."""
        event = AuditEvent(
            AuditKind.SECURITY_ALERT,
            Outcome.MINOR_FAILURE,
            f"An association to port {refusal.port} was refused: {refusal.text}",
            caller=Caller(refusal.peer, aet=refusal.calling_aet),
            details={"alert": "node-authentication", "Called AE Title": refusal.called_aet},
        )
        self.audit(event)

    def no_tls(self, network: str, address: str, why: str) -> None:
        """There is no secure connection to an HTTP client, which may have shown a certificate of somebody else."""
        text = f"A connection to network {network} was refused: {why}"
        details = {"alert": "node-authentication", "network": network}
        self.audit(
            AuditEvent(
                AuditKind.SECURITY_ALERT, Outcome.MINOR_FAILURE, text, caller=Caller(address), details=details
            )
        )

    def read(self, request: RequestEnvelope, study: str, results: Results, read: Sequence[Instance]) -> None:
        """What was in the cache, or came to it, has gone to who asked. A viewer asks for each slice by itself."""
        if self.batches is None:
            return
        way = Way(Node(), node_of(request.caller, request.subject), request.id, request.caller, request.subject)
        key = ("cache", request.caller, request.subject)
        for instance in read:
            uid, patient = instance.study_instance_uid, instance.patient_id
            self.batches.add(key, way, uid, patient, instance.sop_class_uid)
        outcome, problem = _outcome(results.summary(), len(read))
        if outcome is not Outcome.SUCCESS:
            patient = read[0].patient_id if read else ""
            self.batches.add(key, way, study, patient, "", problem)


def _event(
    kind: AuditKind, request: RequestEnvelope, outcome: Outcome, text: str, about: Queried | Transferred
) -> AuditEvent:
    return AuditEvent(kind, outcome, text, request.id, request.caller, request.subject, about=about)


def _outcome(summary: Mapping[str, Any], count: int) -> tuple[Outcome, str]:
    wrong = summary.get("error") or summary.get("incomplete_reason")
    if not wrong and summary.get("complete", True):
        return Outcome.SUCCESS, ""
    outcome = Outcome.MINOR_FAILURE if count else Outcome.SERIOUS_FAILURE
    return outcome, str(wrong or "not complete")


def remote_end(remote: RemoteNode) -> Node:
    """The node as a participant."""
    return Node(remote.name, remote.aet, remote.host)


class _Query:
    def __init__(self, audit: Auditor, remote: RemoteNode, request: RequestEnvelope, query: Query) -> None:
        self._audit, self._request = audit, request
        ours, theirs = Node(aet=remote.local_aet), remote_end(remote)
        keys = _keys_of(query)
        self._about = Queried(ours, theirs, _FIND[query.model], EXPLICIT_VR_LITTLE_ENDIAN, keys)

    def admitted(self) -> None:
        """It is told when it has ended."""

    def arrived(self, instance: Instance) -> None:
        """A query brings none."""

    def ended(self, summary: Mapping[str, Any]) -> None:
        outcome, text = _outcome(summary, summary.get("count", 0))
        self._audit(_event(AuditKind.QUERY, self._request, outcome, text, self._about))


def _keys_of(query: Query) -> Callable[[bool], bytes]:
    def keys(with_patient: bool) -> bytes:
        from harmonyd.dimse.query_file import identifier, without_values  # with pydicom, which takes its time

        return identifier(query if with_patient else without_values(query))

    return keys


class _Retrieve:
    def __init__(self, audit: Auditor, remote: RemoteNode, request: RequestEnvelope, query: Query) -> None:
        self._audit, self._request = audit, request
        self._source, self._destination = remote_end(remote), Node(aet=remote.local_aet)
        self._studies = _strings(query.dataset.get("StudyInstanceUID"))
        self._patient = next(iter(_strings(query.dataset.get("PatientID"))), "")
        self._instances: list[Instance] = []
        self._tallies: dict[tuple[str, str], Counter[str]] = {}

    def admitted(self) -> None:
        for about in self._wanted():
            self._tell(AuditKind.BEGIN_TRANSFERRING, Outcome.SUCCESS, "", about)

    def arrived(self, instance: Instance) -> None:
        _count(self._tallies, instance)

    def ended(self, summary: Mapping[str, Any]) -> None:
        arrived = _transfers(self._source, self._destination, self._tallies)
        for about in arrived or self._wanted():
            outcome, text = _outcome(summary, sum(about.instances.values()))
            self._tell(AuditKind.INSTANCES_TRANSFERRED, outcome, text, about)

    def _wanted(self) -> list[Transferred]:
        ends = self._source, self._destination
        return [Transferred(*ends, study, self._patient) for study in self._studies[:_MOST_STUDIES] or [""]]

    def _tell(self, kind: AuditKind, outcome: Outcome, text: str, about: Transferred) -> None:
        self._audit(_event(kind, self._request, outcome, text, about))


def _strings(value: Any) -> list[str]:
    if not value:
        return []
    return [value] if isinstance(value, str) else [str(item) for item in value]


def _count(tallies: dict[tuple[str, str], Counter[str]], instance: Instance) -> None:
    key = (instance.study_instance_uid, instance.patient_id)
    if key not in tallies and len(tallies) >= _MOST_STUDIES:
        key = ("", "")
    tallies.setdefault(key, Counter())[instance.sop_class_uid] += 1


def _transfers(
    source: Node, destination: Node, tallies: Mapping[tuple[str, str], Counter[str]]
) -> list[Transferred]:
    return [
        Transferred(source, destination, study, patient, dict(counts)) for (study, patient), counts in tallies.items()
    ]


@dataclass(slots=True)
class Sent:
    """What is to be stored at a node, and what was. ``offer`` is called in a thread, all else in the reactor's."""

    remote: RemoteNode
    request: RequestEnvelope
    witness: Witness
    studies: set[str] = field(default_factory=set)
    """Those that the objects belong to."""
    headers: dict[str, InstanceHeader] = field(default_factory=dict)
    """By SOP Instance UID."""
    taken: set[str] = field(default_factory=set)

    def offer(self, header: InstanceHeader) -> None:
        """This one is about to be sent."""
        self.studies.add(header.study_instance_uid)
        self.headers[header.sop_instance_uid] = header

    def begin(self) -> None:
        """All have been offered."""
        if not self._in_batches:
            for about in self._transfers(self.headers):
                event = _event(AuditKind.BEGIN_TRANSFERRING, self.request, Outcome.SUCCESS, "", about)
                self.witness.audit(event)

    def answered(self, result: StoreResult) -> None:
        """The node has answered for one."""
        if result.status is not None and category(result.status) in _TAKEN:
            self.taken.add(result.sop_instance_uid)

    def admitted(self) -> None:
        """What is to be sent is not known yet: see ``begin``."""

    def arrived(self, instance: Instance) -> None:
        """What is stored goes the other way."""

    def ended(self, summary: Mapping[str, Any]) -> None:
        """See ``Audited``."""
        wrong = str(summary.get("error") or summary.get("incomplete_reason") or "not stored")
        if self._in_batches:
            for uid in self.headers:
                self.told(self.request, uid, "" if uid in self.taken else wrong)
            return
        for whole in self._transfers(self.headers):
            taken = self._transfers(self.taken, whole.study_uid)
            about = taken[0] if taken else whole
            count = sum(about.instances.values()) if taken else 0
            failed = sum(whole.instances.values()) - count
            event = _event(
                AuditKind.INSTANCES_TRANSFERRED, self.request, outcome_of(count, failed), wrong if failed else "", about
            )
            self.witness.audit(event)

    def told(self, request: RequestEnvelope, uid: str, problem: str) -> None:
        """One object of the spool was delivered, or was not: there will be more of its association."""
        header = self.headers.get(uid)
        batches = self.witness.batches
        if header is None or batches is None:
            return
        way = Way(*self._ends, request.id, request.caller, request.subject, says_begin=True)
        key = (self.remote.name, request.caller)
        batches.add(key, way, header.study_instance_uid, header.patient_id, header.sop_class_uid, problem)

    @property
    def _in_batches(self) -> bool:
        return self.request.protocol == "dicom"

    @property
    def _ends(self) -> tuple[Node, Node]:
        return Node(aet=self.remote.local_aet), remote_end(self.remote)

    def _transfers(self, uids: Iterable[str], study: str | None = None) -> list[Transferred]:
        tallies: dict[tuple[str, str], Counter[str]] = {}
        for header in (self.headers[uid] for uid in uids if uid in self.headers):
            if study in (None, header.study_instance_uid):
                key = (header.study_instance_uid, header.patient_id)
                tallies.setdefault(key, Counter())[header.sop_class_uid] += 1
        return _transfers(*self._ends, tallies)


_TAKEN = (StatusCategory.SUCCESS, StatusCategory.WARNING)
