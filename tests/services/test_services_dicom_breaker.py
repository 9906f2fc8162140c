"""The circuit breaker of a node, which errors count for it, and the guard that runs it, by a clock of our own."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from harmonyd.config.model import DicomBackendOptions
from harmonyd.config.sparing import BreakerOptions
from harmonyd.dimse import failures
from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.errors import (
    CertificateRefused,
    DimseError,
    DimseFailure,
    DimseTimeout,
    EngineFailed,
    NoPresentationContext,
    RemoteUnreachable,
)
from harmonyd.errors import BadRequest, DeadlinePassed, NotFound, StorageFull, Unavailable
from harmonyd.hours import Hours, parse_window
from harmonyd.services.dicom.breaker import Breaker, State, Verdict, of_echo, of_operation
from harmonyd.services.dicom.guard import CircuitOpen, OutsideHours, PacsGuard
from harmonyd.services.dicom.outcomes import spool_result
from harmonyd.spool.api import Failed

NODE = RemoteNode("pacs", "PACS", "pacs.example", 104, "US")
GONE = RemoteUnreachable("Cannot connect: Connection refused")


@pytest.mark.parametrize(
    ("error", "operation", "echo"),
    [
        (None, Verdict.ANSWERS, Verdict.ANSWERS),
        (DimseFailure("0xA700"), Verdict.ANSWERS, Verdict.ANSWERS),
        (NoPresentationContext("no C-GET"), Verdict.ANSWERS, Verdict.ANSWERS),
        (NotFound("no match"), Verdict.ANSWERS, Verdict.ANSWERS),
        (GONE, Verdict.AWAY, Verdict.AWAY),
        (CertificateRefused("expired"), Verdict.AWAY, Verdict.AWAY),
        (failures.rejected(NODE, "Rejected Permanent", "Service User", "No reason"), Verdict.AWAY, Verdict.AWAY),
        (failures.connect_timeout(NODE), Verdict.AWAY, Verdict.AWAY),
        (failures.silence(NODE, accepted=False), Verdict.AWAY, Verdict.AWAY),
        (failures.silence(NODE, accepted=True), Verdict.UNKNOWN, Verdict.AWAY),
        (failures.aborted(NODE, accepted=False), Verdict.AWAY, Verdict.AWAY),
        (failures.aborted(NODE, accepted=True), Verdict.UNKNOWN, Verdict.AWAY),
        (failures.nonsense(NODE, "HTTP", accepted=False), Verdict.AWAY, Verdict.AWAY),
        (failures.nonsense(NODE, "no answer", accepted=True), Verdict.UNKNOWN, Verdict.AWAY),
        (DimseTimeout("queue", timeout="queue"), Verdict.UNKNOWN, Verdict.UNKNOWN),
        (DeadlinePassed("too long"), Verdict.UNKNOWN, Verdict.AWAY),
        (DimseError("an object was not stored"), Verdict.UNKNOWN, Verdict.AWAY),
        *((error, Verdict.UNKNOWN, Verdict.UNKNOWN) for error in (
            BadRequest("bad"), Unavailable("queue full"), EngineFailed("crash"), StorageFull("full"), CancelledError(),
            ValueError(),
        )),
    ],
    ids=lambda value: getattr(value, "detail", None) or str(value),
)  # fmt: skip
def test_which_errors_count(error: Exception | None, operation: Verdict, echo: Verdict) -> None:
    """What keeps an association from being made counts; what is the caller's or our fault, or came later, does not."""
    assert of_operation(error) is operation
    assert of_echo(error) is echo


def breaker(clock: Clock, **options: Any) -> Breaker:
    return Breaker(BreakerOptions(**{"failures": 3, "open_secs": 10, "max_open_secs": 30, **options}), clock.seconds)


def test_only_failures_in_a_row_open_it() -> None:
    """An answer between them begins the count anew."""
    it = breaker(Clock())
    assert [it.failed("a"), it.failed("b")] == [False, False]
    it.answered()
    assert [it.failed("c"), it.failed("d"), it.failed("e")] == [False, False, True]
    assert (it.state, it.trips, it.reason, it.secs_until_probe()) == (State.OPEN, 1, "e", 10)


def test_it_never_opens_when_it_is_switched_off() -> None:
    """``failures = 0``."""
    it = breaker(Clock(), failures=0)
    assert not any(it.failed("x") for _ in range(100))
    assert it.is_closed


def test_it_waits_longer_each_time_up_to_a_bound() -> None:
    """10, 20, 30, 30 s; an echo that says nothing changes nothing; one that is answered closes it."""
    clock = Clock()
    it = breaker(clock)
    for _ in range(3):
        it.failed("away")
    waits = [it.secs_until_probe()]
    for _ in range(3):
        clock.advance(it.secs_until_probe())
        it.probe()
        assert it.state is State.HALF_OPEN
        assert not it.probe_failed("still away")
        waits.append(it.secs_until_probe())
    assert waits == [10, 20, 30, 30]
    it.probe()
    it.probe_undecided()
    assert (it.state, it.secs_until_probe(), it.since) == (State.OPEN, 30, 0)
    assert it.probe_answered()
    assert (it.state, it.in_a_row, it.reason, it.since, it.trips) == (State.CLOSED, 0, "", 60, 1)


def test_what_had_begun_before_changes_nothing_while_it_is_open() -> None:
    """Operations that end then are of the time before."""
    it = breaker(Clock())
    for _ in range(3):
        it.failed("away")
    it.answered()
    assert not it.failed("late")
    assert (it.state, it.in_a_row, it.reason) == (State.OPEN, 3, "away")


class Node:
    """Answers C-ECHOs when the test says so."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.set_by = 0.0
        """How the machine's clock was set since the reactor's began."""
        self.asked: list[Deferred[None]] = []
        given = DicomBackendOptions("PACS", "pacs.example", 104, **{"breaker": BreakerOptions(3, 10, 30), **options})
        self.guard = PacsGuard("pacs", given, self.clock, self._echo, wall=self.wall)

    def wall(self) -> float:
        return self.clock.seconds() + self.set_by

    def _echo(self) -> Deferred[None]:
        self.asked.append(Deferred())
        return self.asked[-1]

    def trip(self) -> None:
        for _ in range(3):
            self.guard.note(GONE)

    def refused(self, operation: str = "find") -> float:
        with pytest.raises(Unavailable) as raised:
            self.guard.admit(operation)
        return float(raised.value.extra["retry_after_secs"])


def run(work: Any) -> Deferred[Any]:
    return Deferred.fromCoroutine(work)


def failure_of(deferred: Deferred[Any]) -> BaseException:
    found: list[Any] = []
    deferred.addErrback(found.append)
    assert found, "it has not failed"
    error: BaseException = found[0].value
    return error


def test_clients_are_told_at_once_until_an_echo_is_answered() -> None:
    """503 with the time until the next C-ECHO; that is asked by itself, and its answer closes the breaker."""
    node = Node()
    node.guard.admit("find")
    node.trip()
    assert node.refused() == 10
    node.clock.advance(4)
    assert node.refused() == 6
    assert node.asked == []
    node.clock.advance(6)
    assert node.refused() == 1
    node.asked[0].errback(GONE)
    assert node.refused() == 20
    node.clock.advance(20)
    node.asked[1].callback(None)
    node.guard.admit("find")
    assert node.guard.figures()["refused"] == {"breaker": 4, "hours": 0}
    assert not node.clock.getDelayedCalls()


def test_the_reason_is_told() -> None:
    """Who is refused learns why it opened."""
    node = Node()
    node.trip()
    with pytest.raises(CircuitOpen) as raised:
        node.guard.admit("find")
    assert "after 3 failures in a row" in raised.value.detail
    assert "Connection refused" in raised.value.detail
    run(node.guard.stop())
    assert not node.clock.getDelayedCalls()


def test_an_echo_of_a_client_goes_through() -> None:
    """Its failure changes nothing while the breaker is open; its answer closes it."""
    node = Node()
    node.trip()
    node.guard.admit("echo")
    node.guard.note(GONE, "echo")
    assert node.refused() == 10
    node.guard.note(None, "echo")
    node.guard.admit("find")
    assert not node.clock.getDelayedCalls()


def test_a_delivery_brings_an_echo_with_it() -> None:
    """The spool's own backoff decides how often; deliveries at the same time share one C-ECHO."""
    node = Node()
    run(node.guard.admit_delivery())
    assert node.asked == []
    node.trip()
    first, second = run(node.guard.admit_delivery()), run(node.guard.admit_delivery())
    assert len(node.asked) == 1
    node.asked[0].errback(GONE)
    assert isinstance(failure_of(first), CircuitOpen)
    assert isinstance(failure_of(second), CircuitOpen)
    assert isinstance(failure_of(run(node.guard.admit_delivery())), CircuitOpen)
    assert len(node.asked) == 1, "not twice within a second"
    node.clock.advance(1)
    third = run(node.guard.admit_delivery())
    node.asked[1].callback(None)
    assert third.called
    node.guard.admit("find")
    assert not node.clock.getDelayedCalls()


def test_an_open_breaker_is_no_attempt_for_the_spool() -> None:
    """The backend counts as away: attempts are not counted, and nothing goes into quarantine for it."""
    node = Node()
    node.trip()
    with pytest.raises(CircuitOpen) as raised:
        node.guard.admit("store")
    assert spool_result(raised.value) == Failed(raised.value.detail, is_away=True)
    run(node.guard.stop())


def test_echoes_that_nobody_asked_for() -> None:
    """Every ``health_echo_secs``; their failures open the breaker, and their time and outcome are told."""
    node = Node(health_echo_secs=60)
    node.guard.start()
    for number in range(3):
        node.clock.advance(60)
        node.clock.advance(0.25)
        node.asked[number].errback(GONE)
    assert node.refused() == 10
    echo = node.guard.figures()["last_echo"]
    assert (echo["ok"], echo["latency_ms"], echo["error"]) == (False, 250, GONE.detail)
    node.clock.advance(10)
    assert len(node.asked) == 4, "the breaker asks, and nobody else does"
    node.asked[3].callback(None)
    assert node.guard.figures()["last_answer_at"] == node.clock.seconds()
    run(node.guard.stop())
    assert not node.clock.getDelayedCalls()


@pytest.mark.parametrize(
    "error", [DeadlinePassed("too long"), failures.silence(NODE, accepted=True), failures.aborted(NODE, accepted=True)]
)
def test_what_may_be_its_fault_is_found_out(error: Exception) -> None:
    """A silence or a deadline says nothing; a C-ECHO after it does, and counts."""
    node = Node()
    node.guard.note(error)
    node.guard.note(error)
    assert len(node.asked) == 1, "one at a time"
    node.asked[0].callback(None)
    assert node.guard.breaker.in_a_row == 0
    for number in range(1, 4):
        node.clock.advance(1)
        node.guard.note(error)
        node.asked[number].errback(DeadlinePassed("it does not answer an echo either"))
    assert node.refused() == 10
    node.guard.note(error)
    assert len(node.asked) == 4, "while it is open, the breaker asks"
    run(node.guard.stop())


def test_nothing_is_found_out_that_is_of_no_use() -> None:
    """Without a breaker, and after what is the client's business, no C-ECHO is asked for."""
    node = Node(breaker=BreakerOptions(0))
    node.guard.note(DeadlinePassed("too long"))
    other = Node()
    for error in (CancelledError(), DeadlinePassed("our queue", timeout="queue"), BadRequest("bad")):
        other.guard.note(error)
    assert node.asked == other.asked == []


def test_the_spool_is_told_that_it_is_back() -> None:
    """Once, when it answers again; not while all is well."""
    told: list[str] = []
    node = Node()
    node.guard = PacsGuard("pacs", DicomBackendOptions("P", "p", 1), node.clock, node._echo, told.append)
    node.guard.note(None, "echo")
    assert told == []
    for _ in range(5):
        node.guard.note(GONE)
    node.clock.advance(10)
    node.asked[0].callback(None)
    assert told == ["pacs"]


def test_a_stop_ends_the_echo_that_runs() -> None:
    """Nothing is left, and who waited for it goes on."""
    node = Node()
    look = run(node.guard.look())
    stop = run(node.guard.stop())
    assert look.called
    assert stop.called
    assert node.guard.last_echo is None
    again = run(node.guard.look())
    assert again.called
    assert len(node.asked) == 1


def test_permitted_hours_of_some_operations() -> None:
    """Others go through; who is refused, and the spool, learn when the hours begin."""
    hours = Hours((parse_window("18:00-07:00"),), "UTC", ("retrieve", "store"))
    node = Node(hours=hours)
    node.clock.advance(12 * 3600 - 1000)  # it is noon
    node.guard.admit("find")
    assert [node.refused("get"), node.refused("move")] == [6 * 3600] * 2
    error = failure_of(run(node.guard.admit_delivery()))
    assert isinstance(error, OutsideHours)
    assert spool_result(error) == Failed(error.detail, is_away=True, again_secs=6 * 3600)
    figures = node.guard.figures()
    assert figures["permitted"] == {"echo": True, "find": True, "retrieve": False, "store": False}
    assert figures["next_permitted_at"] == 18 * 3600
    node.clock.advance(6 * 3600)
    node.guard.admit("get")
    assert node.guard.figures()["next_permitted_at"] is None


def test_hours_go_by_the_clock_as_it_is_now() -> None:
    """Also where it was set, or the machine slept, since the daemon began."""
    node = Node(hours=Hours((parse_window("18:00-07:00"),), "UTC"))
    node.guard.admit("get")
    node.set_by = 12 * 3600 - 1000
    assert node.refused("get") == 6 * 3600
    assert node.guard.figures()["next_permitted_at"] == 18 * 3600
    node.set_by += 7 * 3600
    node.guard.admit("get")


def test_a_node_that_may_not_be_asked_gets_no_echo_either() -> None:
    """Neither of the breaker's nor of its health, until the hours begin."""
    node = Node(hours=Hours((parse_window("18:00-07:00"),), "UTC"), health_echo_secs=600)
    node.trip()
    node.guard.start()
    node.clock.advance(12 * 3600 - 1000)
    assert node.asked == []
    node.clock.advance(6 * 3600)
    assert len(node.asked) == 1
    node.asked[0].callback(None)
    node.guard.admit("find")
    run(node.guard.stop())
