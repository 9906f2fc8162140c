"""The DICOM upper layer and DIMSE messages as a protocol core without I/O: no sockets, clocks, threads, or reactor.

It can be used alone; of the rest of harmonyd it needs the vocabulary in ``harmonyd.dimse`` only. An SCU over a blocking
socket is this long::

    import socket
    from harmonyd.dimse.native import core

    VERIFICATION, IMPLICIT_VR_LE = "1.2.840.10008.1.1", "1.2.840.10008.1.2"
    request = core.AssociateRequest("ANY-SCP", "ME", (core.ProposedContext(1, VERIFICATION, (IMPLICIT_VR_LE,)),))
    association = core.Association.requestor(request)
    sock = socket.create_connection(("127.0.0.1", 11112))
    association.connected()
    while True:
        sock.sendall(association.data_to_send())
        if association.closing:
            break
        data = sock.recv(65536)
        for event in association.receive(data) if data else association.receive_eof():
            match event:
                case core.Accepted(contexts):
                    if context := contexts.find(VERIFICATION):
                        association.send(context.id, core.c_echo_rq(message_id=1))
                    else:
                        association.abort()
                case core.CommandReceived(_, command):
                    print(f"status 0x{command.status:04X}")
                    association.release()
                case core.Rejected() | core.Aborted() | core.ConnectionLost():
                    print(event)

An SCP answers ``Requested`` with ``association.accept(core.negotiate(...))`` or ``association.reject(...)``, a command
with ``association.send(context_id, command.response(status))``, and ``ReleaseRequested`` with
``association.respond_release()``.

``association`` has the rules for drivers and all transitions' effects, ``states`` the transitions, ``events`` what is
told. Below them: ``inbound`` (framing), ``messages`` (order of fragments), ``contexts`` (negotiation), ``commands``,
``commands_n`` and ``command_set``, ``pdu``, ``items`` and ``item_decoding``, ``reasons`` (words), ``errors``.
"""

from __future__ import annotations

from harmonyd.dimse.associate import Rejection
from harmonyd.dimse.native.core.association import Association
from harmonyd.dimse.native.core.commands import (
    Command,
    CommandField,
    Priority,
    c_cancel_rq,
    c_echo_rq,
    c_find_rq,
    c_get_rq,
    c_move_rq,
    c_store_rq,
)
from harmonyd.dimse.native.core.commands_n import n_action_rq, n_create_rq, n_event_report_rq, n_set_rq
from harmonyd.dimse.native.core.contexts import Answer, Context, Contexts, Preference, Support, negotiate
from harmonyd.dimse.native.core.errors import AbortReason, AbortSource, BadCommandSet, NotAllowed, ProtocolViolation
from harmonyd.dimse.native.core.events import (
    Aborted,
    Accepted,
    CommandReceived,
    ConnectionLost,
    DataReceived,
    Event,
    Rejected,
    Released,
    ReleaseRequested,
    Requested,
)
from harmonyd.dimse.native.core.items import (
    AnsweredContext,
    AsynchronousOperations,
    CommonExtendedNegotiation,
    ContextResult,
    ExtendedNegotiation,
    ProposedContext,
    RoleSelection,
    UserIdentity,
    UserIdentityType,
    UserInformation,
)
from harmonyd.dimse.native.core.pdu import AssociateAccept, AssociateRequest
from harmonyd.dimse.native.core.states import State

__all__ = [
    "AbortReason",
    "AbortSource",
    "Aborted",
    "Accepted",
    "Answer",
    "AnsweredContext",
    "AssociateAccept",
    "AssociateRequest",
    "Association",
    "AsynchronousOperations",
    "BadCommandSet",
    "Command",
    "CommandField",
    "CommandReceived",
    "CommonExtendedNegotiation",
    "ConnectionLost",
    "Context",
    "ContextResult",
    "Contexts",
    "DataReceived",
    "Event",
    "ExtendedNegotiation",
    "NotAllowed",
    "Preference",
    "Priority",
    "ProposedContext",
    "ProtocolViolation",
    "Rejected",
    "Rejection",
    "ReleaseRequested",
    "Released",
    "Requested",
    "RoleSelection",
    "State",
    "Support",
    "UserIdentity",
    "UserIdentityType",
    "UserInformation",
    "c_cancel_rq",
    "c_echo_rq",
    "c_find_rq",
    "c_get_rq",
    "c_move_rq",
    "c_store_rq",
    "n_action_rq",
    "n_create_rq",
    "n_event_report_rq",
    "n_set_rq",
    "negotiate",
]
