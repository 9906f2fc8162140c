"""How fast objects are received: harmonyd until its spool has journalled them, against a bare storescp and Orthanc.

Usage: python bench/ingest.py [--objects 400] [--senders 1,4,16] [--rounds 3]

CT of 0.5 MB over loopback, TCP_NODELAY=1 for senders and receivers. The clock runs from the start of the senders
(storescu) until the receiver has all: harmonyd when all are in its journal, hence fsync'd (its backend is away, so none
is delivered meanwhile); storescp and Orthanc when the senders have their answers, fsync'd or not. Receivers take turns.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import make_study
from harmonyd.testing.processes import dcmtk, end_group, free_port, port_is_free, wait_until

ENV = {"PATH": "/usr/sbin:/usr/bin:/bin", "TCP_NODELAY": "1"}
PIXELS = 512


class Running:
    """A receiver: where to send, and how to know that it has so many objects more."""

    def __init__(self, port: int, has: Callable[[int], bool]) -> None:
        self.port = port
        self.has = has


@contextmanager
def harmonyd(folder: Path, **options: str) -> Iterator[Running]:
    """A daemon with one endpoint, and a backend that nobody listens for."""
    port = free_port()
    config = write_config(
        folder,
        http_port=free_port(),
        endpoints={"scp": {"service": "dicom", "local_aet": "ANY", "port": port, **options}},
        backends={"away": {"aet": "AWAY", "host": "127.0.0.1", "port": free_port()}},
        sections={"proxy": {"log_level": "info"}},
    )
    with RunningDaemon(config):
        journal = next(folder.rglob("journal.sqlite3"))
        with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
            before = _entries(db)
            yield Running(port, lambda count: _entries(db) - before >= count)


def _entries(db: sqlite3.Connection) -> int:
    (count,) = db.execute("SELECT count(*) FROM entries").fetchone()
    return int(count)


@contextmanager
def storescp(folder: Path) -> Iterator[Running]:
    """DCMTK's own, a process for each association, writing what it gets as it is."""
    port, out = free_port(), folder / "out"
    out.mkdir(parents=True)
    argv = [dcmtk("storescp"), "--fork", "+B", "+uf", "+xa", "-od", str(out), str(port)]
    with process(argv, port):
        yield Running(port, lambda count: True)


@contextmanager
def orthanc(folder: Path, more: Mapping[str, object] | None = None) -> Iterator[Running]:
    """Orthanc with its defaults, but for ports and folder. ``more`` is added to its configuration."""
    port, http = free_port(), free_port()
    folder.mkdir(parents=True)
    config = folder / "orthanc.json"
    database = str(folder / "db")
    settings = {"StorageDirectory": database, "IndexDirectory": database, "DicomPort": port, "HttpPort": http}
    config.write_text(json.dumps({**settings, "RemoteAccessAllowed": False, "Plugins": [], **(more or {})}))
    with process(["/usr/sbin/Orthanc", str(config)], http):

        def instances() -> int:
            with urllib.request.urlopen(f"http://127.0.0.1:{http}/statistics") as answer:
                return int(json.load(answer)["CountInstances"])

        before = instances()
        yield Running(port, lambda count: instances() - before >= count)


@contextmanager
def process(argv: Sequence[str], port: int) -> Iterator[None]:
    started = subprocess.Popen(
        argv, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_until(lambda: not port_is_free(port), f"{argv[0]} listens on {port}")
        yield
    finally:
        end_group(started)


RECEIVERS: Mapping[str, Callable[[Path], AbstractContextManager[Running]]] = {
    "native": lambda folder: harmonyd(folder, engine="native"),
    "per-association": lambda folder: harmonyd(folder, store_scp="per-association"),
    "persistent": lambda folder: harmonyd(folder, store_scp="persistent"),
    "storescp --fork": storescp,
    "Orthanc": orthanc,
}


def send(files: Sequence[Path], senders: int, port: int) -> None:
    """Send them with so many storescu at once; raise when one fails."""
    shares = [files[number::senders] for number in range(senders)]
    running = [
        subprocess.Popen(
            [dcmtk("storescu"), "-aec", "ANY", "127.0.0.1", str(port), *map(str, share)],
            env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for share in shares
    ]  # fmt: skip
    codes = [sender.wait(300) for sender in running]
    if any(codes):
        raise RuntimeError(f"storescu ended with {codes}")


def rate(name: str, files: Sequence[Path], senders: int, scratch: Path) -> float:
    """Objects a second."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        with RECEIVERS[name](folder / "receiver") as running:
            send(files[:1], 1, running.port)
            wait_until(lambda: running.has(1), "the first object is there")
            began_at = time.perf_counter()
            send(files[1:], senders, running.port)
            while not running.has(len(files)):
                time.sleep(0.005)
            return (len(files) - 1) / (time.perf_counter() - began_at)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--objects", type=int, default=400)
    parser.add_argument("--senders", default="1,4,16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(RECEIVERS))
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        study = make_study(scratch / "ct", options.objects + 1, size=PIXELS)
        for senders in map(int, options.senders.split(",")):
            found: dict[str, list[float]] = {name: [] for name in options.only.split(",")}
            for _ in range(options.rounds):
                for name, rates in found.items():
                    rates.append(rate(name, study.files, senders, scratch))
            bare = statistics.median(found.get("storescp --fork", [0]))
            for name, rates in found.items():
                median = statistics.median(rates)
                ratio = f"{median / bare:5.2f} x storescp" if bare else ""
                print(f"{senders:2} senders  {name:<16} {median:6.0f} objects/s  {median / 2:5.0f} MB/s"
                      f"  ({min(rates):.0f}-{max(rates):.0f})  {ratio}", flush=True)  # fmt: skip
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
