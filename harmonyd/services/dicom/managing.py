"""What a dicom backend does with DIMSE-N: MPPS of a caller's, and Storage Commitment as an SCU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harmonyd.commitment.api import Reference, Report
from harmonyd.config.model import DicomBackendOptions
from harmonyd.dimse.engine import OperationContext, RemoteNode, SubOperations
from harmonyd.dimse.failures import outcome_of
from harmonyd.dimse.normalized import NormalizedEngine
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import BadRequest, Forbidden, HarmonydError
from harmonyd.services.dicom.commit_request import Find, parse_commit, summary_of
from harmonyd.services.dicom.commitments import Commitments, needs_native, new_transaction_uid
from harmonyd.services.dicom.guard import PacsGuard
from harmonyd.services.dicom.managed import ManagedBody
from harmonyd.services.dicom.request import COMMIT, STEPS
from harmonyd.services.dicom.results import FixedResults
from harmonyd.services.dicom.running import Running

STATUS = "dimse_status"
"""Metadata of an answer: 0xHHHH, where there are several that are no failure."""


class Managing:
    """Of one backend. ``commitments`` None: there is nobody to hear a report."""

    def __init__(
        self,
        remote: RemoteNode,
        options: DicomBackendOptions,
        engine: object,
        reactor: Any,
        guard: PacsGuard,
        running: Running,
        commitments: Commitments | None,
    ) -> None:
        self._remote = remote
        self._options = options
        self._engine = engine
        self._reactor = reactor
        self._guard = guard
        self._running = running
        self._commitments = commitments

    async def step(self, request: RequestEnvelope, *, is_held: bool) -> ResponseEnvelope:
        """N-CREATE or N-SET of a caller's (PS3.4 Annex F). ``is_held``: to what a rule names."""
        body, engine = request.body, self._engine
        if not isinstance(body, ManagedBody):
            raise BadRequest("MPPS is what modalities send to a dicom endpoint; there is none over HTTP")
        if is_held:
            raise Forbidden("A step cannot be held to the attributes that a rule names")
        if not isinstance(engine, NormalizedEngine):
            raise needs_native()
        async with self._running.recorded(STEPS, request) as (op, summary):
            answer = await engine.normalized(self._remote, body.outgoing(request), op)
            outcome_of(STEPS, answer.status, answer.comment or None, SubOperations(), self._remote)
            self._guard.note(None)
            summary.update(success=True, complete=True)
        metadata = {STATUS: f"0x{answer.status:04X}", "sop_instance_uid": answer.sop_instance_uid}
        return ResponseEnvelope(metadata=metadata)

    async def commit(
        self, request: RequestEnvelope, document: Any, media_type: str, find: Find, *, is_held: bool
    ) -> ResponseEnvelope:
        """N-ACTION on behalf of a client, and the report (PS3.4 Annex J)."""
        asked = parse_commit(document)
        if is_held:
            raise Forbidden("A storage commitment cannot be held to the attributes that a rule names")
        references = await asked.resolved(find)
        async with self._running.recorded(COMMIT, request) as (op, summary):
            deadline = min(op.deadline, self._reactor.seconds() + asked.wait_secs)
            uid = new_transaction_uid()
            try:
                report = await self.ask(references, replace(op, deadline=deadline), uid)
            except HarmonydError as error:
                error.extra.setdefault("transaction_uid", uid)
                raise
            self._guard.note(None)
            summary.update(summary_of(references, report))
        return ResponseEnvelope(results=FixedResults(COMMIT, media_type, summary))

    async def ask(self, references: Sequence[Reference], op: OperationContext, transaction_uid: str) -> Report:
        """Raises as ``Commitments.ask`` does."""
        if self._commitments is None:
            raise needs_native()
        return await self._commitments.ask(
            self._engine,
            self._remote,
            references,
            op,
            transaction_uid=transaction_uid,
            hold_secs=self._options.commit_hold_secs,
        )
