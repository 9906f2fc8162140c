"""What an object costs in the spool, whatever waits there already.

Usage: python bench/spool.py [--waiting 10,1000,100000] [--objects 500]

Objects of 1 KB. Measured are taking 500 of them in batches of 50 (flushed, journalled, moved to their place), and
delivering them (asked for, noted as delivered, removed) to a backend that takes everything at once, while so many
others wait for a second backend, which is away.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from harmonyd.config.daemon import SpoolConfig
from harmonyd.spool.api import Delivered, Entry, Failed, NewEntry, Result
from harmonyd.spool.spool import DurableSpool

BATCH = 50


class Backends:
    """One takes everything; the other is away."""

    def backends(self) -> Mapping[str, int]:
        return {"takes": 100, "away": 100}

    async def deliver(self, backend: str, entries: Sequence[Entry]) -> Sequence[Result]:
        return [Delivered() if backend == "takes" else Failed("away", is_away=True) for _ in entries]


def make(folder: Path, count: int) -> list[NewEntry]:
    """New files of 1 KB."""
    folder.mkdir(parents=True)
    entries = []
    for number in range(count):
        path = folder / f"{number}.dcm"
        path.write_bytes(bytes(1024))
        metadata = {"sop_instance_uid": f"1.2.{number}", "study_instance_uid": f"1.{number // 100}"}
        entries.append(NewEntry(path, 1024, metadata, f"{number:032x}"))
    return entries


async def take(spool: DurableSpool, entries: Sequence[NewEntry], backend: str, batch: int) -> float:
    """Seconds for taking these."""
    began_at = time.perf_counter()
    for start in range(0, len(entries), batch):
        await spool.take("scp", entries[start : start + batch], [backend])
    return time.perf_counter() - began_at


async def measure(waiting: int, objects: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    spool = DurableSpool(reactor, folder, SpoolConfig(min_free_bytes=0, ballast_bytes=0, max_waiting=10**9))
    try:
        await spool.start()
        await take(spool, make(folder / "waiting", waiting), "away", 1000)
        taking = await take(spool, make(folder / "new", objects), "takes", BATCH)
        spool.attach("scp", Backends(), in_order=False)
        began_at = time.perf_counter()
        while any(item.backend == "takes" and item.waiting for item in (await spool.summary()).backends):
            await _moment()
        delivering = time.perf_counter() - began_at
        print(f"{waiting:7} waiting   take {taking / objects * 1000:6.2f} ms/object"
              f"   deliver {delivering / objects * 1000:6.2f} ms/object", flush=True)  # fmt: skip
        await spool.stop()
    finally:
        shutil.rmtree(folder)


async def _moment() -> None:
    moment: Deferred[None] = Deferred()
    reactor.callLater(0.002, moment.callback, None)  # type: ignore[attr-defined]
    await moment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--waiting", default="10,1000,100000")
    parser.add_argument("--objects", type=int, default=500)
    options = parser.parse_args()

    async def run(_reactor: object) -> None:
        for waiting in map(int, options.waiting.split(",")):
            await measure(waiting, options.objects)

    react(run)


if __name__ == "__main__":
    main()
