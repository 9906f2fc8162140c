"""Uploads: bodies that are read while they arrive, whatever the client, the handler and the network do meanwhile."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import psutil
import pytest
import pytest_twisted
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from web_kit import StreamBody, connected, measure, route, say_hello, talk, until

from harmonyd.bodies import CHUNK_BYTES
from harmonyd.config.model import LimitsConfig
from harmonyd.envelope import Body, RequestEnvelope, ResponseEnvelope
from harmonyd.errors import BadRequest, HarmonydError, NotFound, PayloadTooLarge
from harmonyd.web.upload import BUFFER_BYTES, MEMORY_BYTES, UploadBody

PIECE = b"p" * 60_000
MEGABYTE = b"x" * 1_000_000


def head(framing: str, *more: str, path: str = "/") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: a/b", framing, *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def length(size: int) -> str:
    return f"Content-Length: {size}"


CHUNKED = "Transfer-Encoding: chunked"
CLOSE = "Connection: close"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def statuses(answers: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1.1 (\d+) ", answers)


def rest_of(client: socket.socket) -> bytes:
    received = b""
    while data := client.recv(65536):
        received += data
    return received


async def send(client: socket.socket, data: bytes) -> None:
    await deferToThread(client.sendall, data)


class Reader:
    """A handler that reads its body, tells how much it got, and how its reading ended."""

    def __init__(self) -> None:
        self.got_bytes = 0
        self.first: Deferred[None] = Deferred()
        self.ended: Deferred[BaseException | None] = Deferred()
        self.body: Any = None

    async def __call__(self, request: RequestEnvelope) -> ResponseEnvelope:
        self.body = request.body
        try:
            async for data in request.body.chunks():
                if not self.got_bytes:
                    self.first.callback(None)
                self.got_bytes += len(data)
        except BaseException as error:
            self.ended.callback(error)
            raise
        self.ended.callback(None)
        return await say_hello(request)


# --- while it arrives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest_twisted.ensureDeferred
async def test_the_first_piece_is_read_before_the_last_is_sent(serve: Any, is_chunked: bool) -> None:
    """The handler has the beginning of a body whose end does not exist yet."""
    reader = Reader()
    front_end = await serve(route(reader))
    begin, end = (chunk(PIECE), chunk(PIECE) + END) if is_chunked else (PIECE, PIECE)
    framing = CHUNKED if is_chunked else length(2 * len(PIECE))
    with await deferToThread(connected, front_end.port, head(framing, CLOSE) + begin) as client:
        await reader.first
        await send(client, end)
        assert (await deferToThread(rest_of, client)).endswith(b"hello")
    assert reader.got_bytes == 2 * len(PIECE)
    assert await reader.ended is None


@pytest_twisted.ensureDeferred
async def test_the_handler_begins_before_the_body_does(serve: Any) -> None:
    """A big body's request is passed on when its head is there."""
    called: Deferred[None] = Deferred()

    async def handle(request: RequestEnvelope) -> ResponseEnvelope:
        called.callback(None)
        return await measure(request)

    front_end = await serve(route(handle))
    with await deferToThread(connected, front_end.port, head(length(len(MEGABYTE)), CLOSE)) as client:
        await called
        await send(client, MEGABYTE)
        assert b'"bytes": 1000000' in await deferToThread(rest_of, client)


@pytest_twisted.ensureDeferred
async def test_small_bodies_are_received_first(serve: Any) -> None:
    """No handler is called for a small body that has not arrived."""
    made = route(measure)
    front_end = await serve(made)
    with await deferToThread(connected, front_end.port, head(length(MEMORY_BYTES), CLOSE) + PIECE) as client:
        await until(lambda: any(channel.requests for channel in front_end._site.connections))
        assert made.endpoint.seen == []  # type: ignore[attr-defined]
        await send(client, bytes(MEMORY_BYTES - len(PIECE)))
        assert b'"bytes": 65536' in await deferToThread(rest_of, client)


@pytest_twisted.ensureDeferred
async def test_a_client_faster_than_the_reader_is_held(serve: Any) -> None:
    """While the handler does not read, the client cannot send; memory stays flat, and nothing is lost."""
    go_on: Deferred[None] = Deferred()
    bodies: list[Any] = []

    async def handle(request: RequestEnvelope) -> ResponseEnvelope:
        bodies.append(request.body)
        await go_on
        return await measure(request)

    front_end = await serve(route(handle))
    before_bytes = psutil.Process().memory_info().rss
    answer = talk(front_end.port, head(length(100_000_000), CLOSE), *[MEGABYTE] * 100)
    await until(lambda: any(channel._held for channel in front_end._site.connections))
    from twisted.internet import reactor

    await deferLater(reactor, 0.05)  # type: ignore[arg-type]
    assert BUFFER_BYTES <= bodies[0].received_bytes < 2 * BUFFER_BYTES
    go_on.callback(None)
    assert b'"bytes": 100000000' in await answer
    assert psutil.Process().memory_info().rss - before_bytes < 20_000_000


@pytest_twisted.ensureDeferred
async def test_an_answer_can_begin_before_the_request_ends(serve: Any) -> None:
    """What a handler makes of the first piece reaches the client before it has sent the second."""

    async def echo(request: RequestEnvelope) -> ResponseEnvelope:
        return ResponseEnvelope(body=StreamBody(request.body.chunks()))

    front_end = await serve(route(echo))
    with await deferToThread(connected, front_end.port, head(CHUNKED) + chunk(b"first")) as client:
        received = b""
        while b"first" not in received:
            received += await deferToThread(client.recv, 65536)
        assert b"Connection: close" in received
        await send(client, chunk(b"second") + END)
        assert (await deferToThread(rest_of, client)).endswith(b"6\r\nsecond\r\n0\r\n\r\n")


# --- patience ---------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_silent_client_ends_the_handler(serve: Any) -> None:
    """A client that stops in the middle of a body that is waited for is hung up on, and the handler cancelled."""
    reader = Reader()
    front_end = await serve(route(reader), limits=LimitsConfig(request_timeout_secs=0.1))
    assert await talk(front_end.port, head(length(100_000)) + PIECE) == b""
    assert reader.got_bytes == len(PIECE)
    assert isinstance(await reader.ended, CancelledError)


@pytest_twisted.ensureDeferred
async def test_a_client_is_not_blamed_for_a_slow_reader(serve: Any) -> None:
    """The limit is on the client's silence, not on the time for which nobody waits for it."""
    from twisted.internet import reactor

    async def handle(request: RequestEnvelope) -> ResponseEnvelope:
        await deferLater(reactor, 1)  # type: ignore[arg-type]
        return await measure(request)

    front_end = await serve(route(handle), limits=LimitsConfig(request_timeout_secs=0.5))
    for size in (100_000, 3_000_000):
        answer = await talk(front_end.port, head(length(size), CLOSE) + bytes(size))
        assert f'"bytes": {size}'.encode() in answer


@pytest_twisted.ensureDeferred
async def test_a_slow_client_is_waited_for(serve: Any) -> None:
    """One that sends a little before each time limit is heard to its end."""
    from twisted.internet import reactor

    front_end = await serve(route(measure), limits=LimitsConfig(request_timeout_secs=1, min_bytes_per_sec=10))
    with await deferToThread(connected, front_end.port, head(CHUNKED, CLOSE)) as client:
        for _ in range(8):
            await send(client, chunk(b"slow"))
            await deferLater(reactor, 0.2)  # type: ignore[arg-type]
        await send(client, END)
        assert b'"bytes": 32' in await deferToThread(rest_of, client)


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_ends_the_reading(serve: Any) -> None:
    """The handler is cancelled in the middle of the body, and what had arrived is dropped."""
    reader = Reader()
    front_end = await serve(route(reader))
    client = await deferToThread(connected, front_end.port, head(length(100_000)) + PIECE)
    await reader.first
    client.close()
    assert isinstance(await reader.ended, CancelledError)
    await until(lambda: not front_end._running)
    with pytest.raises(BadRequest):
        await reader.body.read(100_000)


@pytest_twisted.ensureDeferred
async def test_too_much_is_told_to_the_reader(serve: Any) -> None:
    """A body in chunks that turns out to be too large is 413, and the handler learns of it where it reads."""
    reader = Reader()
    front_end = await serve(route(reader), limits=LimitsConfig(max_body_bytes=500_000))
    answer = await talk(front_end.port, head(CHUNKED), *[chunk(MEGABYTE)] * 10, END)
    assert statuses(answer) == [b"413"]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["limit_bytes"] == 500_000
    assert isinstance(await reader.ended, PayloadTooLarge)


@pytest.mark.parametrize("bad", [b"no length\r\n", chunk(MEGABYTE)])
@pytest_twisted.ensureDeferred
async def test_an_answer_that_began_is_cut(serve: Any, bad: bytes) -> None:
    """What is wrong with the rest of the request never gets into the middle of an answer."""

    async def echo(request: RequestEnvelope) -> ResponseEnvelope:
        return ResponseEnvelope(body=StreamBody(request.body.chunks()))

    front_end = await serve(route(echo), limits=LimitsConfig(max_body_bytes=500_000))
    with await deferToThread(connected, front_end.port, head(CHUNKED) + chunk(b"first")) as client:
        received = b""
        while b"first" not in received:
            received += await deferToThread(client.recv, 65536)
        await send(client, bad)
        with suppress(ConnectionResetError):
            received += await deferToThread(rest_of, client)
    assert statuses(received) == [b"200"]
    assert not received.endswith(END)


@pytest.mark.parametrize("before", [b"", chunk(b"well-formed")])
@pytest_twisted.ensureDeferred
async def test_malformed_chunks_are_400(serve: Any, before: bytes) -> None:
    """The handler learns of it where it reads, and the client from a problem detail."""
    reader = Reader()
    front_end = await serve(route(reader))
    with await deferToThread(connected, front_end.port, head(CHUNKED) + before) as client:
        await until(lambda: reader.body is not None)
        await send(client, b"no length\r\n" + MEGABYTE)
        answer = await deferToThread(rest_of, client)
    assert statuses(answer) == [b"400"]
    assert b"chunks" in answer
    assert isinstance(await reader.ended, BadRequest)


@pytest_twisted.ensureDeferred
async def test_the_end_of_the_daemon_ends_uploads(serve: Any) -> None:
    """A request whose body is still coming when the grace is over gets 503."""
    reader = Reader()
    front_end = await serve(route(reader))
    with await deferToThread(connected, front_end.port, head(length(100_000)) + PIECE) as client:
        await reader.first
        stopped = Deferred.fromCoroutine(front_end.stop(grace_secs=0.05))
        assert statuses(await deferToThread(rest_of, client)) == [b"503"]
    await stopped
    assert isinstance(await reader.ended, CancelledError)


# --- answers that come early ------------------------------------------------------------------------------------------


async def refuse(_: RequestEnvelope) -> ResponseEnvelope:
    raise NotFound("nothing here")


@pytest_twisted.ensureDeferred
async def test_an_early_answer_arrives(serve: Any) -> None:
    """A client that has sent only its head gets an answer that does not need the body, and is told to end there."""
    front_end = await serve(route(refuse))
    answer = await talk(front_end.port, head(length(100_000_000)))
    assert statuses(answer) == [b"404"]
    assert b"Connection: close" in answer


@pytest_twisted.ensureDeferred
async def test_an_early_answer_reaches_who_sends_first(serve: Any) -> None:
    """A client that reads only after it sent everything is let do so, without much memory."""
    front_end = await serve(route(refuse))
    before_bytes = psutil.Process().memory_info().rss
    answer = await talk(front_end.port, head(length(100_000_000)), *[MEGABYTE] * 100)
    assert statuses(answer) == [b"404"]
    assert psutil.Process().memory_info().rss - before_bytes < 20_000_000


@pytest.mark.parametrize("framing", [CHUNKED, length(200_000)])
@pytest_twisted.ensureDeferred
async def test_the_rest_of_a_body_is_no_request(serve: Any, framing: str) -> None:
    """What comes after an early answer is thrown away, whatever it looks like."""
    made = route(refuse)
    front_end = await serve(made)
    with await deferToThread(connected, front_end.port, head(framing)) as client:
        received = await deferToThread(client.recv, 65536)
        await send(client, END + b"POST /smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        received += await deferToThread(rest_of, client)
    assert statuses(received) == [b"404"]
    assert len(made.endpoint.seen) == 1  # type: ignore[attr-defined]


@pytest_twisted.ensureDeferred
async def test_a_body_that_is_not_read_is_closed(serve: Any) -> None:
    """Nothing of it is kept when its request is over."""
    bodies: list[Body] = []

    async def ignore(request: RequestEnvelope) -> ResponseEnvelope:
        bodies.append(request.body)
        await until(lambda: request.body.received_bytes >= len(PIECE))  # type: ignore[attr-defined]
        return await say_hello(request)

    front_end = await serve(route(ignore))
    assert b"hello" in await talk(front_end.port, head(length(100_000)) + PIECE)
    with pytest.raises(HarmonydError, match="closed"):
        await bodies[0].read(100_000)


# --- Expect: 100-continue (RFC 9110 section 10.1.1) -------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_continue_is_said_when_the_body_is_wanted(serve: Any) -> None:
    """Not when the head arrives, but when the handler begins to read."""
    go_on: Deferred[None] = Deferred()
    called: Deferred[None] = Deferred()

    async def handle(request: RequestEnvelope) -> ResponseEnvelope:
        assert "expect" not in request.headers
        called.callback(None)
        await go_on
        return await measure(request)

    front_end = await serve(route(handle))
    asking = head(length(len(MEGABYTE)), "Expect: 100-continue", CLOSE)
    with await deferToThread(connected, front_end.port, asking) as client:
        await called
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
        client.settimeout(30)
        go_on.callback(None)
        assert await deferToThread(client.recv, 65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await send(client, MEGABYTE)
        assert statuses(await deferToThread(rest_of, client)) == [b"200"]


@pytest_twisted.ensureDeferred
async def test_continue_is_not_said_when_it_is_not_wanted(serve: Any) -> None:
    """A handler that answers without reading spares the client the upload."""
    front_end = await serve(route(refuse))
    answer = await talk(front_end.port, head(length(100_000_000), "Expect: 100-continue"))
    assert statuses(answer) == [b"404"]


@pytest.mark.parametrize(
    ("asking", "rest"),
    [
        (head(CHUNKED, "Expect: 100-continue", CLOSE) + chunk(PIECE), END),
        (head(length(70_000), "Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0"), bytes(70_000)),
        (head(length(70_000), "Expect: a miracle", CLOSE), bytes(70_000)),
    ],
)
@pytest_twisted.ensureDeferred
async def test_continue_is_not_said_to_who_does_not_wait(serve: Any, asking: bytes, rest: bytes) -> None:
    """Neither when the body has begun to arrive, nor in HTTP/1.0, which does not know it, nor for what is not it."""
    reader = Reader()
    front_end = await serve(route(reader))
    with await deferToThread(connected, front_end.port, asking) as client:
        await until(lambda: reader.body is not None)
        await send(client, rest)
        answer = await deferToThread(rest_of, client)
    assert b" 100 " not in answer
    assert answer.endswith(b"hello")


# --- one connection, many requests ------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_connection_is_kept_after_uploads(serve: Any) -> None:
    """Uploads and small requests, pipelined in one go, are answered in order on one connection."""
    front_end = await serve(route(measure))
    big = head(length(200_000)) + bytes(200_000)
    in_chunks = head(CHUNKED) + chunk(PIECE) * 5 + END
    small = head(length(3)) + b"abc"
    last = head(length(100_000), CLOSE) + bytes(100_000)
    answers = await talk(front_end.port, big + small + in_chunks + big + small + last)
    assert re.findall(rb'"bytes": (\d+)', answers) == [b"200000", b"3", b"300000", b"200000", b"3", b"100000"]
    assert answers.count(b"Connection: close") == 1


@pytest_twisted.ensureDeferred
async def test_a_connection_can_be_idle_after_an_upload(serve: Any) -> None:
    """The limit on silence counts again, and ends it."""
    front_end = await serve(route(measure), limits=LimitsConfig(request_timeout_secs=0.5))
    answer = await talk(front_end.port, head(length(100_000)) + bytes(100_000))
    assert statuses(answer) == [b"200"]
    assert b"Connection: close" not in answer


@pytest_twisted.ensureDeferred
async def test_answers_do_not_depend_on_how_the_bytes_are_split(serve: Any) -> None:
    """Pipelined uploads in chunks, cut anywhere into two packets, or into single bytes, get the same answers."""
    front_end = await serve(route(measure))
    one = head(CHUNKED) + chunk(b"ab") + chunk(b"cde") + b"0\r\nTrailer: x\r\n\r\n"
    raw = one + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + one + head(length(1)) + b"f"
    for cut in range(len(raw) + 1):
        assert _sizes(front_end, [raw[:cut], raw[cut:]]) == [5, 0, 5, 1]
    assert _sizes(front_end, [raw[at : at + 1] for at in range(len(raw))]) == [5, 0, 5, 1]


def _sizes(front_end: Any, packets: list[bytes]) -> list[int]:
    channel = front_end._site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
    transport = StringTransport()
    channel.makeConnection(transport)
    for packet in packets:
        channel.dataReceived(packet)
    channel.connectionLost(Failure(ConnectionDone()))
    return [int(size) for size in re.findall(rb'"bytes": (\d+)', transport.value())]


@pytest_twisted.ensureDeferred
async def test_nonsense_after_an_upload_is_400(serve: Any) -> None:
    """It is what comes after the body that is malformed, and the upload has its answer."""
    front_end = await serve(route(measure))
    after = END + b"NONSENSE\r\n\r\n"
    for packets in ([head(CHUNKED) + chunk(b"ab") + after], [head(CHUNKED), chunk(b"ab") + after]):
        assert statuses(await talk(front_end.port, *packets)) == [b"200", b"400"]


@pytest_twisted.ensureDeferred
async def test_an_upload_in_one_packet_has_a_length(serve: Any) -> None:
    """A body that is there when its request is passed on is like any small one, also if it came in chunks."""
    front_end = await serve(route(measure))
    answer = await talk(front_end.port, head(CHUNKED, CLOSE) + chunk(b"abc") + END)
    assert b'"announced": 3' in answer


# --- the body by itself -----------------------------------------------------------------------------------------------


class FakeSource:
    """Remembers whether it is held."""

    def __init__(self) -> None:
        self.is_held = False
        self.wanted = 0

    def hold(self) -> None:
        self.is_held = True

    def release(self) -> None:
        self.is_held = False

    def want(self) -> None:
        self.wanted += 1


def upload(limit_bytes: int = 10_000_000, length: int | None = None) -> tuple[UploadBody, FakeSource]:
    source = FakeSource()
    return UploadBody(source, length, limit_bytes), source


@pytest_twisted.ensureDeferred
async def test_chunks_are_bounded_and_the_source_is_released() -> None:
    """However much arrived, a chunk has its greatest size, and the source is let go on when most was taken."""
    body, source = upload()
    body.feed(bytes(3 * CHUNK_BYTES))
    assert source.is_held
    chunks = body.chunks()
    assert [len(await anext(chunks)), len(await anext(chunks))] == [CHUNK_BYTES] * 2
    assert source.is_held
    assert len(await anext(chunks)) == CHUNK_BYTES
    assert not source.is_held


@pytest_twisted.ensureDeferred
async def test_the_reader_does_not_run_before_it_is_woken() -> None:
    """A piece that is fed is seen by the reader only when it is told to go on."""
    body, source = upload()
    reading = Deferred.fromCoroutine(body.read(10))
    assert (body.is_awaited, source.wanted) == (True, 1)
    body.feed(b"abc")
    body.finish()
    assert not reading.called
    body.wake()
    assert await reading == b"abc"
    assert not body.is_awaited


@pytest_twisted.ensureDeferred
async def test_a_body_is_read_up_to_a_limit() -> None:
    """A body of the limit is returned; more is too much, known beforehand or when it came."""
    body, _ = upload()
    body.feed(b"12345")
    body.finish()
    assert await body.read(5) == b"12345"
    for more, announced in ((upload()[0], None), (upload(length=6)[0], 6)):
        assert more.length == announced
        more.feed(b"123456")
        with pytest.raises(PayloadTooLarge):
            await more.read(5)


@pytest_twisted.ensureDeferred
async def test_a_body_that_is_closed_is_not_taken_for_whole() -> None:
    """Who still reads gets an error, never an end; what arrives later is dropped, and the source goes on."""
    body, source = upload()
    body.feed(bytes(BUFFER_BYTES))
    await body.close()
    await body.close()
    assert not source.is_held
    body.feed(bytes(BUFFER_BYTES))
    assert not source.is_held
    body.finish()
    with pytest.raises(HarmonydError):
        await anext(body.chunks())


@pytest_twisted.ensureDeferred
async def test_a_reader_that_was_cancelled_leaves_the_rest() -> None:
    """What arrives afterwards is there for the next one."""
    body, _ = upload()
    reading = Deferred.fromCoroutine(body.read(10))
    reading.cancel()
    with pytest.raises(CancelledError):
        await reading
    body.feed(b"abc")
    body.finish()
    body.wake()
    assert await body.read(10) == b"abc"


async def _all(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([data async for data in chunks])


@pytest.mark.parametrize("data", [b"", b"abc"])
@pytest_twisted.ensureDeferred
async def test_a_body_that_settled_is_in_memory(data: bytes) -> None:
    """It has a length; one that is not whole, or broken, stays what it is."""
    body, _ = upload()
    body.feed(data)
    assert body.settled() is body
    body.finish()
    settled = body.settled()
    assert settled.length == len(data)
    assert await _all(settled.chunks()) == data
    broken, _ = upload(limit_bytes=2)
    broken.feed(b"abc")
    broken.finish()
    assert broken.settled() is broken
