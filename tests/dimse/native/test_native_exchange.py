"""One request and its responses: the permit, the association, the deadline and the C-CANCEL, ended in every case."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_net import FakeNet, Link
from scu_kit import query, read
from twisted.internet.defer import CancelledError, Deferred

from harmonyd.dimse.engine import OperationContext, RemoteNode
from harmonyd.dimse.errors import AssociationAborted, NonsenseAnswer, NoPresentationContext
from harmonyd.dimse.native import core, find, names
from harmonyd.dimse.native.exchange import Exchange, Means
from harmonyd.dimse.native.pool import AssociationPool
from harmonyd.dimse.waiting import AssociationSlots
from harmonyd.errors import DeadlinePassed, Unavailable

NODE = RemoteNode("node", "PEER", "10.0.0.1", 104, "US", 5.0, 300.0, max_associations=1, idle_secs=5.0)


class Asked:
    """Operations on a network in memory, with one permit and a queue of one."""

    def __init__(self, folder: Path) -> None:
        self.net = FakeNet()
        self.pool = AssociationPool(self.net)
        self.means = Means(self.net, self.pool, folder)
        self.slots = AssociationSlots(self.net, "node", 1, 1)

    def op(self, secs: float = 60.0, **options: Any) -> OperationContext:
        return OperationContext("0" * 32, "test", self.net.seconds() + secs, slots=self.slots, **options)

    def echo(self, secs: float = 60.0) -> Deferred[Any]:
        return self._begun(Deferred.fromCoroutine(find.echo(self.means, NODE, self.op(secs))))

    def find(self, secs: float = 60.0, take: int | None = None, **options: Any) -> Deferred[Any]:
        stream = find.find(self.means, NODE, query(), self.op(secs, **options))
        return self._begun(Deferred.fromCoroutine(read(stream, take=take)))

    def _begun(self, running: Deferred[Any]) -> Deferred[Any]:
        self.net.settle()
        return running

    @property
    def link(self) -> Link:
        """The last connection."""
        return self.net.links[-1]

    def accept(self) -> None:
        self.link.accept()
        self.net.settle()

    def heard(self, field: core.CommandField) -> list[core.CommandReceived]:
        return [each for each in self.link.heard if isinstance(each, core.CommandReceived)
                and each.command.field == field]  # fmt: skip

    def answer(self, field: core.CommandField, status: int = 0, data: bytes | None = None) -> None:
        asked = self.heard(field)[-1]
        self.link.peer.send(asked.context_id, asked.command.response(status), has_data=data is not None)
        if data is not None:
            self.link.peer.send_data(asked.context_id, data, True)
        self.link.say()
        self.net.settle()

    def pass_time(self, secs: float) -> None:
        self.net.pump([secs / 10] * 10)
        self.net.settle()

    @property
    def permits(self) -> int:
        return self.slots._semaphore.tokens


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    made = Asked(tmp_path)
    yield made
    closing = Deferred.fromCoroutine(made.pool.close())
    for _ in range(4):
        made.pass_time(5)
    assert closing.called and made.permits == 1
    assert not made.net.open_links and not made.net.getDelayedCalls()


def result(waiting: Deferred[Any]) -> Any:
    """What became of it; raises what it failed with."""
    results: list[Any] = []
    waiting.addBoth(results.append)
    assert results, "it still waits"
    if isinstance(results[0], Exception) or hasattr(results[0], "raiseException"):
        results[0].raiseException()
    return results[0]


ECHO, FIND, CANCEL = core.CommandField.C_ECHO_RQ, core.CommandField.C_FIND_RQ, core.CommandField.C_CANCEL_RQ
MATCH = b"\x08\x00\x16\x00UI\x06\x001.2.3\0"


def test_permit_is_held_as_long_as_it_runs(asked: Asked) -> None:
    """From the wait for an association to the last response."""
    echo = asked.echo()
    assert asked.permits == 0
    asked.accept()
    assert asked.permits == 0
    asked.answer(ECHO)
    assert result(echo).status == 0 and asked.permits == 1


def test_full_queue(asked: Asked) -> None:
    """Who finds the queue full is told at once, and leaves no timer; who waits gets its turn."""
    first, second, third = asked.echo(), asked.echo(), asked.echo()
    with pytest.raises(Unavailable):
        result(third)
    asked.accept()
    asked.answer(ECHO)
    asked.answer(ECHO)
    assert result(first).status == 0 and result(second).status == 0
    assert len(asked.net.links) == 1


@pytest.mark.parametrize("how", ["drop", "abort", "release"])
def test_idle_association_that_ends_when_it_is_asked(asked: Asked, how: str) -> None:
    """The question is asked once more, over another association, and only once."""
    first = asked.echo()
    asked.accept()
    asked.answer(ECHO)
    assert result(first).status == 0
    second = asked.echo()
    if how == "drop":
        asked.link.drop()
    else:
        asked.link.peer.abort() if how == "abort" else asked.link.peer.release()
        asked.link.say()
    asked.net.settle()
    asked.pass_time(3)
    assert len(asked.net.links) == 2
    asked.accept()
    asked.link.peer.abort()
    asked.link.say()
    asked.net.settle()
    with pytest.raises(AssociationAborted):
        result(second)


def test_association_that_was_answered_on_is_not_asked_again(asked: Asked) -> None:
    """One that was idle, has answered, and then ends, has failed."""
    asked.echo()
    asked.accept()
    asked.answer(ECHO)
    found = asked.find()
    asked.answer(FIND, 0xFF00, MATCH)
    asked.link.peer.abort()
    asked.link.say()
    asked.net.settle()
    with pytest.raises(AssociationAborted):
        result(found)
    assert len(asked.net.links) == 1


@pytest.mark.parametrize("identifier", [None, b"", MATCH])
def test_cancelled_and_answered(asked: Asked, identifier: bytes | None) -> None:
    """After C-CANCEL what still comes is read to the end of the final response; the association is used on."""
    found = asked.find(take=1)
    asked.accept()
    asked.answer(FIND, 0xFF00, MATCH)
    (cancel,) = asked.heard(CANCEL)
    assert cancel.command.message_id_being_responded_to == asked.heard(FIND)[0].command.message_id
    asked.answer(FIND, 0xFF00, MATCH)
    asked.answer(FIND, 0xFE00, identifier)
    assert len(result(found)) == 1
    echo = asked.echo()
    asked.answer(ECHO)
    assert result(echo).status == 0 and len(asked.net.links) == 1


def test_cancelled_in_vain(asked: Asked) -> None:
    """A node that does not heed C-CANCEL within a second is aborted; the permit is back then."""
    found = asked.find(take=1)
    asked.accept()
    asked.answer(FIND, 0xFF00, MATCH)
    assert asked.heard(CANCEL) and asked.permits == 0
    asked.pass_time(1.1)
    assert len(result(found)) == 1 and asked.permits == 1
    assert any(isinstance(each, core.Aborted) for each in asked.link.heard)


def test_cancelled_twice(asked: Asked) -> None:
    """A second cancellation does not wait for the answer to C-CANCEL."""
    found = asked.find()
    asked.accept()
    found.cancel()
    asked.net.settle()
    assert asked.heard(CANCEL) and asked.permits == 0
    found.cancel()
    asked.net.settle()
    with pytest.raises(CancelledError):
        result(found)
    assert asked.permits == 1
    assert any(isinstance(each, core.Aborted) for each in asked.link.heard)


def test_echo_has_no_cancel(asked: Asked) -> None:
    """C-CANCEL is for C-FIND, C-GET and C-MOVE (PS3.7 section 9.3.2.3); the rest is aborted."""
    echo = asked.echo()
    asked.accept()
    echo.cancel()
    asked.net.settle()
    with pytest.raises(CancelledError):
        result(echo)
    assert not asked.heard(CANCEL)
    assert any(isinstance(each, core.Aborted) for each in asked.link.heard)


def test_most_matches(asked: Asked) -> None:
    """One match beyond max_results ends the question with C-CANCEL."""
    found = asked.find(max_results=2)
    asked.accept()
    for _ in range(3):
        asked.answer(FIND, 0xFF00, MATCH)
    assert asked.heard(CANCEL)
    asked.answer(FIND, 0xFE00)
    assert len(result(found)) == 2


@pytest.mark.parametrize("phase", ["queue", "connect", "association", "response"])
def test_deadline(asked: Asked, phase: str) -> None:
    """The deadline holds in each phase, and is not taken for another limit."""
    asked.net.is_quiet = phase != "connect"
    busy = asked.echo() if phase == "queue" else None
    echo = asked.echo(secs=3)
    if phase == "response":
        asked.accept()
    asked.pass_time(3.1)
    with pytest.raises(DeadlinePassed) as raised:
        result(echo)
    assert raised.value.extra["timeout"] == ("queue" if phase == "queue" else "operation")
    if busy is not None:
        busy.addErrback(lambda _: None)
        busy.cancel()
        asked.net.settle()
    assert asked.permits == 1


def test_nothing_is_asked_after_the_deadline(asked: Asked, tmp_path: Path) -> None:
    """Not even when the deadline passed while nothing was under way."""
    exchange = Exchange(asked.means, NODE, asked.op(secs=1))
    opening = Deferred.fromCoroutine(asked.pool.take(NODE, [], [(names.VERIFICATION, names.UNCOMPRESSED)], 60))
    asked.net.settle()
    asked.accept()
    exchange.use(result(opening))
    asked.pass_time(2)
    assert asked.link.peer.state is core.State.STA6
    with pytest.raises(DeadlinePassed):
        exchange.asked()
    for _ in range(2):
        assert result(Deferred.fromCoroutine(exchange.end())) is None
    assert asked.pool.idle_count(NODE) == 1


def test_refused_service(asked: Asked) -> None:
    """An association without the service is good for the next operation of another kind."""
    echo = asked.echo()
    request = asked.link.peer.request
    assert request is not None

    def support(uid: str) -> core.Support | None:
        return core.Support(names.UNCOMPRESSED) if uid != names.VERIFICATION else None

    asked.link.peer.accept(core.negotiate(request.contexts, support))
    asked.link.say()
    asked.net.settle()
    with pytest.raises(NoPresentationContext):
        result(echo)
    found = asked.find()
    asked.answer(FIND)
    assert result(found) == [] and len(asked.net.links) == 1


def test_answer_to_something_else(asked: Asked) -> None:
    """A response with another message id is nonsense, and ends the association."""
    echo = asked.echo()
    asked.accept()
    asked.link.peer.send(asked.heard(ECHO)[0].context_id, core.c_echo_rq(999).response(0))
    asked.link.say()
    asked.net.settle()
    with pytest.raises(NonsenseAnswer):
        result(echo)
