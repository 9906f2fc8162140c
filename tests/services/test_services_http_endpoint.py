"""The endpoint half of ``http``."""

from __future__ import annotations

import json

import pytest
import pytest_twisted
from service_fakes import FakeResults, records

from harmonyd.bodies import BytesBody, EmptyBody
from harmonyd.config.model import HttpEndpointOptions
from harmonyd.dimse.errors import DimseFailure
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.services.base import HttpAnswer, HttpRequest
from harmonyd.services.http.endpoint import HttpServiceEndpoint
from harmonyd.services.http.headers import end_to_end
from harmonyd.services.http.media import NDJSON
from harmonyd.subject import Caller

ENDPOINT = HttpServiceEndpoint("web", HttpEndpointOptions("/dicom", ("POST",)))


class NotedBody(BytesBody):
    """A body that knows that it was closed."""

    closed = False

    async def close(self) -> None:
        self.closed = True


async def answer(response: ResponseEnvelope) -> HttpAnswer:
    return await ENDPOINT.answer(RequestEnvelope("http", "POST", "/", "/", EmptyBody()), response)


async def read(given: HttpAnswer) -> bytes:
    assert given.chunks is not None
    return b"".join([chunk async for chunk in given.chunks])


def test_a_request_becomes_an_envelope() -> None:
    """Everything a client sent is in the envelope; metadata holds the path and nothing a header says."""
    body = EmptyBody()
    request = HttpRequest(
        id="r1",
        method="POST",
        uri="/dicom/find?backend=a",
        path="/find",
        prefix="/dicom",
        headers={"Accept": "*/*", "dimse_op": "move", "backend": "b"},
        query={"backend": ["a"]},
        body=body,
        caller=Caller("192.0.2.1"),
    )
    envelope = ENDPOINT.request(request)
    assert (envelope.protocol, envelope.method, envelope.path, envelope.id) == ("http", "POST", "/find", "r1")
    assert envelope.headers["accept"] == "*/*"
    assert envelope.query == {"backend": ["a"]}
    assert envelope.metadata == {"path": "/find"}
    assert envelope.body is body
    assert (ENDPOINT.name, ENDPOINT.path_prefix, ENDPOINT.methods) == ("web", "/dicom", ("POST",))


@pytest_twisted.ensureDeferred
async def test_results_are_serialised_and_not_cached() -> None:
    """Results come out in their media type, with the status and headers of the response."""
    results = FakeResults(records(b'{"a":1}'), media_type=NDJSON)
    given = await answer(ResponseEnvelope(203, {"X-Mine": "1", "Content-Type": "text/plain"}, results=results))
    assert given.status == 203
    assert given.headers == {"x-mine": "1", "content-type": NDJSON, "cache-control": "no-store"}
    assert json.loads(await read(given)) == {"a": 1}
    assert results.closed


@pytest_twisted.ensureDeferred
async def test_a_failure_before_the_first_record_is_raised_by_answer() -> None:
    """What can still become a problem detail is raised, not sent."""
    with pytest.raises(DimseFailure):
        await answer(ResponseEnvelope(results=FakeResults([DimseFailure("refused")])))


@pytest_twisted.ensureDeferred
async def test_a_body_passes_through() -> None:
    """A body keeps status, length and headers, but for those of the connection, and is closed at its end."""
    body = NotedBody(b"hello")
    headers = {"Content-Type": "text/plain", "Connection": "close, X-Hop", "X-Hop": "1", "Content-Length": "99"}
    given = await answer(ResponseEnvelope(404, headers, body=body))
    assert (given.status, given.length, given.headers) == (404, 5, {"content-type": "text/plain"})
    assert not body.closed
    assert await read(given) == b"hello"
    assert body.closed


@pytest_twisted.ensureDeferred
async def test_a_body_that_nobody_reads_is_closed() -> None:
    """Closing the chunks before the first one closes the body."""
    body = NotedBody(b"hello")
    given = await answer(ResponseEnvelope(body=body))
    await given.chunks.aclose()  # type: ignore[union-attr]
    assert body.closed


@pytest_twisted.ensureDeferred
async def test_no_body_is_an_empty_answer() -> None:
    """A response with neither results nor body has its status and no content."""
    given = await answer(ResponseEnvelope(status=204))
    assert (given.status, given.chunks, given.length) == (204, None, 0)


def test_fields_of_the_connection_are_left_out() -> None:
    """Hop-by-hop fields, and those that Connection lists, are not passed on."""
    kept = {"accept": "*/*", "authorization": "x"}
    hop = {"Transfer-Encoding": "chunked", "TE": "trailers", "Upgrade": "h2c", "Keep-Alive": "5", "Mine": "1"}
    assert end_to_end({**kept, **hop, "Connection": "keep-alive, mine"}) == kept
