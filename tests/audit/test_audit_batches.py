"""What comes in pieces is told together: by association and study, soon, and within bounds."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from harmonyd.audit import batches
from harmonyd.audit.api import AuditEvent, AuditKind, Node, Outcome, Transferred
from harmonyd.audit.batches import MOST_SECS, QUIET_SECS, Batches, Way

MODALITY = Node("CT1", "CT1", "10.0.0.1", is_requestor=True)
WAY = Way(MODALITY, Node(), is_new=True)
CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"


class Stage:
    def __init__(self) -> None:
        self.clock = Clock()
        self.events: list[AuditEvent] = []
        self.batches = Batches(self.clock, self.events.append)

    def add(self, study: str = "1.2", kind: str = CT, problem: str = "", key: str = "a", way: Way = WAY) -> None:
        self.batches.add(key, way, study, f"patient of {study}", kind, problem)

    @property
    def told(self) -> list[Transferred]:
        return [event.about for event in self.events if isinstance(event.about, Transferred)]


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_a_study_of_an_association_is_one_message(stage: Stage) -> None:
    """With how many of each kind; another study, with its patient, is another one."""
    for kind in (CT, CT, MR):
        stage.add(kind=kind)
        stage.clock.advance(1)
    stage.add("1.3")
    assert stage.events == []
    stage.clock.pump([1] * int(2 * QUIET_SECS))
    assert [(each.study_uid, each.patient_id, each.instances) for each in stage.told] == [
        ("1.2", "patient of 1.2", {CT: 2, MR: 1}), ("1.3", "patient of 1.3", {CT: 1})
    ]  # fmt: skip
    assert all(each.is_new and each.source is MODALITY for each in stage.told)
    assert not stage.clock.getDelayedCalls(), "no timer runs for nothing"


def test_one_that_never_ends_is_told_from_time_to_time(stage: Stage) -> None:
    """An association that sends day and night."""
    for _ in range(int(3 * MOST_SECS)):
        stage.add()
        stage.clock.advance(1)
    assert 2 <= len(stage.told) <= 3
    stage.batches.flush()
    assert sum(each.instances[CT] for each in stage.told) == 3 * MOST_SECS
    assert not stage.clock.getDelayedCalls()


def test_a_clock_that_is_set_back_holds_nothing(stage: Stage) -> None:
    """What was there before is told of with the next look."""
    stage.clock.advance(100_000)
    stage.add()
    stage.clock.rightNow -= 50_000
    for call in stage.clock.getDelayedCalls():
        call.reset(1)
    stage.clock.advance(1)
    assert len(stage.told) == 1


@pytest.mark.parametrize(
    ("problems", "outcome", "text"),
    [
        (["", ""], Outcome.SUCCESS, ""),
        (["", "no room", "no room"], Outcome.MINOR_FAILURE, "1 of 3: no room"),
        (["no route"], Outcome.SERIOUS_FAILURE, "0 of 1: no route"),
    ],
)
def test_the_outcome_is_that_of_all(stage: Stage, problems: list[str], outcome: Outcome, text: str) -> None:
    """Part of it failed, or all."""
    for problem in problems:
        stage.add(problem=problem)
    stage.batches.flush()
    assert [(event.outcome, event.text) for event in stage.events] == [(outcome, text)]


def test_what_is_sent_on_begins_before_it_ends(stage: Stage) -> None:
    """The beginning is told at once."""
    way = Way(Node(), Node("archive"), "req", says_begin=True)
    stage.add(way=way)
    assert [event.kind for event in stage.events] == [AuditKind.BEGIN_TRANSFERRING]
    stage.add(way=way)
    stage.batches.flush()
    assert [event.kind for event in stage.events[1:]] == [AuditKind.INSTANCES_TRANSFERRED]
    assert {event.request_id for event in stage.events} == {"req"}


def test_there_are_no_more_than_the_bound(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is told of to make room."""
    monkeypatch.setattr(batches, "MOST_BATCHES", 3)
    for number in range(5):
        stage.add(f"1.{number}")
    assert [each.study_uid for each in stage.told] == ["1.0", "1.1"]
    stage.batches.flush()
    assert len(stage.told) == 5
