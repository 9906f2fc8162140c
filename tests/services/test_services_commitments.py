"""Reports of PACS, true ones and others, and the transactions that they are about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from harmonyd.commitment.api import Reference, Report
from harmonyd.dimse.commitment import action, event
from harmonyd.dimse.engine import OperationContext, RemoteNode
from harmonyd.dimse.errors import DimseFailure
from harmonyd.dimse.normalized import NormalizedAnswer, NormalizedRequest
from harmonyd.errors import BadRequest, DeadlinePassed
from harmonyd.services.dicom.commitments import Commitments

ONE = Reference("1.2.3", "1.1")
PAIR = ("1.2.3", "1.1")
NODE = RemoteNode("pacs", "PACS", "127.0.0.1", 104, "US")


async def in_thread(function: Any, *args: Any) -> Any:
    return function(*args)


class Engine:
    """Answers an N-ACTION, and tells ``reports`` over its association."""

    def __init__(self, status: int = 0, *reports: NormalizedRequest) -> None:
        self._status = status
        self._reports = reports
        self.answers: list[int] = []

    async def normalized(self, remote: Any, request: Any, op: Any, *, listening: Any, **more: Any) -> NormalizedAnswer:
        for report in self._reports:
            self.answers.append((await listening.hear(report)).status)
        return NormalizedAnswer(self._status)


def ask(commitments: Commitments, engine: object) -> Deferred[Report]:
    op = OperationContext("id", "request", 10.0)
    asking = commitments.ask(engine, NODE, [ONE], op, transaction_uid="9.1", hold_secs=1.0)
    return Deferred.fromCoroutine(asking)


@pytest_twisted.ensureDeferred
async def test_lies_over_the_association_are_refused() -> None:
    """Unknown transactions, other events, data sets that are none; the true report counts, once, early or not."""
    true = event("9.1", [PAIR], {})
    lies = [
        event("9.2", [PAIR], {}),
        replace(true, type_id=3),
        replace(true, data=b"\x08\x00\x05"),
        replace(true, data=b""),
        replace(true, sop_class_uid="1.2"),
        action("9.1", [PAIR]),
    ]
    engine = Engine(0, *lies, true, event("9.1", [], {PAIR: 0x0110}))
    report = await ask(Commitments(Clock(), in_thread), engine)
    assert report == Report("9.1", (ONE,))
    assert engine.answers == [0x0115, 0x0113, 0x0115, 0x0115, 0x0122, 0x0122, 0, 0]


@pytest_twisted.ensureDeferred
async def test_a_report_over_another_association() -> None:
    """Whoever sends it; afterwards nobody waits for it."""
    commitments = Commitments(Clock(), in_thread)
    asked = ask(commitments, Engine())
    assert (await commitments.heard(event("9.1", [], {PAIR: 0x0112}), "ARCHIVE")).status == 0
    assert (await asked).reason(ONE) == "0x0112: no such object instance"
    assert (await commitments.heard(event("9.1", [PAIR], {}), "PACS")).status == 0x0115


@pytest_twisted.ensureDeferred
async def test_no_report() -> None:
    """At the deadline nobody waits any more."""
    clock = Clock()
    commitments = Commitments(clock, in_thread)
    asked = ask(commitments, Engine())
    clock.advance(10)
    with pytest.raises(DeadlinePassed, match="not reported"):
        await asked
    assert (await commitments.heard(event("9.1", [PAIR], {}))).status == 0x0115


@pytest_twisted.ensureDeferred
async def test_a_request_that_is_refused() -> None:
    """By the PACS, with its status; by an engine that cannot."""
    with pytest.raises(DimseFailure) as caught:
        await ask(Commitments(Clock(), in_thread), Engine(0x0110))
    assert caught.value.extra["dimse_status"] == "0x0110"
    with pytest.raises(BadRequest):
        await ask(Commitments(Clock(), in_thread), object())


@pytest_twisted.ensureDeferred
async def test_a_report_on_what_the_run_before_has_asked() -> None:
    """It is waited for by its Transaction UID."""
    commitments = Commitments(Clock(), in_thread)
    late = Deferred.fromCoroutine(commitments.await_late("9.1", "PACS", 10.0))
    await commitments.heard(event("9.1", [PAIR], {}), "PACS")
    assert (await late).committed == (ONE,)
