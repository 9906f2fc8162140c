"""The values of Storage Commitment, whichever side asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

PROCESSING_FAILURE, NO_SUCH_INSTANCE, CLASS_CONFLICT = 0x0110, 0x0112, 0x0119
"""Failure Reason (0008,1197), PS3.3 section C.14.1.1."""
REASONS: Mapping[int, str] = {
    PROCESSING_FAILURE: "processing failure",
    NO_SUCH_INSTANCE: "no such object instance",
    0x0213: "resource limitation",
    0x0122: "referenced SOP class not supported",
    CLASS_CONFLICT: "class-instance conflict",
    0x0131: "duplicate transaction UID",
}
NOT_REPORTED = "the report does not name it"


@dataclass(frozen=True, slots=True)
class Reference:
    """An object that somebody asks about."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where an object belongs, as it was when it came."""

    sop_class_uid: str
    study_instance_uid: str
    series_instance_uid: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a node says about a transaction. Who is in neither list was not spoken of."""

    transaction_uid: str
    committed: tuple[Reference, ...]
    failed: Mapping[Reference, int] = field(default_factory=dict)
    """With its Failure Reason."""

    def reason(self, asked: Reference) -> str:
        """Why an object is not committed, for people; empty when it is. What is in both lists has failed."""
        for found, code in self.failed.items():
            if found.sop_instance_uid == asked.sop_instance_uid:
                return f"0x{code:04X}: {REASONS.get(code, 'unknown reason')}"
        if any(found.sop_instance_uid == asked.sop_instance_uid for found in self.committed):
            return ""
        return NOT_REPORTED


@dataclass(frozen=True, slots=True)
class Demand:
    """A transaction that somebody began with us."""

    id: int
    endpoint: str
    aet: str
    """Who asks, and is to be told."""
    called_aet: str
    transaction_uid: str
    received_at: float
    """Seconds since the epoch."""
    references: tuple[Reference, ...]
    sought: tuple[Reference, ...]
    """The same as middleware has made them: what backends know."""
    backends: tuple[str, ...]
    reasons: Mapping[str, int] | None = None
    """By SOP Instance UID, the Failure Reason of what is not committed; None until that is decided."""
    attempts: int = 0
    """To report."""


class ForwardState(StrEnum):
    """Of an object that was forwarded, and whose commitment is wanted."""

    STORED = "STORED"
    """The node has it, and was not asked yet, or in vain."""
    ASKED = "ASKED"
    COMMITTED = "COMMITTED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Forwarded:
    """One of them."""

    entry: int
    """Its number in the spool."""
    reference: Reference
    state: ForwardState = ForwardState.STORED
    transaction_uid: str = ""
    tries: int = 0
    """Transactions that came to nothing."""
    since: float = 0.0
    """When it was stored, or asked about, or is to be asked about again; seconds since the epoch."""
    reason: str = ""
    released: bool = False
    """The spool has let it go already."""
