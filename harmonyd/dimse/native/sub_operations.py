"""The C-STORE sub-operations of a C-GET or C-MOVE that we serve: how they stand, and where they go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from harmonyd.dimse.native import core
from harmonyd.dimse.native.sending import Outgoing
from harmonyd.dimse.serving import Retrieval
from harmonyd.dimse.status import (
    CANCEL,
    CANNOT_PERFORM,
    SOME_FAILED,
    SUCCESS,
    StatusCategory,
    category,
)

MAX_COUNT = 0xFFFF
"""A counter is a US (PS3.7 section E.1)."""
MAX_UIDS_BYTES = 0xFFFE
"""Of a value of VR UI in Explicit VR (PS3.5 section 7.1.2): about a thousand UIDs."""


class CannotSend(Exception):
    """This object cannot go there; the next one may."""


class Target(Protocol):
    """Where objects go. ``close`` it in every case."""

    async def store(self, file: Outgoing) -> int:
        """Send one; the status that it was answered with.

        Raises ``CannotSend``; ``NotServed`` when none can go there any more; and what ends the caller's association.
        """
        ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class Count:
    """Of one C-GET or C-MOVE."""

    completed: int = 0
    failed: int = 0
    warning: int = 0
    failed_uids: list[str] = field(default_factory=list)
    why: str = ""
    """What was wrong with the first that failed, for people."""
    retrieval: Retrieval | None = None
    _uid_bytes: int = 0

    @property
    def done(self) -> int:
        return self.completed + self.failed + self.warning

    @property
    def doubt(self) -> str:
        """See ``Retrieval``."""
        return self.retrieval.doubt if self.retrieval is not None else ""

    @property
    def remaining(self) -> int | None:
        """None while nobody knows how many there are."""
        total = self.retrieval.total if self.retrieval is not None else None
        return None if total is None else max(0, total - self.done)

    def answered(self, sop_instance_uid: str, status: int) -> str:
        """One was sent; return why it was not taken, or nothing."""
        match category(status):
            case StatusCategory.SUCCESS:
                self.completed += 1
            case StatusCategory.WARNING:
                self.warning += 1
            case _:
                why = f"the receiver answered with status 0x{status:04X}"
                self.not_sent(sop_instance_uid, why)
                return why
        return ""

    def not_sent(self, sop_instance_uid: str, why: str) -> None:
        """One could not be sent, or was not taken."""
        self.failed += 1
        self.why = self.why or why
        self._note([sop_instance_uid])

    def missed(self, count: int, uids: Iterable[str], why: str = "") -> None:
        """So many did not even come to be sent."""
        self.failed += count
        self.why = self.why or (why if count else "")
        self._note(uids)

    def _note(self, uids: Iterable[str]) -> None:
        for uid in uids:
            if self._uid_bytes + len(uid) + 1 > MAX_UIDS_BYTES:
                return
            self._uid_bytes += len(uid) + 1
            self.failed_uids.append(uid)

    def final_status(self) -> int:
        """When all was tried (PS3.4 sections C.4.2.1.5 and C.4.3.1.4). What may not be all is no Success either."""
        if not self.failed and not self.warning:
            return SOME_FAILED if self.doubt else SUCCESS
        return SOME_FAILED if self.completed or self.warning else CANNOT_PERFORM

    def response(self, command: core.Command, status: int, comment: str | None = None) -> core.Command:
        """With the counters that belong to a status (PS3.7 sections 9.1.3.1 and 9.1.4.1)."""
        is_open = category(status) in (StatusCategory.PENDING, StatusCategory.CANCEL)
        remaining = self.remaining if is_open else None
        if status == CANCEL and remaining is None:
            remaining = 0
        return command.response(
            status,
            error_comment=comment,
            remaining=None if remaining is None else min(remaining, MAX_COUNT),
            completed=min(self.completed, MAX_COUNT),
            failed=min(self.failed, MAX_COUNT),
            warning=min(self.warning, MAX_COUNT),
        )
