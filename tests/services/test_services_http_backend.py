"""The backend half of ``http`` against real HTTP servers on the loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from zope.interface import implementer

from harmonyd.bodies import BytesBody, EmptyBody
from harmonyd.config.model import HttpBackendOptions
from harmonyd.envelope import Body, RequestEnvelope, ResponseEnvelope
from harmonyd.errors import BadRequest, DeadlinePassed, HarmonydError, PayloadTooLarge, StorageFull
from harmonyd.services.http.backend import HttpBackend
from harmonyd.services.http.errors import UpstreamFailed, UpstreamUnreachable

Listen = Callable[[Any], int]


class Upstream(Resource):
    """Notes what it is asked and answers with a small text."""

    def __init__(self) -> None:
        super().__init__()
        self.isLeaf = True
        self.seen: list[Any] = []

    def render(self, request: Any) -> bytes:
        headers = {name.lower(): values for name, values in request.requestHeaders.getAllRawHeaders()}
        self.seen.append((request.method, request.uri, headers, request.content.read()))
        request.setHeader("X-Two", "a")
        request.responseHeaders.addRawHeader("X-Two", "b")
        request.setResponseCode(207)
        return b"answer"


class Scripted(Protocol):
    """Says a fixed text once something was received; notes what it gets and whether it was left."""

    def __init__(self, says: bytes, *, closes: bool) -> None:
        self.says = says
        self.closes = closes
        self.got = b""
        self.left = False

    def dataReceived(self, data: bytes) -> None:
        first, self.got = not self.got, self.got + data
        if first:
            self.transport.write(self.says)  # type: ignore[union-attr]
            if self.closes:
                self.transport.loseConnection()  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.left = True


class ScriptedFactory(ServerFactory):
    """Makes ``Scripted`` servers and keeps them."""

    def __init__(self, says: bytes, *, closes: bool = False) -> None:
        self.says = says
        self.closes = closes
        self.made: list[Scripted] = []

    def buildProtocol(self, addr: Any) -> Scripted:
        self.made.append(Scripted(self.says, closes=self.closes))
        return self.made[-1]


class StreamBody(BytesBody):
    """A body of unknown length, in chunks that may be exceptions; counts what was taken."""

    def __init__(self, chunks: list[bytes | Exception]) -> None:
        super().__init__(b"")
        self.length = None
        self.taken = 0
        self._given = chunks

    async def chunks(self) -> AsyncIterator[bytes]:
        for chunk in self._given:
            if isinstance(chunk, Exception):
                raise chunk
            self.taken += 1
            yield chunk


@implementer(IHostnameResolver)
class NoNames:
    """A resolver that knows no name."""

    def resolveHostName(self, receiver: Any, hostName: str, *_: object, **__: object) -> Any:  # noqa: N803
        receiver.resolutionBegan(self)
        receiver.resolutionComplete()
        return receiver


@pytest.fixture
def reactor() -> Any:
    """Twisted's reactor."""
    from twisted.internet import reactor

    return reactor


@pytest.fixture
def listen(reactor: Any) -> Iterator[Listen]:
    """Listen with a factory on a free port of the loopback; return the port."""
    ports: list[Any] = []

    def start(factory: Any) -> int:
        ports.append(reactor.listenTCP(0, factory, interface="127.0.0.1"))
        return int(ports[-1].getHost().port)

    yield start
    for port in ports:
        pytest_twisted.blockon(port.stopListening())


@pytest.fixture
def backend(reactor: Any) -> Iterator[Callable[..., HttpBackend]]:
    """Make backends for a port and a base path; they are stopped at the end."""
    made: list[HttpBackend] = []

    def make(port: int, base: str = "/base/", **options: float) -> HttpBackend:
        made.append(HttpBackend("up", HttpBackendOptions(f"http://127.0.0.1:{port}{base}", **options), reactor))
        return made[-1]

    yield make
    for each in made:
        pytest_twisted.blockon(Deferred.fromCoroutine(each.stop()))


async def turn_until(condition: Callable[[], bool]) -> None:
    """Let the reactor run until a condition holds."""
    from twisted.internet import reactor

    while not condition():
        await deferLater(reactor, 0.001)  # type: ignore[arg-type]


def request(method: str = "GET", path: str = "/a", body: Body | None = None, **fields: Any) -> RequestEnvelope:
    fields.setdefault("metadata", {"path": path})
    return RequestEnvelope("http", method, f"/prefix{path}", path, body or EmptyBody(), id="r1", **fields)


async def read(response: ResponseEnvelope) -> bytes:
    assert response.body is not None
    return b"".join([chunk async for chunk in response.body.chunks()])


@pytest_twisted.ensureDeferred
async def test_a_request_is_forwarded(listen: Listen, backend: Callable[..., HttpBackend]) -> None:
    """Method, path, query, headers and body reach the upstream server; its answer comes back."""
    upstream = Upstream()
    up = backend(listen(Site(upstream)))
    await up.start()
    headers = {
        "accept": "text/x",
        "authorization": "Basic x",
        "host": "front",
        "connection": "x-hop",
        "x-hop": "1",
        "te": "trailers",
        "content-length": "9",
        "expect": "100-continue",
        "x-request-id": "other",
        "via": "1.1 before",
        "x-name": "häß 中",
    }
    query = {"a": ["1", "2"], "backend": ["up"], "b c": ["ä&="], "empty": [""]}
    response = await up.send(request("PATCH", "/x y/ü%/d%2Fe", BytesBody(b"data"), headers=headers, query=query))
    assert (response.status, await read(response)) == (207, b"answer")
    assert response.headers["x-two"] == "a, b"
    method, uri, got, content = upstream.seen[0]
    assert (method, content) == (b"PATCH", b"data")
    assert uri == b"/base/x%20y/%C3%BC%25/d%2Fe?a=1&a=2&b%20c=%C3%A4%26%3D&empty="
    assert got.pop(b"host")[0].startswith(b"127.0.0.1:")
    assert got == {
        b"accept": [b"text/x"],
        b"authorization": [b"Basic x"],
        b"content-length": [b"4"],
        b"via": [b"1.1 before, 1.1 harmonyd"],
        b"x-name": ["häß 中".encode()],
        b"x-request-id": [b"r1"],
    }


@pytest.mark.parametrize(("path", "uri"), [("/", b"/base"), ("", b"/base"), ("/a/", b"/base/a/"), ("//a", b"/base//a")])
@pytest_twisted.ensureDeferred
async def test_the_path_is_appended(listen: Listen, backend: Callable[..., HttpBackend], path: str, uri: bytes) -> None:
    """The path after the prefix follows the base URL, its slashes kept."""
    upstream = Upstream()
    await read(await backend(listen(Site(upstream))).send(request(path=path)))
    assert upstream.seen[0][1] == uri


@pytest.mark.parametrize("path", ["/..", "/a/../b", "/./a", "/..%2Fa", "/a%2F..", "/..\\a", "/a/.."])
@pytest_twisted.ensureDeferred
async def test_a_path_cannot_leave_the_base(backend: Callable[..., HttpBackend], path: str) -> None:
    """Dot segments, plain or hidden behind an encoded slash, are refused before anything is sent."""
    with pytest.raises(BadRequest):
        await backend(1).send(request(path=path))


@pytest_twisted.ensureDeferred
async def test_middleware_decides_the_path(listen: Listen, backend: Callable[..., HttpBackend]) -> None:
    """The metadata key ``path`` wins over the path of the request."""
    upstream = Upstream()
    await read(await backend(listen(Site(upstream))).send(request(path="/a", metadata={"path": "/b"})))
    assert upstream.seen[0][1] == b"/base/b"


@pytest_twisted.ensureDeferred
async def test_an_inbound_object_is_posted(listen: Listen, backend: Callable[..., HttpBackend]) -> None:
    """A received DICOM object is sent with POST to the base URL."""
    upstream = Upstream()
    inbound = RequestEnvelope("dicom", "C-STORE", "dicom://X/1.2", "/", BytesBody(b"object"))
    await read(await backend(listen(Site(upstream))).send(inbound))
    method, uri, headers, content = upstream.seen[0]
    assert (method, uri, content) == (b"POST", b"/base", b"object")
    assert headers[b"content-type"] == [b"application/dicom"]


@pytest_twisted.ensureDeferred
async def test_an_impossible_method_is_a_bad_request(backend: Callable[..., HttpBackend]) -> None:
    """What is no HTTP method is not sent."""
    with pytest.raises(BadRequest):
        await backend(1).send(request("GET /"))


@pytest_twisted.ensureDeferred
async def test_connections_are_kept(listen: Listen, backend: Callable[..., HttpBackend]) -> None:
    """Requests one after the other use one connection."""
    factory = ScriptedFactory(b"")
    says = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    class Repeating(Scripted):
        def dataReceived(self, data: bytes) -> None:
            self.transport.write(says)  # type: ignore[union-attr]

    def build(addr: Any) -> Scripted:
        factory.made.append(Repeating(b"", closes=False))
        return factory.made[-1]

    factory.buildProtocol = build  # type: ignore[method-assign]
    up = backend(listen(factory))
    for _ in range(3):
        assert await read(await up.send(request())) == b"ok"
    assert len(factory.made) == 1


# --- request bodies ---------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_body_of_unknown_length_is_chunked(listen: Listen, backend: Callable[..., HttpBackend]) -> None:
    """Without a length the body goes in chunks."""
    upstream = Upstream()
    body = StreamBody([b"one ", b"two"])
    await read(await backend(listen(Site(upstream))).send(request("POST", body=body)))
    assert upstream.seen[0][2][b"transfer-encoding"] == [b"chunked"]
    assert upstream.seen[0][3] == b"one two"


@pytest_twisted.ensureDeferred
async def test_a_server_that_does_not_read_holds_the_body_back(
    listen: Listen, backend: Callable[..., HttpBackend]
) -> None:
    """The body is not read further than the connection takes it, and goes on when it does."""
    servers: list[Any] = []

    class Slow(Protocol):
        got = 0

        def connectionMade(self) -> None:
            servers.append(self)
            self.transport.pauseProducing()  # type: ignore[union-attr]

        def dataReceived(self, data: bytes) -> None:
            self.got += len(data)
            if data.endswith(b"0\r\n\r\n"):
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")  # type: ignore[union-attr]

    factory = ServerFactory()
    factory.protocol = Slow
    body = StreamBody([b"x" * 65536] * 1000)
    sending = Deferred.fromCoroutine(backend(listen(factory)).send(request("POST", body=body)))
    taken = -1
    while taken != body.taken or not servers:
        taken = body.taken
        await deferLater(_reactor(), 0.05)
    assert 0 < taken < 900
    servers[0].transport.resumeProducing()
    assert (await sending).status == 200
    assert body.taken == 1000


@pytest_twisted.ensureDeferred
async def test_a_body_that_fails_is_not_the_servers_fault(listen: Listen, backend: Callable[..., HttpBackend]) -> None:
    """What reading the request's body raises comes out as it is, and the connection is dropped."""
    factory = ScriptedFactory(b"")
    body = StreamBody([b"one", StorageFull("the disk is full")])
    with pytest.raises(StorageFull):
        await backend(listen(factory)).send(request("POST", body=body))
    await turn_until(lambda: all(server.left for server in factory.made))


@pytest_twisted.ensureDeferred
async def test_a_body_shorter_than_announced_is_our_fault(listen: Listen, backend: Callable[..., HttpBackend]) -> None:
    """A body that breaks its promise of a length is not blamed on the server."""
    body = StreamBody([b"one"])
    body.length = 10
    with pytest.raises(HarmonydError) as error:
        await backend(listen(ScriptedFactory(b""))).send(request("POST", body=body))
    assert not isinstance(error.value, UpstreamFailed)


@pytest_twisted.ensureDeferred
async def test_an_early_answer_ends_the_upload(listen: Listen, backend: Callable[..., HttpBackend]) -> None:
    """A server may answer before it has read everything; the rest is not sent."""
    factory = ScriptedFactory(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig", closes=True)
    body = StreamBody([b"x" * 65536] * 2000)
    response = await backend(listen(factory)).send(request("POST", body=body))
    assert (response.status, await read(response)) == (413, b"big")
    await turn_until(lambda: factory.made[0].left)


@pytest_twisted.ensureDeferred
async def test_a_body_that_does_not_end_is_too_late(listen: Listen, backend: Callable[..., HttpBackend]) -> None:
    """When the time is up while the body still comes, the answer says that it is the body that is late."""

    class Stalled(StreamBody):
        async def chunks(self) -> AsyncIterator[bytes]:
            yield b"one"
            await Deferred()

    factory = ScriptedFactory(b"")
    up = backend(listen(factory), operation_timeout_secs=0.1)
    with pytest.raises(DeadlinePassed, match="body of the request"):
        await up.send(request("POST", body=Stalled([])))
    await turn_until(lambda: all(server.left for server in factory.made))


@pytest.mark.parametrize("length", [None, 3_000_000])
@pytest_twisted.ensureDeferred
async def test_an_upload_is_dropped_once_it_is_answered(
    listen: Listen, backend: Callable[..., HttpBackend], length: int | None
) -> None:
    """A server that has answered and does not read on is left, while the body is still coming."""
    ended: Deferred[None] = Deferred()

    class Stalled(StreamBody):
        async def chunks(self) -> AsyncIterator[bytes]:
            try:
                yield b"one"
                await Deferred()
            finally:
                ended.callback(None)

    factory = ScriptedFactory(b"HTTP/1.1 415 No\r\nContent-Length: 0\r\n\r\n")
    body = Stalled([])
    body.length = length
    response = await backend(listen(factory)).send(request("POST", body=body))
    assert (response.status, await read(response)) == (415, b"")
    await ended
    await turn_until(lambda: all(server.left for server in factory.made))


# --- response bodies --------------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("says", "length", "content"),
    [
        (HEAD + b"Content-Length: 5\r\n\r\nhello", 5, b"hello"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", None, b"hello"),
        (HEAD + b"\r\nhello", None, b"hello"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 0, b""),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", 0, b""),
    ],
)
@pytest_twisted.ensureDeferred
async def test_whole_bodies_end_cleanly(
    listen: Listen, backend: Callable[..., HttpBackend], says: bytes, length: int | None, content: bytes
) -> None:
    """A body framed in any way comes out whole, and a redirect is passed on."""
    response = await backend(listen(ScriptedFactory(says, closes=True))).send(request())
    assert response.body is not None
    assert (response.body.length, await read(response)) == (length, content)


@pytest.mark.parametrize(
    "says", [HEAD + b"Content-Length: 9\r\n\r\nhello", HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"]
)
@pytest_twisted.ensureDeferred
async def test_a_body_that_is_cut_raises(listen: Listen, backend: Callable[..., HttpBackend], says: bytes) -> None:
    """A body the server does not finish comes out as far as it came, and then as an error."""
    response = await backend(listen(ScriptedFactory(says, closes=True))).send(request())
    assert response.body is not None
    got = b""
    with pytest.raises(UpstreamFailed):
        async for chunk in response.body.chunks():
            got += chunk
    assert got == b"hello"


@pytest_twisted.ensureDeferred
async def test_a_reader_that_waits_holds_the_server_back(listen: Listen, backend: Callable[..., HttpBackend]) -> None:
    """While nobody reads, little is buffered; then everything comes out."""
    size = 64_000_000

    class Big(Resource):
        sent = 0

        def getChild(self, path: bytes, asked: Any) -> Resource:
            return self

        def render_GET(self, asked: Any) -> int:
            asked.setHeader(b"content-length", b"%d" % size)
            self.asked = asked
            asked.registerProducer(self, False)
            return NOT_DONE_YET

        def resumeProducing(self) -> None:
            self.asked.write(b"x" * 64_000)
            self.sent += 64_000
            if self.sent == size:
                self.asked.unregisterProducer()
                self.asked.finish()

        def stopProducing(self) -> None:
            pass

    big = Big()
    response = await backend(listen(Site(big))).send(request())
    sent = -1
    while sent != big.sent:
        sent = big.sent
        await deferLater(_reactor(), 0.05)
    assert 0 < sent < size // 2
    assert response.body is not None
    assert response.body.length == size
    assert sum([len(chunk) async for chunk in response.body.chunks()]) == size


@pytest.mark.parametrize("taken", [0, 1])
@pytest_twisted.ensureDeferred
async def test_a_body_that_is_given_up_drops_the_connection(
    listen: Listen, backend: Callable[..., HttpBackend], taken: int
) -> None:
    """Closing a body that has not ended leaves the server at once."""
    factory = ScriptedFactory(HEAD + b"Content-Length: 99\r\n\r\nhello")
    response = await backend(listen(factory)).send(request())
    assert response.body is not None
    chunks = response.body.chunks()
    for _ in range(taken):
        assert await anext(chunks) == b"hello"
    await response.close()
    await response.close()
    await turn_until(lambda: factory.made[0].left)


@pytest_twisted.ensureDeferred
async def test_a_body_can_be_read_within_a_limit(listen: Listen, backend: Callable[..., HttpBackend]) -> None:
    """``read`` gives the whole body, or refuses one that is larger than allowed."""
    up = backend(listen(Site(Upstream())))
    body = (await up.send(request())).body
    assert body is not None
    assert await body.read(6) == b"answer"
    body = (await up.send(request())).body
    assert body is not None
    with pytest.raises(PayloadTooLarge):
        await body.read(5)


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_port_where_nobody_listens_is_unreachable(reactor: Any, backend: Callable[..., HttpBackend]) -> None:
    """A refused connection says so, and names the backend."""
    port = reactor.listenTCP(0, ServerFactory(), interface="127.0.0.1")
    number = port.getHost().port
    await port.stopListening()
    with pytest.raises(UpstreamUnreachable, match="backend up") as error:
        await backend(number).send(request())
    assert error.value.extra == {"backend": "up"}


@pytest_twisted.ensureDeferred
async def test_an_unknown_host_is_unreachable(reactor: Any) -> None:
    """A name that does not resolve is told like a refused connection."""
    up = HttpBackend("up", HttpBackendOptions("http://nowhere.invalid"), reactor)
    before = reactor.installNameResolver(NoNames())
    try:
        with pytest.raises(UpstreamUnreachable):
            await up.send(request())
    finally:
        reactor.installNameResolver(before)


@pytest.mark.parametrize("says", [b"", b"SSH-2.0-Nope\r\n\r\n", HEAD + b"Content-Le"])
@pytest_twisted.ensureDeferred
async def test_what_is_not_http_is_the_servers_fault(
    listen: Listen, backend: Callable[..., HttpBackend], says: bytes
) -> None:
    """A server that closes, or speaks something else, has failed."""
    with pytest.raises(UpstreamFailed):
        await backend(listen(ScriptedFactory(says, closes=True))).send(request("POST", body=BytesBody(b"x")))


@pytest.mark.parametrize("limit", ["request", "options"])
@pytest_twisted.ensureDeferred
async def test_a_server_that_does_not_answer_in_time_is_left(
    reactor: Any, listen: Listen, backend: Callable[..., HttpBackend], limit: str
) -> None:
    """When the deadline of the request or of the backend passes, the connection is dropped."""
    factory = ScriptedFactory(b"")
    up = backend(listen(factory), operation_timeout_secs=3600 if limit == "request" else 0.05)
    deadline = reactor.seconds() + 0.05 if limit == "request" else None
    with pytest.raises(DeadlinePassed):
        await up.send(request(deadline=deadline))
    await turn_until(lambda: all(server.left for server in factory.made))


@pytest_twisted.ensureDeferred
async def test_the_deadline_holds_for_the_body_too(
    reactor: Any, listen: Listen, backend: Callable[..., HttpBackend]
) -> None:
    """A body that stalls past the deadline raises, and the connection is dropped."""
    factory = ScriptedFactory(HEAD + b"Content-Length: 99\r\n\r\nhello")
    response = await backend(listen(factory)).send(request(deadline=reactor.seconds() + 0.3))
    with pytest.raises(DeadlinePassed):
        await read(response)
    await turn_until(lambda: factory.made[0].left)


@pytest_twisted.ensureDeferred
async def test_a_connection_that_is_not_accepted_in_time_is_a_deadline() -> None:
    """A host that does not answer to connecting runs into the connect timeout."""

    memory = MemoryReactorClock()
    up = HttpBackend("up", HttpBackendOptions("http://127.0.0.1:9", connect_timeout_secs=7), memory)
    sending = Deferred.fromCoroutine(up.send(request()))
    _, _, factory, timeout, _ = memory.tcpClients[0]
    assert timeout == 7
    factory.clientConnectionFailed(None, Failure(ConnectTimeout()))
    memory.advance(7)
    with pytest.raises(DeadlinePassed, match="7 seconds"):
        await sending


@pytest_twisted.ensureDeferred
async def test_a_cancelled_request_leaves_the_server(listen: Listen, backend: Callable[..., HttpBackend]) -> None:
    """Cancelling who waits for the answer drops the connection."""
    factory = ScriptedFactory(b"")
    sending = Deferred.fromCoroutine(backend(listen(factory)).send(request()))
    await turn_until(lambda: bool(factory.made and factory.made[0].got))
    sending.cancel()
    with pytest.raises(CancelledError):
        await sending
    await turn_until(lambda: factory.made[0].left)


def _reactor() -> Any:
    from twisted.internet import reactor

    return reactor
