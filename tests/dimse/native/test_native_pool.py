"""The association pool: what is open is counted, what is idle gives way, and its close leaves nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fake_net import FakeNet, Link
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from harmonyd.dimse.associate import Rejection
from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.errors import AssociationAborted, AssociationRejected
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.client import ClientAssociation
from harmonyd.dimse.native.pool import AssociationPool
from harmonyd.errors import DeadlinePassed, Unavailable

ECHO = [(names.VERIFICATION, names.UNCOMPRESSED)]
OTHER = [("1.2.840.10008.5.1.4.1.1.2", (names.EXPLICIT_VR_LE,))]
NODE = RemoteNode("node", "PEER", "10.0.0.1", 104, "US", 5.0, 20.0, max_associations=2, idle_secs=5.0)


class Pooled:
    """A pool on a network in memory."""

    def __init__(self) -> None:
        self.net = FakeNet()
        self.pool = AssociationPool(self.net)

    def begin(self, proposed: Any = ECHO, node: RemoteNode = NODE, least: Any = ()) -> Deferred[ClientAssociation]:
        taking = Deferred.fromCoroutine(self.pool.take(node, proposed, proposed, self.net.seconds() + 60, least))
        self.net.settle()
        return taking

    def take(self, proposed: Any = ECHO, node: RemoteNode = NODE) -> tuple[ClientAssociation, Link]:
        """One that is new, and accepted."""
        taking = self.begin(proposed, node)
        self.accept()
        return result(taking), self.net.links[-1]

    def accept(self) -> None:
        for link in self.net.open_links:
            if link.peer.state is core.State.STA3:
                link.accept()
        self.net.settle()

    def give(self, association: ClientAssociation, secs: float = 5.0) -> None:
        self.pool.give_back(association, secs)
        self.net.settle()

    def let_go(self) -> None:
        """Peers answer releases."""
        for link in self.net.open_links:
            if link.peer.state is core.State.STA8:
                link.peer.respond_release()
                link.say()
        self.net.settle()

    def pass_time(self, secs: float) -> None:
        self.net.pump([secs / 10] * 10)
        self.net.settle()

    @property
    def counts(self) -> tuple[int, int]:
        return self.pool.open_count(NODE), self.pool.idle_count(NODE)

    def close(self) -> None:
        closing = Deferred.fromCoroutine(self.pool.close())
        self.net.settle()
        self.pass_time(20)
        self.pass_time(20)
        assert closing.called and not isinstance(closing.result, Failure)
        assert not self.net.open_links and not self.net.getDelayedCalls() and not self.pool._nodes


def result(waiting: Deferred[Any]) -> Any:
    """What a Deferred has; raises what it failed with."""
    assert waiting.called, "it still waits"
    results: list[Any] = []
    waiting.addBoth(results.append)
    if not results:
        raise AssertionError("it still waits")
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


def waits(waiting: Deferred[Any]) -> bool:
    """Nothing has become of it yet."""
    return not waiting.called or isinstance(waiting.result, Deferred)


@pytest.fixture
def pooled() -> Any:
    made = Pooled()
    yield made
    made.close()


def test_used_again(pooled: Any) -> None:
    """An idle one that has what is needed is taken; another kind gets one of its own."""
    first, _ = pooled.take()
    pooled.give(first)
    assert pooled.counts == (1, 1)
    assert result(pooled.begin()) is first
    pooled.give(first)
    second, _ = pooled.take(OTHER)
    assert second is not first and pooled.counts == (2, 1)


def test_every_syntax_is_needed() -> None:
    """An association that has a SOP class only in another transfer syntax is not the one that is needed."""
    pooled = Pooled()
    first, _ = pooled.take(OTHER)
    assert first.has_all(OTHER)
    assert first.has_all([(OTHER[0][0], (names.IMPLICIT_VR_LE, names.EXPLICIT_VR_LE))])
    assert not first.has_all([*OTHER, (OTHER[0][0], ("1.2.840.10008.1.2.4.50",))])
    pooled.close()


def test_idle_close(pooled: Any) -> None:
    """One that nobody uses is released after its time; it counts until its connection is closed."""
    first, link = pooled.take()
    pooled.give(first)
    pooled.pass_time(4.9)
    assert link.peer.state is core.State.STA6
    pooled.pass_time(0.2)
    assert link.peer.state is core.State.STA8
    assert pooled.counts == (1, 0)
    pooled.let_go()
    assert pooled.counts == (0, 0)


def test_not_kept(pooled: Any) -> None:
    """With no time to be idle it is released at once, in the background."""
    first, link = pooled.take()
    pooled.give(first, 0)
    assert link.peer.state is core.State.STA8 and pooled.counts == (1, 0)


@pytest.mark.parametrize("how", ["release", "abort", "drop", "garbage", "release and drop"])
def test_ended_while_idle(pooled: Any, how: str) -> None:
    """One that its peer ends while it is idle is forgotten, and answered as it should be."""
    first, link = pooled.take()
    pooled.give(first)
    if how == "garbage":
        link.peer.send(1, core.c_echo_rq(1))
    elif how == "abort":
        link.peer.abort()
    elif how != "drop":
        link.peer.release()
    link.say()
    if how.endswith("drop"):
        link.drop()
    pooled.net.settle()
    assert pooled.pool.idle_count(NODE) == 0
    if how == "release":
        assert any(isinstance(each, core.Released) for each in link.heard)
    pooled.pass_time(3)
    assert pooled.counts == (0, 0)


@pytest.mark.parametrize("how", ["release", "drop"])
def test_ended_at_the_moment_it_is_taken(pooled: Any, how: str) -> None:
    """What a peer has said, and we have not read yet, is seen when it is used; a new one can be had then."""
    first, link = pooled.take()
    pooled.give(first)
    taken = Deferred.fromCoroutine(pooled.pool.take(NODE, ECHO, ECHO, pooled.net.seconds() + 60))
    assert result(taken) is first and first.was_idle
    link.peer.release() if how == "release" else link.drop()
    link.say()
    pooled.net.settle()
    receiving = Deferred.fromCoroutine(first.receive())
    with pytest.raises(AssociationAborted):
        result(receiving)
    assert not first.is_open


def test_the_limit_holds(pooled: Any) -> None:
    """Whoever needs one more waits until one is closed, not only let go of."""
    (first, one), (second, _) = pooled.take(), pooled.take()
    third = pooled.begin()
    assert waits(third) and len(pooled.net.links) == 2
    one.is_peer_reading = False
    first.abort()
    pooled.net.settle()
    assert waits(third) and len(pooled.net.links) == 2
    pooled.pass_time(3)
    pooled.accept()
    assert result(third) is not second and len(pooled.net.open_links) == 2


def test_waiting_ends_with_one_that_is_given_back(pooled: Any) -> None:
    """Whoever waits takes the one that fits as soon as it is given back."""
    (first, _), _ = pooled.take(), pooled.take()
    third = pooled.begin()
    pooled.give(first)
    assert result(third) is first


def test_idle_ones_make_room(pooled: Any) -> None:
    """An idle one of another kind is released for the one that is needed."""
    (first, one), _ = pooled.take(), pooled.take()
    third = pooled.begin(OTHER)
    pooled.give(first)
    assert waits(third) and one.peer.state is core.State.STA8
    pooled.let_go()
    pooled.accept()
    assert result(third).has_all(OTHER)


def test_deadline_while_waiting(pooled: Any) -> None:
    """Nobody waits for room beyond the deadline."""
    pooled.take(), pooled.take()
    third = pooled.begin()
    for _ in range(7):
        pooled.pass_time(10)
    with pytest.raises(DeadlinePassed):
        result(third)


def test_cancelled_while_waiting(pooled: Any) -> None:
    """A cancellation takes the place in the queue back."""
    pooled.take(), pooled.take()
    third = pooled.begin()
    third.addErrback(lambda _: None)
    third.cancel()
    assert not waits(third) and not pooled.pool._changed._waiting


def test_rejected_for_a_limit(pooled: Any) -> None:
    """A node that rejects one more gets ours that are idle, and is asked again."""
    first, one = pooled.take()
    pooled.give(first)
    second = pooled.begin(OTHER)
    pooled.net.links[-1].peer.reject(Rejection.LOCAL_LIMIT_EXCEEDED)
    pooled.net.links[-1].say()
    pooled.net.settle()
    assert waits(second) and one.peer.state is core.State.STA8 and len(pooled.net.links) == 2
    pooled.let_go()
    pooled.pass_time(0.3)
    pooled.accept()
    assert result(second).has_all(OTHER)


def reject(pooled: Any, rejection: Rejection = Rejection.LOCAL_LIMIT_EXCEEDED) -> None:
    """The last connection's peer does."""
    pooled.net.links[-1].peer.reject(rejection)
    pooled.net.links[-1].say()
    pooled.net.settle()


def test_rejected_for_a_limit_while_ours_are_used(pooled: Any) -> None:
    """Whoever is rejected for the moment waits until one of ours has ended, and asks again."""
    first, _ = pooled.take()
    second = pooled.begin(OTHER)
    reject(pooled)
    pooled.pass_time(5)
    assert waits(second) and len(pooled.net.links) == 2
    pooled.give(first)
    pooled.let_go()
    pooled.pass_time(0.3)
    pooled.accept()
    assert result(second).has_all(OTHER)


def test_rejected_for_a_limit_takes_what_is_given_back(pooled: Any) -> None:
    """One of the same kind that is given back is taken, and no new one asked for."""
    first, _ = pooled.take()
    second = pooled.begin()
    reject(pooled)
    assert waits(second)
    pooled.give(first)
    assert result(second) is first and len(pooled.net.links) == 2


def test_rejected_until_the_deadline(pooled: Any) -> None:
    """At the deadline the rejection is what is told."""
    pooled.take()
    second = pooled.begin(OTHER)
    reject(pooled)
    for _ in range(7):
        pooled.pass_time(10)
    with pytest.raises(AssociationRejected):
        result(second)


def test_rejected_for_good(pooled: Any) -> None:
    """A permanent rejection is not waited for while ours are used."""
    pooled.take()
    second = pooled.begin(OTHER)
    reject(pooled, Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED)
    with pytest.raises(AssociationRejected):
        result(second)


def test_rejected(pooled: Any) -> None:
    """Where nothing of ours is idle, a rejection is the answer, and counts no longer."""
    taking = pooled.begin()
    reject(pooled)
    with pytest.raises(AssociationRejected):
        result(taking)
    assert pooled.counts == (0, 0)


def test_rejected_while_idle_ones_end(pooled: Any) -> None:
    """Idle ones that end by themselves while others are ended for a rejected one are no error."""
    (first, one), (second, two) = pooled.take(node=NODE), pooled.take(node=NODE)
    pooled.give(first, 1.0)
    pooled.give(second, 1.2)
    node = replace(NODE, max_associations=3)
    assert pooled.pool.open_count(node) == 0
    pooled.pass_time(0.9)
    third = pooled.begin(OTHER)
    assert waits(third)
    one.is_peer_reading = two.is_peer_reading = False
    pooled.pass_time(10)
    pooled.pass_time(10)
    pooled.accept()
    assert result(third).has_all(OTHER)


def test_a_node_that_aborts_at_what_it_does_not_know(pooled: Any) -> None:
    """The least is proposed then, and from then on."""
    taking = pooled.begin([*ECHO, *OTHER], least=ECHO)
    pooled.net.links[-1].peer.abort()
    pooled.net.links[-1].say()
    pooled.net.settle()
    assert waits(taking)
    pooled.pass_time(1)
    pooled.accept()
    assert len(result(taking).contexts) == 1
    again = pooled.begin([*ECHO, *OTHER], least=ECHO)
    pooled.accept()
    assert len(result(again).contexts) == 1 and len(pooled.net.links) == 3


def test_close(pooled: Any) -> None:
    """What is idle is released; what is used, being opened or waited for fails with ``Unavailable``."""
    node = replace(NODE, max_associations=3)
    idle, idle_link = pooled.take(node=node)
    used, used_link = pooled.take(node=node)
    pooled.give(idle)
    assert result(pooled.begin(node=node)) is idle
    pooled.give(idle)
    negotiating = pooled.begin(OTHER, node)
    pooled.net.is_quiet = False
    other = replace(NODE, port=105)
    connecting = pooled.begin(ECHO, other)
    receiving = Deferred.fromCoroutine(used.receive())
    closing = Deferred.fromCoroutine(pooled.pool.close())
    pooled.net.settle()
    assert idle_link.peer.state is core.State.STA8
    assert any(isinstance(each, core.Aborted) for each in used_link.heard)
    for waiting in (negotiating, connecting, receiving):
        with pytest.raises(Unavailable):
            result(waiting)
    assert waits(closing)
    pooled.let_go()
    pooled.pass_time(5)
    assert result(closing) is None
    with pytest.raises(Unavailable):
        result(pooled.begin())


def test_close_while_one_waits(pooled: Any) -> None:
    """Whoever waits for room is told."""
    pooled.take(), pooled.take()
    third = pooled.begin()
    closing = Deferred.fromCoroutine(pooled.pool.close())
    pooled.pass_time(5)
    with pytest.raises(Unavailable):
        result(third)
    assert result(closing) is None


def test_silence_that_is_shorter_than_idleness(pooled: Any) -> None:
    """An idle association has nothing to say, and is released in good order nevertheless."""
    node = replace(NODE, association_timeout_secs=1.0)
    first, link = pooled.take(node=node)
    pooled.give(first)
    pooled.pass_time(2)
    assert link.peer.state is core.State.STA8
    pooled.let_go()
