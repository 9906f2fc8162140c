"""What is told to the audit trail, and by what it is told."""

from __future__ import annotations

from collections.abc import Mapping
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
    """What the kind of message has beside these."""


class Auditor(Protocol):
    """Takes events. Returns at once, never raises, and never waits for a disk or a collector."""

    def __call__(self, event: AuditEvent) -> None: ...


def no_audit(event: AuditEvent) -> None:
    """The auditor where none is configured."""
