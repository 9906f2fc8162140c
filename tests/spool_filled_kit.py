"""A real spool with one entry in each state: 1 waits for a backend that is away, 2 was refused, 3 is damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harmonyd.config.daemon import SpoolConfig
from harmonyd.spool.api import Delivered, Entry, Failed, NewEntry, Result, Summary
from harmonyd.spool.spool import DurableSpool

ENDPOINT = "modalities"
WAITING, QUARANTINED, DAMAGED = 1, 2, 3


class Backends:
    """``pacs`` is away, ``archive`` refuses, until ``mended``. A ``Deliverer``."""

    def __init__(self) -> None:
        self.mended = False
        self.got: list[int] = []

    def backends(self) -> Mapping[str, int]:
        return {"pacs": 1, "archive": 1}

    async def deliver(self, backend: str, entries: Sequence[Entry]) -> Sequence[Result]:
        if self.mended:
            self.got += [entry.id for entry in entries]
            return [Delivered()] * len(entries)
        if backend == "pacs":
            return [Failed("connection refused", is_away=True)] * len(entries)
        return [Failed("not wanted")] * len(entries)


def received(folder: Path, uid: str) -> NewEntry:
    """A file of a receiver, and what is known about it: also what nobody is to be shown."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uid}.in"
    path.write_bytes(uid.encode().ljust(1000, b"."))
    metadata = {"sop_instance_uid": uid, "study_instance_uid": "1.2", "calling_aet": "CT1", "patient_name": "DOE^JOHN"}
    return NewEntry(path, 1000, metadata, f"request-{uid}")


async def fill(spool: DurableSpool, backends: Backends, folder: Path) -> None:
    """Start a spool whose configuration is ``CONFIG``, and bring its three entries into their states."""
    await spool.start()
    spool.attach(ENDPOINT, backends, in_order=False)
    await spool.take(ENDPOINT, [received(folder, "1.2.1")], ["pacs"])
    await spool.take(ENDPOINT, [received(folder, "1.2.2")], ["archive"])
    await spool.put_aside("other", received(folder, "1.2.3"), "damaged: the file is\x1b[31m empty")
    while not _is_settled(await spool.summary()):
        pass


def _is_settled(summary: Summary) -> bool:
    found = {backend.backend: backend for backend in summary.backends}
    return bool("pacs" in found and found["pacs"].away_reason and "archive" in found and found["archive"].quarantined)


CONFIG = SpoolConfig(min_free_bytes=0, ballast_bytes=0, max_attempts=1)


def make(reactor: Any, storage: Path) -> DurableSpool:
    return DurableSpool(reactor, storage, CONFIG)
