"""Clients that are slow on purpose (slowloris, R-U-Dead-Yet, slow reading), and heads that are too large."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from web_kit import GET, StreamBody, ask, connected, measure, route, say_hello, talk, until

from harmonyd.config.model import LimitsConfig
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.web import pace

BEGUN = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def pause(secs: float) -> None:
    from twisted.internet import reactor

    await deferLater(reactor, secs)  # type: ignore[arg-type]


async def drip(client: socket.socket, pieces: bytes, every_secs: float = 0.05) -> bytes:
    """Send byte by byte, over and over, until the server has had enough of it; what it says."""
    client.setblocking(False)
    received = b""
    while True:
        try:
            data = client.recv(65536)
            if not data:
                return received
            received += data
        except BlockingIOError:
            pass
        except ConnectionError:
            return received
        for byte in pieces:
            try:
                client.send(bytes([byte]))
            except OSError:
                break
        await pause(every_secs)


# --- heads


@pytest_twisted.ensureDeferred
async def test_a_head_that_never_ends_is_408(serve: Any) -> None:
    """Field after field, each in time: the head as a whole is not."""
    front_end = await serve(route(say_hello), limits=LimitsConfig(head_timeout_secs=0.4))
    with await deferToThread(connected, front_end.port, BEGUN) as client:
        answer = await drip(client, b"X-a: b\r\n")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert b"request-timeout" in answer


@pytest_twisted.ensureDeferred
async def test_the_second_head_has_its_time_too(serve: Any) -> None:
    """It counts from its first byte, however long the connection was idle."""
    front_end = await serve(route(say_hello), limits=LimitsConfig(head_timeout_secs=0.4))
    with await deferToThread(connected, front_end.port) as client:
        assert (await deferToThread(client.recv, 65536)).startswith(b"HTTP/1.1 200 ")
        await pause(0.6)
        client.sendall(GET)
        assert (await deferToThread(client.recv, 65536)).startswith(b"HTTP/1.1 200 ")
        client.sendall(BEGUN)
        assert (await drip(client, b"X-a: b\r\n")).startswith(b"HTTP/1.1 408 ")


@pytest_twisted.ensureDeferred
async def test_who_says_nothing_gets_no_answer(serve: Any) -> None:
    """A connection without a request is closed after the time for a head."""
    front_end = await serve(route(say_hello), limits=LimitsConfig(head_timeout_secs=0.2))
    assert await talk(front_end.port) == b""


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 3000 + b"\r\n\r\n", 431),
        (BEGUN + b"X-Long: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 50 + b"\r\n", 431),
        (BEGUN + b"".join(b"X-%d: a\r\n" % number for number in range(30)) + b"\r\n", 431),
        (BEGUN + b"".join(b"X-%d: a\r\n" % number for number in range(15)) + b"Connection: close\r\n\r\n", 200),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_size_of_a_head_is_limited(serve: Any, raw: bytes, status: int) -> None:
    """The line, the whole, and the count of fields; each has a status that says so."""
    front_end = await serve(route(say_hello), limits=LimitsConfig(max_head_bytes=2000, max_header_fields=20))
    assert (await talk(front_end.port, raw)).startswith(b"HTTP/1.1 %d " % status)


@pytest_twisted.ensureDeferred
async def test_slow_clients_keep_nobody_out(serve: Any) -> None:
    """With all connections taken by heads that do not end, the one that waits longest gives way to a new client."""
    front_end = await serve(route(say_hello), limits=LimitsConfig(max_connections=3))
    held = [await deferToThread(connected, front_end.port, BEGUN) for _ in range(3)]
    await until(lambda: len(front_end._site.waiting) == 3)
    await pause(1.1)
    assert (await ask(front_end.port, "GET", "/")).status == 200
    with pytest.raises(ConnectionError):
        await deferToThread(held[0].recv, 10)
    for client in held:
        client.close()


@pytest.mark.parametrize("kind", ["body", "big body", "reader"])
@pytest_twisted.ensureDeferred
async def test_slow_bodies_and_readers_keep_nobody_out(
    serve: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They give way when they are behind what they should have sent or read by then; one that keeps up does not."""
    monkeypatch.setattr(pace, "SOON_SECS", 1.0)
    limits = LimitsConfig(max_connections=2, request_timeout_secs=20, min_bytes_per_sec=100_000)
    front_end = await serve(route(measure, "/measure"), route(send_endlessly, "/endless"), limits=limits)
    size = 10_000_000 if kind == "big body" else 60_000
    head = b"POST /measure HTTP/1.1\r\nContent-Type: application/dicom\r\nContent-Length: %d\r\n\r\n" % size
    request = GET.replace(b" / ", b" /endless ") if kind == "reader" else head
    with (
        await deferToThread(connected, front_end.port, request, 2048) as slow,
        await deferToThread(connected, front_end.port, head.replace(b"%d" % size, b"1000000")) as good,
    ):
        await until(lambda: len(front_end._site.waiting) == 2)
        statuses = []
        for _ in range(10):
            await deferToThread(good.sendall, bytes(100_000))
            statuses.append((await ask(front_end.port, "GET", "/measure")).status)
            await pause(0.3)
        assert (statuses[0], statuses[-1]) == (503, 200)
        assert b'"bytes": 1000000' in await deferToThread(good.recv, 65536)
        with pytest.raises(ConnectionError):
            while await deferToThread(slow.recv, 65536):
                continue


# --- bodies


@pytest.mark.parametrize("size", [100, 10_000_000])
@pytest_twisted.ensureDeferred
async def test_a_body_that_trickles_in_is_408(serve: Any, size: int) -> None:
    """One that would be kept in memory first, and one that is read while it arrives."""
    front_end = await serve(route(measure), limits=LimitsConfig(request_timeout_secs=0.4))
    head = BEGUN.replace(b"GET", b"POST") + b"Content-Type: application/dicom\r\nContent-Length: %d\r\n\r\n" % size
    with await deferToThread(connected, front_end.port, head) as client:
        answer = await drip(client, b"a")
    assert answer.startswith(b"HTTP/1.1 408 ")
    await until(lambda: front_end._site.is_empty)


def test_only_the_time_in_which_a_client_is_waited_for_counts() -> None:
    """A reader that takes its time is not the client's fault; what came meanwhile counts for it."""
    clock = Clock()
    client = pace.Pace(clock, 10, least_bytes=100)
    client.wait()
    clock.advance(9)
    client.rest()
    clock.advance(1000)
    assert client.look(50) == 1
    assert (client.is_behind(89), client.is_behind(90)) == (True, False)
    client.wait()
    client.wait()
    clock.advance(1)
    assert client.look(100) == 10
    clock.advance(4)
    assert not client.is_behind(100)
    clock.advance(6)
    assert client.look(199) == 0
    assert client.look(200) == 10


# --- answers


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield bytes(100_000)


async def send_endlessly(_: RequestEnvelope) -> ResponseEnvelope:
    return ResponseEnvelope(body=StreamBody(endless()))


@pytest_twisted.ensureDeferred
async def test_a_client_that_reads_a_few_bytes_at_a_time_is_cut(serve: Any) -> None:
    """Small windows, small reads: less than the least in the time for it."""
    limits = LimitsConfig(request_timeout_secs=0.5, min_bytes_per_sec=1_000_000)
    front_end = await serve(route(send_endlessly), limits=limits)
    with await deferToThread(connected, front_end.port, GET, 2048) as client:
        client.setblocking(False)
        while not front_end._site.is_empty:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                client.recv(500)
            await pause(0.05)


@pytest.mark.parametrize("head", [GET, GET[:-2] + b"Connection: close\r\n\r\n"])
@pytest_twisted.ensureDeferred
async def test_an_answer_that_nobody_takes_is_given_up(serve: Any, head: bytes) -> None:
    """The last piece is with the kernel already, and the request done: the connection does not stay for ever."""

    async def much(_: RequestEnvelope) -> ResponseEnvelope:
        async def chunks() -> AsyncIterator[bytes]:
            yield bytes(60_000)
            yield bytes(50_000)

        return ResponseEnvelope(body=StreamBody(chunks()))

    front_end = await serve(route(much), limits=LimitsConfig(request_timeout_secs=0.3))
    with await deferToThread(connected, front_end.port, head, 2048):
        await until(lambda: not front_end._site.is_empty)
        await until(lambda: front_end._site.is_empty)


@pytest_twisted.ensureDeferred
async def test_many_ranges_are_one_answer(serve: Any) -> None:
    """What slowhttptest -R sends is as long as a head may be, and no more work than any other request."""
    front_end = await serve(route(say_hello))
    ranges = b"Range: bytes=0-" + b"".join(b",5-%d" % number for number in range(1000)) + b"\r\n"
    answer = await talk(front_end.port, BEGUN + ranges + b"Connection: close\r\n\r\n")
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"200"]
