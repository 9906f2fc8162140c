"""Whose turn it is among moves to one store AE: who could be confused waits, in order, and nobody else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from harmonyd.dimse.accept import wanted_keys
from harmonyd.dimse.dcmtk.turns import MAX_WAITING, Turns, Wanted, overlap
from harmonyd.dimse.engine import Query, QueryLevel, QueryModel
from harmonyd.errors import DeadlinePassed, Unavailable


def asked(**keys: object) -> Wanted:
    """What a retrieve with these keys asks for."""
    ds = Dataset()
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    return wanted_keys(Query(QueryLevel.STUDY, QueryModel.STUDY_ROOT, ds))


STUDY_1, STUDY_2 = asked(StudyInstanceUID="1.1"), asked(StudyInstanceUID="1.2")
BOTH_STUDIES = asked(StudyInstanceUID=["1.1", "1.2"])


class Move:
    """Somebody who wants a turn: asked for at once."""

    def __init__(self, turns: Turns, wanted: Wanted, deadline: float = 60.0, *, ends_at_once: bool = False) -> None:
        self.turns, self.wanted = turns, wanted
        self.runs = self.has_ended = False
        self.error: BaseException | None = None
        self._ends_at_once = ends_at_once
        self.asking = Deferred.fromCoroutine(self._ask(deadline))
        self.asking.addErrback(self._failed)

    @property
    def waits(self) -> bool:
        return not self.runs and not self.has_ended

    async def _ask(self, deadline: float) -> None:
        await self.turns.acquire(self.wanted, deadline)
        self.runs = True
        if self._ends_at_once:
            self.end()

    def _failed(self, failure: Failure) -> None:
        self.error = failure.value
        self.has_ended = True

    def end(self) -> None:
        self.runs, self.has_ended = False, True
        self.turns.release(self.wanted)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def turns(clock: Clock) -> Turns:
    return Turns(clock, 11123)


# --- overlap ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        (STUDY_1, STUDY_2, False),
        (STUDY_1, STUDY_1, True),
        (BOTH_STUDIES, STUDY_2, True),
        (BOTH_STUDIES, asked(StudyInstanceUID=["1.3", "1.4"]), False),
        (asked(StudyInstanceUID="1.1", SeriesInstanceUID="2.1"), STUDY_1, True),
        (asked(StudyInstanceUID="1.1", SeriesInstanceUID="2.1"), STUDY_2, False),
        (
            asked(StudyInstanceUID="1.1", SeriesInstanceUID="2.1"),
            asked(StudyInstanceUID="1.1", SeriesInstanceUID="2.2"),
            False,
        ),
        (
            asked(StudyInstanceUID="1.1", SeriesInstanceUID=["2.1", "2.2"]),
            asked(StudyInstanceUID="1.1", SeriesInstanceUID=["2.2", "2.3"]),
            True,
        ),
        (
            asked(StudyInstanceUID="1.1", SeriesInstanceUID="2.1", SOPInstanceUID="3.1"),
            asked(StudyInstanceUID="1.1", SeriesInstanceUID="2.1", SOPInstanceUID="3.2"),
            False,
        ),
        (asked(SOPInstanceUID="3.1"), asked(StudyInstanceUID="1.1", SeriesInstanceUID="2.1"), True),
        (asked(PatientID="A"), STUDY_1, True),
        (asked(PatientID="A"), asked(PatientID="B"), False),
        (asked(PatientID="A"), asked(PatientID="A", StudyInstanceUID="1.1"), True),
        (asked(PatientID="A"), asked(PatientID="B", StudyInstanceUID="1.1"), False),
        (asked(), STUDY_1, True),
    ],
)
def test_overlap(one: Wanted, two: Wanted, expected: bool) -> None:
    """Only what differs in a unique key that both name cannot be confused, whichever comes first."""
    assert overlap(one, two) is overlap(two, one) is expected


# --- order ------------------------------------------------------------------------------------------------------------


def test_one_after_the_other(turns: Turns) -> None:
    """Those that overlap have it in the order in which they asked; another study does not wait."""
    first, second, third, other = (Move(turns, dict(wanted)) for wanted in (STUDY_1, STUDY_1, STUDY_1, STUDY_2))
    assert [move.runs for move in (first, second, third, other)] == [True, False, False, True]
    first.end()
    assert (second.runs, third.runs) == (True, False)
    second.end()
    assert third.runs


def test_nobody_overtakes_those_it_overlaps_with(turns: Turns) -> None:
    """A patient's move waits for the studies that run, and a study asked for later waits for the patient's."""
    study = Move(turns, STUDY_1)
    patient = Move(turns, asked(PatientID="A"))
    later = Move(turns, STUDY_2)
    assert (patient.runs, later.runs) == (False, False)
    study.end()
    assert (patient.runs, later.runs) == (True, False)
    patient.end()
    assert later.runs


def test_in_use_to_the_last_one(turns: Turns) -> None:
    """The port is in use while somebody runs or waits, and not after."""
    assert not turns.in_use
    first, second = Move(turns, dict(STUDY_1)), Move(turns, dict(STUDY_1))
    first.end()
    assert turns.in_use
    second.end()
    assert not turns.in_use


def test_one_that_is_over_at_once(turns: Turns) -> None:
    """A move that ends in the very moment of its turn lets the next ones go on, each once."""
    first = Move(turns, BOTH_STUDIES)
    hasty = Move(turns, STUDY_1, ends_at_once=True)
    others = [Move(turns, STUDY_2), Move(turns, dict(STUDY_1))]
    first.end()
    assert hasty.has_ended
    assert all(move.runs for move in others)
    for move in others:
        move.end()
    assert not turns.in_use


# --- those that give up -----------------------------------------------------------------------------------------------


def test_a_client_that_leaves(turns: Turns) -> None:
    """Who is cancelled while waiting takes no turn along, and whom only it held up goes on."""
    first = Move(turns, STUDY_1)
    leaving, behind = Move(turns, BOTH_STUDIES), Move(turns, STUDY_2)
    assert behind.waits
    leaving.asking.cancel()
    assert isinstance(leaving.error, CancelledError)
    assert behind.runs
    first.end()
    behind.end()
    assert not turns.in_use


def test_the_deadline_passes(turns: Turns, clock: Clock) -> None:
    """Who waits too long is told that it was for its turn, and whom only it held up goes on."""
    first = Move(turns, STUDY_1)
    hasty, behind = Move(turns, BOTH_STUDIES, deadline=5.0), Move(turns, STUDY_2)
    clock.advance(5.0)
    assert isinstance(hasty.error, DeadlinePassed)
    assert hasty.error.extra["timeout"] == "queue"
    assert behind.runs
    first.end()
    behind.end()
    assert not turns.in_use
    assert not clock.getDelayedCalls()


def test_the_queue_is_bounded(turns: Turns) -> None:
    """When as many wait as may, one more that would have to is refused at once; one that need not runs."""
    moves = [Move(turns, dict(STUDY_1)) for _ in range(MAX_WAITING + 1)]
    refused, free = Move(turns, dict(STUDY_1)), Move(turns, STUDY_2)
    assert isinstance(refused.error, Unavailable)
    assert "11123" in refused.error.detail
    assert refused.error.extra["retry_after_secs"] > 0
    assert free.runs
    moves[0].end()
    assert Move(turns, dict(STUDY_1)).waits


# --- any order of events ----------------------------------------------------------------------------------------------

UIDS = st.frozensets(st.sampled_from(["1", "2", "3"]), min_size=1)
WANTED = st.dictionaries(st.sampled_from(["patient_id", "study_instance_uid", "series_instance_uid"]), UIDS)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["stay", "stay", "pass"]), WANTED),
        st.tuples(st.sampled_from(["end", "leave", "late"]), st.integers(0, 20)),
    ),
    max_size=40,
)
Event = tuple[str, dict[str, frozenset[str]] | int]


@settings(max_examples=300, deadline=None)
@given(EVENTS)
def test_any_order_of_events(events: list[Event]) -> None:
    """Never do two run that overlap, nobody waits who overlaps with nobody before it, and in the end all is free."""
    clock = Clock()
    turns = Turns(clock, 11123)
    moves: list[Move] = []
    for event in events:
        _play(turns, clock, moves, event)
        _check(moves)
    while living := [move for move in moves if not move.has_ended]:
        next(move for move in living if move.runs).end()
        _check(moves)
    assert not turns.in_use
    assert not clock.getDelayedCalls()


def _play(turns: Turns, clock: Clock, moves: list[Move], event: Event) -> None:
    what, which = event
    if isinstance(which, dict):
        moves.append(Move(turns, which, clock.seconds() + 1000, ends_at_once=what == "pass"))
        return
    chosen = [move for move in moves if (move.runs if what == "end" else move.waits)]
    if not chosen:
        return
    if what == "end":
        chosen[which % len(chosen)].end()
    elif what == "leave":
        chosen[which % len(chosen)].asking.cancel()
    else:
        first: Any = clock.getDelayedCalls()[0]
        clock.advance(first.getTime() - clock.seconds())
        assert isinstance(chosen[0].error, DeadlinePassed)


def _check(moves: list[Move]) -> None:
    running = [move for move in moves if move.runs]
    for number, move in enumerate(running):
        assert not any(overlap(move.wanted, other.wanted) for other in running[:number])
    for number, move in enumerate(moves):
        if move.waits:
            before = [other for other in moves[:number] if not other.has_ended]
            assert any(overlap(move.wanted, other.wanted) for other in [*before, *running])
