"""The readiness probe: one association, one C-ECHO, one release, made of three fixed PDUs (PS3.8 section 9.3).

Made in this process, because spawning echoscu costs twenty times the CPU; and not a bare TCP connect, which DCMTK logs
as a broken association and which also succeeds where a left-over process only holds the listening socket.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from harmonyd.supervision.errors import ProbeFailed

CALLING_AET = "HARMONYD"
MAX_PDU_BYTES = 16384
MAX_INPUT_BYTES = 64 * 1024
"""More than this is no answer to a C-ECHO."""

_VERIFICATION = b"1.2.840.10008.1.1"
_IMPLICIT_VR_LE = b"1.2.840.10008.1.2"
_APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
_IMPLEMENTATION_UID = b"2.25.160921341879523719286253183471289654001"
_CONTEXT_ID = 1
_MESSAGE_ID = 1
_ECHO_RQ, _ECHO_RSP = 0x0030, 0x8030
_NO_DATA_SET = 0x0101
_LAST_COMMAND_FRAGMENT = 0x03

_ASSOCIATE_AC, _ASSOCIATE_RJ, _P_DATA, _RELEASE_RQ, _RELEASE_RP, _ABORT = 0x02, 0x03, 0x04, 0x05, 0x06, 0x07

REJECT_RESULTS = {1: "permanently", 2: "for now"}
REJECT_REASONS = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognized",
    (1, 7): "called AE title not recognized",
    (2, 1): "no reason given (ACSE)",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}
"""(source, reason) of an A-ASSOCIATE-RJ, PS3.8 table 9-21."""


def _item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(content)) + content


def pdu(kind: int, content: bytes) -> bytes:
    """A PDU: type, reserved byte, length, content."""
    return struct.pack(">BxI", kind, len(content)) + content


def associate_rq(called_aet: str) -> bytes:
    """A-ASSOCIATE-RQ (PS3.8 section 9.3.2) for the Verification SOP Class in Implicit VR Little Endian."""
    context = struct.pack(">Bxxx", _CONTEXT_ID) + _item(0x30, _VERIFICATION) + _item(0x40, _IMPLICIT_VR_LE)
    user = _item(0x51, struct.pack(">I", MAX_PDU_BYTES)) + _item(0x52, _IMPLEMENTATION_UID)
    aets = called_aet.encode("ascii", "replace").ljust(16) + CALLING_AET.encode().ljust(16)
    items = _item(0x10, _APPLICATION_CONTEXT) + _item(0x20, context) + _item(0x50, user)
    return pdu(0x01, struct.pack(">Hxx", 1) + aets + bytes(32) + items)


def _element(number: int, value: bytes) -> bytes:
    """A command element of group 0000, Implicit VR Little Endian (PS3.7 section 6.3)."""
    return struct.pack("<HHI", 0, number, len(value)) + value


def echo_rq() -> bytes:
    """P-DATA-TF with a C-ECHO-RQ (PS3.7 section 9.3.5.1)."""
    command = _element(0x0002, _VERIFICATION + b"\0" if len(_VERIFICATION) % 2 else _VERIFICATION)
    for number, value in ((0x0100, _ECHO_RQ), (0x0110, _MESSAGE_ID), (0x0800, _NO_DATA_SET)):
        command += _element(number, struct.pack("<H", value))
    command = _element(0x0000, struct.pack("<I", len(command))) + command
    return pdu(_P_DATA, struct.pack(">IBB", len(command) + 2, _CONTEXT_ID, _LAST_COMMAND_FRAGMENT) + command)


def release_rq() -> bytes:
    """A-RELEASE-RQ (PS3.8 section 9.3.6)."""
    return pdu(_RELEASE_RQ, bytes(4))


def parse_command(command: bytes) -> dict[int, bytes]:
    """Element number → value of a command set. Raises ``ProbeFailed`` for bytes that are none."""
    elements = {}
    while command:
        if len(command) < 8:
            raise ProbeFailed("it sent a broken command set")
        group, number, length = struct.unpack_from("<HHI", command)
        if group or length > len(command) - 8:
            raise ProbeFailed("it sent a broken command set")
        elements[number] = command[8 : 8 + length]
        command = command[8 + length :]
    return elements


def _number(value: bytes | None) -> int | None:
    return int.from_bytes(value, "little") if value is not None and len(value) == 2 else None


class EchoProtocol(Protocol):
    """Performs the exchange; ``done`` fires once when the connection is closed, with None or ``ProbeFailed``."""

    transport: Any

    def __init__(self, called_aet: str) -> None:
        self._called_aet = called_aet
        self._buffer = b""
        self._received_bytes = 0
        self._command = b""
        self._waiting_for = "an answer to the association request"
        self._answers: dict[int, Callable[[bytes], None]] = {_ASSOCIATE_AC: self._accepted}
        self._error: ProbeFailed | None = None
        self._finished = False
        self.done: Deferred[None] = Deferred(lambda _: self.transport.abortConnection())

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.write(associate_rq(self._called_aet))

    def dataReceived(self, data: bytes) -> None:
        self._received_bytes += len(data)
        self._buffer += data
        try:
            if self._received_bytes > MAX_INPUT_BYTES:
                raise ProbeFailed("it sent far more than an answer to C-ECHO")
            while not self._finished and self._next_pdu():
                pass
        except ProbeFailed as error:
            self._finish(error)

    def connectionLost(self, reason: Failure | None = None) -> None:
        if not self._finished:
            self._error = ProbeFailed(f"it closed the connection; we waited for {self._waiting_for}")
        if self.done.called:
            return
        if self._error is None:
            self.done.callback(None)
        else:
            self.done.errback(self._error)

    def time_out(self, timeout_secs: float) -> None:
        """Give up: ``done`` fails once the connection is closed."""
        self._finish(ProbeFailed(f"it did not answer within {timeout_secs:g} s; we waited for {self._waiting_for}"))

    def _finish(self, error: ProbeFailed | None) -> None:
        if self._finished:
            return
        self._finished = True
        self._error = error
        if error is None:
            self.transport.loseConnection()
        else:
            self.transport.abortConnection()

    def _next_pdu(self) -> bool:
        """Handle one PDU; False when it is not complete yet."""
        if len(self._buffer) < 6:
            return False
        kind, length = struct.unpack_from(">BxI", self._buffer)
        if not 1 <= kind <= 7 or length > MAX_PDU_BYTES + 6:
            raise ProbeFailed("what it sent is not DICOM")
        if len(self._buffer) < 6 + length:
            return False
        content, self._buffer = self._buffer[6 : 6 + length], self._buffer[6 + length :]
        self._handle(kind, content)
        return True

    def _handle(self, kind: int, content: bytes) -> None:
        if kind in self._answers:
            self._answers[kind](content)
        elif kind == _ASSOCIATE_RJ:
            raise ProbeFailed(reject_text(content))
        elif kind == _ABORT:
            raise ProbeFailed(f"it aborted the association; we waited for {self._waiting_for}")
        else:
            raise ProbeFailed(f"it sent PDU type {kind:02X}H; we waited for {self._waiting_for}")

    def _accepted(self, content: bytes) -> None:
        """A-ASSOCIATE-AC (PS3.8 section 9.3.3): is our presentation context among the accepted ones?"""
        if _CONTEXT_ID not in accepted_contexts(content):
            raise ProbeFailed("it accepted the association, but not the Verification SOP Class")
        self._waiting_for, self._answers = "the C-ECHO response", {_P_DATA: self._data}
        self.transport.write(echo_rq())

    def _data(self, content: bytes) -> None:
        """P-DATA-TF (PS3.8 section 9.3.5): collect command fragments up to the last one."""
        while content:
            if len(content) < 6:
                raise ProbeFailed("it sent a broken P-DATA-TF")
            length, context, control = struct.unpack_from(">IBB", content)
            if length < 2 or length > len(content) - 4 or context != _CONTEXT_ID or not control & 1:
                raise ProbeFailed("it sent a P-DATA-TF that is no C-ECHO response")
            self._command += content[6 : 4 + length]
            content = content[4 + length :]
            if control == _LAST_COMMAND_FRAGMENT:
                self._responded(parse_command(self._command))
                return

    def _responded(self, command: dict[int, bytes]) -> None:
        """C-ECHO-RSP (PS3.7 section 9.3.5.2)."""
        if _number(command.get(0x0100)) != _ECHO_RSP or _number(command.get(0x0120)) != _MESSAGE_ID:
            raise ProbeFailed("it answered something else than our C-ECHO")
        status = _number(command.get(0x0900))
        if status != 0:
            raise ProbeFailed(f"it answered C-ECHO with status {status:04X}H" if status else "its answer has no status")
        self._waiting_for, self._answers = "the release response", {_RELEASE_RP: lambda _: self._finish(None)}
        self.transport.write(release_rq())


def reject_text(content: bytes) -> str:
    """An A-ASSOCIATE-RJ (PS3.8 section 9.3.4) in words."""
    if len(content) != 4:
        return "it rejected the association with a broken A-ASSOCIATE-RJ"
    _, result, source, reason = content
    said = REJECT_REASONS.get((source, reason), f"source {source}, reason {reason}")
    return f"it rejected the association {REJECT_RESULTS.get(result, '')}: {said}".replace(" :", ":")


def accepted_contexts(content: bytes) -> set[int]:
    """The presentation context ids an A-ASSOCIATE-AC accepts (result 0, PS3.8 table 9-18)."""
    accepted = set()
    items = content[68:]
    while len(items) >= 4:
        kind, length = struct.unpack_from(">BxH", items)
        if length > len(items) - 4:
            raise ProbeFailed("it sent a broken A-ASSOCIATE-AC")
        if kind == 0x21 and length >= 4 and items[6] == 0:
            accepted.add(items[4])
        items = items[4 + length :]
    return accepted


async def c_echo(reactor: Any, host: str, port: int, called_aet: str, timeout_secs: float) -> None:
    """Open an association to ``called_aet``, verify it with one C-ECHO, release it.

    Raises ``ProbeFailed`` unless all of it worked within ``timeout_secs``; the connection is closed then. Cancellable.
    """
    deadline = reactor.seconds() + timeout_secs
    factory: Any = Factory.forProtocol(lambda: EchoProtocol(called_aet))
    factory.noisy = False
    endpoint = TCP4ClientEndpoint(reactor, host, port, timeout=timeout_secs)
    try:
        protocol = await endpoint.connect(factory)
    except (CancelledError, ConnectingCancelledError):
        raise CancelledError from None
    except Exception as error:
        raise ProbeFailed(f"no connection to {host}:{port}: {error}") from error
    timer = reactor.callLater(max(0.0, deadline - reactor.seconds()), protocol.time_out, timeout_secs)
    try:
        await protocol.done
    finally:
        if timer.active():
            timer.cancel()
