"""One object to all backends of its pipeline at once, for a sender that waits: once, and without the spool."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.logger import Logger

from harmonyd.dimse.engine import NotDelivered, Obstacle
from harmonyd.pipeline.pipeline import Pipeline
from harmonyd.services.dicom.outcomes import obstacle
from harmonyd.spool.api import Entry

Outcomes = Callable[[Pipeline, str, Sequence[Entry]], Awaitable[Sequence[Exception | None]]]
_WORST_FIRST = (Obstacle.REFUSED, Obstacle.FAILED, Obstacle.AWAY)

_log = Logger()


async def deliver_one(pipeline: Pipeline, entry: Entry, outcomes: Outcomes) -> None:
    """Return when each backend has it; each is waited for, whatever becomes of the others. Raises ``NotDelivered``.

    ``outcomes`` delivers entries to one backend. Cancelling it cancels them.
    """
    began = time.monotonic()

    async def to(backend: str) -> Exception | None:
        (outcome,) = await outcomes(pipeline, backend, [entry])
        return outcome

    deliveries = [Deferred.fromCoroutine(to(backend)) for backend in pipeline.backends]
    results: list[tuple[bool, Any]] = await DeferredList(deliveries, consumeErrors=True)
    came = {
        backend: result if success else result.value
        for backend, (success, result) in zip(pipeline.backends, results, strict=True)
    }
    wrong = {backend: error for backend, error in came.items() if error is not None}
    there = ", ".join(backend for backend in came if backend not in wrong)
    fields = {
        "request": entry.request_id,
        "endpoint": entry.endpoint,
        "sop_instance_uid": entry.metadata["sop_instance_uid"],
        "there": there,
    }
    if wrong and there:
        _log.warn("{sop_instance_uid} from {endpoint} was delivered to {there}, and not to all", **fields)
    if any(isinstance(error, CancelledError) for error in wrong.values()):
        raise CancelledError
    if wrong:
        raise _worst({backend: obstacle(error) for backend, error in wrong.items()})
    ms = round((time.monotonic() - began) * 1000)
    _log.info("delivered {sop_instance_uid} from {endpoint} to {there}, in {ms} ms", **fields, ms=ms)


def _worst(obstacles: Mapping[str, NotDelivered]) -> NotDelivered:
    """One answer for all; the reasons of all."""
    reasons = "; ".join(f"{backend}: {found.reason}" for backend, found in obstacles.items())
    found = min(obstacles.values(), key=lambda item: _WORST_FIRST.index(item.obstacle))
    return NotDelivered(found.obstacle, reasons, found.status)
