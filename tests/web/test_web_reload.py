"""A front end whose routes and limits change, and one that drains: connections and requests go on."""

from __future__ import annotations

import http.client
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from web_kit import route, say_hello

from harmonyd.bodies import BytesBody
from harmonyd.config.model import HttpListener, LimitsConfig, NetworkConfig
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.telemetry.health import Health

NETWORK = NetworkConfig("default", HttpListener("127.0.0.1", 1))


class Gate:
    """A handler that answers when it may."""

    def __init__(self) -> None:
        self.reached: Deferred[None] = Deferred()
        self.open: Deferred[None] = Deferred()

    async def __call__(self, _: RequestEnvelope) -> ResponseEnvelope:
        self.reached.callback(None)
        await self.open
        return ResponseEnvelope(body=BytesBody(b"at last"))


def client_of(front_end: Any) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", front_end.port, timeout=30)


def ask(connection: http.client.HTTPConnection, path: str = "/") -> tuple[int, bytes]:
    """One request. Blocks."""
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read()


@pytest_twisted.ensureDeferred
async def test_new_routes_serve_an_open_connection(serve: Any) -> None:
    """The next request takes the new route; health comes and goes like any other."""
    front_end = await serve(route(say_hello, "/old"), health=Health())
    client = client_of(front_end)
    assert (await deferToThread(ask, client, "/old"))[0] == 200
    front_end.serve(NETWORK, [route(say_hello, "/new")], LimitsConfig(), None)
    found = [(await deferToThread(ask, client, path))[0] for path in ("/old", "/new", "/livez")]
    assert found == [404, 200, 404]
    client.close()


@pytest_twisted.ensureDeferred
async def test_a_request_ends_on_the_route_it_came_in_by(serve: Any) -> None:
    """Also when the route is gone before it is answered; and that is what ``present_requests_end`` waits for."""
    gate = Gate()
    front_end = await serve(route(gate, "/old"))
    client = client_of(front_end)
    answer = deferToThread(ask, client, "/old")
    await gate.reached
    front_end.serve(NETWORK, [], LimitsConfig(), None)
    ended = Deferred.fromCoroutine(front_end.present_requests_end())
    assert not ended.called
    gate.open.callback(None)
    assert await answer == (200, b"at last")
    await ended
    client.close()


@pytest_twisted.ensureDeferred
async def test_equal_prefixes_change_nothing(serve: Any) -> None:
    """Routes that contradict each other are refused as a whole."""
    front_end = await serve(route(say_hello, "/old"))
    with pytest.raises(ValueError, match="two routes"):
        front_end.serve(NETWORK, [route(say_hello, "/a"), route(say_hello, "/a")], LimitsConfig(), None)
    client = client_of(front_end)
    assert (await deferToThread(ask, client, "/old"))[0] == 200
    client.close()


@pytest_twisted.ensureDeferred
async def test_a_drained_front_end_answers_what_runs(serve: Any) -> None:
    """Nobody else is accepted, and it ends by itself with the last request."""
    gate = Gate()
    front_end = await serve(route(gate))
    port, client = front_end.port, client_of(front_end)
    answer = deferToThread(ask, client)
    await gate.reached
    drained = Deferred.fromCoroutine(front_end.drain())
    with pytest.raises(ConnectionError):  # refused, or reset when it came just before
        await deferToThread(ask, http.client.HTTPConnection("127.0.0.1", port, timeout=30))
    assert not drained.called
    gate.open.callback(None)
    assert await answer == (200, b"at last")
    await drained
    client.close()


@pytest_twisted.ensureDeferred
async def test_a_stop_cuts_draining_short(serve: Any) -> None:
    """Both return when the request that would not end was cancelled."""
    gate = Gate()
    front_end = await serve(route(gate))
    client = client_of(front_end)
    answer = deferToThread(ask, client)
    await gate.reached
    drained = Deferred.fromCoroutine(front_end.drain())
    await front_end.stop(grace_secs=0.05)
    await drained
    assert (await answer)[0] == 503
    client.close()


@pytest_twisted.ensureDeferred
async def test_listening_can_be_interrupted(serve: Any) -> None:
    """Open connections do not notice, and after ``start`` others come in again."""
    front_end = await serve(route(say_hello))
    client = client_of(front_end)
    assert (await deferToThread(ask, client))[0] == 200
    await front_end.stop_accepting()
    assert (await deferToThread(ask, client))[0] == 200
    await front_end.start()
    other = client_of(front_end)
    assert (await deferToThread(ask, other))[0] == 200
    client.close()
    other.close()
