"""Scripts of ``harmonyd.testing.peer`` that need no DICOM: bytes on a socket."""

from __future__ import annotations

import socket
import struct
import threading
from itertools import count

from harmonyd.testing.peer import PeerOptions, Report


def play(script: str, port: int, options: PeerOptions, report: Report) -> None:
    """Listen on 127.0.0.1 and play ``script`` on each connection, for ever."""
    answer = _answer(script, options)
    with socket.create_server(("127.0.0.1", port)) as listener:
        report("listening", port=listener.getsockname()[1])
        for number in count(1):
            connection, _ = listener.accept()
            threading.Thread(target=_converse, args=(connection, number, answer, report), daemon=True).start()


def _answer(script: str, options: PeerOptions) -> bytes | None:
    """What to send after the first bytes; None: nothing, and the connection stays open."""
    if script == "reject":
        return struct.pack(">BBIBBBB", 0x03, 0, 4, 0, *options.reject)
    if script == "garbage":
        return options.garbage.encode("latin-1")
    return b"" if script == "close" else None


def _converse(connection: socket.socket, number: int, answer: bytes | None, report: Report) -> None:
    report("association", id=number)
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            received = connection.recv(65536)
            if received and answer is not None:
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
            while received:
                received = connection.recv(65536)
        except OSError as error:
            report("error", id=number, error=str(error))
    report("closed", id=number)
