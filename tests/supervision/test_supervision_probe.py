"""The C-ECHO probe against real and bad receivers."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol

from harmonyd.supervision.api import KeptSpec
from harmonyd.supervision.errors import ProbeFailed
from harmonyd.supervision.probe import accepted_contexts, associate_rq, c_echo, parse_command, pdu, reject_text
from harmonyd.supervision.runner import ProcessSupervisor
from harmonyd.testing.processes import free_port

ACCEPTED = pdu(0x02, associate_rq("ANY")[6:74] + b"\x21\0\0\x04\x01\0\0\0")
REFUSED_CONTEXT = pdu(0x02, associate_rq("ANY")[6:74] + b"\x21\0\0\x04\x01\0\x03\0")


def echo_rsp(status: int, message_id: int = 1, command: int = 0x8030) -> bytes:
    elements = b"".join(
        struct.pack("<HHIH", 0, number, 2, value)
        for number, value in ((0x0100, command), (0x0120, message_id), (0x0800, 0x0101), (0x0900, status))
    )
    return pdu(0x04, struct.pack(">IBB", len(elements) + 2, 1, 3) + elements)


class Scripted(Protocol):
    """Sends the next answer for each PDU type that arrives; None closes the connection, b"" says nothing."""

    def __init__(self, answers: dict[int, bytes | None]) -> None:
        self._answers = answers

    def dataReceived(self, data: bytes) -> None:
        answer = self._answers.get(data[0], b"")
        if answer is None:
            self.transport.loseConnection()
        else:
            self.transport.write(answer)


@pytest.fixture
def server(started_reactor: Any) -> Iterator[Callable[[dict[int, bytes | None]], int]]:
    """Start fake receivers; returns the port."""
    with ExitStack() as stack:

        def start(answers: dict[int, bytes | None]) -> int:
            factory = Factory.forProtocol(lambda: Scripted(answers))
            listening = started_reactor.listenTCP(0, factory, interface="127.0.0.1")
            stack.callback(pytest_twisted.blockon, Deferred.fromCoroutine(_closed(listening)))
            return int(listening.getHost().port)

        yield start


async def _closed(listening: Any) -> None:
    await listening.stopListening()


@pytest_twisted.ensureDeferred
async def test_a_real_storescp_answers(
    supervise: Callable[..., ProcessSupervisor], storescp: Callable[..., KeptSpec], started_reactor: Any
) -> None:
    """DCMTK accepts, answers and releases, without a complaint in its log."""
    child = supervise().keep(storescp())
    await child.when_ready()
    await c_echo(started_reactor, "127.0.0.1", child.spec.port, "ANY", 5)
    said = child.output.ring.tail(10_000)
    assert b"I: Received Echo Request" in said
    assert b"E:" not in said and b"W:" not in said


@pytest_twisted.ensureDeferred
async def test_the_exchange_may_come_in_single_bytes(server: Callable[..., int], started_reactor: Any) -> None:
    """A whole fake exchange works."""
    port = server({0x01: ACCEPTED, 0x04: echo_rsp(0), 0x05: pdu(0x06, bytes(4))})
    await c_echo(started_reactor, "127.0.0.1", port, "ANY", 5)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({0x01: pdu(0x03, b"\0\1\1\7")}, "rejected the association permanently: called AE title not recognized"),
        ({0x01: pdu(0x03, b"\0\2\3\2")}, "for now: local limit exceeded"),
        ({0x01: pdu(0x07, b"\0\0\2\0")}, "aborted the association"),
        ({0x01: None}, "closed the connection; we waited for an answer to the association request"),
        ({0x01: b"HTTP/1.1 400 Bad Request\r\n\r\n"}, "not DICOM"),
        ({0x01: b"\x02\0\xff\xff\xff\xff"}, "not DICOM"),
        ({0x01: pdu(0x06, bytes(4))}, "PDU type 06H"),
        ({0x01: REFUSED_CONTEXT}, "not the Verification SOP Class"),
        ({0x01: ACCEPTED, 0x04: echo_rsp(0x0122)}, "status 0122H"),
        ({0x01: ACCEPTED, 0x04: echo_rsp(0, message_id=7)}, "something else than our C-ECHO"),
        ({0x01: ACCEPTED, 0x04: echo_rsp(0, command=0x8001)}, "something else than our C-ECHO"),
        ({0x01: ACCEPTED, 0x04: pdu(0x04, b"\0\0")}, "broken P-DATA-TF"),
        ({0x01: ACCEPTED, 0x04: pdu(0x04, b"\0\0\0\x05\x01\x03abc")}, "broken command set"),
        ({0x01: ACCEPTED, 0x04: None}, "we waited for the C-ECHO response"),
        ({0x01: ACCEPTED, 0x04: echo_rsp(0), 0x05: None}, "we waited for the release response"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_bad_answers_are_told_in_words(
    server: Callable[..., int], started_reactor: Any, answers: dict[int, bytes | None], said: str
) -> None:
    """Rejection, abort, closing, nonsense, a failure status: each is an error that says what it was."""
    with pytest.raises(ProbeFailed, match=said):
        await c_echo(started_reactor, "127.0.0.1", server(answers), "ANY", 5)


@pytest.mark.parametrize("answers", [{}, {0x01: ACCEPTED}, {0x01: ACCEPTED[:3]}])
@pytest_twisted.ensureDeferred
async def test_silence_ends_at_the_deadline(
    server: Callable[..., int], started_reactor: Any, answers: dict[int, bytes | None]
) -> None:
    """A receiver that hangs, at any point, is given up with what we waited for."""
    with pytest.raises(ProbeFailed, match=r"within 0.1 s; we waited for"):
        await c_echo(started_reactor, "127.0.0.1", server(answers), "ANY", 0.1)


@pytest_twisted.ensureDeferred
async def test_nobody_listens(started_reactor: Any) -> None:
    """A refused connection is an error."""
    with pytest.raises(ProbeFailed, match="no connection"):
        await c_echo(started_reactor, "127.0.0.1", free_port(), "ANY", 5)


@pytest_twisted.ensureDeferred
async def test_it_can_be_cancelled(server: Callable[..., int], started_reactor: Any) -> None:
    """Cancelling ends the waiting and the connection."""
    waiting = Deferred.fromCoroutine(c_echo(started_reactor, "127.0.0.1", server({}), "ANY", 30))
    waiting.cancel()
    with pytest.raises(CancelledError):
        await waiting


def test_endless_input_is_refused() -> None:
    """Broken pieces are told as such, not as exceptions of Python."""
    with pytest.raises(ProbeFailed, match="broken A-ASSOCIATE-AC"):
        accepted_contexts(bytes(68) + b"\x21\0\xff\xff\x01")
    with pytest.raises(ProbeFailed, match="broken command set"):
        parse_command(b"\0\0\0")
    assert "broken" in reject_text(b"")
    assert reject_text(b"\0\1\2\x09").endswith("permanently: source 2, reason 9")
