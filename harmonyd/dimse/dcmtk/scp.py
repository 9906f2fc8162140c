"""A store SCP for a dicom endpoint, mode ``persistent``: one storescp that is kept running.

It acknowledges by itself and writes into ``incoming``, from where each file is taken the moment it is closed. It cannot
refuse anything by itself either: while nothing may be received it is stopped, so that connections are refused.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.task import deferLater
from twisted.logger import Logger

from harmonyd.dimse.accept import instance_of
from harmonyd.dimse.dcmtk import argv
from harmonyd.dimse.dcmtk.announced import Announced
from harmonyd.dimse.dcmtk.arrivals import FolderWatch
from harmonyd.dimse.dcmtk.log_config import kept_log_file
from harmonyd.dimse.dcmtk.run import Toolbox
from harmonyd.dimse.engine import Admission, Arrival, Association, ObjectHandler, StoreScpConfig
from harmonyd.dimse.leftovers import LOOK_SECS, find_leftovers, folders_in, holds_files
from harmonyd.dimse.part10 import InstanceHeader, claimed_uid
from harmonyd.dimse.taking import Taking
from harmonyd.landlock import Rights
from harmonyd.supervision.api import KeptChild, KeptSpec

SWEEP_SECS = 10.0
"""How often ``incoming`` is looked through for files nobody told of, and for those that could not be taken."""


REMOVED_SECS = 0.5
"""A damaged file that is still there after this was acknowledged."""


class DcmtkStoreScp:
    """Implements ``StoreScp``, and ``taking.Source`` for all that it receives. ``folder``: the receiving folders."""

    _log = Logger()

    def __init__(
        self, box: Toolbox, config: StoreScpConfig, handler: ObjectHandler, admission: Admission, folder: Path
    ) -> None:
        self._box = box
        self._config = config
        self._handler = handler
        self._admission = admission
        self._incoming = folder / config.name / "incoming"
        self._taking = Taking(box, handler, config.name)
        self._announced = Announced()
        self._watch: FolderWatch | None = None
        self._sweep_call: Any = None
        self._child: KeptChild | None = None
        self._turn = DeferredLock()
        self._wanted = False
        self._unsubscribe: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """See ``StoreScp``. Raises ``SpawnError``, OSError and ``EngineFailed``."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        self._watch = FolderWatch(self._box.reactor, self._incoming, self._arrived, track_open=True)
        self._unsubscribe = self._admission.subscribe(self._admission_changed)
        self._wanted = True
        await self._settle()
        self._sweep()

    async def pause(self) -> None:
        """See ``StoreScp``."""
        self._wanted = False
        await self._settle()
        self._look_again()

    async def resume(self, config: StoreScpConfig) -> None:
        """See ``StoreScp``."""
        self._config = config
        self._wanted = True
        await self._settle()

    async def taken(self) -> None:
        """See ``StoreScp``. What is not taken now is offered again by a sweep."""
        await self._taking.all_settled()
        while await self._box.in_thread(holds_files, self._incoming):
            await deferLater(self._box.reactor, LOOK_SECS)
            await self._taking.all_settled()

    async def stop(self) -> None:
        """Stop receiving, then taking; what was not taken is offered by the next ``start``."""
        self._unsubscribe()
        self._wanted = False
        await self._settle()
        self._look_again()
        if self._sweep_call is not None and self._sweep_call.active():
            self._sweep_call.cancel()
        if self._watch is not None:
            self._watch.close()
        await self._taking.all_settled()

    # --- the child

    def _admission_changed(self) -> None:
        Deferred.fromCoroutine(self._settle()).addErrback(
            lambda failure: self._log.failure("{name} cannot follow the spool", failure=failure, name=self._config.name)
        )

    async def _settle(self) -> None:
        """Run the child exactly when it is wanted and may run. One change waits for the other."""
        async with self._turn:
            refusal = self._admission.refusal()
            if self._wanted and refusal is None and self._child is None:
                self._child = self._keep()
                self._look_again()
            elif self._child is not None and (refusal is not None or not self._wanted):
                if self._wanted:
                    self._log.error(
                        "storescp:{name} is stopped, as it cannot refuse by itself: {reason}",
                        name=self._config.name, reason=refusal,
                    )  # fmt: skip
                await self._child.stop()
                self._box.supervisor.drop(self._child)
                self._child = None

    def _keep(self) -> KeptChild:
        config = self._config
        command = argv.storescp(
            self._box.tools["storescp"].path,
            local_aet=config.local_aet,
            port=config.port,
            folder=self._incoming,
            max_pdu=config.max_pdu,
            association_timeout_secs=config.association_timeout_secs,
            log_config=kept_log_file(self._box.scratch),
        )
        told = self._box.kept_line(f"storescp:{config.name}")

        def on_line(line: bytes) -> None:
            self._announced.heard(line)
            if told is not None:
                told(line)

        spec = KeptSpec(
            "storescp",
            config.name,
            tuple(command),
            config.port,
            config.local_aet,
            on_line=on_line,
            rights=Rights(reads=(self._box.scratch,), writes=(self._incoming,), listens=(config.port,)),
        )
        return self._box.supervisor.keep(spec)

    async def _take_leftovers(self) -> None:
        """Offer what another kind of receiver left in folders of its own."""
        folders = await self._box.in_thread(folders_in, self._incoming)
        aet = self._config.local_aet
        found = await self._box.in_thread(find_leftovers, self._incoming, folders, aet, self._handler)
        for leftovers in found[1:]:
            for path in leftovers.paths:
                self._taking.add(leftovers, path)

    # --- what it receives

    def _look_again(self) -> None:
        if self._watch is not None:
            for name in self._watch.sweep():
                self._arrived(name)

    def _sweep(self) -> None:
        try:
            self._look_again()
        except OSError as error:
            self._log.error("{folder} cannot be looked through: {error}", folder=str(self._incoming), error=error)
        Deferred.fromCoroutine(self._take_leftovers()).addErrback(
            lambda failure: self._log.failure("{folder} cannot be looked through", failure, folder=str(self._incoming))
        )
        self._sweep_call = self._box.reactor.callLater(SWEEP_SECS, self._sweep)

    def _arrived(self, name: str) -> None:
        self._taking.add(self, self._incoming / name)

    def arrival(self, path: Path, header: InstanceHeader) -> Arrival:
        """See ``taking.Source``. storescp tells of no association: the file knows who sent it (0002,0016)."""
        self._announced.arrived(header.sop_instance_uid)
        return Arrival(instance_of(path, header), self._association(header.source_aet))

    def _association(self, calling_aet: str) -> Association:
        return Association(uuid.uuid4().hex, self._config.local_aet, calling_aet)

    async def damaged(self, path: Path, reason: str) -> None:
        """See ``taking.Source``. What was cut storescp removes by itself, right after it has closed it."""
        await deferLater(self._box.reactor, REMOVED_SECS)
        if not await self._box.in_thread(path.exists):
            return
        has_header = bool(await self._box.in_thread(claimed_uid, path))
        reason += "" if has_header else self._announced.candidates()
        await self._handler.damaged(path, self._association(""), reason)

    def settled(self, path: Path) -> None:
        """See ``taking.Source``."""
        if self._watch is not None:
            self._watch.forget(path.name)

    failed = settled
