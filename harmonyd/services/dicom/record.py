"""What is said and kept about an operation: one line in the log, and ``dcmtk_find_<id>.json`` beside its artifacts.

Both tell which request asked and what came of it, and nothing about a patient.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from harmonyd.dimse.engine import OperationContext, RemoteNode
from harmonyd.errors import HarmonydError
from harmonyd.privacy import said
from harmonyd.services.dicom.auditing import UNAUDITED, Audited
from harmonyd.services.dicom.metering import COMPLETE, Measure, outcome_of, outcome_of_error
from harmonyd.tracing import NO_SPAN, Span

_log = Logger()
_KEPT = ("success", "complete", "incomplete_reason", "error", "count", "file_count", "suboperations", "warnings")
_COUNTS = {"count": "matches", "file_count": "instances received", "stored": "instances stored"}
"""Members of a summary that count, and what they count."""


@dataclass(frozen=True, slots=True)
class OperationRecord:
    """Begun with the operation; ``end`` it once."""

    operation: str
    remote: RemoteNode
    op: OperationContext
    began: float
    """Seconds since the epoch."""
    measure: Measure
    span: Span = NO_SPAN
    audited: Audited = UNAUDITED

    def arrived(self, size_bytes: int) -> None:
        """One more result is taken."""
        self.measure.arrived(1, size_bytes)
        self.op.progress.arrived(size_bytes)

    def arrived_object(self, sop_instance_uid: str, size_bytes: int) -> None:
        """The same for an object, which is named in the log at debug."""
        self.arrived(size_bytes)
        _log.debug(
            "{sop_instance_uid} has come from {backend}",
            sop_instance_uid=sop_instance_uid,
            backend=self.remote.name,
            operation_id=self.op.id,
            **self._fields(),
        )

    async def end(
        self, now: float, summary: Mapping[str, Any], folder: Path | None, in_thread: Callable[..., Awaitable[Any]]
    ) -> None:
        """Log the outcome; keep it beside ``folder`` if that is there. A failure to do so is only logged."""
        outcome = outcome_of(summary)
        self.measure.ended(outcome)
        self.audited.ended(summary)
        counts = {f"harmonyd__{key}": summary[key] for key in _COUNTS if key in summary}
        self.span.end("" if outcome == COMPLETE else outcome, harmonyd__outcome=outcome, **counts)
        self._log_end(now, summary)
        if folder is None:
            return
        try:
            await in_thread(_write, folder, self._members(now, summary))
        except OSError as error:
            why = error.strerror or str(error)
            _log.warn("the record of {folder} cannot be written: {why}", folder=folder.name, why=why, **self._fields())

    def _fields(self) -> dict[str, str]:
        return {"request": self.op.request_id, "operation": self.operation}

    def _log_end(self, now: float, summary: Mapping[str, Any]) -> None:
        counted = [f"{summary[key]} {what}" for key, what in _COUNTS.items() if key in summary]
        wrong = summary.get("error") or summary.get("incomplete_reason")
        _log.info(
            "{op} {operation_id} at {backend}: {outcome}, {ms} ms",
            op=self.operation,
            operation_id=self.op.id,
            backend=self.remote.name,
            outcome_kind=outcome_of(summary),
            outcome=", ".join([*counted, *([f"not complete: {wrong}"] if wrong else [])]) or "answered",
            ms=round((now - self.began) * 1000),
            **self._fields(),
        )

    def _members(self, now: float, summary: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "request_id": self.op.request_id,
            "operation_id": self.op.id,
            "operation": self.operation,
            "backend": self.remote.name,
            "remote_aet": self.remote.aet,
            "began": _time(self.began),
            "ended": _time(now),
            **{key: summary[key] for key in _KEPT if key in summary},
        }


def failed(error: BaseException) -> dict[str, Any]:
    """The summary of an operation that failed before there was anything to answer."""
    if isinstance(error, HarmonydError):
        what = said(error)
    else:
        what = (isinstance(error, OSError) and error.strerror) or type(error).__name__
        what = f"ended before it was done ({what})"
    return {"success": False, "complete": False, "error": what, "outcome": outcome_of_error(error)}


def _time(secs: float) -> str:
    return datetime.fromtimestamp(secs, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _write(folder: Path, members: Mapping[str, Any]) -> None:
    if not folder.is_dir():
        return  # the operation came to its end before it had anything to leave
    folder.with_name(f"{folder.name}.json").write_text(json.dumps(members, indent=1) + "\n", encoding="utf-8")
