"""The DICOM upper layer state machine (PS3.8 section 9.2) as data: no code here decides anything.

``TABLE`` is table 9-10: the action for each event in each state in which the event can happen. What is not in it cannot
happen (a local primitive that the service user must not issue, or a PDU where there is no transport connection).
``ACTIONS`` is tables 9-6 to 9-9: what an action sends and indicates, what it does to ARTIM and to the transport
connection, and the state it leads to. Two actions lead to one of two states, and ``Association`` decides which: AE-6
(is the request acceptable to the service provider?) and AR-8 (who requested the association?).

    Sta1  idle                       Sta6  data transfer
    Sta2  connected, RQ awaited      Sta7  release requested, RP awaited
    Sta3  RQ here, user's answer     Sta8  release requested by the peer, user's answer awaited
    Sta4  connecting                 Sta9  collision, requestor: user's answer awaited      Sta11  then RP awaited
    Sta5  RQ sent, AC or RJ awaited  Sta10 collision, acceptor: RP awaited                  Sta12  then user's answer
                                     Sta13 all is said, closing of the transport awaited
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from harmonyd.dimse.native.core.pdu import PduType


class State(IntEnum):
    """PS3.8 tables 9-1 to 9-5."""

    STA1 = 1
    STA2 = 2
    STA3 = 3
    STA4 = 4
    STA5 = 5
    STA6 = 6
    STA7 = 7
    STA8 = 8
    STA9 = 9
    STA10 = 10
    STA11 = 11
    STA12 = 12
    STA13 = 13


class Evt(IntEnum):
    """The events of PS3.8 table 9-10, under its numbers."""

    ASSOCIATE_REQUEST = 1
    TRANSPORT_CONFIRM = 2
    ASSOCIATE_AC_PDU = 3
    ASSOCIATE_RJ_PDU = 4
    TRANSPORT_INDICATION = 5
    ASSOCIATE_RQ_PDU = 6
    ASSOCIATE_RESPONSE_ACCEPT = 7
    ASSOCIATE_RESPONSE_REJECT = 8
    P_DATA_REQUEST = 9
    P_DATA_PDU = 10
    RELEASE_REQUEST = 11
    RELEASE_RQ_PDU = 12
    RELEASE_RP_PDU = 13
    RELEASE_RESPONSE = 14
    ABORT_REQUEST = 15
    ABORT_PDU = 16
    TRANSPORT_CLOSED = 17
    ARTIM_EXPIRED = 18
    INVALID_PDU = 19


class Indication(Enum):
    """What an action tells the service user."""

    ASSOCIATE = "A-ASSOCIATE indication"
    ASSOCIATE_ACCEPTED = "A-ASSOCIATE confirmation (accept)"
    ASSOCIATE_REJECTED = "A-ASSOCIATE confirmation (reject)"
    P_DATA = "P-DATA indication"
    RELEASE = "A-RELEASE indication"
    RELEASED = "A-RELEASE confirmation"
    ABORT = "A-ABORT or A-P-ABORT indication"
    P_ABORT = "A-P-ABORT indication"


class Artim(Enum):
    """What an action does to the ARTIM timer (PS3.8 section 9.1.5)."""

    START = "start"
    STOP = "stop"


class Transport(Enum):
    """What an action does to the transport connection."""

    CONNECT = "connect"
    CLOSE = "close"


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One action; of two states in ``next`` the first is for the plain case."""

    next: tuple[State, ...]
    sends: PduType | None = None
    indicates: Indication | None = None
    artim: Artim | None = None
    transport: Transport | None = None
    ignores: bool = False
    """A PDU is received, and means nothing any more."""


ACTIONS: dict[str, Action] = {
    # Table 9-6: association establishment
    "AE-1": Action(next=(State.STA4,), transport=Transport.CONNECT),
    "AE-2": Action(next=(State.STA5,), sends=PduType.ASSOCIATE_RQ),
    "AE-3": Action(next=(State.STA6,), indicates=Indication.ASSOCIATE_ACCEPTED),
    "AE-4": Action(next=(State.STA1,), indicates=Indication.ASSOCIATE_REJECTED, transport=Transport.CLOSE),
    "AE-5": Action(next=(State.STA2,), artim=Artim.START),
    "AE-6": Action(next=(State.STA3, State.STA13), indicates=Indication.ASSOCIATE, artim=Artim.STOP),
    "AE-7": Action(next=(State.STA6,), sends=PduType.ASSOCIATE_AC),
    "AE-8": Action(next=(State.STA13,), sends=PduType.ASSOCIATE_RJ, artim=Artim.START),
    # Table 9-7: data transfer
    "DT-1": Action(next=(State.STA6,), sends=PduType.P_DATA_TF),
    "DT-2": Action(next=(State.STA6,), indicates=Indication.P_DATA),
    # Table 9-8: association release
    "AR-1": Action(next=(State.STA7,), sends=PduType.RELEASE_RQ),
    "AR-2": Action(next=(State.STA8,), indicates=Indication.RELEASE),
    "AR-3": Action(next=(State.STA1,), indicates=Indication.RELEASED, transport=Transport.CLOSE),
    "AR-4": Action(next=(State.STA13,), sends=PduType.RELEASE_RP, artim=Artim.START),
    "AR-5": Action(next=(State.STA1,), artim=Artim.STOP),
    "AR-6": Action(next=(State.STA7,), indicates=Indication.P_DATA),
    "AR-7": Action(next=(State.STA8,), sends=PduType.P_DATA_TF),
    "AR-8": Action(next=(State.STA9, State.STA10), indicates=Indication.RELEASE),
    "AR-9": Action(next=(State.STA11,), sends=PduType.RELEASE_RP),
    "AR-10": Action(next=(State.STA12,), indicates=Indication.RELEASED),
    # Table 9-9: association abort
    "AA-1": Action(next=(State.STA13,), sends=PduType.ABORT, artim=Artim.START),
    "AA-2": Action(next=(State.STA1,), artim=Artim.STOP, transport=Transport.CLOSE),
    "AA-3": Action(next=(State.STA1,), indicates=Indication.ABORT, transport=Transport.CLOSE),
    "AA-4": Action(next=(State.STA1,), indicates=Indication.P_ABORT),
    "AA-5": Action(next=(State.STA1,), artim=Artim.STOP),
    "AA-6": Action(next=(State.STA13,), ignores=True),
    "AA-7": Action(next=(State.STA13,), sends=PduType.ABORT),
    "AA-8": Action(next=(State.STA13,), sends=PduType.ABORT, indicates=Indication.P_ABORT, artim=Artim.START),
}

# One line an event, one column a state: Sta1 … Sta13, as in table 9-10.
_ROWS: dict[Evt, str] = {
    #                            1    2    3    4    5    6    7    8    9    10    11   12   13
    Evt.ASSOCIATE_REQUEST: "     AE-1 .    .    .    .    .    .    .    .    .     .    .    .   ",
    Evt.TRANSPORT_CONFIRM: "     .    .    .    AE-2 .    .    .    .    .    .     .    .    .   ",
    Evt.ASSOCIATE_AC_PDU: "      .    AA-1 AA-8 .    AE-3 AA-8 AA-8 AA-8 AA-8 AA-8  AA-8 AA-8 AA-6",
    Evt.ASSOCIATE_RJ_PDU: "      .    AA-1 AA-8 .    AE-4 AA-8 AA-8 AA-8 AA-8 AA-8  AA-8 AA-8 AA-6",
    Evt.TRANSPORT_INDICATION: "  AE-5 .    .    .    .    .    .    .    .    .     .    .    .   ",
    Evt.ASSOCIATE_RQ_PDU: "      .    AE-6 AA-8 .    AA-8 AA-8 AA-8 AA-8 AA-8 AA-8  AA-8 AA-8 AA-7",
    Evt.ASSOCIATE_RESPONSE_ACCEPT: " . .  AE-7 .    .    .    .    .    .    .     .    .    .   ",
    Evt.ASSOCIATE_RESPONSE_REJECT: " . .  AE-8 .    .    .    .    .    .    .     .    .    .   ",
    Evt.P_DATA_REQUEST: "        .    .    .    .    .    DT-1 .    AR-7 .    .     .    .    .   ",
    Evt.P_DATA_PDU: "            .    AA-1 AA-8 .    AA-8 DT-2 AR-6 AA-8 AA-8 AA-8  AA-8 AA-8 AA-6",
    Evt.RELEASE_REQUEST: "       .    .    .    .    .    AR-1 .    .    .    .     .    .    .   ",
    Evt.RELEASE_RQ_PDU: "        .    AA-1 AA-8 .    AA-8 AR-2 AR-8 AA-8 AA-8 AA-8  AA-8 AA-8 AA-6",
    Evt.RELEASE_RP_PDU: "        .    AA-1 AA-8 .    AA-8 AA-8 AR-3 AA-8 AA-8 AR-10 AR-3 AA-8 AA-6",
    Evt.RELEASE_RESPONSE: "      .    .    .    .    .    .    .    AR-4 AR-9 .     .    AR-4 .   ",
    Evt.ABORT_REQUEST: "         .    .    AA-1 AA-2 AA-1 AA-1 AA-1 AA-1 AA-1 AA-1  AA-1 AA-1 .   ",
    Evt.ABORT_PDU: "             .    AA-2 AA-3 .    AA-3 AA-3 AA-3 AA-3 AA-3 AA-3  AA-3 AA-3 AA-2",
    Evt.TRANSPORT_CLOSED: "      .    AA-5 AA-4 AA-4 AA-4 AA-4 AA-4 AA-4 AA-4 AA-4  AA-4 AA-4 AR-5",
    Evt.ARTIM_EXPIRED: "         .    AA-2 .    .    .    .    .    .    .    .     .    .    AA-2",
    Evt.INVALID_PDU: "           .    AA-1 AA-8 .    AA-8 AA-8 AA-8 AA-8 AA-8 AA-8  AA-8 AA-8 AA-7",
}

TABLE: dict[tuple[Evt, State], str] = {
    (event, state): name
    for event, row in _ROWS.items()
    for state, name in zip(State, row.split(), strict=True)
    if name != "."
}
"""Table 9-10: the name of the action."""

PDU_EVENTS: dict[int, Evt] = {
    PduType.ASSOCIATE_RQ: Evt.ASSOCIATE_RQ_PDU,
    PduType.ASSOCIATE_AC: Evt.ASSOCIATE_AC_PDU,
    PduType.ASSOCIATE_RJ: Evt.ASSOCIATE_RJ_PDU,
    PduType.P_DATA_TF: Evt.P_DATA_PDU,
    PduType.RELEASE_RQ: Evt.RELEASE_RQ_PDU,
    PduType.RELEASE_RP: Evt.RELEASE_RP_PDU,
    PduType.ABORT: Evt.ABORT_PDU,
}
"""The event that each PDU is when it is received."""
