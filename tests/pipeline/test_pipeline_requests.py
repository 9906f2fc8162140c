"""Requests through a pipeline: the order of middleware, the choice of a backend, and who answers."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from harmonyd.bodies import BytesBody, EmptyBody
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import BadRequest, Fault, Forbidden, NotFound
from harmonyd.pipeline.errors import UnknownBackend
from harmonyd.pipeline.pipeline import Pipeline


class Link:
    """Middleware that notes when it is called and does what it is told."""

    def __init__(
        self,
        name: str,
        seen: list[str],
        *,
        metadata: dict[str, str] | None = None,
        answers: ResponseEnvelope | None = None,
        refuses: Exception | None = None,
        fails: Exception | None = None,
    ) -> None:
        self.name = name
        self._seen = seen
        self._metadata = metadata or {}
        self._answers = answers
        self._refuses = refuses
        self._fails = fails

    async def on_request(self, request: RequestEnvelope) -> ResponseEnvelope | None:
        self._seen.append(f"{self.name}>")
        if self._refuses is not None:
            raise self._refuses
        request.metadata.update(self._metadata)
        return self._answers

    async def on_response(self, request: RequestEnvelope, response: ResponseEnvelope) -> ResponseEnvelope:
        self._seen.append(f"<{self.name}")
        if self._fails is not None:
            raise self._fails
        return response


class Target:
    """A backend that says its name."""

    def __init__(self, name: str, seen: list[str], body: Any = None) -> None:
        self.name = name
        self._seen = seen
        self._body = body

    async def send(self, request: RequestEnvelope) -> ResponseEnvelope:
        self._seen.append(self.name)
        return ResponseEnvelope(headers={"by": self.name}, body=self._body)


class NotedBody(BytesBody):
    """A body that knows that it was closed."""

    closed = False

    async def close(self) -> None:
        self.closed = True


def request(query: dict[str, list[str]] | None = None) -> RequestEnvelope:
    return RequestEnvelope("http", "POST", "/x", "/x", EmptyBody(), query=query or {})


def pipeline(seen: list[str], *links: Link, backends: tuple[str, ...] = ("one", "two")) -> Pipeline:
    return Pipeline("demo", links, {name: Target(name, seen) for name in backends})


@pytest_twisted.ensureDeferred
async def test_requests_pass_in_order_and_responses_in_reverse() -> None:
    """A request passes middleware first to last, its response last to first."""
    seen: list[str] = []
    await pipeline(seen, Link("a", seen), Link("b", seen)).handle(request())
    assert seen == ["a>", "b>", "one", "<b", "<a"]


@pytest_twisted.ensureDeferred
async def test_an_early_answer_goes_back_through_those_before_it() -> None:
    """A middleware that answers stops the request; only those before it see its response."""
    seen: list[str] = []
    early = ResponseEnvelope(status=418)
    answer = await pipeline(seen, Link("a", seen), Link("b", seen, answers=early), Link("c", seen)).handle(request())
    assert answer is early
    assert seen == ["a>", "b>", "<a"]


@pytest_twisted.ensureDeferred
async def test_a_refusal_propagates() -> None:
    """What a middleware raises reaches the caller, and no backend is asked."""
    seen: list[str] = []
    with pytest.raises(Forbidden):
        await pipeline(seen, Link("a", seen, refuses=Forbidden("no"))).handle(request())
    assert seen == ["a>"]


@pytest_twisted.ensureDeferred
async def test_a_response_is_closed_when_the_response_side_fails() -> None:
    """A stream nobody will read is closed when middleware fails on the way back."""
    seen: list[str] = []
    body = NotedBody(b"data")
    chain = [Link("a", seen), Link("b", seen, fails=ValueError("broken"))]
    with pytest.raises(ValueError, match="broken"):
        await Pipeline("demo", chain, {"one": Target("one", seen, body)}).handle(request())
    assert body.closed
    assert seen == ["a>", "b>", "one", "<b"]


@pytest_twisted.ensureDeferred
async def test_the_first_backend_is_the_default() -> None:
    """Without a choice the first backend answers."""
    assert (await pipeline([]).handle(request())).headers == {"by": "one"}


@pytest_twisted.ensureDeferred
async def test_the_query_chooses_a_backend() -> None:
    """``?backend=`` names one of the backends."""
    assert (await pipeline([]).handle(request({"backend": ["two"]}))).headers == {"by": "two"}


@pytest_twisted.ensureDeferred
async def test_middleware_chooses_a_backend() -> None:
    """The metadata key ``backend`` decides, and the query may repeat it."""
    seen: list[str] = []
    line = pipeline(seen, Link("a", seen, metadata={"backend": "two"}))
    assert (await line.handle(request())).headers == {"by": "two"}
    assert (await line.handle(request({"backend": ["two"]}))).headers == {"by": "two"}


@pytest.mark.parametrize("asked", ["one", "three", ""])
@pytest_twisted.ensureDeferred
async def test_the_query_cannot_widen_what_middleware_left(asked: str) -> None:
    """A backend that middleware did not leave, or that does not exist, is refused alike, by its name untold."""
    seen: list[str] = []
    with pytest.raises(Forbidden) as refused:
        await pipeline(seen, Link("a", seen, metadata={"backend": "two"})).handle(request({"backend": [asked]}))
    assert "two" not in str(refused.value) + str(refused.value.hint)
    assert seen == ["a>"]


@pytest_twisted.ensureDeferred
async def test_two_names_in_the_query_are_a_bad_request() -> None:
    """The query may name one backend only."""
    with pytest.raises(BadRequest):
        await pipeline([]).handle(request({"backend": ["one", "two"]}))


@pytest_twisted.ensureDeferred
async def test_a_backend_of_another_pipeline_is_our_fault() -> None:
    """Middleware that chooses a backend the pipeline does not have is a misconfiguration that names it."""
    seen: list[str] = []
    with pytest.raises(UnknownBackend, match="'elsewhere'") as error:
        await pipeline(seen, Link("a", seen, metadata={"backend": "elsewhere"})).handle(request())
    assert error.value.fault is Fault.OURS


@pytest_twisted.ensureDeferred
async def test_backends_can_be_skipped() -> None:
    """``skip_backends`` gives an empty answer, which still passes the response side."""
    seen: list[str] = []
    line = pipeline(seen, Link("a", seen, metadata={"skip_backends": "true"}))
    assert (await line.handle(request())).status == 204
    assert seen == ["a>", "<a"]
    with pytest.raises(Forbidden):
        await line.handle(request({"backend": ["one"]}))


@pytest_twisted.ensureDeferred
async def test_a_pipeline_without_backends_finds_nothing() -> None:
    """Without any backend the answer is NotFound that says why."""
    with pytest.raises(NotFound, match="demo has no backend"):
        await pipeline([], backends=()).handle(request())
