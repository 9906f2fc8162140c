"""What strangers may send: clear refusals, and nothing disturbed."""

from __future__ import annotations

import base64
import http.client
import socket
import xmlrpc.client

import pytest
import pytest_twisted
from control_kit import exchange
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from supervisor.xmlrpc import Faults
from twisted.internet.threads import deferToThread

from harmonyd.control.calls import BadCall, parse
from harmonyd.testing.control import FakeChild

CALL = xmlrpc.client.dumps((), "supervisor.getState").encode()
LAUGHS = b"""<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<methodCall><methodName>supervisor.getState</methodName><params><param><value>&b;</value></param></params></methodCall>
"""
TCP = {"bind_address": "127.0.0.1", "bind_port": 0, "username": "operator", "password": "geheim-ä"}


def named(method: str) -> bytes:
    """A call of a method, whatever is in its name."""
    return xmlrpc.client.dumps((), method).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", b"no element"),
        (b"GET /", b"not an XML-RPC call"),
        (b"<methodCall>", b"no element"),
        (b"<methodCall/>", b"not an XML-RPC call"),
        (b"<methodCall><methodName></methodName><params/></methodCall>", b"names no method"),
        (b"<methodCall><methodName>a.b</methodName><params><param><value><int>x</int></value></param></params>", b"x"),
        (b"\xff\xfe\x00", b"not an XML-RPC call"),
        (LAUGHS, b"document type"),
        (LAUGHS.decode().encode("utf-16"), b"document type"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><methodCall/>', b"document type"),
        (b"<value>" * 101, b"nested too deeply"),
        (b"<methodCall><methodName>a.b</methodName><params><param><value><int>" + b"9" * 900_000, b""),
        (b"<methodResponse><fault><value><int>4</int></value></fault></methodResponse>", b"not an XML-RPC call"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_malformed_bodies(serve, body, said) -> None:
    """Each is answered with 400 and the reason; the server goes on."""
    client = await serve()
    status, text = await client.post(body)
    assert (status, said in text) == (400, True), text
    assert await client.call("supervisor.getVersion") == "3.0"


@pytest.mark.parametrize(
    "method",
    [
        "supervisor._refuse_when_stopping",
        "supervisor.__init__",
        "supervisor.getState.__func__",
        "supervisor.supervisord.options.execv",
        "supervisor._daemon.shutdown",
        "getState",
        ".getState",
        "supervisor.",
        "supervisor",
        "supervisor..getState",
        "SUPERVISOR.getState",
        "system.__class__",
        "system._methods.clear",
        "os.system",
        "\u0000x",
        "é.è",
        "a" * 10_000,
    ],
)
@pytest_twisted.ensureDeferred
async def test_only_public_methods_can_be_called(serve, method) -> None:
    """Whatever is not in the table is an unknown method (CVE-2017-11610)."""
    client = await serve()
    if "\0" in method:
        assert (await client.post(named(method)))[0] == 400
    else:
        assert (await client.fault(method))[0] == Faults.UNKNOWN_METHOD


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("getState", (1,)),
        ("getProcessInfo", ()),
        ("getProcessInfo", (1,)),
        ("getProcessInfo", (["storescp:incoming"],)),
        ("startProcess", ("storescp:incoming", "yes")),
        ("readLog", ("0", 0)),
        ("signalProcess", ("storescp:incoming", {})),
        ("stopProcess", ("a", True, 3)),
    ],
)
@pytest_twisted.ensureDeferred
async def test_wrong_parameters(serve, daemon_in_memory, method, parameters) -> None:
    """Too many, too few and wrong types are INCORRECT_PARAMETERS."""
    daemon_in_memory.members = [child] = [FakeChild()]
    fault = await (await serve()).fault(f"supervisor.{method}", *parameters)
    assert fault[0] == Faults.INCORRECT_PARAMETERS
    assert child.state == "RUNNING"


@pytest.mark.parametrize("size", [1_000_001, 15_000_000])
@pytest_twisted.ensureDeferred
async def test_a_huge_body_is_refused(serve, size) -> None:
    """413, after which its sender can still read why."""
    status, text = await (await serve()).post(CALL + b" " * size)
    assert (status, b"1000000" in text) == (413, True)


@pytest_twisted.ensureDeferred
async def test_a_body_without_end_is_cut_off(serve) -> None:
    """Whoever sends on and on loses the connection; the others are served."""
    client = await serve()
    with pytest.raises(OSError):
        await client.post(b" " * 50_000_000)
    assert await client.call("supervisor.getVersion") == "3.0"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/RPC2", 405),
        ("PUT", "/RPC2", 405),
        ("OPTIONS", "/RPC2", 405),
        ("POST", "/mainlogtail", 405),
        ("POST", "/logtail/storescp:incoming/stdout", 405),
        ("GET", "/logtail/nobody/stdout", 404),
        ("GET", "/logtail/storescp:incoming/stderr", 404),
        ("GET", "/logtail/", 404),
        ("GET", "/RPC2/../etc/passwd", 404),
        ("POST", "/RPC3", 404),
    ],
)
@pytest_twisted.ensureDeferred
async def test_other_paths_and_methods(serve, daemon_in_memory, method, path, status) -> None:
    """What is not served is 404, what is served otherwise 405."""
    daemon_in_memory.members = [FakeChild()]
    assert (await (await serve()).http(method, path))[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Content-Type": "text/xml; charset=utf-8"}, 200),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_a_web_page_can_send_is_refused(serve, headers, status) -> None:
    """A cross-site POST has an Origin, or a content type that needs no preflight."""
    assert (await (await serve()).post(CALL, headers))[0] == status


def basic(user: str, password: str) -> dict[str, str]:
    """Credentials as a header."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (basic("operator", "geheim-ä"), 200),
        (basic("operator", "geheim"), 401),
        (basic("operator", ""), 401),
        (basic("", ""), 401),
        (basic("Operator", "geheim-ä"), 401),
        ({}, 401),
        ({"Authorization": "Basic"}, 401),
        ({"Authorization": "Basic ?!"}, 401),
        ({"Authorization": "Bearer " + basic("operator", "geheim-ä")["Authorization"][6:]}, 401),
        ({**basic("operator", "geheim-ä"), "Host": "evil.example:9001"}, 403),
        ({**basic("operator", "geheim-ä"), "Host": "localhost:9001"}, 200),
        ({**basic("operator", "geheim-ä"), "Host": "[::1]:9001"}, 200),
        ({**basic("operator", "geheim-ä"), "Host": ""}, 403),
        ({**basic("operator", "geheim-ä"), "Origin": "http://127.0.0.1"}, 403),
    ],
)
@pytest_twisted.ensureDeferred
async def test_tcp_needs_the_password(serve, headers, status) -> None:
    """On TCP: the right password, one of this machine's names, and no web page."""
    client = await serve(**TCP)
    connection = http.client.HTTPConnection("127.0.0.1", client.server.tcp_port, timeout=20)
    sent = {"Content-Type": "text/xml", **headers}
    assert (await deferToThread(exchange, connection, "POST", "/RPC2", CALL, sent))[0] == status


@pytest.mark.parametrize("path", ["/mainlogtail", "/logtail/storescp:incoming/stdout"])
@pytest_twisted.ensureDeferred
async def test_following_a_log_needs_the_password_too(serve, daemon_in_memory, path) -> None:
    """Logs are not for everybody either."""
    daemon_in_memory.members = [FakeChild()]
    client = await serve(**TCP)
    connection = http.client.HTTPConnection("127.0.0.1", client.server.tcp_port, timeout=20)
    assert (await deferToThread(exchange, connection, "GET", path, None, {}))[0] == 401


@pytest_twisted.ensureDeferred
async def test_more_connections_than_allowed(serve) -> None:
    """Those beyond the limit are closed at once; when some have gone, there is room again."""
    client = await serve()

    def open_many() -> list[socket.socket]:
        opened = []
        for _ in range(110):
            one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            one.connect(str(client.path))
            opened.append(one)
        return opened

    opened = await deferToThread(open_many)
    with pytest.raises(OSError):
        await client.call("supervisor.getVersion")
    await deferToThread(lambda: [one.close() for one in opened])
    assert await client.call("supervisor.getVersion") == "3.0"


@given(st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_are_a_call_or_a_bad_call(body: bytes) -> None:
    """The parser never raises anything but ``BadCall``."""
    try:
        method, parameters = parse(body)
    except BadCall:
        return
    assert isinstance(method, str)
    assert isinstance(parameters, tuple)


@given(st.recursive(st.text() | st.integers(-(2**31), 2**31 - 1) | st.booleans(), st.lists, max_leaves=5))
@settings(deadline=None)
def test_what_the_standard_library_writes_can_be_read(value: object) -> None:
    """Any value of XML-RPC comes through, unless its characters are not XML."""
    text = xmlrpc.client.dumps((value,), "a.b").encode("utf-8", "surrogatepass")
    try:
        parameters = parse(text)[1]
    except BadCall:
        return
    expected = xmlrpc.client.loads(text)[0]
    assert parameters == expected
