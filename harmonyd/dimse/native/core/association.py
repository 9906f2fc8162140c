"""One association, either side of it, without any I/O: bytes and calls in, bytes and events out.

A driver does four things. It gives what it reads to ``receive()`` (and ``receive_eof()`` at the end), and acts on the
events. It calls methods. After each of both it writes ``data_to_send()``. When ``closing`` is true it closes the
transport connection after that write; while ``artim`` is true it gives the peer at most its ARTIM time, and calls
``artim_expired()`` then.

Rules:

* ``receive()`` and ``receive_eof()`` never raise. What the peer does against the rules becomes an A-ABORT in
  ``data_to_send()`` and an ``Aborted`` event that says what it was.
* A method that the state forbids raises ``NotAllowed``, and has changed nothing. ``abort()`` is never forbidden.
* An end that a driver did not ask for is told in exactly one event: ``Rejected``, ``Released``, ``Aborted`` or
  ``ConnectionLost``. After ``reject()``, ``respond_release()`` and ``abort()`` comes none.
* Every change of state is a look-up in ``states.TABLE``.
"""

from __future__ import annotations

from dataclasses import replace

from harmonyd.dimse.associate import Rejection
from harmonyd.dimse.native.core import pdu
from harmonyd.dimse.native.core.commands import Command
from harmonyd.dimse.native.core.contexts import Answer, Contexts, agreed
from harmonyd.dimse.native.core.errors import AbortReason, AbortSource, BadCommandSet, NotAllowed, ProtocolViolation
from harmonyd.dimse.native.core.events import (
    Aborted,
    Accepted,
    ConnectionLost,
    Event,
    Rejected,
    Released,
    ReleaseRequested,
    Requested,
)
from harmonyd.dimse.native.core.inbound import Inbound
from harmonyd.dimse.native.core.items import UserInformation
from harmonyd.dimse.native.core.machine import Machine, not_acceptable
from harmonyd.dimse.native.core.messages import OutgoingMessages, check_peer_max_pdu
from harmonyd.dimse.native.core.pdu import (
    Abort,
    AssociateAccept,
    AssociateReject,
    AssociateRequest,
    PduType,
    ReleaseRequest,
    ReleaseResponse,
)
from harmonyd.dimse.native.core.reasons import abort_text, rejection_text
from harmonyd.dimse.native.core.states import ACTIONS, PDU_EVENTS, TABLE, Evt, State

_RECEIVING = (State.STA6, State.STA7)
_UNCONNECTED = (State.STA1, State.STA4)


class Association:
    """See the module's docstring. Made with ``requestor()`` or ``acceptor()``."""

    def __init__(self, max_pdu: int, request: AssociateRequest | None) -> None:
        self.request = request
        """The A-ASSOCIATE-RQ: ours, or the peer's once it is here."""
        self.contexts = Contexts()
        """What was negotiated; empty before."""
        self._is_requestor = request is not None
        self._max_pdu = max_pdu
        self._machine = Machine()
        self._deaf = False
        """The peer's bytes cannot be understood, or mean nothing any more."""
        self._inbound = Inbound(max_pdu)
        self._outgoing = OutgoingMessages(self._machine.queue)
        self._events: list[Event] = []

    # --- beginning ----------------------------------------------------------------------------------------------------

    @classmethod
    def requestor(cls, request: AssociateRequest) -> Association:
        """The side that asks; call ``connected()`` when the transport connection is there."""
        association = cls(request.user_information.max_pdu, request)
        association._machine.do(Evt.ASSOCIATE_REQUEST)
        return association

    @classmethod
    def acceptor(cls, max_pdu: int) -> Association:
        """The side that is asked, over a connection that is there. ``max_pdu``: what it will tell the peer."""
        association = cls(max_pdu, None)
        association._machine.do(Evt.TRANSPORT_INDICATION)
        return association

    def connected(self) -> None:
        """Requestor: the transport connection is there; the A-ASSOCIATE-RQ is in ``data_to_send()``."""
        self._machine.do(Evt.TRANSPORT_CONFIRM, self.request)

    # --- bytes --------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """What the peer sent, in any portions. Never raises."""
        events: list[Event] = []
        self._events = events
        try:
            self._inbound.receive(data, self, events)
        except ProtocolViolation as violation:
            self._refuse(Evt.INVALID_PDU, violation.reason, violation.detail)
        except BadCommandSet as problem:
            self._refuse(Evt.ABORT_REQUEST, AbortReason.NOT_SPECIFIED, problem.detail)
        self._events = []
        return events

    def receive_eof(self) -> list[Event]:
        """The peer closed the transport connection, or it broke, or it could not be made. Never raises."""
        if self.state is State.STA1:
            return []
        over = self.state is State.STA13
        self._machine.do(Evt.TRANSPORT_CLOSED)
        self._machine.transport_done = True
        self._end()
        return [] if over else [ConnectionLost()]

    def artim_expired(self) -> None:
        """The peer had its time; when it has used it in vain, ``closing`` becomes true."""
        if self._machine.possible(Evt.ARTIM_EXPIRED):
            self._machine.do(Evt.ARTIM_EXPIRED)
            self._end()

    def data_to_send(self) -> bytes:
        """Take what is to be written now."""
        if not self._machine.queue:
            return b""
        data = b"".join(self._machine.queue)
        self._machine.queue.clear()
        return data

    @property
    def state(self) -> State:
        """Of PS3.8 section 9.2."""
        return self._machine.state

    @property
    def artim(self) -> bool:
        """The ARTIM timer is to run: the peer is to send its request, or to close the transport connection."""
        return self._machine.artim

    @property
    def closing(self) -> bool:
        """All is said: close the transport connection after writing ``data_to_send()``.

        While ``artim`` is true, too, the peer is expected to close it: an orderly driver closes its own direction only,
        goes on reading until ``receive_eof()``, and closes when its ARTIM time is over.
        """
        return self._machine.transport_done or self.state is State.STA13

    @property
    def listening(self) -> bool:
        """What the peer sends still means something."""
        return not self._deaf and self.state not in _UNCONNECTED

    @property
    def established(self) -> bool:
        """Commands may be sent: it was accepted, and we have not begun to end it."""
        return self._machine.possible(Evt.P_DATA_REQUEST)

    @property
    def oversized_pdus(self) -> int:
        """How many P-DATA-TF came that were longer than the peer was told, and were tolerated."""
        return self._inbound.oversized_pdus

    @property
    def held_bytes(self) -> int:
        """How much of what the peer sent is kept now."""
        return self._inbound.held

    # --- the acceptor's answer ----------------------------------------------------------------------------------------

    def accept(
        self, answer: Answer, user_information: UserInformation | None = None, *, max_pdu: int | None = None
    ) -> None:
        """Answer ``Requested``. In ``user_information`` the maximum length becomes ours, and the roles ``answer``'s.

        ``max_pdu``: what the peer is told, where it depends on who asks; else it is what ``acceptor`` got.
        """
        action = self._machine.allowed(Evt.ASSOCIATE_RESPONSE_ACCEPT)
        request = self.request
        assert request is not None
        if sorted(context.id for context in answer.contexts) != sorted(context.id for context in request.contexts):
            raise NotAllowed("each proposed presentation context needs one answer")
        if max_pdu is not None:
            self._max_pdu = max_pdu
            self._inbound.limit(max_pdu)
        info = replace(user_information or UserInformation(), max_pdu=self._max_pdu, roles=answer.roles)
        contexts = agreed(request.contexts, answer.contexts, request.user_information.roles, answer.roles)
        accept = AssociateAccept(request.called_aet, request.calling_aet, answer.contexts, info)
        self._machine.perform(action, accept)
        self._establish(contexts, request.user_information.max_pdu)

    def reject(self, rejection: Rejection) -> None:
        """Answer ``Requested`` with an A-ASSOCIATE-RJ."""
        self._machine.do(Evt.ASSOCIATE_RESPONSE_REJECT, AssociateReject(*rejection.value))

    # --- messages -----------------------------------------------------------------------------------------------------

    def send(self, context_id: int, command: Command, *, has_data: bool = False) -> None:
        """Send a command; with ``has_data`` its data set comes in ``send_data()`` before any other command.

        Raises ``NotAllowed``, and ``ValueError`` for a command that cannot be encoded.
        """
        self._machine.allowed(Evt.P_DATA_REQUEST)
        if self.contexts.get(context_id) is None:
            raise NotAllowed(f"presentation context {context_id} was not accepted")
        self._outgoing.command(context_id, command, has_data=has_data)

    def send_data(self, context_id: int, fragment: bytes | memoryview, last: bool) -> None:
        """Send a piece of the data set, of any length. Its buffer must stay as it is until ``data_to_send()``."""
        self._machine.allowed(Evt.P_DATA_REQUEST)
        self._outgoing.data(context_id, fragment, last)

    @property
    def sending(self) -> bool:
        """A data set was announced, and its last piece is not sent: another command has to wait."""
        return self._outgoing.unfinished

    # --- ending -------------------------------------------------------------------------------------------------------

    def release(self) -> None:
        """Ask for the end of the association; ``Released`` follows, and until then perhaps more messages."""
        self._do_between_messages(Evt.RELEASE_REQUEST, ReleaseRequest())

    def respond_release(self) -> None:
        """Answer ``ReleaseRequested``."""
        self._do_between_messages(Evt.RELEASE_RESPONSE, ReleaseResponse())

    def abort(self, source: int = AbortSource.SERVICE_USER, reason: int = AbortReason.NOT_SPECIFIED) -> None:
        """End it at once. What was not taken for sending is not sent. Allowed always; nothing happens after an end."""
        if self._machine.possible(Evt.ABORT_REQUEST):
            self._machine.queue.clear()
            self._machine.do(Evt.ABORT_REQUEST, Abort(source, reason))
            self._end()
        elif self.state is State.STA2:  # there is no association to abort yet, only a connection to close (AA-2)
            self._machine.do(Evt.ARTIM_EXPIRED)
            self._end()

    def _do_between_messages(self, event: Evt, answer: ReleaseRequest | ReleaseResponse) -> None:
        action = self._machine.allowed(event)
        if self._outgoing.unfinished:
            raise NotAllowed("the data set that was announced is not finished")
        self._machine.perform(action, answer)

    # --- state --------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Nothing that the peer sends can mean anything any more."""
        self._deaf = True
        self._inbound.forget()

    def _establish(self, contexts: Contexts, peer_max_pdu: int) -> None:
        self.contexts = contexts
        self._inbound.messages.accepted = frozenset(context.id for context in contexts.accepted())
        self._outgoing.set_peer_max_pdu(peer_max_pdu)

    # --- what the peer does -------------------------------------------------------------------------------------------

    def pdu_begins(self, kind: int) -> bool:
        """For ``Inbound``."""
        if kind == PduType.P_DATA_TF and self.state in _RECEIVING:
            return True
        event = PDU_EVENTS.get(kind)
        if event is None:
            raise ProtocolViolation(f"Unrecognized PDU type {kind}", AbortReason.UNRECOGNIZED_PDU)
        action = ACTIONS[TABLE[event, self.state]]
        unfinished = kind == PduType.RELEASE_RQ and self._inbound.messages.unfinished
        if action.sends is PduType.ABORT or (unfinished and not action.ignores):
            where = "inside a message" if unfinished else f"in {self.state.name.title()}"
            raise ProtocolViolation(f"{PduType(kind).name} comes {where}", AbortReason.UNEXPECTED_PDU)
        return not action.ignores

    def pdu_arrived(self, kind: int, body: bytes) -> None:
        """For ``Inbound``."""
        match pdu.decode(kind, body):
            case AssociateRequest() as request:
                self._requested(request)
            case AssociateAccept() as accept:
                self._accepted(accept)
            case AssociateReject(result, source, reason):
                self._machine.do(Evt.ASSOCIATE_RJ_PDU)
                self._tell_end(Rejected(result, source, reason, rejection_text(result, source, reason)))
            case ReleaseRequest():
                self._release_requested()
            case ReleaseResponse():
                self._release_answered()
            case Abort(source, reason):
                self._aborted(source, reason)

    def _requested(self, request: AssociateRequest) -> None:
        check_peer_max_pdu(request.user_information.max_pdu)
        self._machine.do(Evt.ASSOCIATE_RQ_PDU)
        self.request = request
        refusal = not_acceptable(request)
        if refusal is None:
            self._events.append(Requested(request))
            return
        self.reject(refusal)
        self._events.append(Rejected(*refusal.value, rejection_text(*refusal.value), by_peer=False))

    def _accepted(self, accept: AssociateAccept) -> None:
        request, info = self.request, accept.user_information
        assert request is not None
        check_peer_max_pdu(info.max_pdu)
        contexts = agreed(request.contexts, accept.contexts, request.user_information.roles, info.roles)
        self._machine.do(Evt.ASSOCIATE_AC_PDU)
        self._establish(contexts, info.max_pdu)
        self._events.append(Accepted(contexts, info.max_pdu, info))

    def _release_requested(self) -> None:
        """In a collision both want the same: the requestor answers at once, the acceptor after the peer's answer."""
        collision = self.state is State.STA7
        self._machine.do(Evt.RELEASE_RQ_PDU, next_index=int(collision and not self._is_requestor))
        if not collision:
            self._events.append(ReleaseRequested())
        elif self._is_requestor:
            self._machine.do(Evt.RELEASE_RESPONSE, ReleaseResponse())

    def _release_answered(self) -> None:
        self._machine.do(Evt.RELEASE_RP_PDU)
        if self.state is State.STA12:
            self._machine.do(Evt.RELEASE_RESPONSE, ReleaseResponse())
        self._tell_end(Released())

    def _aborted(self, source: int, reason: int) -> None:
        over = self.state is State.STA13
        self._machine.queue.clear()
        self._machine.do(Evt.ABORT_PDU)
        self._end()
        if not over:
            self._events.append(Aborted(source, reason, abort_text(source, reason), by_peer=True))

    def _refuse(self, event: Evt, reason: AbortReason, text: str) -> None:
        """The peer has broken the rules. In Sta13 only the peer is told so: the association is over already."""
        over = self.state is State.STA13
        action = ACTIONS[TABLE.get((event, self.state), TABLE[Evt.INVALID_PDU, self.state])]
        by_provider = action is not ACTIONS["AA-1"]
        abort = Abort(AbortSource.SERVICE_PROVIDER, reason) if by_provider else Abort()
        self._machine.queue.clear()
        self._machine.perform(action, abort)
        self._end()
        if not over:
            self._events.append(Aborted(abort.source, abort.reason, text, by_peer=False))

    def _tell_end(self, event: Event) -> None:
        self._events.append(event)
        self._end()
