"""A C-STORE or C-GET in a process of its own, ``memory_child.py store|get PORT PATH [CA]``: how its memory grew."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

from scu_kit import Scu, query, read
from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred

from harmonyd.dimse.native import get, store
from harmonyd.tls import TlsClient

reactor: Any = installed


def peak_bytes() -> int:
    """The most that was resident (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


async def work(what: str, port: int, path: Path, ca: Path | None) -> dict[str, Any]:
    scu = Scu(reactor, path if what == "get" else path.parent)
    node = scu.node(port=port, aet="BIG", idle_secs=0.0, tls=None if ca is None else TlsClient(ca))
    before = peak_bytes()
    if what == "store":
        said = [result.status for result in await read(store.store(scu.means, node, [path], scu.op(100)))]
    else:
        instances = await read(get.get(scu.means, node, query(StudyInstanceUID="1.2.3"), scu.op(100)))
        said = [instance.size_bytes for instance in instances]
    await scu.pool.close()
    return {"grown": peak_bytes() - before, "said": said, "threads": threading.active_count()}


def main() -> None:
    what, port, path = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    ca = Path(sys.argv[4]) if len(sys.argv) > 4 else None

    def begin() -> None:
        Deferred.fromCoroutine(work(what, port, path, ca)).addCallbacks(
            lambda found: print(json.dumps(found)), lambda failure: failure.printTraceback(sys.stderr)
        ).addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(begin)
    reactor.run()


if __name__ == "__main__":
    main()
