"""Query and retrieve through harmonyd, against the PACS itself.

Usage: python -m bench.dimse_proxy [--objects 300] [--rounds 5]

C-FIND of 1, 100 and 1,000 instances over an association that stays open, 50 associations with a C-FIND of 100 at once,
and getscu and movescu (to storescp) of one study of CT (0.5 MB); PACS: dcmqrscp, loopback, TCP_NODELAY=1. Medians, both
in turn. The same move by Orthanc, which has no proxy: it retrieves the study, and sends it on when it has it. At last
processor time and memory of the daemon, before and after as many retrieves again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from pydicom import Dataset

from bench.ingest import process
from harmonyd.dimse.engine import QueryModel, RemoteNode
from harmonyd.dimse.errors import AssociationRejected
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.blocking import BlockingAssociation, connected
from harmonyd.dimse.recode import EXPLICIT_VR_LE
from harmonyd.dimse.wire import written
from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import MadeStudy, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import dcmtk, free_port

COUNTS = (1, 100, 1000)
AT_ONCE = 50
AET, STORE = "HARMONY_QR", "BENCH_STORE"
_FIND = names.FIND[QueryModel.STUDY_ROOT]
_ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}
Node = tuple[str, int]


def asking(node: Node, study: MadeStudy, rounds: int) -> float:
    """Seconds for a C-FIND of all instances of a study, the median."""
    remote = RemoteNode("bench", node[0], "127.0.0.1", node[1], "BENCH", association_timeout_secs=60)
    keys = Dataset()
    keys.QueryRetrieveLevel, keys.StudyInstanceUID = "IMAGE", study.study_uid
    keys.SeriesInstanceUID, keys.SOPInstanceUID, keys.InstanceNumber = study.series_uids[0], "", ""
    data = written(keys, EXPLICIT_VR_LE)
    with BlockingAssociation(connected(remote), remote, [(_FIND, (EXPLICIT_VR_LE,))]) as association:
        times = [_find(association, data, len(study.files)) for _ in range(rounds + 1)][1:]
        association.release()
    return statistics.median(times)


def _find(association: BlockingAssociation, data: bytes, expected: int) -> float:
    association.begin_step()
    began_at, count = time.perf_counter(), 0
    association.request(association.context(_FIND), core.c_find_rq(association.next_message_id(), _FIND), data)
    while association.response()[0].status in (0xFF00, 0xFF01):
        count += 1
    if count != expected:
        raise RuntimeError(f"{count} matches, and not {expected}")
    return time.perf_counter() - began_at


def asking_at_once(node: Node, study: MadeStudy) -> float:
    """Seconds for two C-FIND over each of 50 associations, from the first connection to the last answer.

    dcmqrscp counts processes that it has not reaped yet, and rejects more than 64: it is tried again.
    """
    began_at = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(lambda _: _patiently(node, study), range(AT_ONCE)))
    return time.perf_counter() - began_at


def _patiently(node: Node, study: MadeStudy) -> None:
    while True:
        try:
            asking(node, study, 1)
        except AssociationRejected:
            time.sleep(0.01)
        else:
            return


def retrieving(program: str, node: Node, study: MadeStudy, folder: Path) -> float:
    """Seconds of a whole getscu or movescu."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    argv = [dcmtk(program), "-v", "-S", "-aet", "BENCH", "-aec", node[0]]
    argv += ["-od", str(folder)] if program == "getscu" else ["-aem", STORE]
    argv += ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study.study_uid}", "127.0.0.1", str(node[1])]
    began_at = time.perf_counter()
    done = subprocess.run(argv, check=True, capture_output=True, env=_ENVIRONMENT)
    if b"(Success)" not in done.stdout + done.stderr:
        raise RuntimeError((done.stdout + done.stderr).decode()[-2000:])
    return time.perf_counter() - began_at


def compared(what: str, nodes: tuple[Node, Node], rounds: int, seconds: Callable[[Node], float]) -> None:
    """Print a row: direct, through harmonyd, the difference and the ratio."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for node, taken in zip(nodes, times, strict=True):
            taken.append(seconds(node))
    direct, through = (statistics.median(taken) * 1000 for taken in times)
    print(f"| {what} | {direct:.1f} | {through:.1f} | {through - direct:+.1f} | {through / direct:.2f} |", flush=True)


def by_orthanc(base: str, study: MadeStudy) -> float:
    """Seconds until Orthanc has retrieved a study, and sent it to the storescp."""

    def call(method: str, path: str, document: object = None) -> Any:
        body = None if document is None else json.dumps(document).encode()
        with urllib.request.urlopen(urllib.request.Request(base + path, body, method=method), timeout=300) as answer:
            return json.load(answer)

    for name in call("GET", "/studies"):
        call("DELETE", f"/studies/{name}")
    began_at = time.perf_counter()
    asked = call("POST", "/modalities/pacs/query", {"Level": "Study", "Query": {"StudyInstanceUID": study.study_uid}})
    call("POST", f"{asked['Path']}/retrieve", {"TargetAet": "ORTHANC", "Synchronous": True})
    (found,) = call("GET", "/studies")
    sent = call("POST", f"/modalities/{STORE}/store", {"Resources": [found], "Synchronous": True})
    if (sent["InstancesCount"], sent["FailedInstancesCount"]) != (len(study.files), 0):
        raise RuntimeError(f"Orthanc sent {sent}")
    return time.perf_counter() - began_at


def orthanc_settings(folder: Path, http_port: int, port: int, pacs: RunningPacs, store_port: int) -> Path:
    """Its configuration file."""
    folder.mkdir()
    settings = {
        "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"), "DicomAet": "ORTHANC",
        "DicomPort": port, "HttpPort": http_port, "Plugins": [],
        "DicomModalities": {"pacs": [pacs.aet, "127.0.0.1", pacs.port], STORE: [STORE, "127.0.0.1", store_port]},
    }  # fmt: skip
    config = folder / "orthanc.json"
    config.write_text(json.dumps(settings))
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--objects", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        run(scratch, options.objects, options.rounds)
    finally:
        shutil.rmtree(scratch)


def run(scratch: Path, objects: int, rounds: int) -> None:
    """Both, with a PACS and a storescp of their own."""
    small = [make_study(scratch / f"find{count}", count, size=16, patient_id=f"FIND-{count}") for count in COUNTS]
    study = make_study(scratch / "ct", objects, size=512, patient_id="RETRIEVE")
    store_port, port, orthanc_port, http_port = (free_port() for _ in range(4))
    files = [file for each in (*small, study) for file in each.files]
    with RunningPacs(scratch / "pacs", files=files, destinations={STORE: store_port, "ORTHANC": orthanc_port}) as pacs:
        endpoint = {
            "service": "dicom", "engine": "native", "local_aet": AET, "port": port, "services": ["find", "get", "move"],
            "max_associations": 60, "max_associations_per_peer": 60,
            "move_destinations": {STORE: {"host": "127.0.0.1", "port": store_port}},
        }  # fmt: skip
        backend = {"engine": "native", "aet": pacs.aet, "host": "127.0.0.1", "port": pacs.port}
        config = write_config(
            scratch / "daemon", http_port=free_port(), backends={"pacs": backend}, endpoints={"qr": endpoint},
            sections={"proxy": {"log_level": "info"}},
        )  # fmt: skip
        (scratch / "stored").mkdir()
        argv = [dcmtk("storescp"), "--ignore", "-aet", STORE, str(store_port)]
        storescp = subprocess.Popen(argv, env=_ENVIRONMENT, cwd=scratch / "stored")
        try:
            with RunningDaemon(config) as daemon:
                _rows(daemon, (pacs.aet, pacs.port), (AET, port), small, study, scratch / "got", rounds)
            settings = orthanc_settings(scratch / "orthanc", http_port, orthanc_port, pacs, store_port)
            with process(["/usr/sbin/Orthanc", str(settings)], http_port):
                times = [by_orthanc(f"http://127.0.0.1:{http_port}", study) for _ in range(rounds)]
                print(f"move by Orthanc: {statistics.median(times) * 1000:.1f} ms")
        finally:
            storescp.send_signal(signal.SIGTERM)
            storescp.wait()


def _rows(
    daemon: RunningDaemon, direct: Node, through: Node, small: list[MadeStudy], study: MadeStudy, got: Path, rounds: int
) -> None:
    nodes = direct, through
    print("| | direct, ms | through harmonyd, ms | difference | ratio |\n|---|---|---|---|---|")
    for each in small:
        compared(f"C-FIND, {len(each.files)} matches", nodes, 3, lambda node, each=each: asking(node, each, 20))
    compared(f"{AT_ONCE} associations", nodes, rounds, lambda node: asking_at_once(node, small[1]))
    for program in ("getscu", "movescu"):
        compared(
            f"{program}, {len(study.files)} CT", nodes, rounds,
            lambda node, program=program: retrieving(program, node, study, got),
        )  # fmt: skip
    _print_use(psutil.Process(daemon.pid), lambda: retrieving("getscu", through, study, got), rounds)


def _print_use(process: psutil.Process, retrieve: Callable[[], float], rounds: int) -> None:
    before, began = process.memory_info().rss, process.cpu_times()
    for _ in range(rounds):
        retrieve()
    after, ended = process.memory_info().rss, process.cpu_times()
    used = (ended.user + ended.system - began.user - began.system) / rounds
    print(f"getscu: {used * 1000:.0f} ms of processor time in the daemon; memory {before / 1e6:.0f} MB before {rounds} "
          f"more, {after / 1e6:.0f} MB after")  # fmt: skip


if __name__ == "__main__":
    main()
