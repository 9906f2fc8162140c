"""gzip: for whom, for what, and that nothing is held back or ended by it."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from web_kit import Endpoint, StreamBody, ask, connected

from harmonyd.bodies import BytesBody
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.mediatypes import prefers_gzip
from harmonyd.services.base import HttpAnswer
from harmonyd.web.compressing import compressed
from harmonyd.web.fields import add_vary, merged
from harmonyd.web.front_end import HttpFrontEnd
from harmonyd.web.route import Route

JSON = "application/json"
TAKES = {"accept-encoding": "gzip"}
ASKED = b"GET / HTTP/1.0\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n"
Serve = Callable[..., Awaitable[HttpFrontEnd]]


async def of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def read(answer: HttpAnswer) -> bytes:
    assert answer.chunks is not None
    return b"".join([chunk async for chunk in answer.chunks])


@pytest.mark.parametrize(
    ("accepts", "expected"),
    [
        ("", False),
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("*", True),
        ("br", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("gzip;q=0, *", False),
        ("*;q=0", False),
        ("identity;q=0.5, gzip;q=0.2", False),
        ("identity;q=0.5, gzip;q=0.5", True),
        ("gzip;q=0.1", True),
        ("gzip;q=nonsense", False),
        ("gzip;q=nan", False),
    ],
)
def test_who_prefers_gzip(accepts: str, expected: bool) -> None:
    """By its weight, or that of a star, and not where the plain form has a larger one."""
    assert prefers_gzip(accepts) is expected


@pytest_twisted.ensureDeferred
async def test_it_goes_out_as_it_comes_in_and_ends_only_when_whole() -> None:
    """Each chunk can be read at once; without the last one the end is missing."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"a" * 2000
        yield b"b" * 150_000
        if failing:
            raise ValueError("broken")

    for failing in (False, True):
        answer = compressed(HttpAnswer(200, {"Content-Type": "application/x-ndjson"}, chunks()), TAKES)
        assert (answer.headers["Content-Encoding"], answer.length) == ("gzip", None)
        unpacker = zlib.decompressobj(31)
        assert answer.chunks is not None
        assert unpacker.decompress(await anext(answer.chunks)) == b"a" * 2000
        assert unpacker.decompress(await anext(answer.chunks)) == b"b" * 150_000
        if failing:
            with pytest.raises(ValueError, match="broken"):
                await anext(answer.chunks)
        else:
            unpacker.decompress(await anext(answer.chunks))
        assert unpacker.eof is not failing


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (200, {"Content-Type": "image/png"}),
        (200, {"Content-Type": 'multipart/related; type="application/dicom+xml"; boundary=x'}),
        (200, {"Content-Type": "application/zip"}),
        (200, {"Content-Type": "text/event-stream"}),
        (200, {"Content-Type": JSON, "content-encoding": "br"}),
        (200, {"Content-Type": JSON, "Cache-Control": "no-transform"}),
        (200, {"Content-Type": JSON, "Content-Digest": "sha-256=:x:"}),
        (206, {"Content-Type": JSON, "Content-Range": "bytes 0-4999/9000"}),
        (200, {}),
    ],
)
def test_what_is_left_as_it_is(status: int, fields: dict[str, str]) -> None:
    """Pixels, parts, what is no text or is encoded already, and what must not be changed."""
    answer = compressed(HttpAnswer(status, fields, of(b"x" * 5000), 5000), TAKES)
    assert answer.length == 5000
    assert answer.headers.get("Content-Encoding") is None


def test_a_short_body_is_not_worth_it() -> None:
    """It goes out plain; Vary tells caches that a longer one may differ."""
    answer = compressed(HttpAnswer(200, {"Content-Type": JSON}, of(b"[]"), 2), TAKES)
    assert (answer.length, answer.headers) == (2, {"Content-Type": JSON, "Vary": "Accept-Encoding"})


def test_not_modified_varies_too() -> None:
    """As the answer would that the client has; the tag is as it was given."""
    answer = compressed(HttpAnswer(304, {"ETag": 'W/"x"'}), TAKES)
    assert (answer.status, answer.headers) == (304, {"ETag": 'W/"x"', "Vary": "Accept-Encoding"})


def test_an_etag_becomes_weak() -> None:
    """The bytes are others; ranges of them mean nothing."""
    fields = {"Content-Type": JSON, "ETag": '"1"', "Accept-Ranges": "bytes"}
    answer = compressed(HttpAnswer(200, fields, of(b"x" * 5000), 5000), TAKES)
    assert answer.headers["ETag"] == 'W/"1"'
    assert "Accept-Ranges" not in answer.headers


@pytest_twisted.ensureDeferred
async def test_closing_it_closes_what_is_behind() -> None:
    """Also when nothing was read of it."""
    closed = []

    class Chunks:
        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            closed.append(True)

    answer = compressed(HttpAnswer(200, {"Content-Type": JSON}, Chunks()), TAKES)
    await answer.chunks.aclose()  # type: ignore[union-attr]
    assert closed


def test_fields_that_come_from_two_places() -> None:
    """Vary is a list of all; of others the common one counts, whatever its case."""
    assert add_vary({"vary": "Origin"}, "Origin", "Accept-Encoding") == {"Vary": "Origin, Accept-Encoding"}
    assert merged({"vary": "Accept", "a": "1"}, {"Vary": "Origin", "A": "2"}) == {"Vary": "Accept, Origin", "A": "2"}


@pytest_twisted.ensureDeferred
async def test_over_the_wire(serve: Serve) -> None:
    """Clients that take it get less, a HEAD the same fields, others the plain body; a route may have it off."""
    value = [{"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^John"}]}}] * 2000
    data = json.dumps(value).encode()

    async def handle(_: RequestEnvelope) -> ResponseEnvelope:
        return ResponseEnvelope(headers={"Content-Type": JSON}, body=BytesBody(data))

    front_end = await serve(Route(Endpoint("/on"), handle), Route(Endpoint("/off"), handle, compresses=False))
    packed = await ask(front_end.port, "GET", "/on", accept_encoding="gzip")
    assert (packed.headers["content-encoding"], packed.headers["vary"]) == ("gzip", "Accept-Encoding")
    assert gzip.decompress(packed.body) == data
    assert len(packed.body) < len(data) / 10
    head = await ask(front_end.port, "HEAD", "/on", accept_encoding="gzip")
    assert (head.headers["content-encoding"], head.body) == ("gzip", b"")
    for path, accepts in (("/on", "identity"), ("/off", "gzip")):
        plain = await ask(front_end.port, "GET", path, accept_encoding=accepts)
        assert (plain.headers.get("content-encoding"), plain.body) == (None, data)


@pytest_twisted.ensureDeferred
async def test_a_line_is_not_held_back(serve: Serve) -> None:
    """The first line of a stream can be read while the second does not exist yet."""
    go_on: Deferred[None] = Deferred()

    async def lines() -> AsyncIterator[bytes]:
        yield b'{"number": 1}\n'
        await go_on
        yield b'{"number": 2}\n'

    async def handle(_: RequestEnvelope) -> ResponseEnvelope:
        return ResponseEnvelope(headers={"Content-Type": "application/x-ndjson"}, body=StreamBody(lines()))

    front_end = await serve(Route(Endpoint("/"), handle))
    with connected(front_end.port, ASKED) as client:
        unpacker, received = zlib.decompressobj(31), b""
        head, _, rest = (await deferToThread(_until_body, client)).partition(b"\r\n\r\n")
        assert b"content-encoding: gzip" in head.lower()
        received = unpacker.decompress(rest)
        while b"\n" not in received:
            received += unpacker.decompress(await deferToThread(client.recv, 65536))
        assert received == b'{"number": 1}\n'
        go_on.callback(None)
        while not unpacker.eof:
            received += unpacker.decompress(await deferToThread(client.recv, 65536))
        assert received.endswith(b'{"number": 2}\n')


def _until_body(client: Any) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        received += client.recv(65536)
    return received
