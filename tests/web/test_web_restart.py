"""What clients notice of a restart: those who were accepted get their answer."""

from __future__ import annotations

import socket
from typing import Any

import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from web_kit import route, say_hello

REQUEST = b"GET / HTTP/1.1\r\n\r\n"


async def accepted(front_end: Any) -> socket.socket:
    """A client whose connection the front end has accepted."""
    from twisted.internet import reactor

    client = await deferToThread(socket.create_connection, ("127.0.0.1", front_end.port), 30)
    while front_end._site.is_empty:
        await deferLater(reactor, 0.001)
    return client


@pytest_twisted.ensureDeferred
async def test_a_client_that_was_accepted_is_served(serve: Any) -> None:
    """A first request that comes after the stop has begun is answered, and then the connection is closed."""
    front_end = await serve(route(say_hello))
    with await accepted(front_end) as client:
        stopped = Deferred.fromCoroutine(front_end.stop(grace_secs=30))
        client.sendall(REQUEST)
        answer = await deferToThread(client.recv, 65536)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nConnection: close\r\n" in answer
        await stopped


@pytest_twisted.ensureDeferred
async def test_a_client_that_says_nothing_does_not_hold_up_the_stop(serve: Any) -> None:
    """A connection on which nothing comes is closed long before the grace is over."""
    front_end = await serve(route(say_hello))
    with await accepted(front_end) as client:
        await front_end.stop(grace_secs=50)
        assert await deferToThread(client.recv, 65536) == b""


@pytest_twisted.ensureDeferred
async def test_a_second_request_is_refused_while_stopping(serve: Any) -> None:
    """No new work: a connection that had its answer, and goes on asking while another runs, gets 503 at most."""
    front_end = await serve(route(say_hello))
    with await accepted(front_end) as client:
        client.sendall(REQUEST)
        await deferToThread(client.recv, 65536)
        client.sendall(REQUEST[:-2])
        stopped = Deferred.fromCoroutine(front_end.stop(grace_secs=0.2))
        client.sendall(REQUEST[-2:])
        answer = await deferToThread(client.recv, 65536)
        assert b"hello" not in answer
        await stopped
