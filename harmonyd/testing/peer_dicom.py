"""The script ``serve`` of ``harmonyd.testing.peer``: a DICOM node that keeps to the standard, or breaks it as told.

pynetdicom's own services count and answer correctly, which is what a test of wrong peers cannot use: the service class
here writes each response itself. It is put in the place of pynetdicom's for the life of this process.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from io import BytesIO
from itertools import count
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from pydicom import Dataset
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, StoragePresentationContexts, evt, service_class
from pynetdicom.dsutils import decode, encode

from harmonyd.testing import peer_endings, peer_managed, peer_records
from harmonyd.testing.peer import PeerOptions, Report
from harmonyd.testing.peer_endings import ENDINGS, is_open
from harmonyd.testing.peer_sending import let_reader_go_on, send_broken

PENDING, CANCELLED, UNKNOWN_DESTINATION, PARTIAL = 0xFF00, 0xFE00, 0xA801, 0xB000
_VERIFICATION = "1.2.840.10008.1.1"
_INSTANCE_AVAILABILITY = "1.2.840.10008.5.1.4.33"
# PS3.4 sections C.6.1.3 and C.6.2.3: Patient Root, then Study Root; find, move, get.
_WORKLIST = "1.2.840.10008.5.1.4.31"
_QUERY_RETRIEVE = [f"1.2.840.10008.5.1.4.1.2.{root}.{operation}" for root in (1, 2) for operation in (1, 2, 3)]
_STORAGE = [str(context.abstract_syntax) for context in StoragePresentationContexts]


class _Over(Exception):
    """The association is over, or the script ended it: send nothing more."""


def serve(port: int, options: PeerOptions, report: Report, *, contexts: bool) -> None:
    """Serve on 127.0.0.1 for ever. Without ``contexts`` nothing that a client proposes is accepted."""
    node = AE(ae_title=options.aet)
    node.require_called_aet = options.strict_aet
    node.maximum_associations = 50
    node.network_timeout = None
    syntaxes = list(dict.fromkeys([*filter(None, [options.transfer_syntax]), *ALL_TRANSFER_SYNTAXES]))
    known = [_VERIFICATION, *_QUERY_RETRIEVE, _WORKLIST, *peer_managed.CLASSES, *_STORAGE]
    for uid in known if contexts else [_INSTANCE_AVAILABILITY]:
        node.add_supported_context(uid, syntaxes, scu_role=True, scp_role=True)
    for served in (service_class.QueryRetrieveServiceClass, service_class.BasicWorklistManagementServiceClass):
        setattr(served, "SCP", _service(options, report))  # noqa: B010 - mypy: a method
    server: Any = node.start_server(("127.0.0.1", port), block=False, evt_handlers=_handlers(options, report))
    report("listening", port=server.server_address[1])
    while True:
        time.sleep(3600)


# --- what the peer sees -----------------------------------------------------------------------------------------------


class _Numbers:
    """Small numbers for associations, in order of their connection."""

    def __init__(self) -> None:
        self._lock, self._known = Lock(), dict[int, int]()

    def of(self, assoc: Any) -> int:
        with self._lock:
            return self._known.setdefault(id(assoc), len(self._known) + 1)


_numbers = _Numbers()
_associations: list[Any] = []  # keeps every association alive, so that no id() is used twice


def _handlers(options: PeerOptions, report: Report) -> list[Any]:
    turn, lock = count(), Lock()

    def opened(event: Any) -> None:
        _associations.append(event.assoc)
        event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def established(event: Any) -> None:
        wanted = event.assoc.requestor.primitive
        names = {"calling": str(wanted.calling_ae_title), "called": str(wanted.called_ae_title)}
        report("association", id=_numbers.of(event.assoc), **names)

    def told(name: str) -> Any:
        return lambda event: report(name, id=_numbers.of(event.assoc))

    def echoed(event: Any) -> Dataset:
        report("request", id=_numbers.of(event.assoc), op="C-ECHO")
        if options.after == 0:
            _misbehave_at_echo(event.assoc, options, report)
        answer = Dataset()
        answer.Status = options.status or 0x0000
        if options.comment:
            answer.ErrorComment = options.comment
        return answer

    def stored(event: Any) -> int:
        with lock:
            status = options.store_statuses[next(turn) % len(options.store_statuses)]
        uid = str(event.request.AffectedSOPInstanceUID)
        syntax = str(event.context.transfer_syntax)
        number = _numbers.of(event.assoc)
        report("stored", id=number, sop_instance_uid=uid, transfer_syntax_uid=syntax, status=status)
        return status

    endings = {
        evt.EVT_RELEASED: "released",
        evt.EVT_ABORTED: "aborted",
        evt.EVT_REJECTED: "rejected",
        evt.EVT_CONN_CLOSE: "closed",
    }
    seen: list[Any] = [(evt.EVT_CONN_OPEN, opened), (evt.EVT_ESTABLISHED, established)]
    asked = [(evt.EVT_C_ECHO, echoed), (evt.EVT_C_STORE, stored)]
    if options.users:
        seen.append((evt.EVT_USER_ID, lambda event: (_is_user(event, options.users), None)))
    managed = peer_managed.handlers(options, report, _numbers.of)
    return [*seen, *asked, *managed, *((on, told(name)) for on, name in endings.items())]


def _is_user(event: Any, users: Mapping[str, str]) -> bool:
    passcode = users.get(event.primary_field.decode())
    return passcode is not None and (event.user_id_type, event.secondary_field or b"") == (
        (2, passcode.encode()) if passcode else (1, b"")
    )


def _misbehave_at_echo(assoc: Any, options: PeerOptions, report: Report) -> None:
    """Instead of the answer to a C-ECHO. pynetdicom sends that on return, if the association still stands."""
    if options.then == "hang":
        report("hanging", id=_numbers.of(assoc))
        peer_endings.hang(assoc)
    elif options.then in ENDINGS:
        ENDINGS[options.then](assoc)


# --- what the peer does -----------------------------------------------------------------------------------------------


def _service(options: PeerOptions, report: Report) -> Any:
    """A replacement for ``QueryRetrieveServiceClass.SCP``."""

    def scp(service: Any, request: Any, context: Any) -> None:
        conversation = _Conversation(service, request, context, options, report)
        try:
            {"C_FIND": conversation.find, "C_GET": conversation.get, "C_MOVE": conversation.move}[
                type(request).__name__
            ]()
        except _Over:
            return

    return scp


class _Conversation:
    """One C-FIND, C-GET or C-MOVE."""

    def __init__(self, service: Any, request: Any, context: Any, options: PeerOptions, report: Report) -> None:
        self._service, self._request, self._context = service, request, context
        self._options, self._report = options, report
        self._assoc, self._id = service.assoc, _numbers.of(service.assoc)
        self._syntax = context.transfer_syntax[0]
        self._asked: Dataset = decode(request.Identifier, self._syntax.is_implicit_VR, self._syntax.is_little_endian)
        name = type(request).__name__.replace("_", "-")
        report("request", id=self._id, op=name, message_id=request.MessageID, identifier=self._asked.to_json_dict())

    def find(self) -> None:
        if peer_records.is_about_classes(self._asked):
            self._respond(PENDING, peer_records.classes(self._asked))
            self._respond(0x0000)
            return
        answers = peer_records.answers(self._asked, self._options)
        for number, answer in enumerate(answers):
            self._pause(number)
            self._respond(PENDING, answer)
        self._pause(len(answers))
        self._finish(self._options.status or 0x0000)

    def get(self) -> None:
        self._suboperations(self._send_here)

    def move(self) -> None:
        destination = str(self._request.MoveDestination).strip()
        port = self._options.destinations.get(destination)
        if port is None:
            self._finish(UNKNOWN_DESTINATION)
            return
        node = AE(ae_title=self._options.aet)
        for uid in _STORAGE[:100]:
            node.add_requested_context(uid)
        opened: list[Any] = [(evt.EVT_CONN_OPEN, _no_delay)]
        association = node.associate("127.0.0.1", port, ae_title=destination, evt_handlers=opened)
        if not association.is_established:
            self._finish(0xA702)
            return

        def send(instance: Dataset, number: int) -> None:
            if self._options.broken and number == self._options.count - 1:
                send_broken(association, instance, self._options.broken)
            else:
                self._send_there(association, instance, number)

        late: list[Dataset] = []
        try:
            late = self._suboperations(send)
        finally:
            # In a thread of its own: until this one is done, pynetdicom does not answer the client's release.
            Thread(target=self._deliver_late, args=(association, send, late), daemon=True).start()

    def _suboperations(self, send: Any) -> list[Dataset]:
        """Send what was asked for, count as the options say, and answer; what is to be delivered late."""
        options = self._options
        instances = peer_records.instances(self._asked, options)
        sent = options.count - options.failed - options.withheld
        late = instances[sent - options.late : sent] if options.late else []
        for number, instance in enumerate(instances[:sent]):
            self._pause(number)
            if number < sent - options.late:
                self._deliver(send, instance, number)
            self._respond(PENDING, counts=(options.count - number - 1, number + 1, 0))
        for instance in peer_records.strangers(options):
            send(instance, options.count + 1)
        self._pause(sent)
        failed = [str(instance.SOPInstanceUID) for instance in instances[sent : sent + options.failed]]
        self._finish_retrieve(failed)
        return late

    def _deliver_late(self, association: Any, send: Any, instances: list[Dataset]) -> None:
        if instances:
            time.sleep(self._options.late_secs)
        for number, instance in enumerate(instances):
            self._deliver(send, instance, number)
            self._report("delivered-late", id=self._id, sop_instance_uid=str(instance.SOPInstanceUID))
        association.release()

    def _finish_retrieve(self, failed: list[str]) -> None:
        identifier = Dataset()
        if failed:
            identifier.FailedSOPInstanceUIDList = failed
        natural = PARTIAL if failed else 0x0000
        status = natural if self._options.status is None else self._options.status
        counts = (0, self._options.count - len(failed), len(failed))
        self._finish(status, identifier if failed else None, counts)

    def _deliver(self, send: Any, instance: Dataset, number: int) -> None:
        for _ in range(2 if self._options.duplicate else 1):
            send(instance, number)

    def _send_here(self, instance: Dataset, number: int) -> None:
        try:
            self._assoc.send_c_store(instance, msg_id=number % 60000 + 2)
        except (RuntimeError, ValueError) as error:
            self._report("error", id=self._id, error=str(error))
            raise _Over from error

    def _send_there(self, association: Any, instance: Dataset, number: int) -> None:
        asked_by = self._options.originator_aet or self._assoc.requestor.ae_title
        named = {"originator_aet": asked_by, "originator_id": self._request.MessageID}
        let_reader_go_on(association)
        try:
            association.send_c_store(
                instance, msg_id=number % 60000 + 1, **(named if self._options.originator else {})
            )
        except (RuntimeError, ValueError) as error:
            self._report("error", id=self._id, error=str(error))

    def _pause(self, number: int) -> None:
        """Before answer ``number``: wait, and play the script's turn when it has come."""
        if number == self._options.after:
            {"hang": self._hang, "wait": self._wait_for_gate}.get(self._options.then, self._end)()
        self._wait(self._options.interval_secs)

    def _wait(self, secs: float) -> None:
        until = time.monotonic() + secs
        while True:
            if not is_open(self._assoc):
                raise _Over
            if self._service.is_cancelled(self._request.MessageID):
                self._report("cancel", id=self._id)
                if not self._options.ignore_cancel:
                    self._finish(CANCELLED)
                    raise _Over
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.02))

    def _hang(self) -> None:
        self._report("hanging", id=self._id)
        self._wait(float("inf"))

    def _wait_for_gate(self) -> None:
        self._report("waiting", id=self._id)
        while not Path(self._options.gate).exists():
            self._wait(0.01)

    def _end(self) -> None:
        self._flush()
        ENDINGS[self._options.then](self._assoc)
        raise _Over

    def _flush(self) -> None:
        """Wait until pynetdicom's own thread has sent the answers so far."""
        while not self._assoc.dul.to_provider_queue.empty():
            time.sleep(0.002)
        time.sleep(0.02)

    def _finish(
        self, status: int, identifier: Dataset | None = None, counts: tuple[int, int, int] | None = None
    ) -> None:
        self._report("response", id=self._id, status=status)
        self._respond(status, identifier, counts, self._options.comment)

    def _respond(
        self,
        status: int,
        identifier: Dataset | None = None,
        counts: tuple[int, int, int] | None = None,
        comment: str = "",
    ) -> None:
        """Send a response; ``counts``: remaining, completed, failed sub-operations (PS3.7 section 9.3)."""
        response = type(self._request)()
        response.MessageIDBeingRespondedTo = self._request.MessageID
        response.AffectedSOPClassUID = self._request.AffectedSOPClassUID
        response.Status = status
        if comment:
            response.ErrorComment = comment
        if identifier is not None:
            data = encode(identifier, self._syntax.is_implicit_VR, self._syntax.is_little_endian)
            response.Identifier = BytesIO(data or b"")
        if counts and self._options.counters:
            remaining, response.NumberOfCompletedSuboperations, response.NumberOfFailedSuboperations = counts
            response.NumberOfWarningSuboperations = 0
            if status in (PENDING, CANCELLED):
                response.NumberOfRemainingSuboperations = remaining
        self._service.dimse.send_msg(response, self._context.context_id)


def _no_delay(event: Any) -> None:
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
