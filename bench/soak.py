"""Mixed traffic while children are killed and PACSs restarted: is each answer right, or a declared problem?

Usage: python -m bench.soak [--minutes 30] [--seed 7] [--clients 6] [--kill-secs 3] [--keep FOLDER]

One daemon with both engines before a dcmqrscp and a storescp. HTTP clients, with time to think, ask for C-ECHO, C-FIND,
C-GET, C-MOVE (three ways to receive), C-STORE, QIDO-RS and WADO-RS; three senders push C-STORE, one to each kind of
endpoint, which delivers to the storescp and to a folder. Meanwhile, at random: ``kill -9`` of a DCMTK program that the
daemon lists, of the kept ones not more than one in 20 s; and one of the two PACSs is ended, with all that it runs, and
comes back 0 to 5 s later. Each answer is compared with what the PACS has, each acknowledged object with what its
backends have.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.traffic import (
    PARTS,
    RIGHT,
    Archive,
    Client,
    Counts,
    Cut,
    Known,
    Reply,
    Sender,
    Sent,
    Used,
    lag,
    lag_text,
    load,
    problem,
    used,
)
from bench.traffic import lost as lost_of
from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port, log_tail, signal_group

PROGRAMS = {"findscu", "getscu", "movescu", "storescu", "echoscu", "storescp"}
KEPT_REST_SECS = 20.0
DICOM_JSON = "application/dicom+json"
Judge = Callable[[Reply], str]


@dataclass
class Setting:
    """What runs."""

    daemon: RunningDaemon
    pacs: RunningPacs
    archive: Archive
    ports: dict[str, int]
    """Of the endpoints, by their names."""
    studies: dict[str, Known]
    folder: Path
    chance: random.Random
    counts: Counts = field(default_factory=Counts)
    events: Counter[str] = field(default_factory=Counter)
    stored: dict[str, Sent] = field(default_factory=dict)
    """Over HTTP, by SOP Instance UID."""
    used: list[Used] = field(default_factory=list)
    began_at: float = field(default_factory=time.monotonic)


@contextmanager
def running(folder: Path, chance: random.Random) -> Iterator[Setting]:
    sizes = {"1": (1, 16), "20": (20, 64), "200": (200, 16), "8": (8, 512)}
    made = {name: make_study(folder / "made" / name, count, patient_id=f"SOAK-{name}", size=size)
            for name, (count, size) in sizes.items()}  # fmt: skip
    moves = {"MOVE_P": free_port(), "MOVE_A": free_port(), "MOVE_N": free_port()}
    ports = {"persistent": free_port(), "per_association": free_port(), "native": free_port()}
    files = [file for study in made.values() for file in study.files]
    with ExitStack() as stack:
        first = stack.enter_context(RunningPacs(folder / "pacs", files=files, destinations=moves))
        second = stack.enter_context(Archive(folder / "archive"))
        config = configured(folder / "daemon", first, second, moves, ports)
        daemon = stack.enter_context(RunningDaemon(config))
        known = {name: Known(study) for name, study in made.items()}
        yield Setting(daemon, first, second, ports, known, folder, chance)


def configured(
    folder: Path, pacs: RunningPacs, archive: Archive, moves: dict[str, int], ports: dict[str, int]
) -> Path:
    """The daemon's configuration."""
    common: dict[str, Any] = {"host": "127.0.0.1", "breaker": {"open_secs": 1, "max_open_secs": 4},
                              "connect_timeout_ms": 5000, "association_timeout_ms": 20000}  # fmt: skip
    asked = {**common, "aet": pacs.aet, "port": pacs.port}
    stored = {**common, "aet": archive.aet, "port": archive.port}
    moved = {**asked, "dimse_retrieve_mode": "move"}
    backends = {
        "dcmtk": {**asked, "engine": "dcmtk", "incoming_store_port": moves["MOVE_P"]},
        "native": {**asked, "engine": "native", "incoming_store_port": moves["MOVE_N"]},
        "movep": {**moved, "engine": "dcmtk", "store_scp": "persistent"},
        "movea": {**moved, "engine": "dcmtk", "store_scp": "per-association"},
        "moven": {**moved, "engine": "native"},
        "archive": {**stored, "engine": "dcmtk", "incoming_store_port": moves["MOVE_P"]},
        "archive_native": {**stored, "engine": "native", "incoming_store_port": moves["MOVE_N"]},
        "kept": {"service": "storage", "path": "kept"},
    }
    for name, aet in (("movep", "MOVE_P"), ("movea", "MOVE_A"), ("moven", "MOVE_N")):
        backends[name] |= {"move_destination_aet": aet, "incoming_store_port": moves[aet]}
    receiving: dict[str, Any] = {"service": "dicom", "local_aet": "HARMONY_SCP", "bind_addr": "127.0.0.1"}
    endpoints = {
        "http": {"service": "http", "path_prefix": "/dicom", "backend_in_path": True},
        "web": {"service": "dicomweb", "path_prefix": "/web", "complete_attributes": False},
        "persistent": {"service": "dicom", "local_aet": "HARMONY_SCP", "port": ports["persistent"]},
        "per_association": {**receiving, "store_scp": "per-association", "port": ports["per_association"]},
        "native": {**receiving, "engine": "native", "port": ports["native"]},
    }
    network = {"networks": ["default"]}
    pipelines = {
        "http": {**network, "endpoints": ["http"], "backends": list(backends)[:-1]},
        "web": {**network, "endpoints": ["web"], "backends": ["native"]},
        "persistent": {**network, "endpoints": ["persistent"], "backends": ["archive", "kept"]},
        "per_association": {**network, "endpoints": ["per_association"], "backends": ["archive_native", "kept"]},
        "native": {**network, "endpoints": ["native"], "backends": ["archive_native", "kept"]},
    }
    sections = {
        "proxy": {"log_level": "info"},
        "management": {"enabled": True, "network": "default"},
        "supervision": {"stable_after_secs": 5, "backoff_max_secs": 4, "fatal_retry_secs": 10},
        "spool": {"retry_max_secs": 5},
        "storage": {"options": {"retention_max_gb": 0.5}},
        "cache": {"max_age_minutes": 0.05},
        "audit": {"file": "audit.xml"},
    }
    return write_config(folder, http_port=free_port(), backends=backends, endpoints=endpoints, pipelines=pipelines,
                        sections=sections)  # fmt: skip


# --- clients


class Asking:
    """One HTTP client."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self._setting = setting
        self._chance = random.Random(seed)
        self._client = Client(setting.daemon.port)
        self._numbers = 0
        self._name = f"http{seed}"

    async def run(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            await asyncio.sleep(self._chance.uniform(0.1, 0.7))
            await self._one()
        await self._client.close()

    async def _one(self) -> None:
        works = [self._find, self._retrieve, self._web, self._store, self._echo]
        await self._chance.choices(works, [6, 6, 4, 2, 1])[0]()

    async def _ask(self, work: str, judge: Judge, method: str, path: str, document: Any, accept: str) -> bool:
        began_at = time.perf_counter()
        detail = ""
        try:
            reply = await self._client.ask(method, path, document, accept)
            outcome = judge(reply)
            detail = f"{reply.headers.get('x-request-id')} {reply.body[:300]!r}"
        except Cut as error:
            outcome = f"wrong: {error}" if accept == "application/json" else f"declared: {error}"
        except (OSError, ValueError, LookupError, TypeError) as error:
            outcome = f"wrong: {type(error).__name__}"
            detail = f"{error} {path}"
            await self._client.close()
        self._setting.counts.note(work, outcome, time.perf_counter() - began_at, detail)
        return outcome == RIGHT

    async def _find(self) -> None:
        known = self._setting.studies[self._chance.choice(["1", "20", "200"])]
        backend = self._chance.choice(["dcmtk", "native"])
        document = {"level": "IMAGE", **known.keys, "SOPInstanceUID": ""}
        await self._ask(f"find {backend}", known.judge_find, "POST", f"/dicom/{backend}/find", document,
                        "application/json")  # fmt: skip

    async def _retrieve(self) -> None:
        known = self._setting.studies[self._chance.choice(["1", "20", "8"])]
        backend = self._chance.choice(["dcmtk", "native", "movep", "movea", "moven"])
        operation = "move" if backend.startswith("move") else "get"
        accept, judge = self._chance.choice([(PARTS, known.judge_parts), ("application/json", known.judge_counted)])
        form = "parts" if accept == PARTS else "JSON"
        document = {"StudyInstanceUID": known.made.study_uid}
        path = f"/dicom/{backend}/{operation}"
        await self._ask(f"{operation} {backend} {form}", judge, "POST", path, document, accept)

    async def _web(self) -> None:
        known = self._setting.studies[self._chance.choice(["1", "20", "8"])]
        series = f"/web/studies/{known.made.study_uid}/series/{known.made.series_uids[0]}"
        work, path, accept, judge = self._chance.choice([
            ("QIDO", "/instances", DICOM_JSON, known.judge_qido),
            ("WADO metadata", "/metadata", DICOM_JSON, known.judge_metadata),
            ("WADO series", "", PARTS, known.judge_parts),
        ])  # fmt: skip
        await self._ask(work, judge, "GET", series + path, None, accept)

    async def _store(self) -> None:
        self._numbers += 1
        backend = self._chance.choice(["archive", "archive_native"])
        path = self._setting.folder / f"{self._name}.dcm"
        sent = Sent(self._name, self._numbers, 64)
        uid = sent.make(path)

        def judge(reply: Reply) -> str:
            if said := problem(reply):
                return said
            answer = reply.json()
            if answer["success"] and answer["complete"] and answer["stored"] == 1:
                return RIGHT
            return "declared: not stored" if answer.get("error") or answer["failed"] else "wrong: not stored"

        if await self._ask(f"store {backend}", judge, "POST", f"/dicom/{backend}/store", path.read_bytes(),
                           "application/json"):  # fmt: skip
            self._setting.stored[uid] = sent

    async def _echo(self) -> None:
        backend = self._chance.choice(["dcmtk", "native"])

        def judge(reply: Reply) -> str:
            return problem(reply) or (RIGHT if reply.json()["success"] else "wrong: no success")

        await self._ask(f"echo {backend}", judge, "POST", f"/dicom/{backend}/echo", {}, "application/json")


# --- what goes wrong


async def killing(setting: Setting, until: float, mean_secs: float) -> None:
    """Kill children of the daemon, one after the other."""
    client, loop, kept_again_at = Client(setting.daemon.port), asyncio.get_running_loop(), 0.0
    while loop.time() < until:
        await asyncio.sleep(setting.chance.uniform(0.5, 1.5) * mean_secs)
        for _ in range(60):
            children = [each for each in (await client.ask("GET", "/admin/children")).json() if each["pid"]]
            once = [each for each in children if each["kind"] == "once"]
            kept = [each for each in children if each["kind"] == "kept" and loop.time() >= kept_again_at]
            if kept or once:
                break
            await asyncio.sleep(0.02)
        else:
            continue
        chosen = setting.chance.choice(kept or once)
        if kept:
            kept_again_at = loop.time() + KEPT_REST_SECS
        if kill(setting.daemon.pid, chosen["pid"]):
            setting.events[f"kill -9 {chosen['name'].partition(':')[0]} ({chosen['kind']})"] += 1
    await client.close()


def kill(daemon: int, pid: int) -> bool:
    """SIGKILL to a DCMTK program that the daemon started; to nobody else, whoever has that pid by now."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        process = psutil.Process(pid)
        if process.name() not in PROGRAMS or daemon not in (each.pid for each in process.parents()):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return True
    except (psutil.Error, ProcessLookupError):
        return False
    finally:
        os.close(descriptor)


async def restarting(setting: Setting, until: float) -> None:
    """End a PACS, and start it again with what it has."""
    loop = asyncio.get_running_loop()
    while loop.time() + 15 < until:
        await asyncio.sleep(setting.chance.uniform(20, 60))
        pacs: RunningPacs | Archive = setting.pacs if setting.chance.random() < 0.5 else setting.archive
        pause = setting.chance.uniform(0, 5)
        number = setting.chance.choice([signal.SIGTERM, signal.SIGKILL])
        setting.pacs.files = ()

        def restart(pacs: RunningPacs | Archive = pacs, pause: float = pause, number: signal.Signals = number) -> None:
            signal_group(pacs.pid, number)
            pacs.stop()
            time.sleep(pause)
            pacs.start()

        await loop.run_in_executor(None, restart)
        setting.events[f"{pacs.aet} restarted after {number.name}"] += 1


async def watching(setting: Setting, until: float) -> None:
    loop, minute = asyncio.get_running_loop(), 0
    while loop.time() < until:
        setting.used.append(used(setting.daemon.pid, setting.began_at))
        if setting.used[-1].minute >= minute:
            total, wrong = sum(setting.counts.outcomes.values()), len(setting.counts.wrong)
            right = sum(n for (_, what), n in setting.counts.outcomes.items() if what == RIGHT)
            print(f"{setting.used[-1]}; {right} right of {total}, {wrong} wrong; {sum(setting.events.values())} events;"
                  f" load {load()}", flush=True)  # fmt: skip
            minute += 1
        await asyncio.sleep(5)


# --- the whole


async def soak(setting: Setting, minutes: float, clients: int, kill_secs: float) -> list[Sender]:
    until = asyncio.get_running_loop().time() + 60 * minutes
    senders = [Sender(name, setting.folder / "sending", port, "HARMONY_SCP", pause_secs=2.0)
               for name, port in setting.ports.items()]  # fmt: skip
    await asyncio.gather(
        *(Asking(setting, setting.chance.randrange(1 << 30)).run(until) for _ in range(clients)),
        *(sender.run(until) for sender in senders),
        killing(setting, until, kill_secs),
        restarting(setting, until),
        watching(setting, until),
    )
    await drained(setting)
    return senders


async def drained(setting: Setting) -> None:
    """Wait until the spool has delivered all, five minutes at most, and all is at rest."""
    client, give_up_at = Client(setting.daemon.port), time.monotonic() + 300
    while time.monotonic() < give_up_at:
        await client.ask("POST", "/admin/spool/retry")
        spool = (await client.ask("GET", "/admin/spool")).json()
        if not any(each["waiting"] for each in spool["backends"]):
            break
        await asyncio.sleep(2)
    await asyncio.sleep(15)
    spool = (await client.ask("GET", "/admin/spool")).json()
    print("spool:", {key: spool[key] for key in ("entries", "damaged", "refusal", "quarantine_folder", "untaken")},
          [each for each in spool["backends"] if each["waiting"] or each["quarantined"]])  # fmt: skip
    children = (await client.ask("GET", "/admin/children")).json()
    print("children:", [(each["name"], each["state"], each["restarts"]) for each in children])
    print("operations:", (await client.ask("GET", "/admin/operations")).json())
    print("ready:", (await client.ask("GET", "/readyz")).status)
    print("lag:", lag_text({}, lag((await client.ask("GET", "/metrics")).body.decode())))
    await client.close()


def report(setting: Setting, senders: list[Sender]) -> bool:
    """Print it; whether all was as it must be."""
    setting.counts.print()
    print("events:", dict(setting.events))
    kept, missing = setting.folder / "daemon" / "kept", 0
    kept = kept if kept.exists() else next(setting.folder.rglob("kept"))
    for sender in senders:
        for name, folder in (("folder", kept), ("archive", setting.archive.area)):
            gone = lost_of(sender.acknowledged, folder, setting.folder)
            missing += len(gone)
            print(f"sender {sender.name}: {len(sender.acknowledged)} acknowledged of {sender.offered} offered,"
                  f" {sender.failed_runs} runs broke off; not in the {name}: {len(gone)} {gone[:5]}")  # fmt: skip
    gone = lost_of(setting.stored, setting.archive.area, setting.folder)
    missing += len(gone)
    print(f"stored over HTTP: {len(setting.stored)}; not in the archive: {len(gone)} {gone[:5]}")
    for first, last in ((1, 5), (5, 10), (10, 20), (20, 30)):
        some = [each for each in setting.used if first <= each.minute < last]
        if some:
            print(f"minutes {first}-{last}, medians: RSS {statistics.median(each.rss_mb for each in some):.1f} MB, fds"
                  f" {statistics.median(each.fds for each in some):.0f}, processes"
                  f" {statistics.median(each.processes for each in some):.0f}")  # fmt: skip
    print("at rest:", used(setting.daemon.pid, setting.began_at))
    lines = [json.loads(line) for line in setting.daemon.raw_log.splitlines() if line.startswith("{")]
    levels = Counter(line["level"] for line in lines)
    said = Counter((line["message"], line.get("traceback", "").strip().rpartition("\n")[2][:150]) for line in lines
                   if line["level"] in ("error", "critical"))  # fmt: skip
    print("log:", dict(levels), *(f"\n  {count} x {what}" for what, count in said.most_common(20)))
    return not missing and not setting.counts.wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--kill-secs", type=float, default=3.0)
    parser.add_argument("--keep", type=Path, help="where to leave the daemon's log and audit trail")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        with running(scratch, random.Random(options.seed)) as setting:
            try:
                senders = asyncio.run(soak(setting, options.minutes, options.clients, options.kill_secs))
                fine = report(setting, senders)
            except BaseException:
                print(log_tail(setting.daemon.log_file, 20))
                raise
            finally:
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(setting.daemon.log_file, options.keep)
        print("nothing is left of it; all right" if fine else "NOT all right")
    finally:
        shutil.rmtree(scratch)
    sys.exit(not fine)


if __name__ == "__main__":
    main()
