"""Endpoints made for tests, and real HTTP clients that run in threads."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from harmonyd.bodies import BytesBody
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.services.base import HttpAnswer, HttpRequest
from harmonyd.web.front_end import Route

Handle = Callable[[RequestEnvelope], Awaitable[ResponseEnvelope]]
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class StreamBody:
    """A body made of any asynchronous iterator; remembers that it was closed."""

    def __init__(self, chunks: AsyncIterator[bytes], length: int | None = None) -> None:
        self._chunks = chunks
        self.length = length
        self.was_closed = False

    def chunks(self) -> AsyncIterator[bytes]:
        return self._chunks

    async def read(self, limit_bytes: int) -> bytes:
        return b"".join([chunk async for chunk in self._chunks])[:limit_bytes]

    async def close(self) -> None:
        self.was_closed = True


@dataclass
class Endpoint:
    """An endpoint half that passes bodies through and keeps the requests it saw."""

    path_prefix: str = "/"
    methods: tuple[str, ...] = ()
    name: str = "test"
    seen: list[HttpRequest] = field(default_factory=list)

    def request(self, request: HttpRequest) -> RequestEnvelope:
        self.seen.append(request)
        return RequestEnvelope(
            protocol="http",
            method=request.method,
            uri=request.uri,
            path=request.path,
            body=request.body,
            headers=request.headers,
            query=request.query,
            id=request.id,
        )

    async def answer(self, request: RequestEnvelope, response: ResponseEnvelope) -> HttpAnswer:
        body = response.body
        return HttpAnswer(
            response.status, response.headers, body.chunks() if body else None, body.length if body else None
        )


async def say_hello(_: RequestEnvelope) -> ResponseEnvelope:
    return ResponseEnvelope(headers={"Content-Type": "text/plain"}, body=BytesBody(b"hello"))


async def measure(request: RequestEnvelope) -> ResponseEnvelope:
    """Answer with the path and with how long the body is."""
    size = 0
    async for chunk in request.body.chunks():
        size += len(chunk)
    body = json.dumps({"path": request.path, "bytes": size, "query": request.query, "announced": request.body.length})
    return ResponseEnvelope(headers={"Content-Type": "application/json"}, body=BytesBody(body.encode()))


def route(handle: Handle, prefix: str = "/", methods: tuple[str, ...] = ()) -> Route:
    return Route(Endpoint(prefix, methods), handle)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def _ask(port: int, method: str, path: str, body: Any, headers: dict[str, str]) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> Deferred[Reply]:
    """One request with the standard library's client; ``x_request_id="a"`` is the header X-Request-ID."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return deferToThread(_ask, port, method, path, body, named)


def _talk(port: int, pieces: Sequence[bytes]) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        for piece in pieces:
            client.sendall(piece)
        received = b""
        while data := client.recv(65536):
            received += data
    return received


def talk(port: int, *pieces: bytes) -> Deferred[bytes]:
    """Send raw bytes and return all that comes back until the server closes."""
    return deferToThread(_talk, port, pieces)


def connected(port: int, request: bytes = GET, receive_buffer_bytes: int | None = None) -> socket.socket:
    client = socket.socket()
    if receive_buffer_bytes is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    client.settimeout(30)
    client.connect(("127.0.0.1", port))
    client.sendall(request)
    return client


async def until(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds; the test's deadline is the limit."""
    from twisted.internet import reactor

    while not condition():
        await deferLater(reactor, 0.01)  # type: ignore[arg-type]
