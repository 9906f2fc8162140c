"""Starting, stopping and health of a front end, and what it logs."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from web_kit import ask, route, say_hello, talk

from harmonyd.config.model import HttpListener, LimitsConfig, NetworkConfig
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.supervision.ports import command_line
from harmonyd.telemetry.health import CheckResult, Health
from harmonyd.testing.certificates import Authority
from harmonyd.web.front_end import HttpFrontEnd
from harmonyd.web.listening import CannotBind, PortTaken


@pytest.fixture
def events() -> Iterator[list[LogEvent]]:
    """What is logged during the test."""
    seen: list[LogEvent] = []
    globalLogPublisher.addObserver(seen.append)
    yield seen
    globalLogPublisher.removeObserver(seen.append)


def front_end_on(address: str, port: int) -> HttpFrontEnd:
    from twisted.internet import reactor

    return HttpFrontEnd(reactor, NetworkConfig("n", HttpListener(address, port)), [], LimitsConfig(), None)


# --- health -----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_health_paths_win_over_the_root(serve: Any) -> None:
    """/livez and /readyz answer also where an endpoint has the prefix "/"."""
    health = Health()
    health.add_check("disk", lambda: CheckResult(True, "writable"))
    front_end = await serve(route(say_hello), health=health)
    live, ready = await ask(front_end.port, "GET", "/livez"), await ask(front_end.port, "GET", "/readyz")
    assert (live.status, live.json["status"]) == (200, "ready")
    assert (ready.status, ready.json["checks"]) == (200, {"disk": {"ok": True, "detail": "writable"}})
    assert (await ask(front_end.port, "GET", "/readyz/more")).body == b"hello"


@pytest_twisted.ensureDeferred
async def test_not_ready_is_503(serve: Any) -> None:
    """A failed check makes /readyz say so, and leaves /livez alone."""
    health = Health()
    health.add_check("children", lambda: CheckResult(False, "storescp is BACKOFF"))
    front_end = await serve(health=health)
    reply = await ask(front_end.port, "GET", "/readyz")
    assert (reply.status, reply.json["status"]) == (503, "not ready")
    assert (await ask(front_end.port, "GET", "/livez")).status == 200


@pytest_twisted.ensureDeferred
async def test_health_paths_take_get_and_head_only(serve: Any) -> None:
    """HEAD has no body, POST is 405."""
    front_end = await serve(health=Health())
    head = await ask(front_end.port, "HEAD", "/readyz")
    assert (head.status, head.body) == (200, b"")
    assert (await ask(front_end.port, "POST", "/readyz", b"{}")).headers["allow"] == "GET, HEAD"


@pytest_twisted.ensureDeferred
async def test_health_is_not_everywhere(serve: Any) -> None:
    """A network without health has no such paths."""
    front_end = await serve(route(say_hello, "/x"))
    assert (await ask(front_end.port, "GET", "/livez")).status == 404


# --- listening --------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_taken_port_names_its_holder() -> None:
    """The error says which process listens there, with its command line."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        front_end = front_end_on("127.0.0.1", taken.getsockname()[1])
        holder = re.escape(f"pid {os.getpid()} ({command_line(os.getpid())})")
        with pytest.raises(PortTaken, match=holder) as caught:
            await front_end.start()
    assert caught.value.hint is not None
    await front_end.stop()


@pytest_twisted.ensureDeferred
async def test_an_address_of_another_machine() -> None:
    """An address that no interface has is told from a port that is taken."""
    with pytest.raises(CannotBind, match=r"192\.0\.2\.1") as caught:
        await front_end_on("192.0.2.1", 0).start()
    assert not isinstance(caught.value, PortTaken)


@pytest_twisted.ensureDeferred
async def test_a_socket_that_systemd_did_not_pass() -> None:
    """The error names the socket and the setting of the unit."""
    with pytest.raises(CannotBind, match="no socket named web"):
        await front_end_on("systemd:web", 0).start()


def test_the_port_is_known_after_start() -> None:
    """Before, there is none to tell."""
    with pytest.raises(RuntimeError):
        _ = front_end_on("127.0.0.1", 0).port


# It first does to itself what systemd does for a service, sd_listen_fds(3).
ACTIVATED = """
    import os
    import sys
    os.dup2(int(sys.argv[1]), 3)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="web")
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from harmonyd.config.model import HttpListener, LimitsConfig, NetworkConfig
    from harmonyd.telemetry.health import Health
    from harmonyd.web.front_end import HttpFrontEnd

    from pathlib import Path
    from harmonyd.tls import TlsServer
    tls = TlsServer(Path(sys.argv[2]), Path(sys.argv[3])) if len(sys.argv) > 2 else None
    network = NetworkConfig("n", HttpListener("systemd:web", 0), tls=tls)
    front_end = HttpFrontEnd(reactor, network, [], LimitsConfig(), Health())
    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(front_end.start()))
    reactor.run()
"""


@pytest.mark.parametrize(
    ("family", "host", "tls"), [(socket.AF_INET, "127.0.0.1", True), (socket.AF_INET6, "::1", False)]
)
@pytest_twisted.ensureDeferred
async def test_a_socket_from_systemd(family: socket.AddressFamily, host: str, tls: bool, tmp_path: Path) -> None:
    """A socket that was passed by name is adopted, IPv4 or IPv6, and serves, with TLS or without."""
    ca = Authority(tmp_path)
    own = ca.issue("server")
    context = ssl.create_default_context(cafile=str(ca.cert))
    with socket.socket(family) as passed:
        passed.bind((host, 0))
        passed.listen()
        files = [str(own.cert), str(own.key)] if tls else []
        command = [sys.executable, "-c", textwrap.dedent(ACTIVATED), str(passed.fileno()), *files]
        child = await deferToThread(subprocess.Popen, command, pass_fds=[passed.fileno()])
        try:
            where = host, passed.getsockname()[1]
            client: socket.socket = await deferToThread(socket.create_connection, where, 30)
            if tls:
                client = await deferToThread(context.wrap_socket, client, server_hostname=host)
            with client:
                client.sendall(b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n")
                assert (await deferToThread(client.recv, 65536)).startswith(b"HTTP/1.1 200 ")
        finally:
            child.kill()
            child.wait()


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_stop_lets_running_requests_finish(serve: Any) -> None:
    """A request that ends within the grace is answered, and its connection closed after it."""
    started: Deferred[None] = Deferred()
    go_on: Deferred[None] = Deferred()

    async def handle(request: RequestEnvelope) -> ResponseEnvelope:
        started.callback(None)
        await go_on
        return await say_hello(request)

    front_end = await serve(route(handle))
    answer = talk(front_end.port, b"GET / HTTP/1.1\r\n\r\n")
    await started
    stopped = Deferred.fromCoroutine(front_end.stop(grace_secs=30))
    go_on.callback(None)
    await stopped
    assert (await answer).endswith(b"hello")


@pytest_twisted.ensureDeferred
async def test_stop_cancels_what_does_not_finish(serve: Any) -> None:
    """After the grace a request is cancelled and told 503."""
    started: Deferred[None] = Deferred()

    async def handle(_: RequestEnvelope) -> ResponseEnvelope:
        started.callback(None)
        await Deferred()
        raise AssertionError

    front_end = await serve(route(handle))
    answer = talk(front_end.port, b"GET / HTTP/1.1\r\n\r\n")
    await started
    await front_end.stop(grace_secs=0.05)
    head, _, body = (await answer).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After" in head
    assert json.loads(body)["detail"] == "harmonyd is shutting down."


@pytest_twisted.ensureDeferred
async def test_stop_closes_idle_connections(serve: Any) -> None:
    """A connection that is only kept does not hold up the end."""
    front_end = await serve(route(say_hello))
    with await deferToThread(socket.create_connection, ("127.0.0.1", front_end.port), 30) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert (await deferToThread(client.recv, 65536)).startswith(b"HTTP/1.1 200 ")
        await front_end.stop(grace_secs=30)
        assert await deferToThread(client.recv, 65536) == b""


# --- the log ----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_access_line_has_no_query(serve: Any, events: list[LogEvent]) -> None:
    """Queries hold what identifies patients; the id, the operation and the figures are there."""

    async def handle(request: RequestEnvelope) -> ResponseEnvelope:
        request.metadata["dimse_op"] = "find"
        return await say_hello(request)

    front_end = await serve(route(handle))
    await ask(front_end.port, "GET", "/studies?PatientID=12345", x_request_id="abc")
    [line] = [event for event in events if event.get("request") == "abc"]
    text = formatEvent(line)
    assert text.startswith("GET /studies 200 5 bytes ")
    assert "12345" not in text
    assert line["operation"] == "find"
