"""An association over a transport: what waits is bounded, silence and trickling end it, and its end is orderly."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

import pytest
from raw_scu import RELEASE_RQ, associate_rq, p_data, pdu, store_rq
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from harmonyd.dimse.associate import Rejection
from harmonyd.dimse.native import core
from harmonyd.dimse.native.connection import (
    ARTIM_SECS,
    LAST_WORDS_SECS,
    MAX_WAITING_BYTES,
    PROGRESS_BYTES,
    Connection,
    Silence,
)
from harmonyd.dimse.native.offering import answer_for

T = TypeVar("T")
SILENCE_SECS = 60.0


class FakeTransport:
    """Remembers what is done to it."""

    def __init__(self) -> None:
        self.written = b""
        self.done: list[str] = []

    def write(self, data: bytes) -> None:
        self.written += data

    def getPeer(self) -> Any:
        return type("Address", (), {"host": "::ffff:192.0.2.1"})()

    def getHandle(self) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        def note(*_arguments: Any) -> None:
            self.done.append(name)

        return note


class Pair:
    """A connection in which an association was accepted, and its clock."""

    def __init__(self, *, accepted: bool = True) -> None:
        self.clock = Clock()
        self.association = core.Association.acceptor(65536)
        self.connection = Connection(self.clock, self.association, SILENCE_SECS)
        self.transport = FakeTransport()
        self.connection.makeConnection(self.transport)
        if accepted:
            self.connection.dataReceived(associate_rq())
            event = result(self.connection.receive())
            assert isinstance(event, core.Requested)
            self.association.accept(answer_for(event.request))
            self.connection.flush()
        self.transport.done.clear()

    def lose(self) -> None:
        self.connection.connectionLost(Failure(ConnectionDone()))
        assert not self.clock.getDelayedCalls()


def result(waiting: Awaitable[T]) -> T:
    """What is there at once."""
    found: list[Any] = []
    Deferred.fromCoroutine(waiting).addBoth(found.append)  # type: ignore[arg-type]
    (value,) = found
    if isinstance(value, Failure):
        value.raiseException()
    return value  # type: ignore[no-any-return]


def later(waiting: Awaitable[T]) -> list[Any]:
    """Gets what comes."""
    found: list[Any] = []
    Deferred.fromCoroutine(waiting).addBoth(found.append)  # type: ignore[arg-type]
    return found


def test_reading_stops_while_too_much_waits() -> None:
    """A peer that sends more than is asked for is not read from until half of it was taken."""
    pair = Pair()
    pair.connection.dataReceived(store_rq(b"1.2.3"))
    fragment = p_data(bytes(60_000), 0)
    for _ in range(MAX_WAITING_BYTES // 60_000):
        pair.connection.dataReceived(fragment)
    assert pair.transport.done == []
    pair.connection.dataReceived(fragment)
    assert pair.transport.done == ["pauseProducing"]
    taken = 0
    while "resumeProducing" not in pair.transport.done:
        event = result(pair.connection.receive())
        taken += len(event.fragment) if isinstance(event, core.DataReceived) else 0
    assert MAX_WAITING_BYTES // 2 <= taken <= MAX_WAITING_BYTES // 2 + 120_000
    pair.lose()


def test_silence() -> None:
    """Nothing for the time that is allowed raises, counted from the last that was said or answered."""
    pair = Pair()
    waiting = later(pair.connection.receive())
    pair.clock.advance(SILENCE_SECS - 1)
    assert not waiting
    pair.connection.dataReceived(store_rq(b"1.2.3"))
    (event,) = waiting
    assert isinstance(event, core.CommandReceived)
    waiting = later(pair.connection.receive())
    pair.clock.advance(SILENCE_SECS - 1)
    assert not waiting
    pair.clock.advance(2)
    assert waiting[0].check(Silence)
    pair.lose()


def test_trickling_is_silence() -> None:
    """Bytes of a data set now and then are silence; so many are not."""
    pair = Pair()
    pair.connection.dataReceived(store_rq(b"1.2.3"))
    result(pair.connection.receive())
    step = PROGRESS_BYTES // 4

    def drain() -> list[Any]:
        while pair.connection.has_events:
            result(pair.connection.receive())
        return later(pair.connection.receive())

    for _ in range(8):
        waiting = drain()
        pair.clock.advance(SILENCE_SECS / 4 - 0.1)
        pair.connection.dataReceived(p_data(bytes(step), 0))
        assert isinstance(waiting[0], core.DataReceived)
    for _ in range(6):
        waiting = drain()
        pair.clock.advance(SILENCE_SECS / 4)
        if waiting:
            break
        pair.connection.dataReceived(p_data(b"x", 0))
    assert waiting[0].check(Silence)
    pair.lose()


def test_our_own_time_is_not_the_peers_silence() -> None:
    """While nobody waits for it, the peer may be silent; its time begins with our answer."""
    pair = Pair()
    waiting = later(pair.connection.receive())
    pair.connection.dataReceived(store_rq(b"1.2.3") + p_data(b"12", 2))
    result(pair.connection.receive())
    command = waiting[0].command
    pair.clock.advance(10 * SILENCE_SECS)
    pair.connection.send(1, command.response(0))
    waiting = later(pair.connection.receive())
    pair.clock.advance(SILENCE_SECS - 1)
    assert not waiting
    pair.clock.advance(2)
    assert waiting
    pair.lose()


def test_artim_before_the_request() -> None:
    """Who has not sent a whole request in time is cut, whatever he has sent."""
    pair = Pair(accepted=False)
    waiting = later(pair.connection.receive())
    pair.clock.advance(ARTIM_SECS - 1)
    pair.connection.dataReceived(associate_rq()[:100])
    assert pair.transport.done == []
    pair.clock.advance(1)
    assert pair.transport.done == ["abortConnection"]
    pair.lose()
    assert isinstance(waiting[0], core.ConnectionLost)


def test_release() -> None:
    """After a release our direction is closed at once, and the peer's after its time."""
    pair = Pair()
    pair.connection.dataReceived(pdu(RELEASE_RQ, bytes(4)))
    assert isinstance(result(pair.connection.receive()), core.ReleaseRequested)
    pair.connection.respond_release()
    assert pair.transport.done == ["unregisterProducer", "loseWriteConnection"]
    pair.clock.advance(ARTIM_SECS)
    assert pair.transport.done[2:] == ["abortConnection"]
    pair.lose()


def test_rejection() -> None:
    """The same after a rejection."""
    pair = Pair(accepted=False)
    pair.connection.dataReceived(associate_rq())
    result(pair.connection.receive())
    pair.connection.reject(Rejection.LOCAL_LIMIT_EXCEEDED)
    assert pair.transport.written == Rejection.LOCAL_LIMIT_EXCEEDED.pdu()
    assert pair.transport.done == ["unregisterProducer", "loseWriteConnection"]
    pair.lose()
    assert pair.connection.closed.called


def test_abort() -> None:
    """An A-ABORT leaves the peer little time, and what had come is forgotten."""
    pair = Pair()
    pair.connection.dataReceived(store_rq(b"1.2.3") + p_data(bytes(1000), 0))
    pair.connection.abort()
    pair.connection.abort()
    assert not pair.connection.has_events
    pair.connection.dataReceived(p_data(bytes(1000), 0))
    assert not pair.connection.has_events
    pair.clock.advance(LAST_WORDS_SECS)
    assert pair.transport.done[-1] == "abortConnection"
    pair.lose()
    assert isinstance(result(pair.connection.receive()), core.ConnectionLost)


def test_interrupted() -> None:
    """Who waits gets the error, and so does who comes after."""
    pair = Pair()
    waiting = later(pair.connection.receive())
    pair.connection.interrupt(ZeroDivisionError())
    assert waiting[0].check(ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        result(pair.connection.receive())
    pair.lose()


def test_nonsense_is_aborted() -> None:
    """What is no DICOM is answered with A-ABORT, and told."""
    pair = Pair(accepted=False)
    pair.connection.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
    assert isinstance(result(pair.connection.receive()), core.Aborted)
    assert pair.transport.written[:1] == b"\7"
    assert pair.connection.peer == "192.0.2.1"
    pair.lose()
