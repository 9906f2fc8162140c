"""Echo and find over HTTP: the native engine against DCMTK's programs, Orthanc, and pynetdicom without HTTP.

Usage: python -m bench.questions [--rounds 3] [--secs 2] [--clients 1,16]

One dcmqrscp is asked for the instances of series of 1, 100 and 1,000, by all in turn: harmonyd with either engine
(POST /dicom/find, JSON), Orthanc (POST /modalities/pacs/query, then its answers, expanded), and pynetdicom on an
association that stays open; ``bare`` writes the same question to a socket and reads the answers without a look at their
data sets: what the PACS takes by itself. Clients keep their HTTP connection; each is a thread of one process. Requests
a second, and the median time of one; ratios are of medians of one run.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification

from bench.ingest import process
from harmonyd.dimse.native import core
from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import MadeStudy, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port

SIZES = {"echo": 0, "find 1": 1, "find 100": 100, "find 1000": 1000}
"""How many answers each piece of work has."""
STUDIES: dict[str, MadeStudy] = {}
"""What is asked for."""
KEYS: dict[str, bytes] = {}
"""The same as a data set."""
Ask = Callable[[str], int]
"""Does one piece of work; returns the number of answers."""
Client = Callable[[], AbstractContextManager[Ask]]


@contextmanager
def through_harmonyd(folder: Path, pacs: RunningPacs, engine: str) -> Iterator[Client]:
    """A client for each call of what is yielded."""
    backend = {"aet": pacs.aet, "host": "127.0.0.1", "port": pacs.port, "engine": engine, "max_associations": 16}
    port = free_port()
    sections = {"proxy": {"log_level": "warning"}}
    config = write_config(folder, http_port=port, backends={"pacs": backend}, sections=sections)
    with RunningDaemon(config):

        @contextmanager
        def client() -> Iterator[Ask]:
            connection = _connected(port)

            def ask(work: str) -> int:
                operation = "echo" if work == "echo" else "find"
                document = {} if work == "echo" else {"level": "IMAGE", **_keys(work)}
                answer = _post(connection, f"/dicom/{operation}", document)
                return len(json.loads(answer).get("matches", ()))

            yield ask
            connection.close()

        yield client


@contextmanager
def through_orthanc(folder: Path, pacs: RunningPacs) -> Iterator[Client]:
    """The same."""
    port = free_port()
    folder.mkdir(parents=True)
    config = folder / "orthanc.json"
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "DicomPort": free_port(),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "HttpThreadsCount": 50,
        "LimitFindResults": 0,
        "Plugins": [],
        "DicomModalities": {"pacs": [pacs.aet, "127.0.0.1", pacs.port]},
    }
    config.write_text(json.dumps(settings))
    with process(["/usr/sbin/Orthanc", str(config)], port):

        @contextmanager
        def client() -> Iterator[Ask]:
            connection = _connected(port)

            def ask(work: str) -> int:
                if work == "echo":
                    _post(connection, "/modalities/pacs/echo", {})
                    return 0
                document = {"Level": "Instance", "Query": _keys(work)}
                asked = json.loads(_post(connection, "/modalities/pacs/query", document))
                connection.request("GET", f"{asked['Path']}/answers?expand&simplify")
                return len(json.loads(connection.getresponse().read()))

            yield ask
            connection.close()

        yield client


@contextmanager
def with_pynetdicom(_folder: Path, pacs: RunningPacs) -> Iterator[Client]:
    """The same, but for HTTP."""

    @contextmanager
    def client() -> Iterator[Ask]:
        entity = AE("BENCH")
        entity.add_requested_context(Verification)
        entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
        association = entity.associate(
            "127.0.0.1", pacs.port, ae_title=pacs.aet, evt_handlers=[(evt.EVT_CONN_OPEN, _no_delay)]
        )
        def ask(work: str) -> int:
            if work == "echo":
                association.send_c_echo()
                return 0
            keys = Dataset()
            keys.QueryRetrieveLevel = "IMAGE"
            for keyword, value in _keys(work).items():
                setattr(keys, keyword, value)
            while association._is_paused:  # its own reader would take our answers
                time.sleep(0.0005)
            found = association.send_c_find(keys, StudyRootQueryRetrieveInformationModelFind)
            return sum(1 for status, data in found if data is not None)

        yield ask
        association.release()

    yield client


@contextmanager
def bare(_folder: Path, pacs: RunningPacs) -> Iterator[Client]:
    """The protocol core on a blocking socket, without HTTP and without decoding."""
    service = StudyRootQueryRetrieveInformationModelFind

    @contextmanager
    def client() -> Iterator[Ask]:
        contexts = [core.ProposedContext(1, service, (ImplicitVRLittleEndian,)),
                    core.ProposedContext(3, Verification, (ImplicitVRLittleEndian,))]  # fmt: skip
        association = core.Association.requestor(core.AssociateRequest(pacs.aet, "BENCH", tuple(contexts)))
        sock = socket.create_connection(("127.0.0.1", pacs.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        association.connected()

        def received() -> list[core.Event]:
            sock.sendall(association.data_to_send())
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            return association.receive(sock.recv(65536))

        def ask(work: str) -> int:
            if work == "echo":
                association.send(3, core.c_echo_rq(1))
            else:
                association.send(1, core.c_find_rq(1, service), has_data=True)
                association.send_data(1, KEYS[work], True)
            count = 0
            while True:
                for event in received():
                    if isinstance(event, core.CommandReceived):
                        if event.command.status == 0:
                            return count
                        count += 1

        while not association.established:
            received()
        yield ask
        association.release()
        received()
        sock.close()

    for work in STUDIES:
        KEYS[work] = _implicit(_keys(work))
    yield client


def _implicit(keys: Mapping[str, str]) -> bytes:
    ds = Dataset()
    ds.QueryRetrieveLevel = "IMAGE"
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    file = DicomBytesIO()
    file.is_implicit_VR = file.is_little_endian = True
    write_dataset(file, ds)
    return bytes(file.getvalue())


def _no_delay(event: Any) -> None:
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _keys(work: str) -> dict[str, str]:
    study = STUDIES[work]
    unique = {"StudyInstanceUID": study.study_uid, "SeriesInstanceUID": study.series_uids[0]}
    return {**unique, "SOPInstanceUID": "", "InstanceNumber": "", "ContentDate": "", "NumberOfFrames": ""}


def _connected(port: int) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    _connect(connection)
    return connection


def _connect(connection: http.client.HTTPConnection) -> None:
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _post(connection: http.client.HTTPConnection, path: str, document: Mapping[str, Any]) -> bytes:
    body = json.dumps(document)
    try:
        answer = _ask(connection, path, body)
    except (http.client.RemoteDisconnected, ConnectionError):  # Orthanc closes a connection that is idle for a second
        connection.close()
        _connect(connection)
        answer = _ask(connection, path, body)
    said = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {said[:300]!r}")
    return said


def _ask(connection: http.client.HTTPConnection, path: str, body: str) -> http.client.HTTPResponse:
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    return connection.getresponse()


class Measured(NamedTuple):
    """Of so many clients together."""

    rate: float
    """Requests a second."""
    median_ms: float
    """Of one request."""
    wrong: int
    """Requests with another number of answers than there are."""


def measure(client: Client, count: int, work: str, secs: float) -> Measured:
    """Have so many clients do the same piece of work again and again."""
    with ExitStack() as stack:
        asks = [stack.enter_context(client()) for _ in range(count)]
        return _measure(asks, work, secs)


def _measure(asks: list[Ask], work: str, secs: float) -> Measured:
    times: list[float] = []
    wrong: list[bool] = []
    until = time.perf_counter() + secs

    def one(ask: Ask) -> None:
        while (began_at := time.perf_counter()) < until:
            wrong.append(ask(work) != SIZES[work])
            times.append(time.perf_counter() - began_at)

    began_at = time.perf_counter()
    with ThreadPoolExecutor(len(asks)) as pool:
        list(pool.map(one, asks))
    return Measured(len(times) / (time.perf_counter() - began_at), 1000 * statistics.median(times), sum(wrong))


def archive(folder: Path) -> list[Path]:
    """Make the studies; their files."""
    for work, count in SIZES.items():
        if count:
            STUDIES[work] = make_study(folder / work, count, patient_id=f"BENCH-{count}", size=16)
    return [path for study in STUDIES.values() for path in study.files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--secs", type=float, default=2.0)
    parser.add_argument("--clients", default="1,16")
    parser.add_argument("--only", default="native,dcmtk,Orthanc,pynetdicom,bare")
    parser.add_argument("--work", default=",".join(SIZES))
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        with RunningPacs(scratch / "pacs", files=archive(scratch)) as pacs, ExitStack() as stack:
            ways: dict[str, AbstractContextManager[Client]] = {
                "native": through_harmonyd(scratch / "native", pacs, "native"),
                "dcmtk": through_harmonyd(scratch / "dcmtk", pacs, "dcmtk"),
                "Orthanc": through_orthanc(scratch / "orthanc", pacs),
                "pynetdicom": with_pynetdicom(scratch, pacs),
                "bare": bare(scratch, pacs),
            }
            clients = {name: stack.enter_context(ways[name]) for name in options.only.split(",")}
            for count in map(int, options.clients.split(",")):
                for work in options.work.split(","):
                    compare(clients, count, work, options.rounds, options.secs)
    finally:
        shutil.rmtree(scratch)


def compare(clients: Mapping[str, Client], count: int, work: str, rounds: int, secs: float) -> None:
    """Measure all in turn, and print a line for each."""
    found: dict[str, list[Measured]] = {name: [] for name in clients}
    for _ in range(rounds):
        for name, results in found.items():
            results.append(measure(clients[name], count, work, secs))
    rates = {name: statistics.median(result.rate for result in results) for name, results in found.items()}
    for name, results in found.items():
        median_ms = statistics.median(result.median_ms for result in results)
        wrong = sum(result.wrong for result in results)
        note = f"  {wrong} wrong" if wrong else ""
        print(f"{count:2} clients  {work:<9} {name:<10} {rates[name]:8.1f}/s  {median_ms:8.2f} ms"
              f"  native is {rates['native'] / rates[name]:6.2f} x{note}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
