"""Events of an operation: whole states, few of them, a sign of life, and an end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from harmonyd.bodies import EmptyBody
from harmonyd.errors import Unavailable
from harmonyd.operations.events import HEARTBEAT_SECS, INTERVAL_SECS, Watchers, event_stream
from harmonyd.operations.operation import Operation, Owner, cancelled
from harmonyd.services.base import HttpRequest


class Watched:
    """An operation, and one who reads its events."""

    def __init__(self, most: int = 1) -> None:
        self.clock = Clock()
        request = HttpRequest("r", "GET", "/web/studies/1?x=y", "/studies/1", "/web", {}, {}, EmptyBody(), "")
        self.operation = Operation("0" * 32, Owner("web", "/web"), request, self.clock.seconds, 60)
        self.watchers = Watchers(most)
        self.events = self.stream()

    def stream(self, last_event_id: str = "") -> Any:
        return event_stream(self.operation, self.watchers, last_event_id, self.clock).chunks

    def next(self, events: AsyncIterator[bytes] | None = None) -> Deferred[bytes]:
        """What comes next, when it comes."""
        return Deferred.fromCoroutine(anext(events or self.events))  # type: ignore[arg-type]

    def now(self, deferred: Deferred[bytes]) -> tuple[str, Any]:
        """Name and state of an event that is there."""
        assert deferred.called
        text = deferred.result.decode()
        assert text.endswith("\n\n")
        fields = dict(line.split(": ", 1) for line in text.strip().split("\n"))
        assert fields["id"] == str(self.operation.version)
        return fields["event"], json.loads(fields["data"])


def test_many_changes_are_one_event() -> None:
    """Whatever happens between two events is in the second one, which does not come before its time."""
    watched = Watched()
    assert watched.now(watched.next())[1]["state"] == "queued"
    coming = watched.next()
    for _ in range(1000):
        watched.operation.arrived(10)
    watched.clock.advance(INTERVAL_SECS / 2)
    assert not coming.called
    watched.clock.advance(INTERVAL_SECS / 2)
    name, state = watched.now(coming)
    assert (name, state["instances"], state["bytes"]) == ("progress", 1000, 10_000)
    assert state["request"] == {"id": "r", "method": "GET", "path": "/web/studies/1"}, "without its query"


def test_the_end_does_not_wait() -> None:
    """The last event comes at once, and the stream ends behind it; nothing is left that would happen later."""
    watched = Watched()
    watched.next()
    coming = watched.next()
    watched.operation.drop(cancelled("for a test"))
    name, state = watched.now(coming)
    assert (name, state["state"], state["problem"]["status"]) == ("cancelled", "cancelled", 410)
    watched.next().addErrback(lambda failure: failure.trap(StopAsyncIteration))
    assert watched.watchers.count == 0
    assert watched.clock.getDelayedCalls() == []
    again = event_stream(watched.operation, watched.watchers, str(watched.operation.version), watched.clock)
    assert (again.status, again.chunks) == (204, None)
    assert watched.now(watched.next(watched.stream("0")))[0] == "cancelled"


def test_silence_is_broken() -> None:
    """A comment comes while nothing changes, again and again."""
    watched = Watched()
    watched.next()
    coming = watched.next()
    watched.clock.advance(INTERVAL_SECS)
    for _ in range(3):
        watched.clock.advance(HEARTBEAT_SECS)
        assert coming.called
        assert coming.result.startswith(b":")
        coming = watched.next()
    watched.operation.arrived(1)
    assert watched.now(coming)[1]["instances"] == 1


def test_one_who_leaves_makes_room() -> None:
    """Watchers are limited; one that is cancelled while it waits is none any more."""
    watched = Watched()
    watched.next()
    refused: list[Any] = []
    watched.next(watched.stream()).addErrback(refused.append)
    assert isinstance(refused[0].value, Unavailable)
    waiting = watched.next()
    waiting.addErrback(lambda _: None)
    waiting.cancel()
    assert watched.watchers.count == 0
    assert watched.clock.getDelayedCalls() == []
    assert watched.now(watched.next(watched.stream()))[0] == "progress"


@pytest.mark.parametrize("late", ["arrived", "counted", "began"])
def test_nothing_changes_after_the_end(late: str) -> None:
    """What an engine still says is not heard: the last event is the last state."""
    watched = Watched()
    watched.operation.drop(cancelled("for a test"))
    before = watched.operation.version, watched.operation.document
    {
        "arrived": lambda: watched.operation.arrived(1),
        "counted": lambda: watched.operation.counted(1, 0, 0, 0),
        "began": watched.operation.began,
    }[late]()
    assert (watched.operation.version, watched.operation.document) == before
