"""What torture needs: a daemon that listens everywhere it can, bytes thrown at its ports, and whether it minds."""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from retrieve_kit import storage

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import COMMAND, RunningDaemon
from harmonyd.testing.processes import free_port, wait_until

ANSWER_SECS = 20.0
DEFECTS = ("Traceback", "Unhandled", "by our fault", "Failure instance")
"""What is in the log where something happened that nobody thought of."""
LAST = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
"""A request after which the server closes."""
VERIFICATION = b"1.2.840.10008.1.1"


def throw(port: int | Path, *pieces: bytes, half_close: bool = True) -> bytes:
    """Send pieces over a connection, close our side of it, and return what comes until the other side closes, too.

    An HTTP server takes the close for the end of the client: without ``half_close`` the pieces have to make it close.
    """
    with connected(port) as sock:
        try:
            for piece in pieces:
                sock.sendall(piece)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has heard enough
        except OSError as error:
            if error.errno != 107:  # not connected any more
                raise
        return rest(sock)


def connected(port: int | Path) -> socket.socket:
    """A connection to a TCP port of this machine, or to a socket in the file system."""
    if isinstance(port, int):
        return socket.create_connection(("127.0.0.1", port), ANSWER_SECS)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(ANSWER_SECS)
    sock.connect(os.fspath(port))
    return sock


def rest(sock: socket.socket) -> bytes:
    """All that comes until the other side closes, or resets."""
    received = bytearray()
    try:
        while piece := sock.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return bytes(received)


def statuses(answer: bytes) -> list[int]:
    """The status codes of the HTTP responses in a stream."""
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


class Target:
    """A daemon, its ports, and what it had open before anybody came."""

    def __init__(self, daemon: RunningDaemon, dicom: dict[str, int]) -> None:
        self.daemon = daemon
        self.http = daemon.port
        self.dicom = dicom
        self.control = storage(daemon) / "run" / "control.sock"
        self._files: set[str] = set()
        self._descriptors = 0
        self._processes: set[int] = set()

    def remember(self) -> None:
        """Take what is open and there now for normal: the watcher and the one storescp that is kept."""
        wait_until(lambda: len(self.processes()) == 2, "nothing but what is kept runs")
        self._processes = self.processes()
        self._files = self.files()
        self._descriptors = psutil.Process(self.daemon.pid).num_fds()

    def processes(self) -> set[int]:
        return {child.pid for child in self.daemon.children()}

    def files(self) -> set[str]:
        """Where objects arrive, and where operations work."""
        folders = [storage(self.daemon) / name for name in ("run", "spool", "incoming", "quarantine")]
        return {os.fspath(path) for folder in folders for path in folder.rglob("*") if path.suffix not in (".sqlite3",)}

    def assert_unharmed(self) -> None:
        """It answers on every port, nothing is left of what came, and nothing in the log was unforeseen."""
        assert self.daemon.http("GET", "/livez").status == 200
        for name, port in self.dicom.items():
            assert echoed(port), name
        wait_until(lambda: self.processes() == self._processes, "no process is left", 30)
        wait_until(lambda: self.files() - self._files == set(), "no file is left", 30)
        process = psutil.Process(self.daemon.pid)
        wait_until(lambda: process.num_fds() <= self._descriptors, "no descriptor is left", 30)
        log = self.daemon.log
        assert not [line for line in log.splitlines() if any(defect in line for defect in DEFECTS)]


def echoed(port: int) -> bool:
    """Whether a C-ECHO to a port is answered with Success."""
    with connected(port) as sock:
        sock.sendall(associate_rq())
        if _pdu(sock)[0] != 2:
            return False
        command = b"".join(
            struct.pack("<HHI", 0, element, len(value)) + value
            for element, value in (
                (0x0002, VERIFICATION + b"\0"), (0x0100, b"\x30\0"), (0x0110, b"\1\0"), (0x0800, b"\1\1"),
            )
        )  # fmt: skip
        command = struct.pack("<HHII", 0, 0, 4, len(command)) + command
        sock.sendall(pdu(4, struct.pack(">IBB", len(command) + 2, 1, 3) + command))
        kind, answer = _pdu(sock)
        sock.sendall(pdu(5, bytes(4)))
        released, _ = _pdu(sock)
        return kind == 4 and b"\0\0\0\x09\2\0\0\0\0\0" in answer and released == 6


def pdu(kind: int, content: bytes) -> bytes:
    """PS3.8 section 9.3.1."""
    return struct.pack(">BxI", kind, len(content)) + content


def associate_rq(called: bytes = b"HARMONY", calling: bytes = b"TORTURE") -> bytes:
    """An A-ASSOCIATE-RQ for Verification."""

    def item(kind: int, content: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(content)) + content

    context = item(0x20, b"\1\0\0\0" + item(0x30, VERIFICATION) + item(0x40, b"1.2.840.10008.1.2"))
    user = item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3"))
    items = item(0x10, b"1.2.840.10008.3.1.1.1") + context + user
    return pdu(1, struct.pack(">Hxx16s16s32x", 1, called.ljust(16), calling.ljust(16)) + items)


def _pdu(sock: socket.socket) -> tuple[int, bytes]:
    head = _exactly(sock, 6)
    if len(head) < 6:
        return 0, b""
    kind, length = struct.unpack(">BxI", head)
    return kind, _exactly(sock, length)


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := sock.recv(count - len(data))):
        data += more
    return data


@contextmanager
def target(folder: Path, command: Sequence[str] = COMMAND) -> Iterator[Target]:
    """A daemon with every kind of listener; the PACS behind it is not there."""
    ports = {name: free_port() for name in ("native", "per-association", "persistent", "move-native", "move-dcmtk")}
    receiver = {"service": "dicom", "local_aet": "HARMONY"}
    absent = {"aet": "ABSENT", "host": "127.0.0.1", "port": free_port(), "move_destination_aet": "HARMONY"}
    moves = {
        "native": {"engine": "native", "incoming_store_port": ports["move-native"]},
        "dcmtk": {"engine": "dcmtk", "incoming_store_port": ports["move-dcmtk"], "store_scp": "per-association"},
    }
    endpoints = {
        "native": {**receiver, "engine": "native", "port": ports["native"]},
        "each": {
            **receiver, "engine": "dcmtk", "port": ports["per-association"], "store_scp": "per-association",
        },
        "one": {**receiver, "engine": "dcmtk", "port": ports["persistent"], "store_scp": "persistent"},
    }  # fmt: skip
    pipelines = {
        "inbound": {"networks": ["default"], "endpoints": list(endpoints), "middleware": [], "backends": []},
        **{
            f"ask-{name}": {
                "networks": ["default"],
                "endpoints": [f"http-{name}", f"web-{name}"],
                "middleware": [],
                "backends": [f"pacs-{name}"],
            }
            for name in moves
        },
    }
    for name in moves:
        endpoints[f"http-{name}"] = {"service": "http", "path_prefix": f"/{name}/dicom"}
        endpoints[f"web-{name}"] = {"service": "dicomweb", "path_prefix": f"/{name}/web"}
    config = write_config(
        folder,
        http_port=free_port(),
        endpoints=endpoints,
        backends={f"pacs-{name}": {**absent, **options} for name, options in moves.items()},
        pipelines=pipelines,
    )
    with RunningDaemon(config, command=command) as running:
        made = Target(running, ports)
        for port in ports.values():
            wait_until(lambda port=port: echoed(port), "every receiver answers", 30)
        made.remember()
        yield made
