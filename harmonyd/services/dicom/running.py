"""The operations of one backend: what each is begun with, and who is told of its end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from harmonyd.config.model import DicomBackendOptions
from harmonyd.dimse.engine import OperationContext, RemoteNode
from harmonyd.dimse.waiting import AssociationSlots
from harmonyd.envelope import RequestEnvelope
from harmonyd.errors import HarmonydError
from harmonyd.services.dicom.auditing import UNAUDITED, Audited
from harmonyd.services.dicom.guard import PacsGuard
from harmonyd.services.dicom.keeping import new_id
from harmonyd.services.dicom.metering import Meter
from harmonyd.services.dicom.record import OperationRecord, failed
from harmonyd.tracing import begin

InThread = Callable[..., Awaitable[Any]]


class Running:
    """``active`` holds the ids of those that run, whose artifact folders are in use."""

    def __init__(
        self,
        remote: RemoteNode,
        options: DicomBackendOptions,
        reactor: Any,
        slots: AssociationSlots,
        guard: PacsGuard,
        meter: Meter,
        in_thread: InThread,
    ) -> None:
        self.active: set[str] = set()
        self._remote = remote
        self._options = options
        self._reactor = reactor
        self._slots = slots
        self._guard = guard
        self._meter = meter
        self._in_thread = in_thread

    def begin(
        self,
        operation: str,
        request: RequestEnvelope,
        id_: str | None = None,
        storage: Path | None = None,
        audited: Audited = UNAUDITED,
    ) -> OperationRecord:
        """Begin one; ``ended`` it once. Raises what the guard of the node does, which is audited."""
        try:
            self._guard.admit(operation)
        except HarmonydError as error:
            audited.ended(failed(error))
            raise
        now = self._reactor.seconds()
        deadline = now + self._options.operation_timeout_secs
        if request.deadline is not None:
            deadline = min(deadline, request.deadline)
        measure = self._meter.begin(self._remote.name, operation)
        span = begin(
            f"DIMSE {operation} {self._remote.name}",
            request.trace,
            "client",
            harmonyd__backend=self._remote.name,
            harmonyd__operation=operation,
            harmonyd__engine=self._options.engine,
            harmonyd__request=request.id,
        )
        op = OperationContext(
            id_ or request.operation_id or new_id(),
            request.id,
            deadline,
            self._options.max_results,
            storage=storage or self._options.storage_dir,
            slots=self._slots,
            progress=request.progress,
            steps=measure.steps,
            trace=span.trace,
        )
        self.active.add(op.id)
        audited.admitted()
        return OperationRecord(operation, self._remote, op, now, measure, span, audited)

    @asynccontextmanager
    async def recorded(
        self, operation: str, request: RequestEnvelope, audited: Audited = UNAUDITED
    ) -> AsyncIterator[tuple[OperationContext, dict[str, Any]]]:
        """An operation that has ended when the block ends; the summary may be filled in there."""
        record = self.begin(operation, request, audited=audited)
        summary: dict[str, Any] = {}
        try:
            yield record.op, summary
        except BaseException as error:
            summary.update(failed(error))
            self._guard.note(error, operation)
            raise
        finally:
            record.measure.arrived(summary.get("stored", 0), 0)
            await self.ended(record, summary, None)

    async def ended(self, record: OperationRecord, summary: Mapping[str, Any], folder: Path | None) -> None:
        """Log, keep and tell what came of one."""
        try:
            await record.end(self._reactor.seconds(), summary, folder, self._in_thread)
        finally:
            self.active.discard(record.op.id)
