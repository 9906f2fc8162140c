"""Sends CT files over one association as fast as they are answered: prepared PDUs, no toolkit.

Usage: python bench/raw_sender.py PORT FILE…
"""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path

CT_IMAGE, EXPLICIT_VR_LE = b"1.2.840.10008.5.1.4.1.1.2", b"1.2.840.10008.1.2.1"
FRAGMENT_BYTES = 65536 - 6


def item(kind: int, content: bytes) -> bytes:
    """PS3.8 section 9.3.1."""
    return struct.pack(">BxH", kind, len(content)) + content


def pdu(kind: int, content: bytes) -> bytes:
    """PS3.8 section 9.3.1."""
    return struct.pack(">BxI", kind, len(content)) + content


def request() -> bytes:
    """A-ASSOCIATE-RQ for CT Image Storage."""
    items = item(0x10, b"1.2.840.10008.3.1.1.1")
    items += item(0x20, b"\1\0\0\0" + item(0x30, CT_IMAGE) + item(0x40, EXPLICIT_VR_LE))
    items += item(0x50, item(0x51, struct.pack(">I", 65536)) + item(0x52, b"1.2.3"))
    return pdu(1, struct.pack(">Hxx16s16s32x", 1, b"ANY".ljust(16), b"RAW".ljust(16)) + items)


def element(number: int, value: bytes) -> bytes:
    """Of a command set."""
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHI", 0, number, len(value)) + value


def message(file: Path) -> bytes:
    """C-STORE-RQ and its data set."""
    content = file.read_bytes()
    meta_bytes = 144 + struct.unpack_from("<I", content, 140)[0]
    meta, data = content[:meta_bytes], content[meta_bytes:]
    at = meta.index(b"\2\0\3\0UI")
    uid = meta[at + 8 : at + 8 + struct.unpack_from("<H", meta, at + 6)[0]]
    command = element(2, CT_IMAGE)
    command += b"".join(element(n, struct.pack("<H", v)) for n, v in ((0x100, 1), (0x110, 1), (0x700, 0), (0x800, 1)))
    command += element(0x1000, uid)
    command = element(0, struct.pack("<I", len(command))) + command
    parts = [pdu(4, struct.pack(">IBB", len(command) + 2, 1, 3) + command)]
    for start in range(0, len(data), FRAGMENT_BYTES):
        piece = data[start : start + FRAGMENT_BYTES]
        last = 2 if start + FRAGMENT_BYTES >= len(data) else 0
        parts.append(pdu(4, struct.pack(">IBB", len(piece) + 2, 1, last) + piece))
    return b"".join(parts)


def receive(sock: socket.socket) -> tuple[int, bytes]:
    """One PDU."""
    kind, length = struct.unpack(">BxI", sock.recv(6, socket.MSG_WAITALL))
    return kind, sock.recv(length, socket.MSG_WAITALL)


def main() -> int:
    sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(request())
    if receive(sock)[0] != 2:
        return 1
    for name in sys.argv[2:]:
        sock.sendall(message(Path(name)))
        kind, content = receive(sock)
        if kind != 4 or b"\0\0\0\x09\2\0\0\0\0\0" not in content:
            return 2
    sock.sendall(pdu(5, bytes(4)))
    return receive(sock)[0] != 6


if __name__ == "__main__":
    sys.exit(main())
