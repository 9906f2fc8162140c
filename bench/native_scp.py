"""How fast the native store SCP makes objects durable: real associations, the real spool, fsync'd before each Success.

Usage: python bench/native_scp.py [--objects 800] [--senders 1,4,16] [--rounds 3] [--sender storescu|raw] [--profile F]

CT of 0.5 MB over loopback. ``storescu`` needs more of a processor than we do; ``raw`` is a sender that only writes a
prepared stream, and waits for each response.
"""

from __future__ import annotations

import argparse
import cProfile
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from harmonyd.config.daemon import SpoolConfig
from harmonyd.dimse.engine import Arrival, Association, StoreScpConfig
from harmonyd.dimse.native.listeners import Listeners
from harmonyd.dimse.native.scp import NativeStoreScp
from harmonyd.dimse.threads import in_thread
from harmonyd.spool.api import NewEntry
from harmonyd.spool.spool import DurableSpool
from harmonyd.testing.data import make_study
from harmonyd.testing.processes import dcmtk, free_port

ENV = {"PATH": "/usr/bin:/bin", "TCP_NODELAY": "1"}
RAW_SENDER = Path(__file__).with_name("raw_sender.py")


class Handler:
    """What an endpoint does, without a pipeline."""

    def __init__(self, spool: DurableSpool) -> None:
        self._spool = spool

    async def __call__(self, arrivals: Sequence[Arrival]) -> None:
        entries = [
            NewEntry(
                item.instance.path,
                item.instance.size_bytes,
                {
                    "sop_instance_uid": item.instance.sop_instance_uid,
                    "study_instance_uid": item.instance.study_instance_uid,
                    "calling_aet": item.association.calling_aet,
                },
                item.association.id,
                item.flushed,
            )
            for item in arrivals
        ]
        await self._spool.take("scp", entries, ["away"])

    async def damaged(self, path: Path, association: Association, reason: str) -> None:
        raise AssertionError(reason)


def send(files: Sequence[Path], senders: int, port: int, sender: str) -> None:
    """Blocking."""
    shares = [files[number::senders] for number in range(senders)]
    raw = [sys.executable, str(RAW_SENDER), str(port)]
    command = raw if sender == "raw" else [dcmtk("storescu"), "-aec", "ANY", "127.0.0.1", str(port)]
    running = [subprocess.Popen([*command, *map(str, share)], env=ENV) for share in shares]
    codes = [process.wait(300) for process in running]
    if any(codes):
        raise RuntimeError(f"{sender} ended with {codes}")


async def rate(
    files: Sequence[Path], senders: int, sender: str, profile: cProfile.Profile | None
) -> tuple[float, float]:
    """Objects a second, and our processor time for each in milliseconds."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    spool = DurableSpool(reactor, folder, SpoolConfig(min_free_bytes=0, ballast_bytes=0, max_waiting=10**9))
    await spool.start()
    config = StoreScpConfig("scp", "ANY", "127.0.0.1", free_port())
    scp = NativeStoreScp(
        reactor, config, Handler(spool), spool.admission, folder / "spool" / "receiving", Listeners(reactor)
    )
    await scp.start()
    await in_thread(reactor, send, files[:1], 1, config.port, sender)
    began_at, used = time.perf_counter(), _used()
    if profile:
        profile.enable()
    await in_thread(reactor, send, files, senders, config.port, sender)
    if profile:
        profile.disable()
    secs, used = time.perf_counter() - began_at, _used() - used
    assert (await spool.summary()).entries == len(files) + 1
    await scp.stop()
    await spool.stop()
    shutil.rmtree(folder)
    return len(files) / secs, used / len(files) * 1000


def _used() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--objects", type=int, default=800)
    parser.add_argument("--senders", default="1,4,16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sender", default="raw")
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--profile")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    study = make_study(scratch / "ct", options.objects, size=options.pixels)
    profile = cProfile.Profile() if options.profile else None

    async def run(_reactor: object) -> None:
        for senders in map(int, options.senders.split(",")):
            found = [await rate(study.files, senders, options.sender, profile) for _ in range(options.rounds)]
            rates = [item[0] for item in found]
            print(f"{senders:2} senders ({options.sender})  {statistics.median(rates):6.0f} objects/s"
                  f"  ({min(rates):.0f}-{max(rates):.0f})  {statistics.median(i[1] for i in found):.2f} ms CPU/object",
                  flush=True)  # fmt: skip

    try:
        react(lambda r: Deferred.fromCoroutine(run(r)))
    finally:
        shutil.rmtree(scratch)
        if profile:
            profile.dump_stats(options.profile)


if __name__ == "__main__":
    main()
