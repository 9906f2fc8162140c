"""DICOMweb over a PACS, against Orthanc's own DICOMweb on the same data, which lies in Orthanc itself.

Usage: python -m bench.dicomweb [--rounds 3] [--slices 300] [--viewers 16] [--plugin PATH] [--only qido,view,stow,many]

Orthanc needs its plugin (Debian: orthanc-dicomweb). harmonyd asks a dcmqrscp, native engine, C-GET. Both take turns;
ratios are of medians of one run. A viewer asks for the metadata of a series, then for the frames in their order, six at
a time, as octet-stream. "cold": nothing is in harmonyd's cache; Orthanc has no such state, and its figure is the same.
Clients are threads of one process on the same two cores. Each answer is checked: its status, and its size.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psutil

from bench.ingest import process
from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import MadeStudy, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
QIDO_SIZES = (1, 100, 1000)
PIXELS = 512
FRAME_BYTES = PIXELS * PIXELS * 2
AT_ONCE = 6
FRAMES = 'multipart/related; type="application/octet-stream"'


@dataclass
class Server:
    """Where DICOMweb is served."""

    name: str
    port: int
    prefix: str
    clear: Callable[[], None] = lambda: None
    """Empty its cache."""
    pid: int = 0
    idle: SimpleQueue[HTTPConnection] = field(default_factory=SimpleQueue)

    def connect(self) -> HTTPConnection:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def get(self, connection: HTTPConnection, path: str, accept: str) -> int:
        """Read an answer; its size."""
        connection.request("GET", self.prefix + path, headers={"Accept": accept})
        answer = connection.getresponse()
        size = 0
        while chunk := answer.read(1 << 18):
            size += len(chunk)
        if answer.status != 200:
            raise RuntimeError(f"{self.name}: {path}: {answer.status}")
        return size


def series_path(study: MadeStudy) -> str:
    return f"/studies/{study.study_uid}/series/{study.series_uids[0]}"


@contextmanager
def harmonyd(folder: Path, pacs: RunningPacs) -> Iterator[Server]:
    port = free_port()
    config = write_config(
        folder,
        http_port=port,
        endpoints={"web": {"service": "dicomweb", "path_prefix": "/dicomweb"}},
        backends={"pacs": {"engine": "native", "aet": pacs.aet, "host": "127.0.0.1", "port": pacs.port}},
        sections={"proxy": {"log_level": "warning"}, "management": {"enabled": True, "network": "default"}},
    )
    with RunningDaemon(config) as daemon:

        def clear() -> None:
            assert daemon.http("DELETE", "/admin/cache").status == 200

        yield Server("harmonyd", port, "/dicomweb", clear, daemon.pid)


@contextmanager
def orthanc(folder: Path, plugin: Path, files: Sequence[Path]) -> Iterator[Server]:
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
        "TcpNoDelay": True,
        "KeepAlive": True,
        "OverwriteInstances": True,
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
    }
    config.write_text(json.dumps(settings))
    with process(["/usr/sbin/Orthanc", str(config)], port):
        pid = next(each.pid for each in psutil.process_iter(["cmdline"]) if str(config) in (each.info["cmdline"] or []))
        server = Server("Orthanc", port, "/dicom-web", pid=pid)
        connection = server.connect()
        for path in files:
            connection.request("POST", "/instances", path.read_bytes())
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"Orthanc took no {path}: {answer.status}")
        yield server


# --- what is measured


def qido(server: Server, study: MadeStudy, secs: float = 1.5) -> float:
    """Searches for all instances of a series, one client; a second."""
    connection, path, count = server.connect(), f"{series_path(study)}/instances?limit=2000", 0
    server.get(connection, path, "application/dicom+json")
    began = time.perf_counter()
    while (took := time.perf_counter() - began) < secs:
        server.get(connection, path, "application/dicom+json")
        count += 1
    connection.close()
    return count / took


@dataclass
class Seen:
    """Seconds since a viewer opened a series, until it had …"""

    metadata: float
    first: float
    last: float
    cpu_ms: float
    """Of the server, for each frame."""


def cpu_secs(server: Server) -> float:
    times = psutil.Process(server.pid).cpu_times()
    return float(times.user + times.system)


def view(server: Server, study: MadeStudy, at_once: int = AT_ONCE) -> Seen:
    """Open a series."""
    began, cpu = time.perf_counter(), cpu_secs(server)
    connections = [server.connect() for _ in range(at_once)]
    path = series_path(study)
    server.get(connections[0], f"{path}/metadata", "application/dicom+json")
    metadata = time.perf_counter() - began
    wanted = iter(study.sop_uids)
    ends: list[float] = []

    def frames(connection: HTTPConnection) -> None:
        for uid in wanted:
            size = server.get(connection, f"{path}/instances/{uid}/frames/1", FRAMES)
            if not FRAME_BYTES <= size < FRAME_BYTES + 1000:
                raise RuntimeError(f"{server.name}: a frame of {size} bytes")
            ends.append(time.perf_counter() - began)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(frames, connections))
    for connection in connections:
        connection.close()
    return Seen(metadata, min(ends), max(ends), 1000 * (cpu_secs(server) - cpu) / len(ends))


def stow(server: Server, study: MadeStudy) -> float:
    """Store a series in one request; objects a second."""
    parts = [b"--b\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() + b"\r\n" for path in study.files]
    body = b"".join(parts) + b"--b--\r\n"
    connection = server.connect()
    kind = 'multipart/related; type="application/dicom"; boundary=b'
    headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
    began = time.perf_counter()
    connection.request("POST", server.prefix + "/studies", body, headers)
    answer = connection.getresponse()
    data = json.loads(answer.read())
    took = time.perf_counter() - began
    stored = len(data.get("00081199", {}).get("Value", ()))
    if answer.status != 200 or stored != len(study.files):
        raise RuntimeError(f"{server.name}: {answer.status}, {stored} stored")
    connection.close()
    return len(study.files) / took


def many(server: Server, study: MadeStudy, viewers: int) -> tuple[float, float, float]:
    """So many open the same series at once, each with one connection: all first frames, all frames, MB that it grew."""
    before = peak = psutil.Process(server.pid).memory_info().rss
    is_over = False

    def watch() -> None:
        nonlocal peak
        while not is_over:
            peak = max(peak, psutil.Process(server.pid).memory_info().rss)
            time.sleep(0.05)

    with ThreadPoolExecutor(viewers + 1) as pool:
        watching = pool.submit(watch)
        seen = list(pool.map(lambda _: view(server, study, 1), range(viewers)))
        is_over = True
        watching.result()
    return max(each.first for each in seen), max(each.last for each in seen), (peak - before) / 1e6


def line(what: str, found: dict[str, list[float]], unit: str, *, is_rate: bool = False) -> None:
    """Print medians of both, and how many times as good harmonyd is."""
    medians = {name: statistics.median(values) for name, values in found.items()}
    ours, theirs = medians["harmonyd"], medians["Orthanc"]
    ratio = ours / theirs if is_rate else theirs / ours
    figures = f"harmonyd {ours:9.3f} {unit}  Orthanc {theirs:9.3f} {unit}  harmonyd is {ratio:6.2f} x"
    print(f"{what:<42} {figures}", flush=True)


def in_turn(servers: Sequence[Server], rounds: int, work: Callable[[Server], Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {server.name: [] for server in servers}
    for _ in range(rounds):
        for server in servers:
            found[server.name].append(work(server))
    return found


def alone(server: Server, study: MadeStudy) -> float:
    """One frame in the middle, of a series that is not in the cache."""
    server.clear()
    connection = server.connect()
    began = time.perf_counter()
    uid = study.sop_uids[len(study.sop_uids) // 2]
    server.get(connection, f"{series_path(study)}/instances/{uid}/frames/1", FRAMES)
    took = time.perf_counter() - began
    connection.close()
    time.sleep(3.0)  # its series is being retrieved, for nobody here
    return took


def viewing(servers: Sequence[Server], study: MadeStudy, rounds: int) -> None:
    def cold(server: Server) -> Seen:
        server.clear()
        return view(server, study)

    line("cold: a frame alone", in_turn(servers, rounds, lambda server: alone(server, study)), "s")
    for name, work in (("cold", cold), ("cached", lambda server: view(server, study))):
        found = in_turn(servers, rounds, work)
        for what in ("metadata", "first", "last"):
            values = {key: [getattr(each, what) for each in seen] for key, seen in found.items()}
            line(f"{name}: {what} of {len(study.files)} frames", values, "s")
        values = {key: [each.cpu_ms for each in seen] for key, seen in found.items()}
        line(f"{name}: CPU for each frame", values, "ms")


def crowds(servers: Sequence[Server], study: MadeStudy, rounds: int, viewers: int) -> None:
    for name in ("cold", "cached"):

        def open_all(server: Server, is_cold: bool = name == "cold") -> tuple[float, float, float]:
            if is_cold:
                server.clear()
            return many(server, study, viewers)

        found = in_turn(servers, rounds, open_all)
        figures = (("all first frames", "s"), ("all frames", "s"), ("memory grew by", "MB"))
        for number, (what, unit) in enumerate(figures):
            values = {key: [each[number] for each in all_seen] for key, all_seen in found.items()}
            line(f"{viewers} viewers, {name}: {what}", values, unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--viewers", type=int, default=16)
    parser.add_argument("--plugin", type=Path, default=PLUGIN)
    parser.add_argument("--only", default="qido,view,stow,many")
    options = parser.parse_args()
    only = options.only.split(",")
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        searched = {n: make_study(scratch / f"q{n}", n, patient_id=f"QIDO-{n}", size=16) for n in QIDO_SIZES}
        ct = make_study(scratch / "ct", options.slices, patient_id="CT", size=PIXELS)
        new = make_study(scratch / "new", options.slices, patient_id="NEW", size=PIXELS)
        files = [path for study in (*searched.values(), ct) for path in study.files]
        with (
            RunningPacs(scratch / "pacs", files=files) as pacs,
            harmonyd(scratch / "harmonyd", pacs) as ours,
            orthanc(scratch / "orthanc", options.plugin, files) as theirs,
        ):
            servers = (ours, theirs)
            print(f"load before: {os.getloadavg()}", flush=True)
            if "qido" in only:
                for count, study in searched.items():
                    found = in_turn(servers, options.rounds, lambda server, study=study: qido(server, study))
                    line(f"QIDO, {count} results, 1 client", found, "/s", is_rate=True)
            if "view" in only:
                viewing(servers, ct, options.rounds)
            if "stow" in only:
                found = in_turn(servers, options.rounds, lambda server: stow(server, new))
                line(f"STOW of {len(new.files)} CT", found, "/s", is_rate=True)
            if "many" in only:
                crowds(servers, ct, max(1, options.rounds // 2), options.viewers)
            print(f"load after: {os.getloadavg()}", flush=True)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
