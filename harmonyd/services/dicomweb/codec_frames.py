"""What goes between the daemon and a process that decodes pixels: JSON behind its length, files, bytes. Blocking."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

_LENGTH = struct.Struct(">I")
MAX_JSON_BYTES = 1 << 20


class Closed(Exception):
    """The other side ended in the middle."""


class Nonsense(Closed):
    """The other side said what nobody can mean; it may still run."""


def send(sock: socket.socket, document: Mapping[str, Any], files: Sequence[int] = (), data: bytes = b"") -> None:
    """Send a document, with open files or bytes that belong to it. Raises OSError."""
    text = json.dumps(document).encode()
    head = _LENGTH.pack(len(text)) + text
    sent = socket.send_fds(sock, [head], files) if files else sock.send(head)
    sock.sendall(head[sent:])
    if data:
        sock.sendall(data)


def receive(sock: socket.socket, max_files: int = 0) -> tuple[dict[str, Any], list[int]] | None:
    """The next document and its open files; None at the end. Raises ``Closed`` and OSError."""
    files: list[int] = []
    if max_files:
        first, files, _, _ = socket.recv_fds(sock, 1, max_files)
    else:
        first = sock.recv(1)
    if not first:
        return None
    try:
        return _document(sock, first), files
    except BaseException:
        for each in files:
            os.close(each)
        raise


def _document(sock: socket.socket, first: bytes) -> dict[str, Any]:
    (length,) = _LENGTH.unpack(first + exactly(sock, _LENGTH.size - 1))
    if length > MAX_JSON_BYTES:
        raise Nonsense(f"a document of {length} bytes")
    try:
        document = json.loads(exactly(sock, length))
    except ValueError as error:
        raise Nonsense("no JSON") from error
    if not isinstance(document, dict):
        raise Nonsense("no object")
    return document


def exactly(sock: socket.socket, length: int) -> bytes:
    """So many bytes. Raises ``Closed`` and OSError."""
    data = bytearray()
    while len(data) < length:
        piece = sock.recv(min(1 << 20, length - len(data)))
        if not piece:
            raise Closed("it ended")
        data += piece
    return bytes(data)
