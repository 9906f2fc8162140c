"""A real receiver for tests: engine, supervisor and storescp are the real ones, the spool behind it is not."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harmonyd.config.daemon import SupervisionConfig
from harmonyd.dimse.dcmtk import listener
from harmonyd.dimse.dcmtk.engine import DcmtkEngine
from harmonyd.dimse.dcmtk.tools import find_tools
from harmonyd.dimse.engine import Arrival, Association, StoreScpConfig
from harmonyd.supervision.process import in_thread
from harmonyd.supervision.runner import ProcessSupervisor
from harmonyd.testing.processes import free_port


class FakeSpool:
    """Moves what it gets into a folder, unless it is told to refuse. Also an ``Admission``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.arrivals: list[Arrival] = []
        self.batches: list[int] = []
        self.damages: list[tuple[str, Association, str]] = []
        self.refused: set[str] = set()
        """SOP Instance UIDs that are not taken."""
        self.attempts = 0
        self.full: str | None = None
        self.ends = False
        self._listening: list[Callable[[], None]] = []

    async def __call__(self, arrivals: Sequence[Arrival]) -> None:
        self.attempts += 1
        if self.refused & {arrival.instance.sop_instance_uid for arrival in arrivals}:
            raise OSError("not now")
        self.batches.append(len(arrivals))
        for arrival in arrivals:
            target = self.folder / uuid.uuid4().hex
            arrival.instance.path.rename(target)
            self.arrivals.append(replace(arrival, instance=replace(arrival.instance, path=target)))

    async def deliver_now(self, arrival: Arrival) -> None:
        """Nobody asks for it here."""
        raise AssertionError(f"{arrival} is not for the spool")

    async def damaged(self, path: Path, association: Association, reason: str) -> None:
        path.unlink()  # noqa: ASYNC240 - in a test
        self.damages.append((path.name, association, reason))

    def refusal(self) -> str | None:
        return self.full

    def must_end(self) -> bool:
        return self.ends

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        self._listening.append(changed)
        return lambda: self._listening.remove(changed) if changed in self._listening else None

    def set_full(self, reason: str | None) -> None:
        self.full = reason
        for changed in list(self._listening):
            changed()

    @property
    def uids(self) -> list[str]:
        return [arrival.instance.sop_instance_uid for arrival in self.arrivals]


class Inbound:
    """A store SCP of the dcmtk engine, from ``start`` to ``stop``."""

    engine_name = "dcmtk"
    listener_module = listener

    def __init__(self, reactor: Any, folder: Path, **options: Any) -> None:
        self.reactor = reactor
        self.port = free_port()
        self.supervisor = ProcessSupervisor(reactor, SupervisionConfig(), folder / "log", folder / "run")
        self.engine = DcmtkEngine(
            reactor, self.supervisor, find_tools(), storage=folder / "storage", scratch=folder / "scratch"
        )
        given = {"store_scp": "per-association", "bind_addr": "127.0.0.1", **options}
        self.config = StoreScpConfig("scp", "SCP", port=self.port, **given)
        self.spool = FakeSpool(folder / "taken")
        self.scp = self.engine.store_scp(self.config, self.spool, self.spool)
        self.incoming = folder / "storage" / "spool" / "receiving" / "scp" / "incoming"
        self._descriptors = descriptors()

    async def start(self) -> None:
        await self.engine.start()
        await self.supervisor.start()
        await self.scp.start()

    async def stop(self) -> None:
        await self.scp.stop()
        await self.engine.close()
        await self.supervisor.stop_all()

    async def in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await in_thread(self.reactor, function, *args)

    def on_its_port(self) -> StoreScpConfig:
        """The configuration for another ``resume``."""
        return self.config

    @property
    def listener(self) -> listener.AssociationListener:
        """Of its port."""
        ((_, found),) = self.engine._listeners._open.items()
        return found

    @property
    def associations(self) -> int:
        """How many associations run."""
        return self.engine.association_count()

    @property
    def is_untouched(self) -> bool:
        """No association was ever accepted: no storescp has been started."""
        return not self.supervisor.exit_records and not self.children

    @property
    def children(self) -> list[int]:
        """The pids of storescp that run."""
        return [child.pid for child in self.supervisor.once_children()]

    def new_descriptors(self) -> dict[int, str]:
        """What is open now and was not when this was made."""
        return {number: what for number, what in descriptors().items() if number not in self._descriptors}


def descriptors() -> dict[int, str]:
    """What this process has open, but for the random device and the thread pool's own."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - as the names of files they do not exist for long
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
        except OSError:
            continue
    return found
