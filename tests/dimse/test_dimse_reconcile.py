"""What a retrieve says of its completeness: the node's counters, what arrived, and what was asked for, compared."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import Dataset

from harmonyd.dimse.accept import Intake
from harmonyd.dimse.engine import Outcome, Query, QueryLevel, QueryModel, SubOperations
from harmonyd.dimse.reconcile import reconcile


def _intake(arrived: int = 0, *, asked: tuple[str, ...] = ()) -> Intake:
    ds = Dataset()
    ds.StudyInstanceUID = "1.2"
    if asked:
        ds.SOPInstanceUID = list(asked)
    level = QueryLevel.IMAGE if asked else QueryLevel.STUDY
    intake = Intake(Query(level, QueryModel.STUDY_ROOT, ds), Path("/a"), Path("/q"))
    intake.arrived = {f"1.2.{number}" for number in range(arrived)}
    return intake


@pytest.mark.parametrize(
    ("counters", "arrived", "reason"),
    [
        (SubOperations(3, 0, 0, None), 3, None),
        (SubOperations(2, 0, 1, 0), 3, None),
        (None, 3, None),
        (SubOperations(None, None, None, None), 3, None),
        (SubOperations(2, 1, 0, None), 2, "1 failed"),
        (SubOperations(2, 0, 0, 1), 2, "1 sub-operations undone"),
        (SubOperations(3, 0, 0, None), 2, "3 instances delivered, 2 arrived"),
        (SubOperations(2, 0, 1, None), 2, "3 instances delivered, 2 arrived"),
        (SubOperations(None, 1, None, None), 2, "1 failed"),
    ],
)
def test_counters(counters: SubOperations | None, arrived: int, reason: str | None) -> None:
    """Complete is only what neither the counters nor the number of files contradict."""
    outcome = Outcome(status=0, suboperations=counters)
    reconcile(outcome, _intake(arrived))
    assert outcome.complete == (reason is None)
    assert (reason or "") in (outcome.incomplete_reason or "")


def test_warning_status_without_counters() -> None:
    """A warning status that no counter explains means that something is missing."""
    outcome = Outcome(status=0xB000, status_text="Warning")
    reconcile(outcome, _intake(3))
    assert "0xB000" in (outcome.incomplete_reason or "")


def test_more_than_was_counted() -> None:
    """More files than the node counted are a warning, and no loss."""
    outcome = Outcome(status=0, suboperations=SubOperations(2, 0, 0, 0))
    reconcile(outcome, _intake(3))
    assert outcome.complete
    assert outcome.warnings


def test_an_instance_asked_for_that_is_missing() -> None:
    """Success without one of the instances that were asked for by UID is not complete."""
    outcome = Outcome(status=0)
    reconcile(outcome, _intake(1, asked=("1.2.0", "1.2.7")))
    assert outcome.incomplete_reason == "1 of the instances asked for did not arrive"


def test_nothing_but_what_was_not_asked_for() -> None:
    """When only strangers arrived, the answer is not that nothing matched."""
    outcome = Outcome(status=0)
    intake = _intake(0)
    intake.put_aside["not asked for"] = 2
    reconcile(outcome, intake)
    assert not outcome.complete
    assert outcome.warnings == ["2 received files put in quarantine: not asked for"]
