"""Requests: routes, methods, identifiers, bodies and their limits, as real clients see them."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread
from web_kit import Reply, ask, measure, route, say_hello, talk

from harmonyd import __version__
from harmonyd.config.model import LimitsConfig
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import NotFound, RemoteError

MEGABYTE = b"x" * 1_000_000


def split(answer: bytes) -> tuple[bytes, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


@pytest_twisted.ensureDeferred
async def test_an_answer_has_the_expected_headers(serve: Any) -> None:
    """Each answer says who serves, when, and under which correlation id."""
    front_end = await serve(route(say_hello))
    reply = await ask(front_end.port, "GET", "/", x_request_id="abc-1._")
    assert (reply.status, reply.body) == (200, b"hello")
    assert reply.headers["content-length"] == "5"
    assert reply.headers["content-type"] == "text/plain"
    assert reply.headers["server"] == f"harmonyd/{__version__}"
    assert reply.headers["x-request-id"] == "abc-1._"
    assert "date" in reply.headers


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a;b", "ü", "a/b"])
@pytest_twisted.ensureDeferred
async def test_a_bad_request_id_is_replaced(serve: Any, given: str) -> None:
    """A correlation id that could forge a log line or a file name is not taken over."""
    front_end = await serve(route(say_hello))
    reply = await ask(front_end.port, "GET", "/", x_request_id=given)
    assert len(reply.headers["x-request-id"]) == 32
    assert reply.headers["x-request-id"] != given


@pytest_twisted.ensureDeferred
async def test_what_an_endpoint_sees(serve: Any) -> None:
    """Path after the prefix, query, headers in lower case with repeated ones joined, and the client's address."""
    made = route(say_hello, "/dimse")
    front_end = await serve(made)
    await talk(
        front_end.port,
        b"GET /dimse/J%C3%BCrgen?a=1&a=2 HTTP/1.1\r\nHost: x\r\nX-Thing: 1\r\nX-Thing: 2\r\nConnection: close\r\n\r\n",
    )
    [seen] = made.endpoint.seen  # type: ignore[attr-defined]
    assert (seen.method, seen.prefix, seen.path) == ("GET", "/dimse", "/Jürgen")
    assert seen.query == {"a": ["1", "2"]}
    assert seen.headers["x-thing"] == "1, 2"
    assert seen.caller.address == "127.0.0.1"


@pytest_twisted.ensureDeferred
async def test_no_route_is_404(serve: Any) -> None:
    """A path that no endpoint covers is a problem detail that names no other path."""
    front_end = await serve(route(say_hello, "/secret-path"))
    reply = await ask(front_end.port, "GET", "/other")
    assert reply.status == 404
    assert reply.json["request_id"] == reply.headers["x-request-id"]
    assert b"secret" not in reply.body


@pytest.mark.parametrize("path", ["/x/../y", "/x/%2e%2e/y", "/x/%00", "/x/%ff", "/x?a=%ff", "/%zz"])
@pytest_twisted.ensureDeferred
async def test_path_tricks_are_400(serve: Any, path: str) -> None:
    """What no honest client sends is refused before any endpoint sees it."""
    made = route(say_hello)
    front_end = await serve(made)
    assert (await ask(front_end.port, "GET", path)).status == 400
    assert made.endpoint.seen == []  # type: ignore[attr-defined]


@pytest_twisted.ensureDeferred
async def test_a_method_that_is_not_allowed_is_405(serve: Any) -> None:
    """The answer names the methods that are; OPTIONS is one like any other."""
    front_end = await serve(route(say_hello, "/", ("POST",)))
    for method in ("GET", "OPTIONS", "DELETE"):
        reply = await ask(front_end.port, method, "/")
        assert (reply.status, reply.headers["allow"]) == (405, "POST")


@pytest_twisted.ensureDeferred
async def test_head_has_the_headers_and_no_body(serve: Any) -> None:
    """HEAD goes where GET goes and tells the length that GET would have."""
    front_end = await serve(route(say_hello, "/", ("GET",)))
    answer = await talk(front_end.port, b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head, body = split(answer)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Length: 5" in head
    assert body == b""


@pytest_twisted.ensureDeferred
async def test_an_error_of_the_pipeline_is_a_problem_detail(serve: Any) -> None:
    """The operation that middleware or the path decided is in it."""

    async def fail(request: RequestEnvelope) -> ResponseEnvelope:
        request.metadata["dimse_op"] = "find"
        raise RemoteError("the PACS is away")

    front_end = await serve(route(fail))
    reply = await ask(front_end.port, "POST", "/", b"{}")
    assert (reply.status, reply.json["operation"], reply.json["error"]) == (502, "find", "the PACS is away")
    assert reply.json["success"] is False


@pytest_twisted.ensureDeferred
async def test_a_defect_is_500_and_logged(serve: Any, logged_failures: Any) -> None:
    """The client learns nothing of an exception that is not ours; the log has it."""

    async def fail(request: RequestEnvelope) -> ResponseEnvelope:
        raise ZeroDivisionError("secret")

    front_end = await serve(route(fail))
    reply = await ask(front_end.port, "POST", "/", b"{}")
    assert reply.status == 500
    assert b"secret" not in reply.body
    assert len(logged_failures.flush(ZeroDivisionError)) == 1


@pytest_twisted.ensureDeferred
async def test_a_connection_is_kept_after_errors(serve: Any) -> None:
    """Small refused requests, pipelined among good ones, are answered in order on one connection."""

    async def maybe(request: RequestEnvelope) -> ResponseEnvelope:
        if request.path == "/bad":
            raise NotFound("nothing")
        return await say_hello(request)

    front_end = await serve(route(maybe, "/x", ("POST",)))
    good = b"POST /x/good HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    bad = b"POST /x/bad HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    unknown = b"POST /y HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    wrong = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    answer = await talk(front_end.port, good + bad + unknown + wrong + good + last)
    statuses = re.findall(rb"HTTP/1.1 (\d+) ", answer)
    assert statuses == [b"200", b"404", b"404", b"405", b"200", b"200"]


@pytest_twisted.ensureDeferred
async def test_many_pipelined_requests(serve: Any) -> None:
    """A hundred requests in one packet are a hundred answers, without deep recursion."""
    front_end = await serve(route(say_hello))
    one = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = await talk(front_end.port, one * 99 + one.replace(b"Host: x", b"Connection: close"))
    assert answer.count(b"HTTP/1.1 200 OK") == 100


@pytest_twisted.ensureDeferred
async def test_what_is_not_http_is_400(serve: Any) -> None:
    """A malformed request gets a problem detail with an id, not silence."""
    front_end = await serve(route(say_hello))
    for raw in (b"NONSENSE\r\n\r\n", b"GET / HTTP/1.1\r\nBad Header\r\n\r\n"):
        head, body = split(await talk(front_end.port, raw))
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["request_id"].encode() in head


# --- bodies -----------------------------------------------------------------------------------------------------------


def pieces(count: int) -> Iterator[bytes]:
    return (MEGABYTE for _ in range(count))


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 3_000_000])
@pytest_twisted.ensureDeferred
async def test_bodies_of_any_size_arrive_whole(serve: Any, size: int) -> None:
    """Small bodies are received first and big ones read as they come; both announce their length."""
    front_end = await serve(route(measure))
    reply = await ask(front_end.port, "POST", "/", b"x" * size, content_type="application/dicom")
    assert (reply.json["bytes"], reply.json["announced"]) == (size, size)


@pytest_twisted.ensureDeferred
async def test_a_chunked_body_arrives_whole(serve: Any) -> None:
    """A body of unknown length does not announce one."""
    front_end = await serve(route(measure))
    reply = await ask(front_end.port, "POST", "/", pieces(3), content_type="application/dicom")
    assert (reply.json["bytes"], reply.json["announced"]) == (3_000_000, None)


@pytest_twisted.ensureDeferred
async def test_a_body_of_100_mb_is_refused_with_little_memory(serve: Any) -> None:
    """JSON beyond its limit is 413, also for a client that reads only after it sent everything."""
    front_end = await serve(route(measure))
    before_bytes = psutil.Process().memory_info().rss
    raw = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000000\r\n\r\n"
    head, body = split(await talk(front_end.port, raw, *[MEGABYTE] * 100))
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in head
    assert json.loads(body)["limit_bytes"] == 1_000_000
    assert psutil.Process().memory_info().rss - before_bytes < 20_000_000


@pytest.mark.parametrize("kind", ["application/json", "application/dicom+json; charset=utf-8", ""])
@pytest_twisted.ensureDeferred
async def test_a_chunked_body_beyond_the_limit_is_refused(serve: Any, kind: str) -> None:
    """The limit for JSON also holds for what has no type, and for bodies that do not tell their length."""
    front_end = await serve(route(measure), limits=LimitsConfig(max_json_bytes=100_000))
    kind_header = f"Content-Type: {kind}\r\n" if kind else ""
    head = f"POST / HTTP/1.1\r\nHost: x\r\n{kind_header}Transfer-Encoding: chunked\r\n\r\n".encode()
    chunk = b"%x\r\n%b\r\n" % (len(MEGABYTE), MEGABYTE)
    answer = await talk(front_end.port, head, *[chunk] * 10, b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.count(b"HTTP/1.1") == 1


@pytest_twisted.ensureDeferred
async def test_a_small_body_beyond_the_limit_keeps_the_connection(serve: Any) -> None:
    """A body that is cheap to read is read, so that the connection can go on."""
    front_end = await serve(route(measure), limits=LimitsConfig(max_json_bytes=10))
    raw = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n" + b"x" * 20
    small = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    answer = await talk(front_end.port, raw + small)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"HTTP/1.1 200 " in answer


def _expect(port: int, head: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Send a head with Expect; return what comes before the body is sent and what comes after."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.connect()
    with connection.sock as client:
        client.sendall(head)
        first = client.recv(65536)
        if not first.startswith(b"HTTP/1.1 100 "):
            return first, b""
        client.sendall(body)
        rest = b""
        while data := client.recv(65536):
            rest += data
        return first, rest


@pytest_twisted.ensureDeferred
async def test_expect_continue(serve: Any) -> None:
    """A client that asks before it sends a body is told to go on."""
    front_end = await serve(route(measure))
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    first, rest = await deferToThread(_expect, front_end.port, head, b"{}")
    assert first.startswith(b"HTTP/1.1 100 ")
    assert rest.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(("path", "length", "status"), [("/x", 2_000_000, b"413"), ("/y", 5, b"404")])
@pytest_twisted.ensureDeferred
async def test_expect_continue_is_refused_without_the_body(serve: Any, path: str, length: int, status: bytes) -> None:
    """A client that asks before it sends gets the refusal at once, and never "100 Continue"."""
    front_end = await serve(route(measure, "/x"))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n".encode()
    first, _ = await deferToThread(_expect, front_end.port, head, b"")
    assert first.startswith(b"HTTP/1.1 " + status)


@pytest_twisted.ensureDeferred
async def test_curl_reads_a_refusal_while_it_sends(serve: Any, tmp_path: Path) -> None:
    """curl, told not to ask first, gets 413 in the middle of its upload."""
    front_end = await serve(route(measure))
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(100_000_000)
    command = ["curl", "-s", "-H", "Expect:", "-H", "Content-Type: application/json", "--data-binary", f"@{big}"]
    url = f"http://127.0.0.1:{front_end.port}/"
    done = await deferToThread(
        subprocess.run, [*command, "-w", "%{http_code}", "-o", "/dev/null", url], capture_output=True
    )
    assert done.stdout == b"413"


@pytest_twisted.ensureDeferred
async def test_an_upload_to_no_route_is_not_received(serve: Any) -> None:
    """404 comes before a big body, not after it."""
    front_end = await serve(route(measure, "/x"))
    raw = b"POST /y HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\nContent-Length: 3000000000\r\n\r\n"
    head, _ = split(await talk(front_end.port, raw))
    assert head.startswith(b"HTTP/1.1 404 ")


@pytest_twisted.ensureDeferred
async def test_a_silent_client_is_timed_out(serve: Any) -> None:
    """A client that stops in the middle of its request is hung up on."""
    front_end = await serve(route(measure), limits=LimitsConfig(request_timeout_secs=0.1))
    assert await talk(front_end.port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nx") == b""


# --- connections ------------------------------------------------------------------------------------------------------


def _hold_and_ask(port: int, count: int) -> tuple[bytes, Reply]:
    held = [http.client.HTTPConnection("127.0.0.1", port, timeout=30) for _ in range(count)]
    for connection in held:
        connection.request("GET", "/")
        connection.getresponse().read()
    extra = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    extra.request("GET", "/")
    response = extra.getresponse()
    refused = Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    held[0].request("GET", "/")
    body = held[0].getresponse().read()
    for connection in [*held, extra]:
        connection.close()
    return body, refused


@pytest_twisted.ensureDeferred
async def test_connections_are_limited(serve: Any) -> None:
    """One connection too many gets 503; those that are open go on working."""
    front_end = await serve(route(say_hello), limits=LimitsConfig(max_connections=3))
    body, refused = await deferToThread(_hold_and_ask, front_end.port, 3)
    assert body == b"hello"
    assert refused.status == 503
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json["request_id"] == refused.headers["x-request-id"]


@pytest_twisted.ensureDeferred
async def test_small_packets_are_not_delayed(serve: Any) -> None:
    """Connections have TCP_NODELAY, so that the first result leaves when it is there."""
    seen: list[bool] = []

    async def look(request: RequestEnvelope) -> ResponseEnvelope:
        [channel] = front_end._site.connections
        seen.append(channel.transport.getTcpNoDelay())
        return await say_hello(request)

    front_end = await serve(route(look))
    await ask(front_end.port, "GET", "/")
    assert seen == [True]


@pytest_twisted.ensureDeferred
async def test_ipv6(serve: Any) -> None:
    """An IPv6 address is one to listen on like any other."""
    front_end = await serve(route(say_hello), address="::1")
    connection = http.client.HTTPConnection("::1", front_end.port, timeout=30)

    def get() -> bytes:
        connection.request("GET", "/")
        body = connection.getresponse().read()
        connection.close()
        return body

    assert await deferToThread(get) == b"hello"
