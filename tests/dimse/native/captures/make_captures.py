"""Record what DCMTK's programs say to each other, byte for byte: ``python make_captures.py [FOLDER]``.

A forwarder stands between an SCU and an SCP (both on 127.0.0.1) and writes one ``NAME.capture`` for each association:
records of one byte (``>`` from the SCU, ``<`` from the SCP), a length (32 bit, big endian), and so many bytes, in the
order in which they passed. Neighbours of one direction are joined, so that a file does not depend on how TCP cut it.

The files here were made with DCMTK 3.6.7; they are fixtures, not to be made anew in each run of the tests.
"""

from __future__ import annotations

import selectors
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harmonyd.testing.data import make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import dcmtk, end_group, free_port, port_is_free, wait_until

HEADER = struct.Struct(">cI")
STUDY_KEYS = ("-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "PatientID", "-k", "StudyInstanceUID")


class Recorder:
    """Forwards one connection to ``port`` and keeps what passes."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._to = port
        self.records: list[tuple[bytes, bytearray]] = []
        self._thread = threading.Thread(target=self._forward)
        self._thread.start()

    def finish(self, path: Path) -> None:
        """Wait for the end of the connection and write the capture."""
        self._thread.join(30)
        path.write_bytes(b"".join(HEADER.pack(way, len(data)) + data for way, data in self.records))

    def _forward(self) -> None:
        with (
            self._listener,
            self._listener.accept()[0] as scu,
            socket.create_connection(("127.0.0.1", self._to)) as scp,
            selectors.DefaultSelector() as selector,
        ):
            selector.register(scu, selectors.EVENT_READ, (b">", scp))
            selector.register(scp, selectors.EVENT_READ, (b"<", scu))
            while all(self._pass_on(key.fileobj, *key.data) for key, _ in selector.select()):
                pass

    def _pass_on(self, source: socket.socket, way: bytes, target: socket.socket) -> bool:
        data = source.recv(65536)
        if not data:
            return False
        if self.records and self.records[-1][0] == way:
            self.records[-1][1].extend(data)
        else:
            self.records.append((way, bytearray(data)))
        target.sendall(data)
        return True


def read_capture(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """The records of a capture: way and bytes."""
    content, at = path.read_bytes(), 0
    while at < len(content):
        way, length = HEADER.unpack_from(content, at)
        at += HEADER.size
        yield way, content[at : at + length]
        at += length


@contextmanager
def storescp(folder: Path, *options: str) -> Iterator[int]:
    """A running storescp that receives into ``folder``; its port."""
    port = free_port()
    argv = [dcmtk("storescp"), "-od", str(folder), *options, str(port)]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_until(lambda: not port_is_free(port), "storescp listens")
        yield port
    finally:
        end_group(process)


def record(target: Path, name: str, port: int, program: str, *options: str, files: Sequence[Path] = ()) -> None:
    """Run an SCU through a recorder; its exit code does not matter."""
    recorder = Recorder(port)
    argv = [dcmtk(program), *options, "127.0.0.1", str(recorder.port), *map(str, files)]
    subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True)
    recorder.finish(target / f"{name}.capture")


def main(target: Path) -> None:
    """Make all captures."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        studies = [make_study(folder / f"study{number}", 2, patient_id=f"MADE-{number}") for number in range(3)]
        files = [path for study in studies for path in study.files]
        (folder / "got").mkdir()
        one = ("-k", f"StudyInstanceUID={studies[0].study_uid}")
        with RunningPacs(folder / "pacs", files=files) as pacs:
            qr = ("-aec", pacs.aet)
            record(target, "echo", pacs.port, "echoscu", *qr)
            record(target, "echo_many_contexts", pacs.port, "echoscu", *qr, "-ppc", "128", "-pts", "6")
            record(target, "echo_aborted", pacs.port, "echoscu", *qr, "--abort")
            record(target, "rejected", pacs.port, "echoscu", "-aec", "NOBODY")
            record(target, "find", pacs.port, "findscu", *qr, *STUDY_KEYS)
            record(target, "find_cancelled", pacs.port, "findscu", *qr, "--cancel", "1", *STUDY_KEYS)
            record(target, "find_refused", pacs.port, "findscu", *qr, "-S", "-k", "QueryRetrieveLevel=NONE")
            get = ("-S", "-k", "QueryRetrieveLevel=STUDY", *one)
            record(target, "get", pacs.port, "getscu", *qr, "-od", str(folder / "got"), *get)
            record(target, "move_refused", pacs.port, "movescu", *qr, "-aem", "NOBODY", *get)
        with storescp(folder / "got", "-pdu", "4096") as port:
            user = ("-usr", "somebody", "-pwd", "secret")
            record(target, "store", port, "storescu", "-R", files=files[:2])
            record(target, "store_user", port, "storescu", "-R", *user, files=files[:1])


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent)
