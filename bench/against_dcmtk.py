"""harmonyd over HTTP against the bare DCMTK tools doing the same work, in one run on the same PACS.

Usage: python -m bench.against_dcmtk [--runs N] [--skip-memory] [--engine native] [--large]

Whole processes are timed: ``curl`` with its answer written to a file, and the tool started from a shell. Both take
turns, A B A B …, after one turn that is not counted; the ratio is that of each pair, and the median is quoted. PACS:
dcmqrscp, loopback, TCP_NODELAY=1 for both sides. A move is compared with Orthanc's, too: its query, its retrieve
(C-MOVE) into its own storage, from which each run deletes what the one before has brought. ``--large``: also 1,000 CT
of 0.5 MB and one object of 500 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.ingest import process
from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import MadeStudy, make_study, uid_for
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import dcmtk, free_port, port_is_free, wait_until

ENV = {"PATH": "/usr/bin:/bin", "TCP_NODELAY": "1"}
FIND_SIZES = (1, 100, 1000)
CT_PIXELS = 140
"""140 × 140 × 2 bytes: about 40 KB, as in pydicom's small CT."""
BIG_PIXELS = 512
GIANT_PIXELS = 15800
HUGE_PIXELS = 5120
HUGE_COUNT = 19
"""Two studies of 19 × 52 MB: 2.0 GB. dcmqrscp keeps no study of more than 1 GB."""


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    pacs: RunningPacs
    daemon: RunningDaemon
    scratch: Path
    runs: int
    destination_port: int

    def query_file(self, **keys: str) -> Path:
        from pydicom import Dataset

        ds = Dataset()
        for keyword, value in keys.items():
            setattr(ds, keyword, value)
        path = self.scratch / f"query-{abs(hash(tuple(keys.items())))}.dcm"
        ds.save_as(path, implicit_vr=False, little_endian=True)
        return path

    def curl(self, operation: str, document: dict[str, object], accept: str = "application/json") -> list[str]:
        return [
            *("curl", "-sS", "--fail", "-o", str(self.scratch / "answer"), "-X", "POST"),
            *("-H", "Content-Type: application/json", "-H", f"Accept: {accept}"),
            *("-d", json.dumps(document), f"{self.daemon.base_url}/dicom/{operation}"),
        ]

    def shell(self, argv: Sequence[str], folder: Path) -> list[str]:
        """The tool as a person would run it, into an empty folder."""
        command = f"rm -rf {shlex.quote(str(folder))}; mkdir {shlex.quote(str(folder))}; exec {shlex.join(argv)}"
        return ["sh", "-c", command]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--engine", default="dcmtk")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="harmonyd-bench-") as name:
        scratch = Path(name)
        studies = {n: make_study(scratch / f"find{n}", n, patient_id=f"FIND-{n}", size=8) for n in FIND_SIZES}
        small = make_study(scratch / "small", 100, patient_id="CT-100", size=CT_PIXELS)
        big = make_study(scratch / "big", 100, patient_id="CT-100-BIG", size=BIG_PIXELS)
        more = {"100 CT of 40 KB": small, "100 CT of 0.5 MB": big}
        if arguments.large:
            more["2,000 CT of 0.5 MB"] = make_study(scratch / "many", 2000, patient_id="MANY", size=BIG_PIXELS)
            more["one object of 500 MB"] = make_study(scratch / "one", 1, patient_id="ONE", size=GIANT_PIXELS)
        made = [*studies.values(), *more.values()]
        files = [path for study in made for path in study.files]
        if not arguments.skip_memory:
            for number in (1, 2):
                uid = uid_for(f"huge-{number}")
                folder = scratch / f"huge{number}"
                huge = make_study(folder, HUGE_COUNT, study_uid=uid, patient_id="HUGE", size=HUGE_PIXELS)
                made.append(huge)
                files += huge.files
        destination = free_port()
        incoming, orthanc_port = free_port(), free_port()
        destinations = {"BARE": destination, "HARMONY_MOVE": incoming, "ORTHANC": orthanc_port}
        with RunningPacs(scratch / "pacs", files=files, destinations=destinations) as pacs:
            for study in made:
                shutil.rmtree(study.files[0].parent)
            backend = {
                "service": "dicom",
                "aet": pacs.aet,
                "host": "127.0.0.1",
                "port": pacs.port,
                "move_destination_aet": "HARMONY_MOVE",
                "incoming_store_port": incoming,
                "max_associations": 4,
                "engine": arguments.engine,
            }
            (scratch / "config").mkdir()
            sections = {"proxy": {"log_level": "warn"}, "storage": {"options": {"retention_max_gb": 50}}}
            config = write_config(
                scratch / "config", http_port=free_port(), backends={"pacs": backend}, sections=sections
            )
            with RunningDaemon(config) as daemon:
                bench = Bench(pacs, daemon, scratch, arguments.runs, destination)
                print(f"| work | harmonyd, median | bare tool, median | ratio, median (min–max), {bench.runs} pairs |")
                print("|---|---|---|---|")
                for count, study in studies.items():
                    find(bench, count, study)
                for what, study in more.items():
                    retrieve(bench, what, study)
                with orthanc(scratch / "orthanc", pacs, orthanc_port) as http_port:
                    for what, study in more.items():
                        against_orthanc(bench, what, study, http_port)
                print()
                python_share(bench, studies[1000])
                concurrency(bench, studies[1])
                concurrency(bench, studies[100])
                if not arguments.skip_memory:
                    memory(bench)
    return 0


def find(bench: Bench, count: int, study: MadeStudy) -> None:
    document = {"StudyInstanceUID": study.study_uid, "SeriesInstanceUID": study.series_uids[0], "level": "IMAGE"}
    keys = _find_keys(study)
    folder = bench.scratch / "bare"
    options = ["-S", "-aec", bench.pacs.aet, "-X", "-od", str(folder)]
    address = ["127.0.0.1", str(bench.pacs.port), str(bench.query_file(**keys))]
    tool = bench.shell([dcmtk("findscu"), *options, *address], folder)
    compare(bench, f"find, {count} results, JSON", bench.curl("find", document), tool)
    answer = json.loads((bench.scratch / "answer").read_bytes())
    assert answer["count"] == count == len(list(folder.iterdir())), (answer["count"], count)


def _find_keys(study: MadeStudy) -> dict[str, str]:
    """The keys harmonyd asks for as well."""
    from harmonyd.dimse.identifier import parse_query

    document = {"StudyInstanceUID": study.study_uid, "SeriesInstanceUID": study.series_uids[0], "level": "IMAGE"}
    return {element.keyword: element.value or "" for element in parse_query(document, operation="find").dataset}


def retrieve(bench: Bench, what: str, study: MadeStudy) -> None:
    document: dict[str, object] = {"StudyInstanceUID": study.study_uid}
    accept = 'multipart/related; type="application/dicom"'
    query = str(bench.query_file(QueryRetrieveLevel="STUDY", StudyInstanceUID=study.study_uid))
    folder = bench.scratch / "bare"
    peer = ["-S", "-aec", bench.pacs.aet]
    address = ["127.0.0.1", str(bench.pacs.port), query]
    get = bench.shell([dcmtk("getscu"), *peer, "-od", str(folder), *address], folder)
    compare(bench, f"get, {what}, multipart", bench.curl("get", document, accept), get)
    assert len(list(folder.iterdir())) == len(study.files)
    move = bench.shell([dcmtk("movescu"), *peer, "-aem", "BARE", *address], folder)
    receiver = [dcmtk("storescp"), "+B", "+xa", "-od", str(folder), str(bench.destination_port)]
    # movescu's own listener (+P) waits for a second before it ends; a storescp of its own does not.
    with subprocess.Popen(receiver, env=ENV, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as storescp:
        wait_until(lambda: not port_is_free(bench.destination_port), "the bare storescp listens")
        compare(bench, f"move, {what}, multipart", bench.curl("move", document, accept), move)
        storescp.terminate()
    assert len(list(folder.iterdir())) == len(study.files)


@contextmanager
def orthanc(folder: Path, pacs: RunningPacs, port: int) -> Iterator[int]:
    """Orthanc, which knows the PACS; its HTTP port."""
    http_port = free_port()
    folder.mkdir()
    config = folder / "orthanc.json"
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "DicomAet": "ORTHANC",
        "DicomPort": port,
        "HttpPort": http_port,
        "Plugins": [],
        "DicomModalities": {"pacs": [pacs.aet, "127.0.0.1", pacs.port]},
    }
    config.write_text(json.dumps(settings))
    with process(["/usr/sbin/Orthanc", str(config)], http_port):
        yield http_port


def against_orthanc(bench: Bench, what: str, study: MadeStudy, http_port: int) -> None:
    """A move over HTTP, with the objects in the answer, against Orthanc's retrieve, with the objects in Orthanc."""
    base = f"http://127.0.0.1:{http_port}"

    def call(method: str, path: str, document: object = None) -> Any:
        body = None if document is None else json.dumps(document).encode()
        with urllib.request.urlopen(urllib.request.Request(base + path, body, method=method), timeout=300) as answer:
            return json.load(answer)

    def theirs() -> float:
        for name in call("GET", "/studies"):
            call("DELETE", f"/studies/{name}")
        began_at = time.perf_counter()
        query = {"Level": "Study", "Query": {"StudyInstanceUID": study.study_uid}}
        asked = call("POST", "/modalities/pacs/query", query)
        call("POST", f"{asked['Path']}/retrieve", {"TargetAet": "ORTHANC", "Synchronous": True})
        took = time.perf_counter() - began_at
        count = call("GET", "/statistics")["CountInstances"]
        if count != len(study.files):
            sys.exit(f"Orthanc has {count} of {len(study.files)} objects")
        return took

    ours = bench.curl("move", {"StudyInstanceUID": study.study_uid}, 'multipart/related; type="application/dicom"')
    pairs = [(_timed(ours), theirs()) for _ in range(bench.runs + 1)][1:]
    report(f"move, {what}, against Orthanc", pairs)


def compare(bench: Bench, what: str, ours: Sequence[str], theirs: Sequence[str]) -> None:
    report(what, [(_timed(ours), _timed(theirs)) for _ in range(bench.runs + 1)][1:])


def report(what: str, pairs: Sequence[tuple[float, float]]) -> None:
    """A row of the table, from seconds of pairs."""
    ratios = sorted(a / b for a, b in pairs)
    a = statistics.median(pair[0] for pair in pairs) * 1000
    b = statistics.median(pair[1] for pair in pairs) * 1000
    ratio = f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f}–{ratios[-1]:.2f})"
    print(f"| {what} | {a:.0f} ms | {b:.0f} ms | {ratio} |", flush=True)


def _timed(argv: Sequence[str]) -> float:
    start = time.perf_counter()
    ran = subprocess.run(argv, env=ENV, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    took = time.perf_counter() - start
    if ran.returncode:
        sys.exit(f"{shlex.join(argv)}: exit {ran.returncode}\n{ran.stderr.decode()}")
    return took


def python_share(bench: Bench, study: MadeStudy) -> None:
    """CPU time of the daemon itself against that of findscu for 1,000 results."""
    process = psutil.Process(bench.daemon.pid)
    document = {"StudyInstanceUID": study.study_uid, "SeriesInstanceUID": study.series_uids[0], "level": "IMAGE"}
    before = process.cpu_times()
    turns = bench.runs
    for _ in range(turns):
        _timed(bench.curl("find", document))
    after = process.cpu_times()
    own = (after.user + after.system - before.user - before.system) / turns
    children = (after.children_user + after.children_system - before.children_user - before.children_system) / turns
    print(f"find, 1,000 results: CPU in the daemon {own * 1000:.0f} ms, in findscu {children * 1000:.0f} ms a request")


def concurrency(bench: Bench, study: MadeStudy) -> None:
    """Requests a second with 1 and with 16 clients, each a curl that asks again and again on one connection."""
    document = {"StudyInstanceUID": study.study_uid, "SeriesInstanceUID": study.series_uids[0], "level": "IMAGE"}
    rates = {clients: _rate(bench, document, clients, 192) for clients in (1, 16, 1, 16)}
    count = len(study.files)
    ratio = rates[16] / rates[1]
    one, many = f"1 client {rates[1]:.1f}/s", f"16 clients {rates[16]:.1f}/s"
    print(f"find, {count} results: {one}, {many}, ratio {ratio:.2f}", flush=True)


def _rate(bench: Bench, document: dict[str, object], clients: int, requests: int) -> float:
    answered: list[int] = []

    def client() -> None:
        with closing(bench.daemon.connect()) as connection:
            for _ in range(requests // clients):
                response = bench.daemon.send(connection, "POST", "/dicom/find", json=document)
                if response.status == 200 and json.loads(response.read())["complete"]:
                    answered.append(1)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    _all(threads)
    took = time.perf_counter() - start
    if len(answered) != requests:
        sys.exit(f"{requests - len(answered)} of {requests} requests failed")
    return requests / took


def _all(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def memory(bench: Bench) -> None:
    """Peak resident memory of the daemon while 2 GB stream through, above what it is when idle."""
    process = psutil.Process(bench.daemon.pid)
    for operation, accept in (("get", 'multipart/related; type="application/dicom"'), ("move", "application/zip")):
        idle = process.memory_info().rss
        command = bench.curl(operation, {"PatientID": "HUGE", "level": "PATIENT"}, accept)
        peak = _peak(process, lambda argv=command: _timed(argv))  # type: ignore[misc]
        size = (bench.scratch / "answer").stat().st_size
        above = (peak - idle) / 1e6
        line = f"{operation} of {size / 1e9:.1f} GB: idle {idle / 1e6:.0f} MB, peak {above:.1f} MB above that"
        print(line, flush=True)


def _peak(process: psutil.Process, work: Callable[[], object]) -> int:
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak


if __name__ == "__main__":
    os.environ.setdefault("TCP_NODELAY", "1")
    sys.exit(main())
