"""Whatever is thrown at a listener, that listener and all others answer afterwards, and nothing of it is left.

One daemon has every listener there is: HTTP, the control socket, DICOM over both engines, and the ports for C-MOVE.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from scapy.contrib import dicom
from scapy.packet import Packet, fuzz
from torture_kit import LAST, Target, associate_rq, connected, echoed, pdu, statuses, target, throw

pytestmark = pytest.mark.dcmtk  # the daemon has both engines in any case

POST = b"POST /native/dicom/find HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
PORTS = ("native", "per-association", "persistent", "move-native", "move-dcmtk")
PDUS: list[type[Packet]] = [
    dicom.A_ASSOCIATE_RQ, dicom.A_ASSOCIATE_AC, dicom.A_ASSOCIATE_RJ, dicom.P_DATA_TF,
    dicom.A_RELEASE_RQ, dicom.A_RELEASE_RP, dicom.A_ABORT,
]  # fmt: skip


def few(count: int) -> settings:
    """So many examples, the same ones each time; what fails is not made smaller, which would take its time."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def tortured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The daemon of all tests here."""
    with target(tmp_path_factory.mktemp("t")) as made:
        yield made


# --- HTTP


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        POST + b"Content-Length: +5\r\n\r\nhello",
        POST + b"Content-Length: 5, 5\r\n\r\nhello",
        POST + b"Content-Length: 0x5\r\n\r\nhello",
        POST + b"Content-Length : 5\r\n\r\nhello",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        POST + CHUNKED + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        POST + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n",
        POST.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n0\r\n\r\n",
        POST + CHUNKED + b"\r\nzz\r\nhello\r\n0\r\n\r\n",
        POST + CHUNKED + b"\r\n0x5\r\nhello\r\n0\r\n\r\n",
        POST + CHUNKED + b"\r\n+5\r\nhello\r\n0\r\n\r\n",
        POST + CHUNKED + b"\r\n5\nhello\n0\n\n",
        POST + CHUNKED + b"\r\n5\r\nhelloXX0\r\n\r\n",
        POST + CHUNKED + b"\r\n5;" + b"a" * 50_000 + b"\r\nhello\r\n0\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n: no name\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"GET /livez HTTP/1.1\nHost: x\n\n",
        b"GET /livez HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET  /livez  HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_a_head_that_two_servers_read_differently(tortured: Target, head: bytes) -> None:
    """It is 400 and the end of the connection: what follows it is no request, whoever may take it for one."""
    assert statuses(throw(tortured.http, head + LAST, half_close=False)) == [400]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 2000 + b"\r\n", 431),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 100_000 + b"\r\n\r\n", 431),
    ],
)
def test_a_head_that_is_too_large(tortured: Target, head: bytes, status: int) -> None:
    """It is told which part of it is, and the connection ends: what follows it is no request."""
    assert statuses(throw(tortured.http, head + LAST, half_close=False)) == [status]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", [200, 200]),
        (b"GET http://elsewhere/livez HTTP/1.1\r\nHost: x\r\n\r\n", [200, 200]),
        (b"CONNECT elsewhere:1 HTTP/1.1\r\nHost: x\r\n\r\n", [400, 200]),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", [400, 200]),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", [200, 200]),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\n\r\n", [200, 200]),
        (POST + CHUNKED + b"\r\n0\r\nContent-Length: 50\r\n\r\n", [502, 200]),
        (b"BREW /livez HTTP/1.1\r\nHost: x\r\n\r\n", [405, 200]),
    ],
)
def test_an_odd_head_is_one_request(tortured: Target, head: bytes, expected: list[int]) -> None:
    """What is unusual and clear is answered, and the next request on the connection, too."""
    assert statuses(throw(tortured.http, head + LAST, half_close=False)) == expected


_NAMES = st.sampled_from(
    [b"Content-Length", b"Transfer-Encoding", b"Host", b"Expect", b"Connection", b"Accept", b"Range", b"Content-Type",
     b"X-Request-ID", b"Prefer", b"If-None-Match", b"Cookie"]
)  # fmt: skip
_VALUES = st.one_of(
    st.sampled_from([b"chunked", b"0", b"-1", b"18446744073709551616", b"close", b"100-continue", b"*/*;q=nan"]),
    st.sampled_from([b"bytes=0-18446744073709551616", b"multipart/related; boundary=", b"respond-async, wait=1e99"]),
    st.binary(max_size=40),
)
_PATHS = st.sampled_from(
    [b"/livez", b"/native/dicom/find", b"/dcmtk/dicom/echo", b"/native/web/studies", b"/native/web/studies/1/series/2",
     b"/native/web/studies/1.2/series/1.3/instances/1.4/frames/99999999999999999999", b"/metrics", b"/openapi.json",
     b"/native/web/studies?limit=-1&offset=x", b"/..%2f", b"*", b"//", b"\xff"]
)  # fmt: skip


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from([b"GET", b"POST", b"HEAD", b"DELETE", b"\0", b"G" * 300]))
    fields = draw(st.lists(st.tuples(_NAMES, _VALUES), max_size=6))
    lines = [method + b" " + draw(_PATHS) + b" HTTP/1.1", *(name + b": " + value for name, value in fields)]
    return draw(st.sampled_from([b"\r\n", b"\r\n", b"\n"])).join(lines) + b"\r\n\r\n" + draw(st.binary(max_size=60))


def test_http(tortured: Target) -> None:
    """Requests made up of what is nearly right, several on a connection, and then the end."""

    @few(80)
    @given(st.lists(_requests(), min_size=1, max_size=3))
    def run(requests: list[bytes]) -> None:
        answer = throw(tortured.http, b"".join(requests))
        assert answer == b"" or answer.startswith(b"HTTP/1.1 "), answer[:100]
        assert 500 not in statuses(answer), requests

    run()
    tortured.assert_unharmed()


# --- the control socket

_CALL = (
    b"<?xml version='1.0'?><methodCall><methodName>supervisor.getState</methodName>"
    b"<params>%s</params></methodCall>"
)
_BOMB = b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY a 'aaaaaaaaaa'>" + b"".join(
    b"<!ENTITY %c '%s'>" % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(10)
)
XML = [
    _BOMB + b"]><methodCall><methodName>&k;</methodName></methodCall>",
    b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><methodCall><methodName>&x;"
    b"</methodName></methodCall>",
    b"<?xml version='1.0'?><!DOCTYPE a SYSTEM 'http://127.0.0.1:1/x'><methodCall/>",
    _CALL % (b"<param><value><array><data>" * 20_000),
    _CALL % (b"<param>" + b"<value><array><data>" * 5_000 + b"</data></array></value>" * 5_000 + b"</param>"),
    _CALL % (b"<param><value><int>" + b"9" * 100_000 + b"</int></value></param>"),
    _CALL % (b"<param><value><i4>" + b"9" * 10_000 + b"</i4></value></param>"),
    _CALL % b"<param><value><double>nan</double></value></param>",
    _CALL % b"<param><value><base64>====</base64></value></param>",
    _CALL % b"<param><value><dateTime.iso8601>x</dateTime.iso8601></value></param>",
    b"<?xml version='1.0' encoding='utf-7'?><methodCall/>",
    b"\xff\xfe<\0?\0x\0m\0l\0",
    b"<methodCall><methodName>" + b"system." * 50_000 + b"</methodName></methodCall>",
    b"<methodCall><methodName>supervisor.__class__.__init__</methodName></methodCall>",
    b"",
]


def _posted(body: bytes) -> bytes:
    return b"POST /RPC2 HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nConnection: close\r\n" + (
        b"Content-Length: %d\r\n\r\n" % len(body) + body
    )


@pytest.mark.parametrize("body", XML, ids=range(len(XML)))
def test_xml(tortured: Target, body: bytes) -> None:
    """Bombs, deep nesting, long numbers and what is no XML get an answer, and cost nothing."""
    answer = throw(tortured.control, _posted(body), half_close=False)
    (status,) = statuses(answer)
    assert status == 400 or (status == 200 and b"<fault>" in answer), answer[:300]
    assert b"root:" not in answer


def test_control(tortured: Target) -> None:
    """Calls that were damaged, and heads that are no HTTP."""
    good = _posted(_CALL % b"<param><value><string>x</string></value></param>")

    @few(40)
    @given(st.integers(0, len(good) - 1), st.binary(max_size=8), st.integers(0, len(good)))
    def run(at: int, other: bytes, end: int) -> None:
        throw(tortured.control, (good[:at] + other + good[at + len(other) :])[:end])

    run()
    (status,) = statuses(throw(tortured.control, _posted(_CALL % b""), half_close=False))
    assert status == 200
    tortured.assert_unharmed()


# --- DICOM

_ECHO = pdu(
    4,
    struct.pack(">IBB", 70, 1, 3)
    + struct.pack("<HHII", 0, 0, 4, 56)
    + struct.pack("<HHI", 0, 2, 18) + b"1.2.840.10008.1.1\0"
    + struct.pack("<HHIH", 0, 0x100, 2, 0x30)
    + struct.pack("<HHIH", 0, 0x110, 2, 1)
    + struct.pack("<HHIH", 0, 0x800, 2, 0x101),
)  # fmt: skip
_RELEASE = pdu(5, bytes(4))
CONVERSATION = associate_rq() + _ECHO + _RELEASE


def _made_up(source: random.Random) -> bytes:
    kind = source.choice(PDUS)
    with _drawing_from(source.getrandbits(32)):
        return bytes(dicom.DICOM() / fuzz(kind()))


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """scapy draws from the module ``random``: what it makes depends on our seed only."""
    before = random.getstate()
    random.seed(seed)
    yield
    random.setstate(before)


@pytest.mark.parametrize("name", PORTS)
def test_dicom(tortured: Target, name: str) -> None:
    """PDUs that are made up or damaged, before an association and in one, and then the end."""
    port = tortured.dicom[name]

    @few(24)
    @given(st.integers(0, 2**32), st.booleans(), st.booleans())
    @example(0, True, True)
    def run(seed: int, in_association: bool, made_up: bool) -> None:
        source = random.Random(seed)
        if made_up:
            throw(port, associate_rq() if in_association else b"", _made_up(source), _made_up(source))
        else:
            damaged = bytearray(CONVERSATION)
            for _ in range(source.randint(1, 5)):
                damaged[source.randrange(len(damaged))] = source.randrange(256)
            throw(port, bytes(damaged[: source.randint(1, len(damaged))]))

    run()
    tortured.assert_unharmed()


@pytest.mark.parametrize("name", PORTS)
@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        struct.pack(">BxI", 1, 0xFFFFFFFF) + bytes(70_000),
        struct.pack(">BxI", 4, 0xFFFFFFFF) + bytes(1000),
        pdu(1, bytes(68) + struct.pack(">BxH", 0x20, 0xFFFF)),
        pdu(1, struct.pack(">Hxx16s16s32x", 1, b"HARMONY".ljust(16), b"@/etc/passwd".ljust(16))),
        associate_rq() + pdu(4, struct.pack(">IBB", 2, 1, 3)) * 200,
        associate_rq() + pdu(4, struct.pack(">IBB", 0, 1, 3)),
        associate_rq() * 20,
        b"",
    ],
    ids=["http", "tls", "rq4g", "data4g", "item", "at", "empty", "short", "again", "nothing"],
)
def test_dicom_by_hand(tortured: Target, name: str, content: bytes) -> None:
    """Other protocols, lengths of 4 GB, items that reach beyond their PDU."""
    answer = throw(tortured.dicom[name], content)
    assert not answer or answer[0] in (2, 3, 4, 7), answer[:20]


# --- STOW-RS


def _stow(boundary: bytes, body: bytes, kind: bytes = b"application/dicom") -> bytes:
    head = b"POST /native/web/studies HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: application/dicom+json\r\n"
    head += b'Content-Type: multipart/related; type="%s"; boundary=%s\r\n' % (kind, boundary)
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


_PART = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + bytes(128) + b"DICM\r\n"
STOW = [
    _stow(b"b", b""),
    _stow(b"", _PART),
    _stow(b'"', _PART),
    _stow(b"b" * 5000, _PART),
    _stow(b"b", _PART),
    _stow(b"b", _PART + b"--b--"),
    _stow(b"b", _PART * 500 + b"--b--"),
    _stow(b"b", b"--b\r\n" * 20_000 + b"--b--"),
    _stow(b"b", b"--b\r\n" + b"A: b\r\n" * 5000 + b"\r\nx\r\n--b--"),
    _stow(b"b", b"--b\r\nA: " + b"b" * 200_000 + b"\r\n\r\nx\r\n--b--"),
    _stow(b"b", b"--b\r\nContent-Type: multipart/related; boundary=b\r\n\r\n" + _PART + b"--b--\r\n--b--"),
    _stow(b"b", b"--b\r\nContent-Type: application/dicom\r\nContent-Type: text/plain\r\n\r\nx\r\n--b--"),
    _stow(b"b", b"--b\r\nContent-Disposition: form-data; filename=../../x\r\n\r\nx\r\n--b--"),
    _stow(b"b", b"--b\nContent-Type: application/dicom\n\nx\n--b--"),
    _stow(b"b", b"\r\n--b" * 20_000),
    _stow(b"b", b"--b\r\n\r\n" + bytes(128) + b"DICM" + b"\xff" * 200 + b"\r\n--b--"),
    _stow(b"b", b"--b\r\nContent-Type: application/dicom+json\r\n\r\n" + b"[" * 50_000 + b"\r\n--b--", b"x"),
]


@pytest.mark.parametrize("request_", STOW, ids=range(len(STOW)))
def test_stow(tortured: Target, request_: bytes) -> None:
    """A body that is no multipart, or too much of one, is the client's mistake, and told."""
    (status,) = statuses(throw(tortured.http, request_, half_close=False))
    assert 400 <= status < 500


def test_stow_that_was_damaged(tortured: Target) -> None:
    """Whatever became of the parts on their way."""
    good = _PART + _PART + b"--b--"

    @few(40)
    @given(st.integers(0, len(good)), st.sampled_from([b"", b"--b", b"\r\n", b"--", b"\r\n--b--", b"\xff\0"]))
    def run(at: int, other: bytes) -> None:
        (status,) = statuses(throw(tortured.http, _stow(b"b", good[:at] + other + good[at:]), half_close=False))
        assert 400 <= status < 500, status

    run()
    tortured.assert_unharmed()


# --- bodies of operations


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000, b'{"a":' * 100_000, b"9" * 100_000, b'{"PatientID": 1e999999}', b'"\\ud800"', b"\xff\xfe",
        b'{"PatientID": ' + b"9" * 50_000 + b"}", b"NaN", json.dumps({"x" * 1000: {}}).encode(), b"null", b"[]", b"",
        json.dumps({f"{n:08X}": "x" for n in range(5000)}).encode(),
    ],
    ids=range(13),
)  # fmt: skip
@pytest.mark.parametrize("engine", ["native", "dcmtk"])
def test_queries(tortured: Target, engine: str, body: bytes) -> None:
    """JSON that is deep, long or no query is 400; what is a query fails with the PACS that is not there."""
    answer = tortured.daemon.http(
        "POST", f"/{engine}/dicom/find", body=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status in (400, 413, 415, 502), answer.body[:300]


def test_clients_that_leave(tortured: Target) -> None:
    """Thirty that say half of something on each port, and go."""
    ports: list[Any] = [tortured.http, tortured.control, *tortured.dicom.values()]
    for port in ports:
        for number in range(30):
            with connected(port) as sock:
                sock.sendall(CONVERSATION[: 3 * number])
    tortured.assert_unharmed()


def test_silence_costs_one_place(tortured: Target) -> None:
    """Who connects to all ports and says nothing keeps nobody from being served where several are."""
    ports: list[int | Path] = [tortured.http, tortured.control]
    ports += [port for name, port in tortured.dicom.items() if name != "persistent"]
    silent = [connected(port) for port in ports for _ in range(3)]
    try:
        assert statuses(throw(tortured.http, LAST, half_close=False)) == [200]
        assert all(echoed(port) for name, port in tortured.dicom.items() if name != "persistent")
    finally:
        for sock in silent:
            sock.close()
    tortured.assert_unharmed()
