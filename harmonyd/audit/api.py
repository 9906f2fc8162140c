"""What is told to the audit trail, and by what it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from harmonyd.subject import OURSELVES, Caller, Subject


class AuditKind(Enum):
    """The messages of PS3.15 A.5.3 that harmonyd writes."""

    APPLICATION_ACTIVITY = "application-activity"
    QUERY = "query"
    BEGIN_TRANSFERRING = "begin-transferring"
    INSTANCES_TRANSFERRED = "instances-transferred"
    SECURITY_ALERT = "security-alert"


class Outcome(Enum):
    """EventOutcomeIndicator (RFC 3881 section 5.1.4)."""

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8
    MAJOR_FAILURE = 12


@dataclass(frozen=True, slots=True)
class Node:
    """A process that takes part."""

    name: str = ""
    """"" for ourselves."""
    aet: str = ""
    address: str = ""
    """IP address or host name."""
    is_requestor: bool = False


@dataclass(frozen=True, slots=True)
class Queried:
    """What a query was."""

    source: Node
    destination: Node
    sop_class_uid: str
    transfer_syntax_uid: str
    identifier: Callable[[bool], bytes]
    """The keys, encoded; without a patient's identifiers for False. Called in a thread, after the query has ended."""


@dataclass(frozen=True, slots=True)
class Transferred:
    """What went, or is to go, from one node to another, of one study."""

    source: Node
    destination: Node
    study_uid: str = ""
    """"" where nobody knows."""
    patient_id: str = ""
    instances: Mapping[str, int] = field(default_factory=dict)
    """How many, by SOP Class UID."""
    is_new: bool = False
    """The receiver, ourselves, did not have them."""


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One thing that happened."""

    kind: AuditKind
    outcome: Outcome
    text: str
    """For people; no patient data."""
    request_id: str = ""
    caller: Caller = OURSELVES
    subject: Subject | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    """What the kind of message has beside these. Application activity: ``event`` ("start", "stop") and ``aets``.

    Security alert: ``alert``, one of ``messages.ALERTS``, and ``node`` or ``uri``, what the alert is about. Any others
    are written as they are.
    """
    about: Queried | Transferred | None = None


class Auditor(Protocol):
    """Takes events. Returns at once, never raises, and never waits for a disk or a collector."""

    def __call__(self, event: AuditEvent) -> None: ...


def no_audit(event: AuditEvent) -> None:
    """The auditor where none is configured."""


def node_of(caller: Caller, subject: Subject | None = None) -> Node:
    """The node that asks for something, and gets or gives it itself."""
    return Node(name_of(caller, subject), caller.aet, caller.address, is_requestor=True)


def name_of(caller: Caller, subject: Subject | None = None) -> str:
    """Who asks, as exactly as is known."""
    certificate = caller.certificate.subject if caller.certificate is not None else ""
    return (subject.name if subject is not None else "") or certificate or caller.aet or caller.address or "unknown"


@dataclass(frozen=True, slots=True)
class AuditFigures:
    """How the trail is; times in seconds since the epoch."""

    enabled: bool = False
    waiting: int = 0
    """Messages on disk that the collector has not got yet."""
    waiting_bytes: int = 0
    oldest_at: float | None = None
    """Of those."""
    written: int = 0
    delivered: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    """By where there was no room: memory, file, syslog."""
    delivered_at: float | None = None
    connected: bool | None = None
    """None: there is no collector to connect to."""
