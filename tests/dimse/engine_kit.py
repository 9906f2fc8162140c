"""An engine that asks remote nodes, for tests; either one looks the same."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from harmonyd.config.daemon import SupervisionConfig
from harmonyd.dimse.dcmtk.engine import DcmtkEngine
from harmonyd.dimse.dcmtk.tools import find_tools
from harmonyd.dimse.engine import MoveReceiver, OperationContext, RemoteNode
from harmonyd.dimse.native.engine import NativeEngine
from harmonyd.dimse.threads import in_thread
from harmonyd.supervision.runner import ProcessSupervisor
from harmonyd.tls import TlsServer

ENGINES = ["dcmtk", "native"]


class Asking:
    """From ``start`` to ``stop``."""

    engine: DcmtkEngine | NativeEngine

    def __init__(self, reactor: Any, folder: Path, name: str) -> None:
        self.reactor = reactor
        self.name = name
        self.supervisor = ProcessSupervisor(reactor, SupervisionConfig(), folder / "log", folder / "run")
        if name == "native":
            self.engine = NativeEngine(reactor, storage=folder / "storage")
        else:
            self.engine = DcmtkEngine(
                reactor, self.supervisor, find_tools(), storage=folder / "storage", scratch=folder / "scratch"
            )

    async def start(self) -> None:
        await self.engine.start()
        await self.supervisor.start()
        self._before = self._selectables()

    async def stop(self) -> None:
        await self.engine.close()
        await self.supervisor.stop_all()

    def node(self, peer: Any, **options: Any) -> RemoteNode:
        """``peer`` has an AE title and a port on 127.0.0.1. No association outlives its operation."""
        made = RemoteNode("node", peer.aet, "127.0.0.1", peer.port, "HARMONY_SCU", max_associations=4, idle_secs=0.0)
        return replace(made, **options)

    def receiver(self, port: int, tls: TlsServer | None = None) -> MoveReceiver:
        """Of a C-MOVE to the AE title DEST."""
        return MoveReceiver("native" if self.name == "native" else "per-association", "DEST", port, tls)

    def op(self, secs: float = 20.0) -> OperationContext:
        """One that has this long."""
        return OperationContext(uuid.uuid4().hex, "test", self.reactor.seconds() + secs)

    async def in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await in_thread(self.reactor, function, *args)

    def left(self) -> list[object]:
        """What the reactor has to do with, and had not at the start."""
        return [each for each in self._selectables() if each not in self._before]

    def _selectables(self) -> set[object]:
        return {*self.reactor.getReaders(), *self.reactor.getWriters()}
