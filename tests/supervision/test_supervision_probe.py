"""The C-ECHO probe against real and bad receivers."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest
import pytest_twisted
from pynetdicom.dsutils import decode
from pynetdicom.pdu import A_ASSOCIATE_RQ, P_DATA_TF
from pynetdicom.sop_class import Verification
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport

from harmonyd.supervision.api import KeptSpec
from harmonyd.supervision.errors import ProbeFailed
from harmonyd.supervision.probe import (
    EchoProtocol,
    accepted_contexts,
    associate_rq,
    c_echo,
    echo_rq,
    parse_command,
    pdu,
    reject_text,
    release_rq,
)
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
    listening: list[Any] = []

    def start(answers: dict[int, bytes | None]) -> int:
        factory = Factory.forProtocol(lambda: Scripted(answers))
        listening.append(started_reactor.listenTCP(0, factory, interface="127.0.0.1"))
        return int(listening[-1].getHost().port)

    yield start
    for port in listening:
        pytest_twisted.blockon(maybeDeferred(port.stopListening))


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


class Wire(StringTransport):
    """A transport in memory."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        assert enabled


def talk(*answers: bytes) -> EchoProtocol:
    """Let a probe receive these bytes one by one, then the end of the connection."""
    protocol = EchoProtocol("ANY")
    protocol.makeConnection(Wire())
    for byte in b"".join(answers):
        protocol.dataReceived(bytes([byte]))
    protocol.connectionLost()
    return protocol


@pytest_twisted.ensureDeferred
async def test_the_exchange_may_come_in_single_bytes() -> None:
    """Answers are put together however they are cut, and exactly three PDUs are sent."""
    protocol = talk(ACCEPTED, echo_rsp(0), pdu(0x06, bytes(4)))
    await protocol.done
    assert protocol.transport.value() == associate_rq("ANY") + echo_rq() + release_rq()


def test_our_pdus_are_what_pynetdicom_reads() -> None:
    """Another implementation finds the AE titles, the Verification context and the C-ECHO-RQ in them."""
    request = A_ASSOCIATE_RQ()
    request.decode(associate_rq("PACS"))
    assert (request.called_ae_title, request.calling_ae_title) == ("PACS", "HARMONYD")
    assert [context.abstract_syntax for context in request.presentation_context] == [Verification]
    data = P_DATA_TF()
    data.decode(echo_rq())
    (item,) = data.presentation_data_value_items
    command = decode(BytesIO(item.presentation_data_value[1:]), True, True)
    assert (command.CommandField, command.AffectedSOPClassUID) == (0x0030, Verification)
    assert command.CommandGroupLength == len(item.presentation_data_value) - 1 - 12


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


@pytest_twisted.ensureDeferred
async def test_endless_input_is_refused() -> None:
    """More than 64 KiB is no answer, whatever it is."""
    fragment = pdu(0x04, struct.pack(">IBB", 10_002, 1, 1) + bytes(10_000))
    protocol = EchoProtocol("ANY")
    protocol.makeConnection(Wire())
    protocol.dataReceived(ACCEPTED)
    for _ in range(7):
        protocol.dataReceived(fragment)
    protocol.connectionLost()
    with pytest.raises(ProbeFailed, match="far more"):
        await protocol.done


def test_broken_pieces_are_told() -> None:
    """Broken pieces are told as such, not as exceptions of Python."""
    with pytest.raises(ProbeFailed, match="broken A-ASSOCIATE-AC"):
        accepted_contexts(bytes(68) + b"\x21\0\xff\xff\x01")
    with pytest.raises(ProbeFailed, match="broken command set"):
        parse_command(b"\0\0\0")
    assert "broken" in reject_text(b"")
    assert reject_text(b"\0\1\2\x09").endswith("permanently: source 2, reason 9")
