"""Inbound objects through a pipeline: every backend that is left gets the object."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError

from harmonyd.bodies import BytesBody
from harmonyd.envelope import Record, RequestEnvelope, ResponseEnvelope
from harmonyd.errors import Forbidden
from harmonyd.middleware.metadata import Metadata
from harmonyd.pipeline.errors import DeliveryFailed, DeliveryRefused
from harmonyd.pipeline.pipeline import Pipeline


class Outcome:
    """Results without records, which do their work when they are iterated."""

    operation = "store"
    media_type = "application/json"
    items_key: str | None = "instances"

    def __init__(self, *, success: bool) -> None:
        self.success = success
        self.iterated = self.closed = False

    async def __aiter__(self) -> AsyncIterator[Record]:
        self.iterated = True
        for nothing in ():
            yield nothing

    def summary(self) -> Mapping[str, Any]:
        reason = {} if self.success else {"incomplete_reason": "the archive is full"}
        return {"success": self.success, "complete": self.success, **reason}

    async def aclose(self) -> None:
        self.closed = True


class Receiver:
    """A backend that keeps what it gets and answers as told."""

    def __init__(self, answer: ResponseEnvelope | Exception | None = None) -> None:
        self.got: list[bytes] = []
        self._answer = answer or ResponseEnvelope()

    async def send(self, request: RequestEnvelope) -> ResponseEnvelope:
        self.got.append(await request.body.read(100))
        request.metadata["mark"] = "mine"
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


class Refuser:
    """Middleware that answers with a status."""

    name = "refuser"

    def __init__(self, status: int) -> None:
        self._status = status

    async def on_request(self, request: RequestEnvelope) -> ResponseEnvelope | None:
        return ResponseEnvelope(status=self._status)

    async def on_response(self, request: RequestEnvelope, response: ResponseEnvelope) -> ResponseEnvelope:
        return response


def inbound() -> RequestEnvelope:
    return RequestEnvelope("dicom", "C-STORE", "dicom://X/1.2.3", "/", BytesBody(b"object"))


def fresh() -> BytesBody:
    return BytesBody(b"object")


@pytest_twisted.ensureDeferred
async def test_every_backend_gets_a_fresh_body() -> None:
    """All backends get the whole object, and none sees what another did to the metadata."""
    first, second = Receiver(), Receiver()
    request = inbound()
    assert await Pipeline("in", [], {"a": first, "b": second}).deliver(request, fresh) == ("a", "b")
    assert first.got == second.got == [b"object"]
    assert request.metadata == {}


@pytest_twisted.ensureDeferred
async def test_middleware_narrows_the_delivery() -> None:
    """Only the backend that middleware chooses gets the object."""
    first, second = Receiver(), Receiver()
    pipeline = Pipeline("in", [Metadata("m", {"backend": "b"})], {"a": first, "b": second})
    assert await pipeline.deliver(inbound(), fresh) == ("b",)
    assert (first.got, second.got) == ([], [b"object"])


@pytest_twisted.ensureDeferred
async def test_one_failure_does_not_stop_the_others() -> None:
    """A backend that fails is named with its reason; those after it still get the object."""
    last = Receiver()
    pipeline = Pipeline("in", [], {"a": Receiver(), "b": Receiver(Forbidden("closed on Sundays")), "c": last})
    with pytest.raises(DeliveryFailed, match="b: closed on Sundays") as failed:
        await pipeline.deliver(inbound(), fresh)
    assert failed.value.delivered == ("a", "c")
    assert list(failed.value.errors) == ["b"]
    assert last.got == [b"object"]


@pytest_twisted.ensureDeferred
async def test_those_that_have_the_object_can_be_skipped() -> None:
    """A repeated delivery leaves out the backends that have the object, and counts them as delivered."""
    first, second = Receiver(), Receiver()
    assert await Pipeline("in", [], {"a": first, "b": second}).deliver(inbound(), fresh, skip=["a"]) == ("a", "b")
    assert (first.got, second.got) == ([], [b"object"])


@pytest_twisted.ensureDeferred
async def test_results_are_read_to_their_end() -> None:
    """A store happens while its results are read, so they are read, and closed."""
    outcome = Outcome(success=True)
    await Pipeline("in", [], {"a": Receiver(ResponseEnvelope(results=outcome))}).deliver(inbound(), fresh)
    assert outcome.iterated
    assert outcome.closed


@pytest.mark.parametrize(
    "answer",
    [ResponseEnvelope(status=404), ResponseEnvelope(status=302), ResponseEnvelope(results=Outcome(success=False))],
)
@pytest_twisted.ensureDeferred
async def test_an_answer_that_is_no_success_is_no_delivery(answer: ResponseEnvelope) -> None:
    """Error statuses, redirects and failed results mean that the backend does not have the object."""
    with pytest.raises(DeliveryFailed) as failed:
        await Pipeline("in", [], {"a": Receiver(answer)}).deliver(inbound(), fresh)
    assert isinstance(failed.value.errors["a"], DeliveryRefused)


@pytest_twisted.ensureDeferred
async def test_middleware_can_take_or_refuse_an_object() -> None:
    """An early answer of success ends the delivery; any other refuses the object."""
    receiver = Receiver()
    assert await Pipeline("in", [Refuser(200)], {"a": receiver}).deliver(inbound(), fresh) == ()
    with pytest.raises(DeliveryRefused):
        await Pipeline("in", [Refuser(403)], {"a": receiver}).deliver(inbound(), fresh)
    assert receiver.got == []


@pytest_twisted.ensureDeferred
async def test_a_cancellation_is_not_a_failed_delivery() -> None:
    """Cancelling ends the delivery at once."""
    last = Receiver()
    with pytest.raises(CancelledError):
        await Pipeline("in", [], {"a": Receiver(CancelledError()), "b": last}).deliver(inbound(), fresh)
    assert last.got == []
