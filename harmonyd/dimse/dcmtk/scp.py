"""A store SCP for a dicom endpoint: a kept storescp, and a small spool that outlives us.

storescp acknowledges by itself and writes into ``incoming``. Each file is checked to its last element, fsync'd and
renamed into ``ready``, from where it is handed on until the handler took it; then it is removed. Both folders are read
again at start-up. Damaged files go to quarantine.
"""

from __future__ import annotations

import os
import uuid
from collections import deque
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from harmonyd.dimse.dcmtk import argv
from harmonyd.dimse.dcmtk.accept import quarantine
from harmonyd.dimse.dcmtk.arrivals import FolderWatch
from harmonyd.dimse.dcmtk.run import Toolbox
from harmonyd.dimse.engine import Instance, ObjectHandler, StoreScpConfig
from harmonyd.dimse.part10 import DamagedFile, check_complete
from harmonyd.errors import HarmonydError
from harmonyd.supervision.api import KeptChild, KeptSpec

RETRY_SECS = (1.0, 5.0, 15.0, 60.0)
"""Wait before an object is offered again; the last value repeats."""


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
        self._queue: deque[Path] = deque()
        self._failures = 0
        self._worker: Deferred[None] | None = None
        self._retry: Any = None
        self._watch: FolderWatch | None = None
        self._child: KeptChild | None = None

    async def start(self) -> None:
        """Take up what an earlier run left, then start the storescp."""
        for folder in (self._incoming, self._ready):
            folder.mkdir(parents=True, exist_ok=True)
        self._queue.extend(sorted(self._ready.iterdir(), key=lambda path: path.stat().st_mtime_ns))
        self._watch = FolderWatch(self._box.reactor, self._incoming, self._arrived, track_open=True)
        for name in self._watch.sweep():
            self._arrived(name)
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
        self._work()

    async def stop(self) -> None:
        """Stop receiving, then handing on; what is not done stays on disk."""
        if self._child is not None:
            await self._child.stop()
        if self._watch is not None:
            self._watch.close()
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()

    def _arrived(self, name: str) -> None:
        assert self._watch is not None
        self._watch.forget(name)
        self._queue.append(self._incoming / name)
        self._work()

    def _work(self) -> None:
        waiting_for_retry = self._retry is not None and self._retry.active()
        if self._worker is None and self._queue and not waiting_for_retry:
            self._worker = Deferred.fromCoroutine(self._drain())
            self._worker.addErrback(self._failed)

    async def _drain(self) -> None:
        while self._queue:
            path = self._queue[0]
            if path.parent == self._incoming:
                kept = await self._box.in_thread(self._keep, path)
                self._queue.popleft()
                if kept is not None:
                    self._queue.appendleft(kept)
                continue
            instance, calling_aet = await self._box.in_thread(_read, path)
            await self._handler(instance, calling_aet)
            path.unlink(missing_ok=True)
            self._queue.popleft()
            self._failures = 0
        self._worker = None

    def _keep(self, path: Path) -> Path | None:
        """Check, fsync and rename one file; None when it went to quarantine or is gone. Blocking."""
        try:
            check_complete(path)
        except FileNotFoundError:
            return None
        except DamagedFile as damage:
            target = quarantine(path, self._quarantine, f"received by {self._config.name}, damaged: {damage.detail}")
            self._log.error(
                "an acknowledged object is damaged and in quarantine: {target}",
                target=str(target),
                child=self._config.name,
            )
            return None
        target = self._ready / f"{uuid.uuid4().hex}.dcm"
        _fsync(path)
        path.rename(target)
        _fsync(self._ready)
        return target

    def _failed(self, failure: Any) -> None:
        self._worker = None
        if failure.check(CancelledError):
            return
        wait = RETRY_SECS[min(self._failures, len(RETRY_SECS) - 1)]
        self._failures += 1
        why = _reason(failure.value)
        self._log.error(
            "an object received by {child} could not be handed on: {why}; again in {wait:g} s ({waiting} waiting)",
            child=self._config.name,
            why=why,
            wait=wait,
            waiting=len(self._queue),
        )
        # The others go first next time: one object nobody takes must not hold up the rest.
        self._queue.rotate(-1)
        self._retry = self._box.reactor.callLater(wait, self._work)


def _reason(error: BaseException) -> str:
    if isinstance(error, HarmonydError):
        return error.detail
    return (isinstance(error, OSError) and error.strerror) or repr(error)


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
