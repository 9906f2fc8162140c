"""Asking a node to commit itself to keep what it was sent, and hearing what it reports (PS3.4 Annex J, as an SCU).

The report comes over the association of the request while that is open, or over one of the node's own to any native
endpoint of ours: whichever way, it finds its transaction here.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from harmonyd.commitment.api import Reference, Report
from harmonyd.dimse import commitment, failures
from harmonyd.dimse.elements import MalformedDataset
from harmonyd.dimse.engine import OperationContext, RemoteNode, SubOperations
from harmonyd.dimse.normalized import (
    EVENT,
    PUSH_MODEL,
    Listening,
    NormalizedAnswer,
    NormalizedEngine,
    NormalizedRequest,
)
from harmonyd.dimse.status import INVALID_ARGUMENT, NO_SUCH_EVENT, SOP_CLASS_NOT_SUPPORTED, SUCCESS
from harmonyd.dimse.waiting import until
from harmonyd.errors import BadRequest, DeadlinePassed, Unavailable
from harmonyd.services.dicom.managed import text_of

MAX_OPEN = 10_000
"""Transactions without a report."""
MAX_REFERENCES = 5000
"""Of one transaction: a data set of about 600 KB."""
_HERE_BYTES = 16 * 1024
_log = Logger()


def new_transaction_uid() -> str:
    """A UID (PS3.5 section B.2)."""
    return f"2.25.{uuid.uuid4().int}"


def needs_native() -> BadRequest:
    """The error for a backend whose engine knows no DIMSE-N."""
    return BadRequest(
        "This backend knows no Storage Commitment and no MPPS",
        hint='A dicom backend with engine = "native" does.',
    )


@dataclass(slots=True)
class _Open:
    aet: str
    report: Deferred[Report] = field(default_factory=Deferred)


class Commitments:
    """Transactions of ours that are open; one for the whole daemon."""

    def __init__(self, reactor: Any, in_thread: Callable[..., Awaitable[Any]]) -> None:
        self._reactor = reactor
        self._in_thread = in_thread
        self._open: dict[str, _Open] = {}

    async def ask(
        self,
        engine: object,
        remote: RemoteNode,
        references: Sequence[Reference],
        op: OperationContext,
        *,
        transaction_uid: str,
        hold_secs: float,
    ) -> Report:
        """Ask, and wait for the report until the operation's deadline.

        Raises a ``DimseError`` (of a failure status, too), ``Unavailable``, ``DeadlinePassed``, and ``BadRequest`` for
        an engine that cannot.
        """
        if not isinstance(engine, NormalizedEngine):
            raise needs_native()
        opened = self._begin(transaction_uid, remote.aet)
        try:
            request = await self._in_thread(_action, transaction_uid, references)
            listening = Listening(self.heard, hold_secs, lambda: opened.report.called)
            answer = await engine.normalized(remote, request, op, listening=listening)
            failures.outcome_of("commit", answer.status, answer.comment or None, SubOperations(), remote)
            return await self._reported(opened, op.deadline)
        finally:
            self._open.pop(transaction_uid, None)

    async def await_late(self, transaction_uid: str, aet: str, deadline: float) -> Report:
        """Wait for the report on what an earlier run has asked. Raises ``DeadlinePassed`` and ``Unavailable``."""
        opened = self._begin(transaction_uid, aet)
        try:
            return await self._reported(opened, deadline)
        finally:
            self._open.pop(transaction_uid, None)

    def _begin(self, transaction_uid: str, aet: str) -> _Open:
        if len(self._open) >= MAX_OPEN:
            raise Unavailable("Too many storage commitments are not reported yet")
        opened = self._open[transaction_uid] = _Open(aet)
        return opened

    async def _reported(self, opened: _Open, deadline: float) -> Report:
        late = DeadlinePassed(
            "The PACS has taken the request for storage commitment, and not reported in time",
            hint="Look whether it knows our AE title, host and port, and whether that endpoint runs.",
            timeout="report",
        )
        return await until(self._reactor, deadline, opened.report, late)

    async def heard(self, request: NormalizedRequest, aet: str = "") -> NormalizedAnswer:
        """Take a report; the answer is for the node. ``aet``: who reports, where that is not who was asked."""
        if request.sop_class_uid != PUSH_MODEL or request.operation != EVENT:
            return NormalizedAnswer(SOP_CLASS_NOT_SUPPORTED)
        if request.type_id not in (commitment.ALL_COMMITTED, commitment.SOME_FAILED):
            return NormalizedAnswer(NO_SUCH_EVENT)
        try:
            is_short = len(request.data) <= _HERE_BYTES
            report = _report(request) if is_short else await self._in_thread(_report, request)
        except MalformedDataset as error:
            return NormalizedAnswer(INVALID_ARGUMENT, error.detail)
        opened = self._open.get(report.transaction_uid)
        if opened is None:
            _log.warn("{aet} reports on a storage commitment that nobody waits for", aet=aet or "the PACS")
            return NormalizedAnswer(INVALID_ARGUMENT, "no such transaction is open here")
        if aet and aet != opened.aet:
            _log.info("{aet} reports on what {asked} was asked", aet=aet, asked=opened.aet)
        if not opened.report.called:
            opened.report.callback(report)
        return NormalizedAnswer(SUCCESS)


def _action(transaction_uid: str, references: Sequence[Reference]) -> NormalizedRequest:
    return commitment.action(transaction_uid, [(each.sop_class_uid, each.sop_instance_uid) for each in references])


def _report(request: NormalizedRequest) -> Report:
    document = json.loads(text_of(request))
    uid = commitment.transaction_of(document)
    if not uid:
        raise MalformedDataset("a report has no Transaction UID")
    committed = tuple(Reference(*pair) for pair in commitment.referenced(document))
    failed = {Reference(*pair): reason for pair, reason in commitment.failures(document).items()}
    return Report(uid, committed, failed)
