"""A store SCP for a dicom endpoint: a kept storescp, and a small spool that outlives us.

storescp acknowledges by itself and writes into ``incoming``. Each file is at once checked to its last element, fsync'd
and renamed into ``ready``, from where it is handed on until the handler took it; then it is removed. Both folders are
read again at start-up. Damaged files go to quarantine.
"""

from __future__ import annotations

import os
import uuid
from collections import deque
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from harmonyd.dimse.dcmtk import argv
from harmonyd.dimse.dcmtk.accept import quarantine
from harmonyd.dimse.dcmtk.arrivals import FolderWatch
from harmonyd.dimse.dcmtk.delivery import DeliveryQueue
from harmonyd.dimse.dcmtk.run import Toolbox
from harmonyd.dimse.engine import Instance, ObjectHandler, StoreScpConfig
from harmonyd.dimse.part10 import DamagedFile, check_complete
from harmonyd.supervision.api import KeptChild, KeptSpec
from harmonyd.supervision.waiters import Waiters

SWEEP_SECS = 60.0
"""How often ``incoming`` is looked through for files nobody told of, and for those that could not be kept."""


class DcmtkStoreScp:
    """Implements ``StoreScp``."""

    _log = Logger()

    def __init__(
        self, box: Toolbox, config: StoreScpConfig, handler: ObjectHandler, spool: Path, quarantine_folder: Path
    ) -> None:
        self._box = box
        self._config = config
        self._handler = handler
        self._incoming = spool / config.name / "incoming"
        self._ready = spool / config.name / "ready"
        self._quarantine = quarantine_folder
        self._arrivals: deque[str] = deque()
        self._keeper: Deferred[None] | None = None
        self._all_kept: Waiters[None] = Waiters()
        self._delivery = DeliveryQueue(box.reactor, self._hand_on, config.name)
        self._watch: FolderWatch | None = None
        self._sweep_call: Any = None
        self._child: KeptChild | None = None
        self._stopping = False

    async def start(self) -> None:
        """Take up what an earlier run left, then start the storescp."""
        for folder in (self._incoming, self._ready):
            folder.mkdir(parents=True, exist_ok=True)
        ready = await self._box.in_thread(_oldest_first, self._ready)
        self._watch = FolderWatch(self._box.reactor, self._incoming, self._arrived, track_open=True)
        self._receive()
        self._sweep()
        for path in ready:
            self._delivery.add(path)

    def _receive(self) -> None:
        command = argv.storescp(
            self._box.tools["storescp"].path,
            local_aet=self._config.local_aet,
            port=self._config.port,
            folder=self._incoming,
            max_pdu=self._config.max_pdu,
            association_timeout_secs=self._config.association_timeout_secs,
        )
        name, on_line = self._config.name, self._box.kept_line(f"storescp:{self._config.name}")
        spec = KeptSpec("storescp", name, tuple(command), self._config.port, self._config.local_aet, on_line=on_line)
        self._child = self._box.supervisor.keep(spec)

    async def pause(self) -> None:
        """See ``StoreScp``."""
        child = self._child
        if child is None:
            return
        await child.stop()
        self._box.supervisor.drop(child)
        self._child = None
        self._look_again()

    async def resume(self, config: StoreScpConfig) -> None:
        """See ``StoreScp``."""
        self._config = config
        self._receive()

    async def handed_on(self) -> None:
        """See ``StoreScp``."""
        if self._keeper is not None:
            await self._all_kept.wait()
        await self._delivery.emptied()

    async def stop(self) -> None:
        """Stop receiving, then handing on; what is not done stays on disk."""
        if self._child is not None:
            await self._child.stop()
        self._stopping = True
        if self._sweep_call is not None and self._sweep_call.active():
            self._sweep_call.cancel()
        if self._watch is not None:
            self._watch.close()
        if self._keeper is not None:
            await self._keeper
        await self._delivery.stop()

    def _look_again(self) -> None:
        if self._watch is not None and not self._stopping:
            for name in self._watch.sweep():
                self._arrived(name)

    def _sweep(self) -> None:
        self._look_again()
        self._sweep_call = self._box.reactor.callLater(SWEEP_SECS, self._sweep)

    def _arrived(self, name: str) -> None:
        self._arrivals.append(name)
        if self._keeper is None and not self._stopping:
            self._keeper = keeper = Deferred.fromCoroutine(self._keep_arrivals())
            keeper.addBoth(self._kept)

    def _kept(self, result: object) -> object:
        self._keeper = None
        self._all_kept.fire(None)
        return result

    async def _keep_arrivals(self) -> None:
        while self._arrivals and not self._stopping:
            name = self._arrivals.popleft()
            try:
                await self._keep(self._incoming / name)
            except Exception:  # noqa: BLE001 - whatever it is, the file is still there: the next sweep tries again
                self._log.failure("{name} stays in incoming for now", name=name, child=self._config.name)
            assert self._watch is not None
            self._watch.forget(name)

    async def _keep(self, path: Path) -> None:
        try:
            ready = await self._box.in_thread(_make_ready, path, self._ready)
        except FileNotFoundError:
            return
        except DamagedFile as damage:
            await self._put_aside(path, damage)
            return
        self._delivery.add(ready)

    async def _hand_on(self, path: Path) -> None:
        try:
            instance, calling_aet = await self._box.in_thread(_read, path)
        except FileNotFoundError:
            self._log.warn("{path} is gone, and was not handed on", path=str(path), child=self._config.name)
        except DamagedFile as damage:
            await self._put_aside(path, damage)
        else:
            await self._handler(instance, calling_aet)
            await self._box.in_thread(path.unlink, True)

    async def _put_aside(self, path: Path, damage: DamagedFile) -> None:
        reason = f"received by {self._config.name}, damaged: {damage.detail}"
        target = await self._box.in_thread(quarantine, path, self._quarantine, reason)
        self._log.error(
            "an acknowledged object is damaged and in quarantine: {target}",
            target=str(target),
            child=self._config.name,
        )


def _oldest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.stat().st_mtime_ns)


def _make_ready(path: Path, folder: Path) -> Path:
    """Check a file to its end, make it durable and move it into ``folder``; returns it there. Blocking."""
    check_complete(path)
    target = folder / f"{uuid.uuid4().hex}.dcm"
    _fsync(path)
    path.rename(target)
    _fsync(folder)
    return target


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> tuple[Instance, str | None]:
    header = check_complete(path)
    instance = Instance(
        path, header.sop_class_uid, header.sop_instance_uid, header.transfer_syntax_uid, header.size_bytes
    )
    return instance, header.source_aet or None
