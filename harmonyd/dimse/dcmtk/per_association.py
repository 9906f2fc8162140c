"""A store SCP for a dicom endpoint, mode ``per-association``: harmonyd listens, each association gets a storescp."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from harmonyd.dimse.accept import instance_of
from harmonyd.dimse.associate import AssociateRequest, Rejection
from harmonyd.dimse.dcmtk.inetd import InboundAssociation
from harmonyd.dimse.dcmtk.listener import AssociationListener
from harmonyd.dimse.dcmtk.listeners import Listeners, Place
from harmonyd.dimse.dcmtk.run import Toolbox
from harmonyd.dimse.engine import Admission, Arrival, ObjectHandler, StoreScpConfig
from harmonyd.dimse.leftovers import LOOK_SECS, find_leftovers, folders_in, holds_files
from harmonyd.dimse.part10 import InstanceHeader, claimed_uid
from harmonyd.dimse.taking import Taking

SWEEP_SECS = 10.0
"""How often folders are looked through that no association writes to any more, but hold something."""


LEAST_ROOM_BYTES = 1_000_000
"""With less than this free, a damaged file is taken to be one that found no room."""


class PerAssociationScp:
    """Implements ``StoreScp``, and ``listeners.Endpoint`` for its AE title. ``folder``: the receiving folders."""

    _log = Logger()

    def __init__(
        self,
        box: Toolbox,
        config: StoreScpConfig,
        handler: ObjectHandler,
        admission: Admission,
        folder: Path,
        listeners: Listeners,
    ) -> None:
        self.folder = folder / config.name / "incoming"
        self.taking = Taking(box, handler, config.name)
        self._box = box
        self._config = config
        self._handler = handler
        self._admission = admission
        self._listeners = listeners
        self._listener: AssociationListener | None = None
        self._sweep_call: Any = None
        self._stopped = False
        self._unsubscribe: Callable[[], None] = lambda: None
        self._place = _place(config)
        listeners.reserve(self._place, self)

    async def start(self) -> None:
        """See ``StoreScp``. Raises ``Unavailable``, ``EngineFailed`` and OSError."""
        await self._box.in_thread(lambda: self.folder.mkdir(parents=True, exist_ok=True))
        await self._sweep()
        self._sweep_later()
        self._unsubscribe = self._admission.subscribe(self._admission_changed)
        self._listen()

    async def pause(self) -> None:
        """See ``StoreScp``. Associations that run are ended."""
        listener = self._listener
        if listener is not None:
            self._listeners.pause(self._place, self)
            await listener.end_associations(self)
            self._listener = None

    async def resume(self, config: StoreScpConfig) -> None:
        """See ``StoreScp``."""
        if _place(config) != self._place:
            self._listeners.release(self._place, self)
        self._config, self._place = config, _place(config)
        self._listen()

    async def taken(self) -> None:
        """See ``StoreScp``. What is not taken now, or is lent to a move, is offered again by a sweep."""
        await self.taking.all_settled()
        while await self._box.in_thread(holds_files, self.folder):
            await deferLater(self._box.reactor, LOOK_SECS)
            await self.taking.all_settled()

    async def stop(self) -> None:
        """Stop receiving, then taking; what was not taken is offered by the next ``start``."""
        self._stopped = True
        self._unsubscribe()
        await self.pause()
        self._listeners.release(self._place, self)
        if self._sweep_call is not None and self._sweep_call.active():
            self._sweep_call.cancel()
        await self.taking.all_settled()

    def _admission_changed(self) -> None:
        listener = self._listener
        if self._admission.refusal() is None and self._sweep_call is not None and self._sweep_call.active():
            self._sweep_call.reset(0)
        if listener is not None and self._admission.must_end():
            Deferred.fromCoroutine(listener.end_associations(self)).addErrback(
                lambda failure: self._log.failure("associations could not be ended", failure)
            )

    def _listen(self) -> None:
        self._listener = self._listeners.claim(self._place, self, self._config.tls)

    # --- listeners.Endpoint

    @property
    def max_pdu(self) -> int:
        return self._config.max_pdu

    @property
    def association_timeout_secs(self) -> float:
        return self._config.association_timeout_secs

    def admit(self, request: AssociateRequest, peer: str) -> PerAssociationScp | Rejection:
        """See ``listener.Owner``."""
        config, listener = self._config, self._listener
        if config.allowed_calling_aets and request.calling_aet not in config.allowed_calling_aets:
            return Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED
        refusal = self._admission.refusal()
        if refusal is not None:
            self._log.error("{name} accepts no association: {reason}", name=config.name, reason=refusal)
            return Rejection.TEMPORARY_CONGESTION
        if listener is None:
            return Rejection.TEMPORARY_CONGESTION
        if listener.count(self) >= config.max_associations:
            return Rejection.LOCAL_LIMIT_EXCEEDED
        if listener.count(self, peer) >= config.max_associations_per_peer:
            return Rejection.LOCAL_LIMIT_EXCEEDED
        return self

    def file_closed(self, association: InboundAssociation, path: Path) -> None:
        """See ``inetd.Receiving``."""
        moves = self._listeners.moves_at(self._place)
        if moves is None:
            self.unclaimed(association, path)
        else:
            moves.claim(association, path, self)

    def unclaimed(self, association: InboundAssociation, path: Path) -> None:
        """See ``deliveries.Host``."""
        self.taking.add(OfAssociation(self._box, association, self._handler, self._admission), path)

    def ended(self, association: InboundAssociation) -> None:
        """See ``inetd.Receiving``."""

    # --- what lies there

    async def _sweep(self) -> None:
        # Listed first: an association that begins from now on is not in the list.
        folders = await self._box.in_thread(folders_in, self.folder)
        busy = {item.folder for item in self._listener.associations} if self._listener is not None else set()
        idle = [folder for folder in folders if folder not in busy]
        aet = self._config.local_aet
        found = await self._box.in_thread(find_leftovers, self.folder, idle, aet, self._handler)
        moves = self._listeners.moves_at(self._place)
        for leftovers in found:
            for path in leftovers.paths:
                if moves is None or not moves.holds(path):
                    self.taking.add(leftovers, path)

    def _sweep_later(self) -> None:
        if not self._stopped:
            self._sweep_call = self._box.reactor.callLater(SWEEP_SECS, self._sweep_again)

    def _sweep_again(self) -> None:
        sweep = Deferred.fromCoroutine(self._sweep())
        sweep.addErrback(
            lambda failure: self._log.failure("{folder} cannot be looked through", failure, folder=str(self.folder))
        )
        sweep.addCallback(lambda _: self._sweep_later())


class OfAssociation:
    """Implements ``taking.Source`` for a file of an association."""

    def __init__(
        self, box: Toolbox, association: InboundAssociation, handler: ObjectHandler, admission: Admission
    ) -> None:
        self._box = box
        self._admission = admission
        self._inbound = association
        self._handler = handler

    def arrival(self, path: Path, header: InstanceHeader) -> Arrival:
        """See ``taking.Source``."""
        inbound = self._inbound
        inbound.announced.arrived(header.sop_instance_uid)
        originator = inbound.originator_of(header.sop_instance_uid)
        return Arrival(instance_of(path, header), inbound.association, originator)

    async def damaged(self, path: Path, reason: str) -> None:
        """See ``taking.Source``. What the owner is told of was acknowledged.

        storescp acknowledges small objects that it could not write: on a full disk its association is ended, before it
        brings more of these.
        """
        inbound = self._inbound
        if self._admission.refusal() is not None or await self._box.in_thread(_is_full, path.parent):
            await inbound.stop()
        if not await self._box.in_thread(claimed_uid, path):
            reason += inbound.announced.candidates()
        await self._handler.damaged(path, inbound.association, reason)

    def settled(self, path: Path) -> None:
        """See ``taking.Source``."""
        self._inbound.settled(path)

    failed = settled


def _place(config: StoreScpConfig) -> Place:
    return Place(config.bind_addr, config.port, config.local_aet)


def _is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < LEAST_ROOM_BYTES
