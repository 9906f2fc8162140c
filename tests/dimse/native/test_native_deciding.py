"""C-STORE answered with what the pipeline came to: the status says it, and nothing is left behind, whatever happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted
from raw_scu import ABORT, ASSOCIATE_AC, P_DATA, RELEASE_RP, RawScu, data_set_of, p_data, pdu, store_rq
from sender_kit import status_of
from test_native_storing import stored
from twisted.internet.defer import CancelledError, Deferred

from harmonyd.acknowledge import PipelineAnswers
from harmonyd.dimse.engine import Arrival, NotDelivered, Obstacle
from harmonyd.testing.data import MadeStudy

ANSWERS = PipelineAnswers(60.0, refused=0xB006, away=0xA701, deadline=0xA702)


class PipelineEnd:
    """An ``ObjectHandler`` whose deliveries end as a test wants."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)
        """Of the deliveries, in turn; after these each one waits for ``go_on``."""
        self.arrivals: list[Arrival] = []
        self.waiting: dict[str, Deferred[None]] = {}
        self.cancelled: list[str] = []
        self.stubborn = False
        """It goes on when it is cancelled."""

    async def deliver_now(self, arrival: Arrival) -> None:
        uid = arrival.instance.sop_instance_uid
        assert arrival.instance.path.exists()
        self.arrivals.append(arrival)
        if self.errors:
            error = self.errors.pop(0)
            if error is not None:
                raise error
            return
        self.waiting[uid] = Deferred()
        try:
            await self.waiting[uid]
        except CancelledError:
            self.cancelled.append(uid)
            if not self.stubborn:
                raise
            self.waiting[uid] = Deferred()
            await self.waiting[uid]


async def deciding(native: Any, *errors: Exception | None, **options: Any) -> Any:
    """A running SCP whose objects are delivered by a ``PipelineEnd``."""
    running = await native(**{"acknowledge": ANSWERS, **options})
    running.scp._handler = PipelineEnd(*errors)
    return running


@asynccontextmanager
async def sending(running: Any, study: MadeStudy) -> AsyncIterator[RawScu]:
    """A sender that waits for the answer to a whole object."""
    with RawScu(running.port) as scu:
        assert (await running.in_thread(scu.associate))[0] == ASSOCIATE_AC
        scu.send(store_rq(study.sop_uids[0].encode()) + p_data(data_set_of(study.files[0]), 2))
        yield scu


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, 0x0000),
        (NotDelivered(Obstacle.REFUSED, "not wanted"), 0xB006),
        (NotDelivered(Obstacle.AWAY, "pacs: connection refused", 0xA7FF), 0xA701),
        (NotDelivered(Obstacle.FAILED, "pacs: 0xC123", 0xC123), 0xC123),
        (NotDelivered(Obstacle.FAILED, "archive: status 422"), 0x0110),
        (ZeroDivisionError(), 0x0110),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_status(native: Any, study: MadeStudy, logged_failures: Any, error: Any, status: int) -> None:
    """Each outcome has its status; the object is gone either way, and the association goes on."""
    running = await deciding(native, error)
    content = data_set_of(study.files[0])
    assert await running.in_thread(stored, running.port, study.sop_uids[0].encode(), content) == status
    (arrival,) = running.scp._handler.arrivals
    assert (arrival.instance.sop_instance_uid, arrival.association.calling_aet) == (study.sop_uids[0], "RAW")
    assert not list(running.incoming.iterdir())
    assert bool(logged_failures.flush(ZeroDivisionError)) == isinstance(error, ZeroDivisionError)


@pytest_twisted.ensureDeferred
async def test_a_status_for_whatever_a_backend_answers(native: Any, study: MadeStudy) -> None:
    """Where the configuration names one, it replaces that of the backend."""
    answers = replace(ANSWERS, failed=0xA7AA)
    running = await deciding(native, NotDelivered(Obstacle.FAILED, "pacs", 0xC123), acknowledge=answers)
    content = data_set_of(study.files[0])
    assert await running.in_thread(stored, running.port, study.sop_uids[0].encode(), content) == 0xA7AA


@pytest_twisted.ensureDeferred
async def test_others_go_on_while_one_waits(native: Any, eventually: Any, study: MadeStudy) -> None:
    """A delivery that takes long keeps only its own sender waiting; its answer comes with its outcome."""
    running = await deciding(native)
    end: PipelineEnd = running.scp._handler
    async with sending(running, study) as slow:
        await eventually(lambda: end.waiting)
        end.errors = [None] * 3
        for number in (1, 2, 3):
            uid, content = study.sop_uids[number].encode(), data_set_of(study.files[number])
            assert await running.in_thread(stored, running.port, uid, content) == 0
        assert running.associations == 1
        end.waiting[study.sop_uids[0]].callback(None)
        kind, answer = await running.in_thread(slow.receive)
        assert (kind, status_of(answer)) == (P_DATA, 0)
        assert await running.in_thread(slow.release) == RELEASE_RP


@pytest.mark.parametrize("stubborn", [False, True])
@pytest_twisted.ensureDeferred
async def test_the_time_is_over(native: Any, study: MadeStudy, stubborn: bool) -> None:
    """The sender is told at the deadline and may go on, also when the delivery does not end by being cancelled."""
    running = await deciding(native, acknowledge=replace(ANSWERS, timeout_secs=0.1))
    end: PipelineEnd = running.scp._handler
    end.stubborn = stubborn
    async with sending(running, study) as scu:
        kind, answer = await running.in_thread(scu.receive)
        assert (kind, status_of(answer)) == (P_DATA, 0xA702)
        assert b"not delivered within 0.1 s" in answer
        assert end.cancelled == [study.sop_uids[0]]
        assert not list(running.incoming.iterdir())
        if stubborn:
            end.waiting[study.sop_uids[0]].callback(None)
        assert await running.in_thread(scu.release) == RELEASE_RP


@pytest.mark.parametrize("goodbye", [b"", pdu(ABORT, bytes(4))], ids=["closed", "aborted"])
@pytest_twisted.ensureDeferred
async def test_a_sender_that_does_not_wait(
    native: Any, eventually: Any, study: MadeStudy, goodbye: bytes
) -> None:
    """For a sender that is gone nothing is delivered any more, and its place is free."""
    running = await deciding(native, max_associations=1)
    end: PipelineEnd = running.scp._handler
    async with sending(running, study) as scu:
        await eventually(lambda: end.waiting)
        scu.send(goodbye)
    await eventually(lambda: not running.associations)
    assert end.cancelled == [study.sop_uids[0]]
    assert not list(running.incoming.iterdir())


@pytest_twisted.ensureDeferred
async def test_a_sender_that_was_gone_before(native: Any, eventually: Any, study: MadeStudy) -> None:
    """An object that came with the end of its association is not delivered to anybody's surprise."""
    running = await deciding(native)
    end: PipelineEnd = running.scp._handler
    with RawScu(running.port) as scu:
        assert (await running.in_thread(scu.associate))[0] == ASSOCIATE_AC
        message = store_rq(study.sop_uids[0].encode()) + p_data(data_set_of(study.files[0]), 2)
        scu.send(message + pdu(ABORT, bytes(4)))
        await eventually(lambda: not running.associations)
    assert end.cancelled == [arrival.instance.sop_instance_uid for arrival in end.arrivals]
    assert not list(running.incoming.iterdir())


@pytest_twisted.ensureDeferred
async def test_pause_does_not_wait_for_a_delivery(native: Any, eventually: Any, study: MadeStudy) -> None:
    """When the association has to end, its sender is told that it was not delivered, and the delivery is cancelled."""
    running = await deciding(native)
    end: PipelineEnd = running.scp._handler
    async with sending(running, study) as scu:
        await eventually(lambda: end.waiting)
        pausing = Deferred.fromCoroutine(running.scp.pause())
        kind, answer = await running.in_thread(scu.receive)
        assert (kind, status_of(answer)) == (P_DATA, 0xA702)
        assert await running.in_thread(scu.rest) == [ABORT]
    await pausing
    await running.scp.taken()
    assert end.cancelled == [study.sop_uids[0]]
