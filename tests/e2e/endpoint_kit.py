"""What the end-to-end tests of inbound objects share: senders that know what was acknowledged, receivers, the spool."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Self

import pytest
from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, StoragePresentationContexts, _config, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import CTImageStorage
from retrieve_kit import storage

from harmonyd.spool.api import EntryInfo, EntryState
from harmonyd.spool.folder import SpoolFolder
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import EXPLICIT_LITTLE_ENDIAN, make_ct, uid_for
from harmonyd.testing.processes import dcmtk, free_port, port_is_free, wait_until

AET = "HARMONY_SCP"
MODES = ("persistent", pytest.param("per-association", marks=pytest.mark.dcmtk))
"""Values of ``store_scp``; the native engine has one way to receive."""


def endpoint(port: int, **options: Any) -> dict[str, Any]:
    """An endpoint ``inbound``, for ``write_config``."""
    return {"inbound": {"service": "dicom", "port": port, "local_aet": AET, **options}}


# --- the spool


def spooled(daemon: RunningDaemon) -> list[Path]:
    """Files that the daemon has not handed on, wherever they lie."""
    spool = storage(daemon) / "spool"
    return [
        Path(folder, name)
        for part in ("incoming", "receiving", "objects")  # in the order of their way: none slips past
        for folder, _, names in os.walk(spool / part)
        for name in names
    ]


def wait_delivered(daemon: RunningDaemon, timeout_secs: float = 60.0) -> None:
    """Wait until everything that was received is handed on."""
    wait_until(lambda: not spooled(daemon), "everything is handed on", timeout_secs)


def entries(daemon: RunningDaemon) -> list[EntryInfo]:
    """What the journal holds (the first thousand)."""
    with SpoolFolder(storage(daemon)) as spool:
        return spool.entries(limit=1000)


def receiving(daemon: RunningDaemon, name: str = "inbound") -> list[Path]:
    """Files and folders where an endpoint receives."""
    folder = storage(daemon) / "spool" / "receiving" / name
    return [path for kind in ("incoming", "native") if (folder / kind).exists() for path in (folder / kind).iterdir()]


def settle(running: RunningDaemon) -> None:
    """Wait until all is handed on. Transfers that were cut may be kept as damaged; they are discarded here."""
    wait_until(lambda: not receiving(running), "nothing lies where it was received", 60)
    left = wait_until(lambda: only_damaged(running), "nothing waits for its delivery", 60)
    with SpoolFolder(storage(running)) as spool:
        assert spool.discard([info.entry.id for info in left[1]]) == len(left[1])
        assert spool.summary().entries == 0
    wait_delivered(running)


def only_damaged(running: RunningDaemon) -> Any:
    """True and what the spool holds, when all of it is damaged."""
    left = entries(running)
    states = {delivery.state for info in left for delivery in info.deliveries}
    return states <= {EntryState.DAMAGED} and len(spooled(running)) == len(left) and (True, left)


# --- objects


def data_set(part10: bytes) -> bytes:
    """The bytes of a file behind its file meta information."""
    assert part10[132:138] == b"\x02\x00\x00\x00UL", "File Meta Information Group Length stands first"
    return part10[144 + int.from_bytes(part10[140:144], "little") :]


# --- senders


def send(port: int, *paths: Path, options: tuple[str, ...] = ()) -> None:
    """storescu to our endpoint; every object must be acknowledged with Success."""
    argv = [dcmtk("storescu"), *options, "-aet", "MODALITY", "-aec", AET, "127.0.0.1", str(port)]
    subprocess.run([*argv, *map(str, paths)], check=True, capture_output=True, stdin=subprocess.DEVNULL)


def associate(port: int, *contexts: tuple[str, str]) -> Association:
    """An association that proposes these SOP classes and transfer syntaxes; it may be refused."""
    client = AE(ae_title="PYNETDICOM")
    client.connection_timeout = client.acse_timeout = client.dimse_timeout = 30
    for sop_class, syntax in dict.fromkeys(contexts or [(CTImageStorage, EXPLICIT_LITTLE_ENDIAN)]):
        client.add_requested_context(sop_class, syntax)
    return client.associate("127.0.0.1", port, ae_title=AET)


def status_of(assoc: Association, path: Path) -> int | None:
    """Store a file; the answer's status, None without an answer.

    pynetdicom's own reader must have gone on after the last store, or it takes the answer to this one.
    """
    wait_until(lambda: not assoc._is_paused or not assoc.is_established, "pynetdicom reads again")
    try:
        answer = assoc.send_c_store(dcmread(path))
    except (RuntimeError, ValueError):  # the association is gone
        return None
    return answer.Status if "Status" in answer else None


def send_as_is(port: int, *paths: Path) -> None:
    """Send data sets byte for byte as they are in these files; every one must be acknowledged with Success."""
    metas = [read_file_meta_info(path) for path in paths]
    before, _config.STORE_SEND_CHUNKED_DATASET = _config.STORE_SEND_CHUNKED_DATASET, True
    assoc = associate(port, *((meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID) for meta in metas))
    try:
        assert assoc.is_established
        for path in paths:
            wait_until(lambda: not assoc._is_paused, "pynetdicom reads again")
            assert assoc.send_c_store(path).Status == 0
    finally:
        _config.STORE_SEND_CHUNKED_DATASET = before
        assoc.release()


class Sender:
    """Sends distinct objects until it is told to stop, and knows which of them were acknowledged.

    Objects go in batches, one association each: small ones, and one of half a megabyte among them.
    """

    SMALL, LARGE, BATCH = 16, 512, 20

    def __init__(self, folder: Path, name: str, port: Callable[[], int], *, with_storescu: bool) -> None:
        """``port`` is asked before each association."""
        self.sent: dict[str, Path] = {}
        self.acknowledged: dict[str, Path] = {}
        self._folder = folder / name
        self._folder.mkdir(parents=True)
        self._name = name
        self._port = port
        self._send = self._with_storescu if with_storescu else self._with_pynetdicom
        self._stop = Event()
        self._thread = Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        batch = self._batch()
        while not self._stop.is_set():
            got_through = len(self.acknowledged)
            if not port_is_free(self._port()):
                self._send(batch)
            if len(self.acknowledged) == got_through:
                self._stop.wait(0.05)  # nobody is there
            else:
                batch = self._batch()

    def _batch(self) -> dict[str, Path]:
        batch: dict[str, Path] = {}
        for number in range(len(self.sent), len(self.sent) + self.BATCH):
            path = self._folder / f"{number}.dcm"
            uid = make_ct(
                path,
                study_uid=uid_for(self._name),
                series_uid=uid_for(f"{self._name}/1"),
                instance_number=number,
                patient_id="SENDER",
                size=self.LARGE if number % self.BATCH == self.BATCH // 2 else self.SMALL,
            )
            self.sent[uid] = batch[uid] = path
        return batch

    def _with_pynetdicom(self, batch: Mapping[str, Path]) -> None:
        assoc = associate(self._port())
        for uid, path in batch.items():
            if not assoc.is_established or self._stop.is_set():
                break
            if status_of(assoc, path) == 0:
                self.acknowledged[uid] = path
        assoc.release()

    def _with_storescu(self, batch: Mapping[str, Path]) -> None:
        argv = [dcmtk("storescu"), "-v", "-aet", "STORESCU", "-aec", AET, "127.0.0.1", str(self._port())]
        uids = {str(path): uid for uid, path in batch.items()}
        done = subprocess.run([*argv, *uids], check=False, capture_output=True, stdin=subprocess.DEVNULL)
        said = (done.stdout + done.stderr).decode()
        found = re.findall(r"Sending file: (\S+)|(Received Store Response \(Success\))", said)
        for (path, _), (_, success) in pairwise(found):
            if path and success:
                self.acknowledged[uids[path]] = batch[uids[path]]


@contextmanager
def senders(folder: Path, port: Callable[[], int]) -> Iterator[list[Sender]]:
    """Two that run while inside: storescu, and pynetdicom."""
    with (
        Sender(folder, "storescu", port, with_storescu=True) as one,
        Sender(folder, "pynetdicom", port, with_storescu=False) as other,
    ):
        yield [one, other]


def acknowledged(of: Collection[Sender]) -> dict[str, Path]:
    """SOP Instance UID and file of each object that was answered with Success."""
    return {uid: path for sender in of for uid, path in sender.acknowledged.copy().items()}


def wait_more(of: Collection[Sender], count: int, timeout_secs: float = 60.0) -> None:
    """Wait until so many more objects were acknowledged."""
    goal = sum(len(sender.acknowledged) for sender in of) + count
    what = f"{count} more objects are acknowledged"
    wait_until(lambda: sum(len(sender.acknowledged) for sender in of) >= goal, what, timeout_secs)


def assert_kept(folder: Path, wanted: Mapping[str, Path], sent: Collection[str]) -> None:
    """A ``storage`` backend's folder has each wanted object, byte for byte, and nothing that was not sent."""
    kept = {path.stem: path for path in folder.glob("*/*/*.dcm")}
    assert not wanted.keys() - kept.keys(), "acknowledged, and not there"
    assert not kept.keys() - set(sent)
    for uid, path in wanted.items():
        assert data_set(kept[uid].read_bytes()) == data_set(path.read_bytes()), uid


# --- receivers


class Receiver:
    """A DICOM node that takes everything, in whatever transfer syntax, but for SOP classes in ``refused`` (C000)."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.files: dict[str, bytes] = {}
        """SOP Instance UID and Part 10 file, in the order of their arrival."""
        self.refused: set[str] = set()
        self.refusals = 0
        self._lock = Lock()
        self._server: Any = None

    @property
    def backend(self) -> dict[str, Any]:
        """Options of a backend that leads here."""
        return {"aet": "RECEIVER", "host": "127.0.0.1", "port": self.port}

    def start(self) -> Self:
        node = AE(ae_title="RECEIVER")
        for context in StoragePresentationContexts:
            node.add_supported_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._stored)]
        self._server = node.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def _stored(self, event: Any) -> int:
        with self._lock:
            if event.request.AffectedSOPClassUID in self.refused:
                self.refusals += 1
                return 0xC000
            self.files[str(event.request.AffectedSOPInstanceUID)] = event.encoded_dataset()
            return 0x0000

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()


class WebServer(ThreadingHTTPServer):
    """Takes objects, answering with ``statuses`` in turn (the last one repeats), while its ``gate`` is open."""

    def __init__(self, statuses: tuple[int, ...] = (201,)) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses = list(statuses)
        self.received: list[tuple[str, str, dict[str, str], bytes]] = []
        """Method, path, headers, body."""
        self.gate = Event()
        self.gate.set()
        self.waiting = Event()
        """Set once something has met a closed gate."""
        self._thread = Thread(target=self.serve_forever)

    @property
    def backend(self) -> dict[str, Any]:
        """Options of a backend that leads here."""
        return {"service": "http", "base_url": f"http://127.0.0.1:{self.server_port}/objects"}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.gate.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: WebServer

    def _take(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.server.gate.is_set():
            self.server.waiting.set()
            self.server.gate.wait()
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.received.append((self.command, self.path, headers, body))
        status = self.server.statuses.pop(0) if len(self.server.statuses) > 1 else self.server.statuses[0]
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_PUT = do_GET = _take  # noqa: N815 - BaseHTTPRequestHandler's names

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
