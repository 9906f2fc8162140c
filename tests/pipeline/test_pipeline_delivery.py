"""Inbound objects through a pipeline to one backend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from harmonyd.bodies import BytesBody
from harmonyd.envelope import Record, RequestEnvelope, ResponseEnvelope
from harmonyd.errors import Forbidden
from harmonyd.middleware.metadata import Metadata
from harmonyd.pipeline.errors import DeliveryRefused, NotTried, UnknownBackend
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
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


class Truck(Receiver):
    """A backend that takes many at once; it refuses what is called "bad" and does not try what comes after."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[list[bytes]] = []

    async def send_all(self, requests: Sequence[RequestEnvelope]) -> Sequence[ResponseEnvelope | Exception]:
        load = [await request.body.read(100) for request in requests]
        self.loads.append(load)
        bad = load.index(b"bad") if b"bad" in load else len(load)
        refused: list[ResponseEnvelope | Exception] = [DeliveryRefused("bad"), *[NotTried("later")] * len(load)]
        return [*[ResponseEnvelope()] * bad, *refused][: len(load)]


class Refuser:
    """Middleware that answers with a status."""

    name = "refuser"

    def __init__(self, status: int) -> None:
        self._status = status

    async def on_request(self, request: RequestEnvelope) -> ResponseEnvelope | None:
        return ResponseEnvelope(status=self._status)

    async def on_response(self, request: RequestEnvelope, response: ResponseEnvelope) -> ResponseEnvelope:
        return response


def inbound(content: bytes = b"object") -> RequestEnvelope:
    return RequestEnvelope("dicom", "C-STORE", "dicom://X/1.2.3", "/", BytesBody(content))


async def deliver_one(pipeline: Pipeline, backend: str) -> Exception | None:
    (outcome,) = await pipeline.deliver(backend, [inbound()])
    return outcome


@pytest_twisted.ensureDeferred
async def test_the_backend_gets_the_object() -> None:
    """The one that was named gets it, the other does not."""
    first, second = Receiver(), Receiver()
    assert await deliver_one(Pipeline("in", [], {"a": first, "b": second}), "b") is None
    assert (first.got, second.got) == ([], [b"object"])


@pytest.mark.parametrize(("choice", "gets"), [("b", False), ("a", True), ("b, a", True)])
@pytest_twisted.ensureDeferred
async def test_middleware_narrows_the_delivery(choice: str, gets: bool) -> None:
    """A backend that middleware did not choose is done with the object without having got it."""
    first = Receiver()
    pipeline = Pipeline("in", [Metadata("m", {"backend": choice})], {"a": first, "b": Receiver()})
    assert await deliver_one(pipeline, "a") is None
    assert bool(first.got) is gets


@pytest_twisted.ensureDeferred
async def test_a_choice_that_is_not_there() -> None:
    """Middleware that chooses a backend the pipeline does not have is a failure, not a silent drop."""
    pipeline = Pipeline("in", [Metadata("m", {"backend": "c"})], {"a": Receiver()})
    assert isinstance(await deliver_one(pipeline, "a"), UnknownBackend)


@pytest_twisted.ensureDeferred
async def test_one_failure_does_not_stop_the_others() -> None:
    """Each object has an outcome of its own."""
    truck = Truck()
    outcomes = await Pipeline("in", [], {"a": truck}).deliver("a", [inbound(b"good"), inbound(b"bad"), inbound()])
    assert [type(outcome) for outcome in outcomes] == [type(None), DeliveryRefused, NotTried]
    assert truck.loads == [[b"good", b"bad", b"object"]]


@pytest_twisted.ensureDeferred
async def test_what_a_backend_raises_is_the_outcome() -> None:
    """An exception is told, not raised: it is about one object."""
    refused = Forbidden("closed on Sundays")
    assert await deliver_one(Pipeline("in", [], {"a": Receiver(refused)}), "a") is refused


@pytest_twisted.ensureDeferred
async def test_results_are_read_to_their_end() -> None:
    """A store happens while its results are read, so they are read, and closed."""
    outcome = Outcome(success=True)
    await deliver_one(Pipeline("in", [], {"a": Receiver(ResponseEnvelope(results=outcome))}), "a")
    assert outcome.iterated
    assert outcome.closed


@pytest.mark.parametrize(
    "answer",
    [ResponseEnvelope(status=404), ResponseEnvelope(status=302), ResponseEnvelope(results=Outcome(success=False))],
)
@pytest_twisted.ensureDeferred
async def test_an_answer_that_is_no_success_is_no_delivery(answer: ResponseEnvelope) -> None:
    """Error statuses, redirects and failed results mean that the backend does not have the object."""
    assert isinstance(await deliver_one(Pipeline("in", [], {"a": Receiver(answer)}), "a"), DeliveryRefused)


@pytest_twisted.ensureDeferred
async def test_middleware_can_take_or_refuse_an_object() -> None:
    """An early answer of success ends the delivery; any other refuses the object."""
    receiver = Receiver()
    assert await deliver_one(Pipeline("in", [Refuser(200)], {"a": receiver}), "a") is None
    assert isinstance(await deliver_one(Pipeline("in", [Refuser(403)], {"a": receiver}), "a"), DeliveryRefused)
    assert receiver.got == []


class Sleeper:
    """A backend that never answers."""

    async def send(self, request: RequestEnvelope) -> ResponseEnvelope:
        await Deferred()
        return ResponseEnvelope()


@pytest_twisted.ensureDeferred
async def test_a_cancellation_is_not_a_failed_delivery() -> None:
    """Cancelling ends the delivery with that, and with no outcome."""
    delivery = Deferred.fromCoroutine(Pipeline("in", [], {"a": Sleeper()}).deliver("a", [inbound()]))
    delivery.cancel()
    with pytest.raises(CancelledError):
        await delivery
