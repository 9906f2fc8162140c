"""When an asker is told of the commitment that it asked for."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from harmonyd.commitment.api import Forwarded, Reference
from harmonyd.commitment.books import Books
from harmonyd.commitment.ledger import Ledger
from harmonyd.config.asking import MoveDestination
from harmonyd.config.model import DicomEndpointOptions
from harmonyd.dimse.commitment import action
from harmonyd.dimse.engine import Association
from harmonyd.dimse.normalized import NormalizedAnswer, NormalizedAsked, NormalizedRequest, Perform, Unanswered
from harmonyd.errors import Unavailable
from harmonyd.services.dicom.commitments import Commitments
from harmonyd.services.dicom.committing import CommitmentMeans, Committing
from harmonyd.services.dicom.forwarding import Forwarding

REQUEST = action("9.1", [("1.2.3", "1.1")])


async def at_once(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


class Pipeline:
    """With a backend that is configured no more."""

    def __init__(self) -> None:
        self.backends: dict[str, Any] = {}

    async def admit(self, request: Any, action: str) -> tuple[str, ...]:
        return ("gone",)


class Engine:
    """Reaches nobody."""

    def __init__(self) -> None:
        self.calls = 0

    async def normalized(self, *args: Any, **options: Any) -> NormalizedAnswer:
        self.calls += 1
        raise Unavailable("nobody listens there")


class Asking:
    """An endpoint, and its askers."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.engine = Clock(), Engine()
        self.books = Books(folder, at_once)
        means = CommitmentMeans(self.clock, self.books, Commitments(self.clock, at_once))
        known = {"CT1": MoveDestination("192.0.2.1", 104)}
        self.options = DicomEndpointOptions(commit_wait_secs=0, move_destinations=known)
        self.committing = Committing(
            "scp", means, at_once, lambda: (self.options, Pipeline(), self.engine),  # type: ignore[arg-type, return-value]
            self._outstanding, lambda: 0.5,
        )  # fmt: skip

    async def _outstanding(self, *_: Sequence[str]) -> frozenset[str]:
        return frozenset()

    def ask(self, ask_back: Perform) -> int:
        asked = NormalizedAsked(Association("id", "HARMONY", "CT1"), 1, REQUEST, ask_back)
        statuses: list[NormalizedAnswer] = []
        Deferred.fromCoroutine(self.committing.requested(asked)).addCallback(statuses.append)
        return statuses[0].status


@pytest.fixture
def asking(tmp_path: Path) -> Asking:
    return Asking(tmp_path)


async def has_left(request: NormalizedRequest) -> NormalizedAnswer:
    raise Unanswered("the association has ended")


def test_who_asks_again_is_told_over_that_association(asking: Asking) -> None:
    """And not when the next call is due, which may be in an hour, and as much in vain as those before."""
    reports: list[NormalizedRequest] = []

    async def takes(request: NormalizedRequest) -> NormalizedAnswer:
        reports.append(request)
        return NormalizedAnswer(0)

    assert asking.ask(has_left) == 0
    asking.clock.advance(0.5)
    assert asking.engine.calls == 1
    assert asking.ask(has_left) == 0
    assert asking.engine.calls == 2
    assert asking.ask(takes) == 0
    assert (len(reports), asking.engine.calls) == (1, 2)
    assert not asking.clock.getDelayedCalls()
    open_demands: list[Any] = []
    Deferred.fromCoroutine(asking.books.do(lambda ledger: ledger.demands("scp"))).addCallback(open_demands.append)
    assert open_demands == [[]]
    Deferred.fromCoroutine(asking.books.close())


def test_a_disk_that_is_full_for_a_while_costs_no_report(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be written down is tried again."""
    reports: list[NormalizedRequest] = []

    async def takes(request: NormalizedRequest) -> NormalizedAnswer:
        reports.append(request)
        return NormalizedAnswer(0)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "decided", _full)
        assert asking.ask(takes) == 0
        asking.clock.advance(30)
    assert not reports
    asking.clock.advance(30)
    assert len(reports) == 1
    assert not asking.clock.getDelayedCalls()
    Deferred.fromCoroutine(asking.books.close())


def _full(*_: object) -> None:
    raise sqlite3.OperationalError("database or disk is full")


def test_an_end_leaves_nothing(asking: Asking) -> None:
    """What is not told is told by the next run."""
    asking.ask(has_left)
    assert asking.clock.getDelayedCalls()
    stopped = Deferred.fromCoroutine(asking.committing.stop())
    assert stopped.called
    assert not asking.clock.getDelayedCalls()
    started = Deferred.fromCoroutine(asking.committing.start())
    assert started.called
    assert asking.engine.calls == 2
    Deferred.fromCoroutine(asking.committing.stop())
    Deferred.fromCoroutine(asking.books.close())


def test_what_is_forwarded_is_asked_about_when_the_disk_has_room_again(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting for the next object."""
    means = CommitmentMeans(asking.clock, asking.books, Commitments(asking.clock, at_once))
    forwarding = Forwarding("scp", means, dict, _nothing)
    monkeypatch.setattr(Forwarding, "watches", lambda *_: True)
    asked: list[int] = []

    async def ask(_: Forwarding, backend: str, items: Sequence[Forwarded]) -> None:
        asked.extend(item.entry for item in items)

    monkeypatch.setattr(Forwarding, "_ask", ask)
    item = Forwarded(7, Reference("1.2.3", "1.1"))
    Deferred.fromCoroutine(asking.books.do(lambda ledger: ledger.stored("scp", "pacs", [item])))
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "change", _full)
        Deferred.fromCoroutine(forwarding.start())
        asking.clock.advance(0)
    assert not asked
    asking.clock.advance(30)
    assert asked == [7]
    Deferred.fromCoroutine(forwarding.stop())
    Deferred.fromCoroutine(asking.books.close())


async def _nothing(entries: Sequence[int]) -> None:
    """Of the spool."""
