"""Run as a program: a spool that takes files and delivers them into a folder, and ends at a given point, as by kill -9.

Arguments: the storage path, the folder that files come from, the folder they are delivered to, and the point: a name,
and at which call of it. What a sender was told that we have is written to standard output, a UID a line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spool_kit import BACKEND, CONFIG, ENDPOINT, Pacs, received
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from harmonyd.spool import intake
from harmonyd.spool.api import Delivered, Entry
from harmonyd.spool.journal import Journal
from harmonyd.spool.layout import Layout
from harmonyd.spool.release import Release
from harmonyd.spool.spool import DurableSpool

KILLED = 9
POINTS: dict[str, tuple[Any, str]] = {
    "sync": (intake, "sync"),
    "add": (Journal, "add"),
    "forget names": (Journal, "forget_names"),
    "place": (Layout, "place"),
    "delivered": (Journal, "delivered"),
    "commit": (Journal, "totals"),
    "unlink": (Release, "_unlink"),
    "forget": (Journal, "forget"),
}
"""Where to end: before and after each call of these."""


def end_at(point: str, call: int) -> None:
    """End the process at the call of this number, before it when that is even and after it when it is odd."""
    owner, name = POINTS[point]
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def ending(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 2
        if calls > call:
            if call % 2 == 0:
                os._exit(KILLED)
            real(*args, **named)
            os._exit(KILLED)
        return real(*args, **named)

    setattr(owner, name, ending)


def deliver_into(folder: Path) -> Callable[[str, Entry], Delivered]:
    folder.mkdir(exist_ok=True)

    def deliver(backend: str, entry: Entry) -> Delivered:
        uid = entry.metadata["sop_instance_uid"]
        (folder / uid).write_bytes(entry.path.read_bytes())
        return Delivered()

    return deliver


async def run(storage: Path, incoming: Path, delivered: Path) -> None:
    spool, pacs = DurableSpool(reactor, storage, CONFIG), Pacs(batch=3)
    pacs.answer = deliver_into(delivered)
    await spool.start()
    spool.attach(ENDPOINT, pacs, in_order=False)
    for number in range(6):
        entries = [received(incoming, f"1.{number}.{part}") for part in range(4)]
        await spool.take(ENDPOINT, entries, [BACKEND])
        for entry in entries:
            print(entry.metadata["sop_instance_uid"], flush=True)
    await spool.emptied(ENDPOINT)
    await spool.stop()


if __name__ == "__main__":
    if len(sys.argv) == 6:
        end_at(sys.argv[4], int(sys.argv[5]))
    react(lambda _: Deferred.fromCoroutine(run(*map(Path, sys.argv[1:4]))))
