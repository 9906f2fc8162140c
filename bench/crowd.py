"""A thousand idle HTTP clients and 200 that ask, while four senders push C-STORE: what they get, and what it takes.

Usage: python -m bench.crowd [--minutes 5] [--idle 1000] [--active 200] [--senders 4] [--think-secs 5] [--seed 7]

One daemon, native engine, before a dcmqrscp; one storescu after the other of each sender brings 10 new objects, one of
them 0.5 MB, which go to a folder and to a storescp. Active clients think for ``--think-secs`` on average, then ask for
C-FIND, QIDO-RS, WADO-RS or C-GET; idle ones have asked once, and once more at the end, on the same connection. Each
answer is compared with what the PACS has. Needs ``ulimit -n`` of 4000, and in the configuration max_connections and
request_timeout_secs above the defaults (500, 60 s), which would close what is idle. Clients and senders share the
processors with the daemon.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.traffic import (
    PARTS,
    Archive,
    Client,
    Counts,
    Cut,
    Known,
    Reply,
    Sender,
    Used,
    at,
    lag,
    lag_text,
    load,
    lost,
    used,
)  # fmt: skip
from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port

DICOM_JSON = "application/dicom+json"
STUDIES = {"1": (1, 16), "20": (20, 64), "4": (4, 512)}
Judge = Callable[[Reply], str]


class Crowd:
    """All clients of one daemon."""

    def __init__(self, port: int, studies: dict[str, Known], chance: random.Random, think_secs: float) -> None:
        self.counts = Counts()
        self.livez: list[float] = []
        self._port = port
        self._studies = studies
        self._chance = chance
        self._think_secs = think_secs

    async def active(self, until: float) -> None:
        loop, client = asyncio.get_running_loop(), Client(self._port)
        while True:
            await asyncio.sleep(self._chance.uniform(0, 2 * self._think_secs))
            if loop.time() >= until:
                return await client.close()
            await self._ask(client, *self._question())

    def _question(self) -> tuple[str, Judge, str, str, Any, str]:
        known = self._studies[self._chance.choice(["1", "20"])]
        series = f"/web/studies/{known.made.study_uid}/series/{known.made.series_uids[0]}"
        big = self._studies[self._chance.choice(["20", "4"])]
        find = {"level": "IMAGE", **known.keys, "SOPInstanceUID": ""}
        get = {"StudyInstanceUID": big.made.study_uid}
        return self._chance.choices([
            ("find", known.judge_find, "POST", "/dicom/find", find, "application/json"),
            ("QIDO", known.judge_qido, "GET", f"{series}/instances", None, DICOM_JSON),
            ("WADO metadata", known.judge_metadata, "GET", f"{series}/metadata", None, DICOM_JSON),
            ("WADO series", known.judge_parts, "GET", series, None, PARTS),
            ("get", big.judge_parts, "POST", "/dicom/get", get, PARTS),
        ], [8, 4, 2, 1, 1])[0]  # fmt: skip

    async def _ask(self, client: Client, work: str, judge: Judge, *question: Any) -> None:
        began_at, detail = time.perf_counter(), ""
        try:
            reply = await client.ask(*question)
            took = time.perf_counter() - began_at
            outcome, detail = judge(reply), repr(reply.body[:200])
        except (Cut, OSError) as error:
            took, outcome = time.perf_counter() - began_at, f"wrong: {error or type(error).__name__}"
        self.counts.note(work, outcome, took, detail)

    async def gather_idle(self, count: int) -> list[Client]:
        """Connect, and ask once."""
        clients = [Client(self._port) for _ in range(count)]
        for first in range(0, count, 50):
            await asyncio.gather(*(self._alive(client) for client in clients[first : first + 50]))
        return clients

    async def _alive(self, client: Client) -> bool:
        return (await client.ask("GET", "/livez")).status == 200

    async def still_there(self, clients: list[Client]) -> int:
        """How many of them are answered on the connection that they had."""
        answers = [await self._alive(client) for client in clients]
        return sum(answer and client.opened == 1 for answer, client in zip(answers, clients, strict=True))

    async def look(self, until: float) -> None:
        """GET /livez once a second."""
        loop, client = asyncio.get_running_loop(), Client(self._port)
        while loop.time() < until:
            began_at = time.perf_counter()
            await self._alive(client)
            self.livez.append(time.perf_counter() - began_at)
            await asyncio.sleep(1)


def configured(folder: Path, pacs: RunningPacs, archive: Archive, port: int, connections: int) -> Path:
    node = {"host": "127.0.0.1", "engine": "native", "max_associations": 16}
    receiving = {"service": "dicom", "engine": "native", "local_aet": "HARMONY_SCP", "port": port}
    network = {"networks": ["default"]}
    return write_config(
        folder,
        http_port=free_port(),
        endpoints={
            "http": {"service": "http", "path_prefix": "/dicom"},
            "web": {"service": "dicomweb", "path_prefix": "/web", "complete_attributes": False},
            "scp": receiving,
        },
        backends={
            "pacs": {**node, "aet": pacs.aet, "port": pacs.port},
            "archive": {**node, "aet": archive.aet, "port": archive.port},
            "kept": {"service": "storage", "path": "kept"},
        },
        pipelines={
            "http": {**network, "endpoints": ["http"], "backends": ["pacs"]},
            "web": {**network, "endpoints": ["web"], "backends": ["pacs"]},
            "scp": {**network, "endpoints": ["scp"], "backends": ["kept", "archive"]},
        },
        sections={
            "proxy": {"log_level": "info"},
            "limits": {"max_connections": connections, "request_timeout_secs": 600},
            "management": {"enabled": True, "network": "default"},
            "audit": {"file": "audit.xml"},
            "cache": {"max_age_minutes": 0.5},
        },
    )  # fmt: skip


async def run(daemon: RunningDaemon, crowd: Crowd, senders: list[Sender], options: argparse.Namespace) -> list[Used]:
    began_at, loop, found, client = time.monotonic(), asyncio.get_running_loop(), list[Used](), Client(daemon.port)
    idle = await crowd.gather_idle(options.idle)
    before = lag((await client.ask("GET", "/metrics")).body.decode())
    until = loop.time() + 60 * options.minutes

    async def watch() -> None:
        while loop.time() < until:
            found.append(used(daemon.pid, began_at))
            print(f"{found[-1]}; {sum(crowd.counts.outcomes.values())} answers; load {load()}", flush=True)
            await asyncio.sleep(min(15, max(0, until - loop.time())))

    await asyncio.gather(
        *(crowd.active(until) for _ in range(options.active)),
        *(sender.run(until) for sender in senders), crowd.look(until), watch(),
    )  # fmt: skip
    print("idle connections that are still there:", await crowd.still_there(idle), "of", len(idle))
    after = lag((await client.ask("GET", "/metrics")).body.decode())
    print("event-loop lag:", lag_text(before, after))
    for each in (*idle, client):
        await each.close()
    give_up_at = time.monotonic() + 120
    while any(each["waiting"] for each in (await client.ask("GET", "/admin/spool")).json()["backends"]):
        if time.monotonic() > give_up_at:
            break
        await asyncio.sleep(0.5)
    spool = (await client.ask("GET", "/admin/spool")).json()
    print("spool:", spool["entries"], "entries,", spool["damaged"], "damaged")
    await client.close()
    return found


def report(crowd: Crowd, senders: list[Sender], found: list[Used], folders: list[Path], scratch: Path) -> bool:
    crowd.counts.print()
    times = sorted(each for some in crowd.counts.secs.values() for each in some)
    livez = sorted(crowd.livez)
    for name, some in (("all together", times), ("GET /livez", livez)):
        print(f"{name}: {len(some)}, p50 {1000 * at(some, 0.5):.1f} ms, p99 {1000 * at(some, 0.99):.1f} ms,"
              f" longest {1000 * some[-1]:.0f} ms")  # fmt: skip
    missing = 0
    for folder in folders:
        gone = [each for sender in senders for each in lost(sender.acknowledged, folder, scratch)]
        missing += len(gone)
        print(f"not in {folder.name}: {len(gone)} {gone[:5]}")
    acknowledged, offered = sum(len(s.acknowledged) for s in senders), sum(s.offered for s in senders)
    print(f"{acknowledged} acknowledged of {offered} offered, {sum(s.failed_runs for s in senders)} runs broke off")
    for minute in (1, 2, 3, 4, 5):
        near = [each for each in found if minute - 0.5 <= each.minute < minute + 0.5]
        if near:
            print(f"minute {minute}: RSS {statistics.median(each.rss_mb for each in near):.1f} MB,"
                  f" {statistics.median(each.fds for each in near):.0f} fds")  # fmt: skip
    return not missing and not crowd.counts.wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--active", type=int, default=200)
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--think-secs", type=float, default=5)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4000, hard), hard))
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        with ExitStack() as stack:
            made = {name: make_study(scratch / "made" / name, count, patient_id=f"CROWD-{name}", size=size)
                    for name, (count, size) in STUDIES.items()}  # fmt: skip
            files = [file for study in made.values() for file in study.files]
            pacs = stack.enter_context(RunningPacs(scratch / "pacs", files=files))
            archive = stack.enter_context(Archive(scratch / "archive"))
            port = free_port()
            config = configured(scratch / "daemon", pacs, archive, port, options.idle + options.active + 300)
            daemon = stack.enter_context(RunningDaemon(config))
            studies = {name: Known(study) for name, study in made.items()}
            crowd = Crowd(daemon.port, studies, random.Random(options.seed), options.think_secs)
            senders = [Sender(f"s{number}", scratch / "sending", port, "HARMONY_SCP", 10, 0.5)
                       for number in range(options.senders)]  # fmt: skip
            found = asyncio.run(run(daemon, crowd, senders, options))
            fine = report(crowd, senders, found, [scratch / "daemon" / "kept", archive.area], scratch)
    finally:
        shutil.rmtree(scratch)
    sys.exit(not fine)


if __name__ == "__main__":
    main()
