"""HTTPS: who is let in and known by which name, what is said to whom, and the end of connections."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from web_kit import GET, Endpoint, Reply, StreamBody, measure, say_hello, until
from web_kit import route as plain_route

from harmonyd.audit.api import AuditEvent, AuditKind
from harmonyd.bodies import BytesBody
from harmonyd.config.model import HttpListener, LimitsConfig, NetworkConfig
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import Unavailable
from harmonyd.services.dicom.auditing import Witness
from harmonyd.subject import PeerCertificate
from harmonyd.testing.certificates import Authority, Issued
from harmonyd.tls import TlsServer
from harmonyd.web.front_end import Route
from harmonyd.web.secure import connections_for

CLOSED = (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def ca(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
def server(ca: Authority) -> Issued:
    return ca.issue("server")


@pytest.fixture(scope="module")
def viewer(ca: Authority) -> Issued:
    return ca.issue("viewer", ("viewer.example.org",))


@pytest.fixture
def tls(server: Issued) -> TlsServer:
    return TlsServer(server.cert, server.key)


@pytest.fixture
def mutual(server: Issued, ca: Authority) -> TlsServer:
    return TlsServer(server.cert, server.key, ca.cert, require_client_certificate=True)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What is logged."""
    lines: list[str] = []

    def note(event: LogEvent) -> None:
        lines.append(formatEvent(event))

    globalLogPublisher.addObserver(note)
    yield lines
    globalLogPublisher.removeObserver(note)


def trusting(ca: Authority, own: Issued | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca.cert))
    if own is not None:
        context.load_cert_chain(own.cert, own.key)
    return context


def ask(port: int, context: ssl.SSLContext, method: str = "GET", path: str = "/", body: Any = None) -> Deferred[Reply]:
    def run() -> Reply:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
        try:
            connection.request(method, path, body, {"Content-Type": "application/dicom"})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    return deferToThread(run)


def secured(
    port: int, context: ssl.SSLContext, request: bytes = b"", receive_bytes: int | None = None
) -> ssl.SSLSocket:
    raw = socket.socket()
    raw.settimeout(30)
    if receive_bytes is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    raw.connect(("127.0.0.1", port))
    client = context.wrap_socket(raw, server_hostname="127.0.0.1")
    client.sendall(request)
    return client


def rest(client: socket.socket) -> bytes:
    received = b""
    while data := client.recv(65536):
        received += data
    return received


def plain(port: int, data: bytes) -> Deferred[bytes]:
    def run() -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(data)
            return rest(client)

    return deferToThread(run)


# --- what is spoken


@pytest_twisted.ensureDeferred
async def test_requests_and_answers_of_any_size(serve: Any, tls: TlsServer, ca: Authority) -> None:
    """Ten megabytes in, ten out; browsers are told to come over TLS only."""

    async def mirror(request: RequestEnvelope) -> ResponseEnvelope:
        return ResponseEnvelope(body=BytesBody(await request.body.read(20_000_000)))

    front_end = await serve(plain_route(mirror), tls=tls, hsts_max_age_secs=3600)
    sent = bytes(range(256)) * 40_000
    answer = await ask(front_end.port, trusting(ca), "POST", body=sent)
    assert (answer.status, answer.body == sent) == (200, True)
    assert answer.headers["strict-transport-security"] == "max-age=3600"


@pytest_twisted.ensureDeferred
async def test_no_hsts_where_it_is_off_or_there_is_no_tls(serve: Any, tls: TlsServer, ca: Authority) -> None:
    """RFC 6797 section 7.2: never over plain HTTP."""
    off = await serve(plain_route(say_hello), tls=tls, hsts_max_age_secs=0)
    assert "strict-transport-security" not in (await ask(off.port, trusting(ca))).headers
    without = await serve(plain_route(say_hello), hsts_max_age_secs=3600)
    assert b"Strict-Transport" not in await plain(without.port, GET.replace(b"Host: x", b"Connection: close"))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
@pytest_twisted.ensureDeferred
async def test_what_tls_must_be(serve: Any, tls: TlsServer, ca: Authority) -> None:
    """BCP 195: nothing before 1.2, and there only ephemeral keys with authenticated encryption."""
    front_end = await serve(plain_route(say_hello), tls=tls)

    def version(change: Any) -> str | None:
        context = trusting(ca)
        change(context)
        with secured(front_end.port, context) as client:
            return client.version()

    def old(context: ssl.SSLContext) -> None:
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1

    def weak(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE-ECDSA-AES128-SHA256")

    def at_most_1_2(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2

    assert await deferToThread(version, lambda context: None) == "TLSv1.3"
    assert await deferToThread(version, at_most_1_2) == "TLSv1.2"
    for change in (old, weak):
        with pytest.raises(CLOSED):
            await deferToThread(version, change)


@pytest_twisted.ensureDeferred
async def test_http_1_1_is_agreed_on(serve: Any, tls: TlsServer, ca: Authority) -> None:
    """ALPN: among others it is chosen; a client that speaks only what we do not gets an alert (RFC 7301)."""
    front_end = await serve(plain_route(say_hello), tls=tls)

    def agreed(*offered: str) -> str | None:
        context = trusting(ca)
        context.set_alpn_protocols(list(offered))
        with secured(front_end.port, context) as client:
            return client.selected_alpn_protocol()

    assert await deferToThread(agreed, "h2", "http/1.1") == "http/1.1"
    assert await deferToThread(agreed) is None
    with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
        await deferToThread(agreed, "h2")


# --- who is let in


@pytest_twisted.ensureDeferred
async def test_a_certificate_is_who_asks(serve: Any, mutual: TlsServer, ca: Authority, viewer: Issued) -> None:
    """What was proved is with the request: subject, names, fingerprint; and that it came over TLS."""
    endpoint = Endpoint()
    front_end = await serve(Route(endpoint, say_hello), tls=mutual)
    assert (await ask(front_end.port, trusting(ca, viewer))).status == 200
    [request] = endpoint.seen
    names = ("viewer.example.org", "127.0.0.1")
    assert request.caller.certificate == PeerCertificate("CN=127.0.0.1", names, viewer.sha256)
    assert (request.caller.address, request.is_secure) == ("127.0.0.1", True)


@pytest.mark.parametrize("field", ["198.51.100.7", "127.0.0.1", "unknown", ""])
@pytest_twisted.ensureDeferred
async def test_the_certificate_of_a_proxy_is_its_own(
    serve: Any, mutual: TlsServer, ca: Authority, viewer: Issued, field: str
) -> None:
    """Who asks through it has none, also a program beside it, or one whose address it does not know."""
    endpoint = Endpoint()
    made = Route(endpoint, say_hello)
    front_end = await serve(made, tls=mutual)
    request = f"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {field}\r\nConnection: close\r\n\r\n".encode()

    def answered() -> bytes:
        with secured(front_end.port, trusting(ca, viewer), request) as client:
            return client.recv(12)

    assert await deferToThread(answered) == b"HTTP/1.1 200"
    network = NetworkConfig("default", HttpListener("127.0.0.1", 1), trusted_proxies=("127.0.0.1",))
    front_end.serve(network, [made], LimitsConfig(), None, connections_for(mutual))
    assert await deferToThread(answered) == b"HTTP/1.1 200"
    assert [each.caller.certificate is not None for each in endpoint.seen] == [True, False]


@pytest_twisted.ensureDeferred
async def test_a_certificate_may_be_left_out_where_it_may(
    serve: Any, mutual: TlsServer, ca: Authority, viewer: Issued
) -> None:
    """require_client_certificate = false: none is nobody, and one is told."""
    optional = TlsServer(mutual.cert_file, mutual.key_file, mutual.ca_file)
    endpoint = Endpoint()
    front_end = await serve(Route(endpoint, say_hello), tls=optional)
    for own in (None, viewer):
        assert (await ask(front_end.port, trusting(ca, own))).status == 200
    found = [request.caller.certificate for request in endpoint.seen]
    assert [each and each.sha256 for each in found] == [None, viewer.sha256]


@pytest_twisted.ensureDeferred
async def test_who_is_kept_out(
    serve: Any, mutual: TlsServer, ca: Authority, tmp_path: Path, said: list[str]
) -> None:
    """Without a certificate, with one of another authority, or of last year: an alert, the reason in log and audit."""
    endpoint = Endpoint()
    events: list[AuditEvent] = []
    told = partial(Witness(events.append).no_tls, "default")
    front_end = await serve(Route(endpoint, say_hello), tls=mutual, on_refusal=told)
    strangers = Authority(tmp_path, "strangers")
    for own, why in (
        (None, "shown no certificate"),
        (strangers.issue("stranger"), "from no authority in ca_file"),
        (ca.issue("late", days=-1), "has expired"),
    ):
        with pytest.raises(CLOSED):
            await ask(front_end.port, trusting(ca, own))
        await until(lambda why=why: any(why in line for line in said))  # type: ignore[misc]
    assert endpoint.seen == []
    assert [each.caller.address for each in events] == ["127.0.0.1"] * 3
    assert all(each.kind is AuditKind.SECURITY_ALERT and "network default" in each.text for each in events)
    assert "from no authority in ca_file" in events[1].text


@pytest_twisted.ensureDeferred
async def test_plain_http_is_told_so(serve: Any, tls: TlsServer, said: list[str]) -> None:
    """400 in plain text to who speaks HTTP; nothing to who speaks something else."""
    front_end = await serve(plain_route(say_hello), tls=tls)
    answer = await plain(front_end.port, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"https://" in answer
    with pytest.raises(ConnectionError):
        await plain(front_end.port, b"\x01\x00\x00\x00\x00\xcd")
    await until(lambda: front_end._site.is_empty)
    assert sum("not TLS" in line for line in said) == 2


@pytest_twisted.ensureDeferred
async def test_failed_handshakes_do_not_fill_the_log(serve: Any, tls: TlsServer, said: list[str]) -> None:
    """Ten a minute; who says nothing at all is a probe, and is not told."""
    front_end = await serve(plain_route(say_hello), tls=tls)
    for _ in range(15):
        await plain(front_end.port, b"GET / HTTP/1.0\r\n\r\n")
    with await deferToThread(socket.create_connection, ("127.0.0.1", front_end.port), 30):
        pass
    await until(lambda: front_end._site.is_empty)
    assert sum("no TLS with 127.0.0.1" in line for line in said) == 10


@pytest.mark.parametrize("begin", [b"", b"\x16\x03\x01\x02\x00\x01"])
@pytest_twisted.ensureDeferred
async def test_a_handshake_that_never_ends_is_ended(serve: Any, tls: TlsServer, begin: bytes) -> None:
    """It has the time of a head, counts as a connection, and makes way for others."""
    front_end = await serve(plain_route(say_hello), tls=tls, limits=LimitsConfig(head_timeout_secs=0.3))
    with await deferToThread(socket.create_connection, ("127.0.0.1", front_end.port), 30) as client:
        client.sendall(begin)
        await until(lambda: front_end.load[1] == 1)
        await until(lambda: front_end._site.is_empty)


@pytest_twisted.ensureDeferred
async def test_too_many_are_told_over_tls(serve: Any, tls: TlsServer, ca: Authority) -> None:
    """503 reaches the one beyond the limit."""

    async def never(_: RequestEnvelope) -> ResponseEnvelope:
        await Deferred()
        raise AssertionError

    front_end = await serve(plain_route(never), tls=tls, limits=LimitsConfig(max_connections=1))
    with await deferToThread(secured, front_end.port, trusting(ca), GET):
        await until(lambda: front_end.load == (1, 1))
        assert (await ask(front_end.port, trusting(ca))).status == 503


# --- certificates that change


@pytest_twisted.ensureDeferred
async def test_a_renewed_certificate_is_used(serve: Any, ca: Authority, tmp_path: Path, said: list[str]) -> None:
    """For new connections; what cannot be used is told, and the last one goes on to be."""
    one, two = ca.issue("one"), ca.issue("two")
    own = Issued(tmp_path / "own.crt", tmp_path / "own.key")

    def put(given: Issued) -> None:
        shutil.copy(given.key, own.key)
        shutil.copy(given.cert, own.cert)

    put(one)
    front_end = await serve(plain_route(say_hello), tls=TlsServer(own.cert, own.key))

    def shown() -> str:
        with secured(front_end.port, trusting(ca)) as client:
            der = client.getpeercert(binary_form=True)
            assert der is not None
            return ssl.DER_cert_to_PEM_cert(der)

    assert await deferToThread(shown) == one.cert.read_text()
    put(two)
    assert await deferToThread(shown) == two.cert.read_text()
    own.cert.write_text("nothing")
    assert await deferToThread(shown) == two.cert.read_text()
    assert any("cannot be used" in line for line in said)


@pytest_twisted.ensureDeferred
async def test_tls_is_switched_on_and_off(serve: Any, tls: TlsServer, ca: Authority) -> None:
    """For connections that come then; those that stand go on as they are."""
    front_end = await serve(plain_route(say_hello))
    network = NetworkConfig("default", HttpListener("127.0.0.1", 1), tls=tls)
    connection = http.client.HTTPConnection("127.0.0.1", front_end.port, timeout=30)

    def status() -> int:
        connection.request("GET", "/")
        answer = connection.getresponse()
        answer.read()
        return answer.status

    assert await deferToThread(status) == 200
    front_end.serve(network, [plain_route(say_hello)], LimitsConfig(), None, connections_for(tls))
    assert await deferToThread(status) == 200
    connection.close()
    assert (await ask(front_end.port, trusting(ca))).status == 200
    front_end.serve(network, [plain_route(say_hello)], LimitsConfig(), None, None)
    assert b"hello" in await plain(front_end.port, GET.replace(b"Host: x", b"Connection: close"))


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """Nothing listens with them."""
    with pytest.raises(Unavailable, match="certificates for TLS cannot be used"):
        connections_for(TlsServer(tmp_path / "no.crt", tmp_path / "no.key"))


# --- the end of connections


@pytest_twisted.ensureDeferred
async def test_a_connection_is_closed_though_its_client_does_not_answer(
    serve: Any, tls: TlsServer, ca: Authority
) -> None:
    """Close_notify, then TCP: nothing is kept for a client that never says its own."""
    front_end = await serve(plain_route(say_hello), tls=tls)
    request = GET.replace(b"Host: x", b"Connection: close")
    with await deferToThread(secured, front_end.port, trusting(ca), request) as client:
        assert (await deferToThread(client.recv, 65536)).startswith(b"HTTP/1.1 200 ")
        await until(lambda: front_end._site.is_empty)


@pytest_twisted.ensureDeferred
async def test_an_answer_before_the_end_of_the_request(serve: Any, tls: TlsServer, ca: Authority) -> None:
    """A refused upload: the client that is still sending gets to read why."""
    front_end = await serve(plain_route(measure), tls=tls, limits=LimitsConfig(max_body_bytes=100_000))
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/dicom\r\nTransfer-Encoding: chunked\r\n\r\n"

    def talk() -> bytes:
        with secured(front_end.port, trusting(ca), head) as client:
            for _ in range(40):
                client.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            return rest(client)

    answer = await deferToThread(talk)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["status"] == 413


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_is_cut(serve: Any, tls: TlsServer, ca: Authority) -> None:
    """What the kernel could not send is seen through TLS, too."""

    async def endless(_: RequestEnvelope) -> ResponseEnvelope:
        async def chunks() -> AsyncIterator[bytes]:
            while True:
                yield bytes(100_000)

        return ResponseEnvelope(body=StreamBody(chunks()))

    front_end = await serve(plain_route(endless), tls=tls, limits=LimitsConfig(request_timeout_secs=0.3))
    with await deferToThread(secured, front_end.port, trusting(ca), GET, 4096):
        await until(lambda: front_end.load[1] == 1)
        await until(lambda: front_end._site.is_empty)


@pytest_twisted.ensureDeferred
async def test_an_answer_that_breaks_is_no_whole_one(serve: Any, tls: TlsServer, ca: Authority) -> None:
    """Cut in the middle of its chunks: the client notices."""

    async def broken(_: RequestEnvelope) -> ResponseEnvelope:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"some"
            raise Unavailable("gone")

        return ResponseEnvelope(body=StreamBody(chunks()))

    front_end = await serve(plain_route(broken), tls=tls)
    with pytest.raises((http.client.IncompleteRead, *CLOSED)):
        await ask(front_end.port, trusting(ca))


@pytest_twisted.ensureDeferred
async def test_a_stop_ends_connections_over_tls(serve: Any, tls: TlsServer, ca: Authority) -> None:
    """Who was idle sees the end, and nothing is left."""
    front_end = await serve(plain_route(say_hello), tls=tls)
    with await deferToThread(secured, front_end.port, trusting(ca), GET) as client:
        assert (await deferToThread(client.recv, 65536)).startswith(b"HTTP/1.1 200 ")
        await front_end.stop(grace_secs=30)
        assert await deferToThread(rest, client) == b""


