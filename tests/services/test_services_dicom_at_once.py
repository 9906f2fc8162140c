"""An object through its pipeline at once: what a sender that waits is to be told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from test_services_dicom_inbound import ASSOCIATION, Batching, FakeBackend, LeavesOut, Stage, arrival, content
from twisted.internet.defer import CancelledError, Deferred

from harmonyd.dimse.engine import NotDelivered, Obstacle
from harmonyd.dimse.errors import AssociationAborted, DimseFailure, DimseTimeout, RemoteUnreachable
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import HarmonydError, Unavailable
from harmonyd.middleware.base import Middleware
from harmonyd.middleware.passthru import Passthru
from harmonyd.middleware.path_filter import PathFilter
from harmonyd.pipeline.errors import NotTried
from harmonyd.testing.data import demo_files


@pytest.fixture
def received(tmp_path: Path) -> Path:
    return Path(shutil.copy(demo_files()[0], tmp_path / "received.dcm"))


async def refusal(stage: Stage, received: Path) -> tuple[Obstacle, str, int | None]:
    """Of an object that is not delivered."""
    with pytest.raises(NotDelivered) as caught:
        await stage.endpoint.deliver_now(arrival(received))
    assert content(received)
    assert not stage.spool.took
    return caught.value.obstacle, caught.value.reason, caught.value.status


@pytest_twisted.ensureDeferred
async def test_delivered(received: Path) -> None:
    """Each backend gets it with all that is known of it; it stays the caller's, and the spool sees nothing of it."""
    one, two = FakeBackend(), Batching()
    stage = Stage(Passthru("m"), one=one, two=two)
    await stage.endpoint.deliver_now(arrival(received))
    for backend in (one, two):
        [request] = backend.got
        assert backend.bodies == [content(received)]
        assert request.metadata["calling_aet"] == ASSOCIATION.calling_aet
        assert request.metadata["dimse_op"] == "store"
        assert request.normalized is not None
    assert content(received)
    assert not stage.spool.took


@pytest_twisted.ensureDeferred
async def test_left_out_by_middleware(received: Path) -> None:
    """What middleware leaves out everywhere is as good as delivered."""
    backend = FakeBackend()
    await Stage(LeavesOut("m"), one=backend).endpoint.deliver_now(arrival(received))
    assert not backend.got


class Answers(Passthru):
    """Answers instead of a backend."""

    def __init__(self, status: int) -> None:
        super().__init__("answers")
        self._status = status

    async def on_request(self, request: RequestEnvelope) -> ResponseEnvelope:
        return ResponseEnvelope(status=self._status)


class Fails(Passthru):
    """Has a mistake."""

    async def on_request(self, request: RequestEnvelope) -> None:
        raise KeyError("PatientName")


@pytest.mark.parametrize(
    ("middleware", "obstacle", "reason"),
    [
        (PathFilter("filter", ["/nothing"]), Obstacle.REFUSED, "No such route"),
        (Answers(403), Obstacle.REFUSED, "status 403"),
        (Answers(503), Obstacle.AWAY, "status 503"),
        (Fails("m"), Obstacle.FAILED, "KeyError"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_refused_by_middleware(received: Path, middleware: Middleware, obstacle: Obstacle, reason: str) -> None:
    """A refusal is one, a mistake of ours is not; no backend is asked either way."""
    backend = FakeBackend()
    found = await refusal(Stage(middleware, one=backend), received)
    assert (found[0], found[2]) == (obstacle, None)
    assert reason in found[1] and "PatientName" not in found[1]
    assert not backend.got


@pytest.mark.parametrize(
    ("answer", "obstacle", "status"),
    [
        (DimseFailure.from_status("C-STORE", 0xC123, "cannot understand", None), Obstacle.FAILED, 0xC123),
        (DimseFailure.from_status("C-STORE", 0xA900, "does not match", None), Obstacle.FAILED, 0xA900),
        (DimseFailure.from_status("C-STORE", 0xA7FF, "out of resources", None), Obstacle.AWAY, None),
        (DimseFailure.from_status("C-STORE", 0xFE00, "cancelled", None), Obstacle.FAILED, None),
        (ResponseEnvelope(status=422), Obstacle.FAILED, None),
        (ResponseEnvelope(status=503), Obstacle.AWAY, None),
        (RemoteUnreachable("refused"), Obstacle.AWAY, None),
        (Unavailable("the queue is full"), Obstacle.AWAY, None),
        (AssociationAborted("it hung up"), Obstacle.FAILED, None),
        (DimseTimeout("too slow", timeout="operation"), Obstacle.FAILED, None),
        (NotTried("later"), Obstacle.AWAY, None),
        (HarmonydError("odd"), Obstacle.FAILED, None),
    ],
)
@pytest_twisted.ensureDeferred
async def test_not_taken_by_a_backend(received: Path, answer: Any, obstacle: Obstacle, status: int | None) -> None:
    """What is about the object is told apart from what is about the backend; a node's own status is passed on."""
    found = await refusal(Stage(pacs=FakeBackend(answer)), received)
    assert (found[0], found[2]) == (obstacle, status)
    assert found[1].startswith("pacs: ")


@pytest_twisted.ensureDeferred
async def test_several_backends(received: Path) -> None:
    """All are asked, and waited for; the worst outcome is the answer, with the reasons of all that failed."""
    slow = FakeBackend()
    slow.waits = Deferred()
    rude = FakeBackend(DimseFailure.from_status("C-STORE", 0xC123, "cannot understand", None))
    stage = Stage(gone=FakeBackend(RemoteUnreachable("nobody there")), slow=slow, rude=rude)
    answered = Deferred.fromCoroutine(refusal(stage, received))
    assert not answered.called
    slow.waits.callback(None)
    obstacle, reason, status = await answered
    assert (obstacle, status) == (Obstacle.FAILED, 0xC123)
    assert reason.startswith("gone: nobody there; rude: C-STORE ended with status 0xC123")


@pytest_twisted.ensureDeferred
async def test_cancelled(received: Path) -> None:
    """Whoever cancels it ends all deliveries, and a change of the configuration waits for that."""
    one, two = FakeBackend(), FakeBackend()
    one.waits, two.waits = Deferred(), Deferred()
    stage = Stage(one=one, two=two)
    delivering = Deferred.fromCoroutine(stage.endpoint.deliver_now(arrival(received)))
    ended = Deferred.fromCoroutine(stage.endpoint.present_deliveries_end())
    assert not ended.called
    delivering.cancel()
    with pytest.raises(CancelledError):
        await delivering
    await ended
