"""An SCU made of bytes and a blocking socket, for what no toolkit would send. Use it in a thread."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

VERIFICATION = b"1.2.840.10008.1.1"
CT_IMAGE = b"1.2.840.10008.5.1.4.1.1.2"
IMPLICIT_VR_LE, EXPLICIT_VR_LE = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1"
APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = 2, 3, 4, 5, 6, 7
TIMEOUT_SECS = 30.0
CONTEXT_ID = 1


def pdu(kind: int, content: bytes) -> bytes:
    """PS3.8 section 9.3.1."""
    return struct.pack(">BxI", kind, len(content)) + content


def item(kind: int, content: bytes) -> bytes:
    """PS3.8 section 9.3.1."""
    return struct.pack(">BxH", kind, len(content)) + content


def associate_rq(
    called: bytes = b"SCP",
    calling: bytes = b"RAW",
    *,
    version: int = 1,
    application_context: bytes = APPLICATION_CONTEXT,
    contexts: int = 1,
) -> bytes:
    """A-ASSOCIATE-RQ (PS3.8 section 9.3.2) for CT Image Storage, ``contexts`` times over."""
    items = item(0x10, application_context)
    for number in range(contexts):
        syntaxes = item(0x40, EXPLICIT_VR_LE) + item(0x40, IMPLICIT_VR_LE)
        items += item(0x20, bytes([2 * number + 1 & 0xFF, 0, 0, 0]) + item(0x30, CT_IMAGE) + syntaxes)
    items += item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3"))
    return pdu(1, struct.pack(">Hxx16s16s32x", version, called.ljust(16), calling.ljust(16)) + items)


def _element(number: int, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHI", 0, number, len(value)) + value


def store_rq(sop_uid: bytes, *, originator: bytes = b"", context_id: int = CONTEXT_ID, message_id: int = 1) -> bytes:
    """P-DATA-TF with a C-STORE-RQ (PS3.7 section 9.3.1.1)."""
    command = _element(0x0002, CT_IMAGE)
    for number, value in ((0x0100, 1), (0x0110, message_id), (0x0700, 0), (0x0800, 1)):
        command += _element(number, struct.pack("<H", value))
    command += _element(0x1000, sop_uid)
    if originator:
        command += _element(0x1030, originator) + _element(0x1031, struct.pack("<H", 7))
    command = _element(0x0000, struct.pack("<I", len(command))) + command
    return p_data(command, 0x03, context_id)


def p_data(fragment: bytes, flags: int, context_id: int = CONTEXT_ID) -> bytes:
    """P-DATA-TF with one fragment (PS3.8 section 9.3.5); flags: 1 command, 2 last."""
    return pdu(P_DATA, struct.pack(">IBB", len(fragment) + 2, context_id, flags) + fragment)


def data_set_of(file: Path) -> bytes:
    """The bytes of a Part 10 file behind its file meta information, whose group length is read for it."""
    content = file.read_bytes()
    return content[144 + struct.unpack_from("<I", content, 140)[0] :]


class RawScu:
    """One TCP connection."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.sock = socket.create_connection((host, port), TIMEOUT_SECS)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.sock.close()

    def send(self, content: bytes) -> None:
        self.sock.sendall(content)

    def receive(self) -> tuple[int, bytes]:
        """The next PDU: type and content; (0, b"") when the peer has closed, or reset."""
        try:
            header = self._exactly(6)
            if len(header) < 6:
                return 0, b""
            kind, length = struct.unpack(">BxI", header)
            return kind, self._exactly(length)
        except ConnectionError:
            return 0, b""

    def _exactly(self, count: int) -> bytes:
        """So many bytes, fewer when the peer closes. MSG_WAITALL does not wait on a socket that has a timeout."""
        data = b""
        while len(data) < count and (more := self.sock.recv(count - len(data))):
            data += more
        return data

    def rest(self) -> list[int]:
        """The types of all PDUs that still come, until the peer closes."""
        kinds = []
        while kind := self.receive()[0]:
            kinds.append(kind)
        return kinds

    def associate(self, **options: object) -> tuple[int, bytes]:
        """Send an A-ASSOCIATE-RQ, and return what comes back."""
        self.send(associate_rq(**options))  # type: ignore[arg-type]
        return self.receive()

    def store(self, sop_uid: bytes, fragments: Sequence[bytes], **options: object) -> int:
        """Perform a C-STORE; returns the kind of PDU that comes back."""
        self.send(store_rq(sop_uid, **options))  # type: ignore[arg-type]
        for number, fragment in enumerate(fragments, 1):
            self.send(p_data(fragment, 0x02 if number == len(fragments) else 0x00))
        return self.receive()[0]

    def release(self) -> int:
        """A-RELEASE; returns the kind of PDU that comes back."""
        self.send(pdu(RELEASE_RQ, bytes(4)))
        return self.receive()[0]
