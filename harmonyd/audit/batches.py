"""Transfers of single instances, told together: one message for an association and a study, not one for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from harmonyd.audit.api import AuditEvent, AuditKind, Auditor, Node, Outcome, Transferred
from harmonyd.subject import OURSELVES, Caller, Subject

QUIET_SECS = 5.0
"""A batch is told of when nothing more came for so long,"""
MOST_SECS = 60.0
"""and when it is as old as this."""
MOST_BATCHES = 1000
"""The oldest is told of when there are more."""


@dataclass(frozen=True, slots=True)
class Way:
    """From where to where, and on whose behalf."""

    source: Node
    destination: Node
    request_id: str = ""
    caller: Caller = OURSELVES
    subject: Subject | None = None
    is_new: bool = False
    says_begin: bool = False


@dataclass(slots=True)
class _Batch:
    way: Way
    study_uid: str
    patient_id: str
    began: float
    latest: float
    instances: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    problem: str = ""


class Batches:
    """For the reactor's thread."""

    def __init__(self, reactor: Any, audit: Auditor) -> None:
        self._reactor = reactor
        self._audit = audit
        self._batches: dict[Hashable, _Batch] = {}
        self._timer: Any = None

    def add(
        self, key: Hashable, way: Way, study_uid: str, patient_id: str, sop_class_uid: str, problem: str = ""
    ) -> None:
        """One instance of a study; ``key`` names the association and where it goes. ``problem``: it did not arrive."""
        whole = (key, study_uid, patient_id)
        now = self._reactor.seconds()
        batch = self._batches.get(whole)
        if batch is None:
            while len(self._batches) >= MOST_BATCHES:
                self._tell(next(iter(self._batches)))
            batch = self._batches[whole] = _Batch(way, study_uid, patient_id, now, now)
            if way.says_begin:
                self._audit(self._event(batch, AuditKind.BEGIN_TRANSFERRING, Outcome.SUCCESS, "", {}))
        batch.latest = now
        if problem:
            batch.failed += 1
            batch.problem = batch.problem or problem
        else:
            batch.instances[sop_class_uid] += 1
        self._wait()

    def flush(self) -> None:
        """Tell of all."""
        for key in list(self._batches):
            self._tell(key)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        if self._timer is None and self._batches:
            self._timer = self._reactor.callLater(QUIET_SECS / 2, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._reactor.seconds()
        for key, batch in list(self._batches.items()):
            # A clock that was set back must not hold anything.
            if not batch.latest <= now < batch.latest + QUIET_SECS or now >= batch.began + MOST_SECS:
                self._tell(key)
        self._wait()

    def _tell(self, key: Hashable) -> None:
        batch = self._batches.pop(key)
        count = batch.instances.total()
        outcome = outcome_of(count, batch.failed)
        text = ""
        if batch.failed:
            text = f"{count} of {count + batch.failed}: {batch.problem}"
        self._audit(self._event(batch, AuditKind.INSTANCES_TRANSFERRED, outcome, text, batch.instances))

    def _event(
        self, batch: _Batch, kind: AuditKind, outcome: Outcome, text: str, instances: dict[str, int]
    ) -> AuditEvent:
        way = batch.way
        about = Transferred(
            way.source, way.destination, batch.study_uid, batch.patient_id, dict(instances), is_new=way.is_new
        )
        return AuditEvent(kind, outcome, text, way.request_id, way.caller, way.subject, about=about)


def outcome_of(count: int, failed: int) -> Outcome:
    """Of so many that arrived and so many that did not."""
    if not failed:
        return Outcome.SUCCESS
    return Outcome.MINOR_FAILURE if count else Outcome.SERIOUS_FAILURE
