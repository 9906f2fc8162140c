"""Answers as streams: back-pressure, clients that leave, and bodies that are cut because they are not whole."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psutil
import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThread
from web_kit import GET, StreamBody, ask, connected, route, say_hello, talk, until

from harmonyd.config.model import LimitsConfig
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import RemoteError
from harmonyd.services.base import HttpAnswer
from harmonyd.web.stream import BrokenAnswer

CHUNK = b"x" * 100_000
Handle = Callable[[RequestEnvelope], Awaitable[ResponseEnvelope]]


def answering(chunks: AsyncIterator[bytes], length: int | None = None) -> Handle:
    async def handle(_: RequestEnvelope) -> ResponseEnvelope:
        return ResponseEnvelope(body=StreamBody(chunks, length))

    return handle


async def failing(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    raise RemoteError("the PACS went away in the middle")


async def of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


class Source:
    """An endless stream that counts what was taken from it and tells how it ended."""

    def __init__(self) -> None:
        self.taken_bytes = 0
        self.was_ended = False

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            while True:
                self.taken_bytes += len(CHUNK)
                yield CHUNK
        finally:
            self.was_ended = True


@pytest_twisted.ensureDeferred
async def test_a_stream_of_unknown_length_arrives_whole(serve: Any) -> None:
    """It is sent in chunks, and empty pieces do not end it."""
    front_end = await serve(route(answering(of(b"", b"a", b"", b"b" * 300_000, b"c"))))
    reply = await ask(front_end.port, "GET", "/")
    assert reply.body == b"a" + b"b" * 300_000 + b"c"
    assert reply.headers["transfer-encoding"] == "chunked"


@pytest_twisted.ensureDeferred
async def test_the_first_chunk_leaves_before_the_second_is_there(serve: Any) -> None:
    """A result is sent when it arrives, not when the next one does."""
    second: Deferred[bytes] = Deferred()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        yield await second

    front_end = await serve(route(answering(chunks())))
    client = await deferToThread(connected, front_end.port)
    with client:
        received = b""
        while b"first" not in received:
            received += await deferToThread(client.recv, 65536)
        second.callback(b"second")
        while b"second" not in received:
            received += await deferToThread(client.recv, 65536)


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_is_held(serve: Any) -> None:
    """The stream stops while the client does not read; memory stays flat, and it goes on when the client does."""
    source = Source()
    front_end = await serve(route(answering(source.chunks())))
    before_bytes = psutil.Process().memory_info().rss
    client = await deferToThread(connected, front_end.port)
    with client:
        await until(lambda: any(channel._waitingForTransport for channel in front_end._site.connections))
        held_at_bytes = source.taken_bytes
        assert held_at_bytes < 20_000_000
        assert psutil.Process().memory_info().rss - before_bytes < 10_000_000
        received_bytes = 0
        while received_bytes < held_at_bytes + 20_000_000:
            received_bytes += len(await deferToThread(client.recv, 1_000_000))
        assert psutil.Process().memory_info().rss - before_bytes < 30_000_000
    await until(lambda: source.was_ended)


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_ends_the_stream(serve: Any) -> None:
    """The generator behind the answer is closed, and the response with it."""
    source = Source()
    bodies: list[StreamBody] = []

    async def handle(_: RequestEnvelope) -> ResponseEnvelope:
        bodies.append(StreamBody(source.chunks()))
        return ResponseEnvelope(body=bodies[0])

    front_end = await serve(route(handle))
    client = await deferToThread(connected, front_end.port)
    await deferToThread(client.recv, 1000)
    client.close()
    await until(lambda: bodies[0].was_closed)
    assert source.was_ended


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_cancels_the_handler(serve: Any) -> None:
    """What the pipeline waits for is cancelled, also when nothing was sent yet."""
    started: Deferred[None] = Deferred()
    cancelled: Deferred[None] = Deferred()

    async def wait(_: RequestEnvelope) -> ResponseEnvelope:
        started.callback(None)
        try:
            await Deferred()
        except CancelledError:
            cancelled.callback(None)
            raise
        raise AssertionError

    front_end = await serve(route(wait))
    client = await deferToThread(connected, front_end.port)
    await started
    client.close()
    await cancelled


@pytest_twisted.ensureDeferred
async def test_a_stream_that_fails_in_the_middle_is_cut(serve: Any) -> None:
    """What was sent arrives, and the missing end shows the client that it is not whole."""
    front_end = await serve(route(answering(failing(b"some ", b"data"))))
    raw = await talk(front_end.port, GET)
    assert raw.endswith(b"4\r\ndata\r\n")

    def get() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", front_end.port, timeout=30)
        connection.request("GET", "/")
        connection.getresponse().read()

    front_end._router = type(front_end._router)()
    front_end._router.add_prefix("/", route(answering(failing(b"some ", b"data"))))
    with pytest.raises(http.client.IncompleteRead):
        await deferToThread(get)


@pytest_twisted.ensureDeferred
async def test_cleaning_up_is_not_interrupted(serve: Any) -> None:
    """Neither the connection that is lost after a cut nor the end of the daemon cancels what ends the operation."""
    go_on: Deferred[None] = Deferred()
    ended: list[bool] = []

    class SlowToEnd(StreamBody):
        async def close(self) -> None:
            await go_on
            ended.append(True)

    async def handle(_: RequestEnvelope) -> ResponseEnvelope:
        return ResponseEnvelope(body=SlowToEnd(failing(b"some data")))

    front_end = await serve(route(handle))
    await talk(front_end.port, GET)
    await until(lambda: not front_end._site.connections)
    stopped = Deferred.fromCoroutine(front_end.stop(grace_secs=0.01))
    await until(lambda: all(exchange.answering is None for exchange in front_end._running))
    assert not stopped.called
    go_on.callback(None)
    await stopped
    assert ended == [True]


@pytest_twisted.ensureDeferred
async def test_a_stream_that_fails_before_its_first_byte_is_a_problem_detail(serve: Any) -> None:
    """While nothing was sent, the failure still has its proper status; the headers of the answer are gone."""

    async def handle(_: RequestEnvelope) -> ResponseEnvelope:
        return ResponseEnvelope(headers={"ETag": '"1"'}, body=StreamBody(failing(b"")))

    front_end = await serve(route(handle))
    reply = await ask(front_end.port, "GET", "/")
    assert (reply.status, reply.json["fault"]) == (502, "remote")
    assert "etag" not in reply.headers


@pytest_twisted.ensureDeferred
async def test_an_http_10_stream_that_fails_is_reset(serve: Any) -> None:
    """Where the end of the connection is the end of the body, only a reset shows that it is not whole."""
    front_end = await serve(route(answering(failing(b"some data"))))
    with pytest.raises(ConnectionResetError):
        await talk(front_end.port, b"GET / HTTP/1.0\r\n\r\n")


@pytest_twisted.ensureDeferred
async def test_an_http_10_stream_ends_with_the_connection(serve: Any) -> None:
    """A whole stream reaches a client that knows no chunks."""
    front_end = await serve(route(answering(of(b"some ", b"data"))))
    answer = await talk(front_end.port, b"GET / HTTP/1.0\r\n\r\n")
    assert answer.endswith(b"\r\n\r\nsome data")


@pytest.mark.parametrize("length", [8, 10])
@pytest_twisted.ensureDeferred
async def test_a_body_of_another_length_than_announced_is_cut(serve: Any, logged_failures: Any, length: int) -> None:
    """Neither too much nor too little can pass for a whole body, or for the start of the next answer."""
    front_end = await serve(route(answering(of(b"some ", b"data"), length)))
    answer = await talk(front_end.port, GET)
    body = answer.partition(b"\r\n\r\n")[2]
    assert body in (b"some ", b"some data")
    assert len(body) < length
    assert len(logged_failures.flush(BrokenAnswer)) == 1


@pytest_twisted.ensureDeferred
async def test_a_client_that_stops_reading_is_cut_off(serve: Any) -> None:
    """It may not hold an operation for longer than the limit."""
    source = Source()
    front_end = await serve(route(answering(source.chunks())), limits=LimitsConfig(request_timeout_secs=0.2))
    client = await deferToThread(connected, front_end.port)
    with client:
        await until(lambda: source.was_ended)
        with pytest.raises(ConnectionResetError):
            while await deferToThread(client.recv, 1_000_000):
                pass


def _read_slowly(port: int, pause: threading.Event) -> int:
    received_bytes = 0
    with connected(port, receive_buffer_bytes=65536) as client:
        while data := client.recv(50_000):
            received_bytes += len(data)
            pause.wait(0.02)
    return received_bytes


@pytest_twisted.ensureDeferred
async def test_a_client_that_reads_slowly_is_not_cut_off(serve: Any) -> None:
    """The limit is on silence, not on the time an answer takes, also for what is left when the stream ended."""
    chunks = of(*[CHUNK] * 40)
    front_end = await serve(route(answering(chunks)), limits=LimitsConfig(request_timeout_secs=0.5))
    assert await deferToThread(_read_slowly, front_end.port, threading.Event()) > 40 * len(CHUNK)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest_twisted.ensureDeferred
async def test_a_body_that_is_not_sent_is_closed(serve: Any, method: str) -> None:
    """HEAD and 204 do not consume the stream behind an answer, but end it."""
    body = StreamBody(of(b"never"), 5)

    async def handle(request: RequestEnvelope) -> ResponseEnvelope:
        return ResponseEnvelope(status=200 if request.method == "HEAD" else 204, body=body)

    front_end = await serve(route(handle))
    reply = await ask(front_end.port, method, "/")
    assert reply.body == b""
    assert reply.headers.get("content-length") == ("5" if method == "HEAD" else None)
    await until(lambda: body.was_closed)


@pytest_twisted.ensureDeferred
async def test_the_response_is_closed_when_the_endpoint_cannot_serve_it(serve: Any) -> None:
    """An endpoint that raises leaves no operation running."""
    body = StreamBody(of(b"never"))

    async def handle(_: RequestEnvelope) -> ResponseEnvelope:
        return ResponseEnvelope(body=body)

    made = route(handle)

    async def refuse(request: RequestEnvelope, response: ResponseEnvelope) -> HttpAnswer:
        raise RemoteError("cannot be turned into an answer")

    made.endpoint.answer = refuse  # type: ignore[method-assign]
    front_end = await serve(made)
    assert (await ask(front_end.port, "GET", "/")).status == 502
    await until(lambda: body.was_closed)


@pytest_twisted.ensureDeferred
async def test_framing_headers_of_an_endpoint_are_ours_to_set(serve: Any) -> None:
    """What an upstream server said about its connection is not passed on; a line break cannot add a header."""

    async def handle(_: RequestEnvelope) -> ResponseEnvelope:
        headers = {"Transfer-Encoding": "gzip", "Content-Length": "99", "Connection": "x", "X-Own": "a\r\nX-Evil: b"}
        return ResponseEnvelope(headers=headers, body=StreamBody(of(b"ok"), 2))

    front_end = await serve(route(handle))
    reply = await ask(front_end.port, "GET", "/")
    assert (reply.body, reply.headers["content-length"]) == (b"ok", "2")
    assert "connection" not in reply.headers
    assert "transfer-encoding" not in reply.headers
    assert "x-evil" not in reply.headers


@pytest_twisted.ensureDeferred
async def test_a_kept_connection_survives_streams(serve: Any) -> None:
    """A streamed answer is followed by the next one on the same connection."""
    front_end = await serve(route(say_hello, "/hello"), route(answering(of(b"a", b"b")), "/stream"))
    requests = b"GET /stream HTTP/1.1\r\n\r\nGET /hello HTTP/1.1\r\nConnection: close\r\n\r\n"
    answer = await talk(front_end.port, requests)
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"200", b"200"]
    assert answer.endswith(b"hello")
