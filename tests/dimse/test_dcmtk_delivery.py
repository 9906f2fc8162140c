"""Handing on files: order, retries, and what one failing file, or a taker that is away, does to the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from harmonyd.dimse.dcmtk.delivery import MAX_FAILURES, RETRY_SECS, DeliveryQueue
from harmonyd.errors import RemoteError


class Taker:
    """Takes files, but for those in ``refused``; notes each attempt."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.is_away = False
        self.attempts: list[str] = []

    async def __call__(self, path: Path) -> None:
        self.attempts.append(path.name)
        if self.is_away or path.name in self.refused:
            raise RemoteError("not now")

    def new_attempts(self) -> list[str]:
        attempts, self.attempts = self.attempts, []
        return attempts


def _queue(clock: Clock, hand_on: Callable[[Path], Awaitable[None]], *names: str) -> DeliveryQueue:
    queue = DeliveryQueue(clock, hand_on, "scp")
    for name in names:
        queue.add(Path(name))
    return queue


def test_in_order() -> None:
    """Files are handed on in the order they came, each once."""
    clock, taker = Clock(), Taker()
    queue = _queue(clock, taker, "a", "b", "c")
    assert taker.new_attempts() == ["a", "b", "c"]
    assert len(queue) == 0
    assert clock.getDelayedCalls() == []


def test_a_failed_file_waits_longer_each_time() -> None:
    """A file nobody takes is offered again after growing waits."""
    clock, taker = Clock(), Taker()
    taker.refused = {"bad"}
    _queue(clock, taker, "bad")
    for wait in (*RETRY_SECS, RETRY_SECS[-1]):
        assert taker.new_attempts() == ["bad"]
        clock.advance(wait - 0.5)
        assert taker.new_attempts() == []
        clock.advance(0.5)
    taker.refused.clear()
    clock.advance(RETRY_SECS[-1])
    assert taker.new_attempts() == ["bad", "bad"]
    assert clock.getDelayedCalls() == []


def test_a_failed_file_holds_nobody_up() -> None:
    """Others pass a file that nobody takes, those that come while it waits too."""
    clock, taker = Clock(), Taker()
    taker.refused = {"bad"}
    queue = _queue(clock, taker, "bad", "b", "c")
    for _ in range(5):
        clock.advance(RETRY_SECS[-1])
    taker.new_attempts()
    queue.add(Path("d"))
    queue.add(Path("e"))
    assert taker.new_attempts() == ["d", "e"]


def test_a_taker_that_is_away_is_not_hammered() -> None:
    """After some failures in a row there is one attempt at a time, ever less often, and one for each new file."""
    clock, taker = Clock(), Taker()
    taker.is_away = True
    queue = _queue(clock, taker, *(f"{number:02}" for number in range(50)))
    assert len(taker.new_attempts()) == 50
    for _ in range(60):
        clock.advance(60)
    assert len(taker.new_attempts()) <= 60
    queue.add(Path("new"))
    assert len(taker.new_attempts()) == 1
    taker.is_away = False
    for _ in range(60):
        clock.advance(60)
    assert set(taker.new_attempts()) >= {f"{number:02}" for number in range(50)}
    assert len(queue) == 0


def test_a_backlog_is_not_tried_as_a_whole() -> None:
    """What is there already when the taker goes away is not tried file by file."""
    clock, taker = Clock(), Taker()
    gate: Deferred[None] = Deferred()

    async def hand_on(path: Path) -> None:
        if path.name == "first":
            await gate
        await taker(path)

    taker.is_away = True
    queue = _queue(clock, hand_on, "first", *(f"{number:02}" for number in range(50)))
    gate.callback(None)
    assert taker.new_attempts() == ["first", "00", "01"]
    assert len(queue) == 51
    clock.advance(RETRY_SECS[MAX_FAILURES - 1])
    assert len(taker.new_attempts()) == 1


@pytest_twisted.ensureDeferred
async def test_stop_cancels_and_waits() -> None:
    """Stopping ends what is being handed on, waits for its end, and leaves no timer."""
    clock = Clock()
    said = []

    async def hand_on(path: Path) -> None:
        try:
            await Deferred()
        except CancelledError:
            said.append("cancelled")
            raise

    queue = _queue(clock, hand_on, "a", "b")
    await queue.stop()
    queue.add(Path("c"))
    assert said == ["cancelled"]
    assert clock.getDelayedCalls() == []
