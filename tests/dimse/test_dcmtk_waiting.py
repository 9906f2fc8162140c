"""Waiting with an end: deadlines, and the bounded queue in front of a node. Time is a ``Clock``."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.task import Clock

from harmonyd.dimse.waiting import AssociationSlots, until
from harmonyd.errors import DeadlinePassed, Unavailable

LATE = DeadlinePassed("too late")


def failure_of(deferred: Deferred[None]) -> BaseException:
    """What a Deferred that has failed failed with."""
    found: list[BaseException] = []
    deferred.addErrback(lambda failure: found.append(failure.value))
    assert found, "it has not failed"
    return found[0]


def acquire(slots: AssociationSlots, deadline: float = 10.0) -> Deferred[None]:
    return Deferred.fromCoroutine(slots.acquire(deadline))


# --- until ------------------------------------------------------------------------------------------------------------


def test_a_result_in_time() -> None:
    """The result is passed on, and no timer is left."""
    clock, waiting = Clock(), Deferred[str]()
    result = Deferred.fromCoroutine(until(clock, 5.0, waiting, LATE))
    clock.advance(4.9)
    waiting.callback("here")
    assert result.result == "here"
    assert not clock.getDelayedCalls()


def test_an_error_that_the_deadline_caused() -> None:
    """What a cancelled connection says of it is not what went wrong: the time was over."""
    clock = Clock()
    waiting: Deferred[None] = Deferred(lambda deferred: deferred.errback(ConnectingCancelledError(None)))
    result = Deferred.fromCoroutine(until(clock, 5.0, waiting, LATE))
    clock.advance(5.0)
    assert failure_of(result) is LATE


def test_an_error_in_time() -> None:
    """What the waiting failed with is passed on."""
    clock, waiting = Clock(), Deferred[None]()
    result = Deferred.fromCoroutine(until(clock, 5.0, waiting, LATE))
    waiting.errback(ValueError("no"))
    assert isinstance(failure_of(result), ValueError)
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize("deadline", [5.0, 0.0, -3.0])
def test_the_deadline(deadline: float) -> None:
    """At the deadline, or at once when it has passed already, the waiting is cancelled and the error raised."""
    clock, cancelled = Clock(), list[Deferred[None]]()
    waiting: Deferred[None] = Deferred(cancelled.append)
    result = Deferred.fromCoroutine(until(clock, deadline, waiting, LATE))
    clock.advance(max(0.0, deadline))
    assert failure_of(result) is LATE
    assert cancelled == [waiting]


def test_cancelled_from_elsewhere() -> None:
    """A cancellation is no deadline."""
    clock = Clock()
    result = Deferred.fromCoroutine(until(clock, 5.0, Deferred[None](), LATE))
    result.cancel()
    assert isinstance(failure_of(result), CancelledError)
    assert not clock.getDelayedCalls()


# --- slots ------------------------------------------------------------------------------------------------------------


def test_as_many_as_there_are() -> None:
    """Up to the limit nobody waits; the next one waits until a slot is given back, in order."""
    slots = AssociationSlots(Clock(), "pacs", limit=2, max_queue=5)
    first, second, third, fourth = (acquire(slots) for _ in range(4))
    assert first.called
    assert second.called
    assert not third.called
    slots.release()
    assert third.called
    assert not fourth.called
    slots.release()
    assert fourth.called


def test_a_full_queue() -> None:
    """One more than the queue takes is refused at once, with the time to try again; a free place is taken again."""
    clock = Clock()
    slots = AssociationSlots(clock, "pacs", limit=1, max_queue=1)
    acquire(slots)
    waiting = acquire(slots)
    refused = failure_of(acquire(slots))
    assert isinstance(refused, Unavailable)
    assert refused.extra["retry_after_secs"] > 0
    slots.release()
    assert waiting.called
    assert not acquire(slots).called


def test_no_queue_at_all() -> None:
    """With max_queue = 0 a free slot is still given, and only waiting is refused."""
    slots = AssociationSlots(Clock(), "pacs", limit=1, max_queue=0)
    assert acquire(slots).called
    assert isinstance(failure_of(acquire(slots)), Unavailable)
    slots.release()
    again = acquire(slots)
    assert again.called
    assert again.result is None


def test_a_deadline_in_the_queue() -> None:
    """Who waits too long is told so and leaves the queue; nobody else loses a place."""
    clock = Clock()
    slots = AssociationSlots(clock, "pacs", limit=1, max_queue=5)
    acquire(slots)
    hasty, patient = acquire(slots, 2.0), acquire(slots, 60.0)
    clock.advance(2.0)
    error = failure_of(hasty)
    assert isinstance(error, DeadlinePassed)
    assert error.extra["timeout"] == "queue"
    slots.release()
    assert patient.called


def test_a_client_that_leaves_the_queue() -> None:
    """A cancelled waiter takes no slot with it."""
    slots = AssociationSlots(Clock(), "pacs", limit=1, max_queue=5)
    acquire(slots)
    leaving, staying = acquire(slots), acquire(slots)
    leaving.cancel()
    assert isinstance(failure_of(leaving), CancelledError)
    slots.release()
    assert staying.called
