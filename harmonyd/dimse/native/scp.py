"""A store SCP for a dicom endpoint: a C-STORE is answered with Success when the handler has made the object durable."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from harmonyd.dimse.accept import instance_of
from harmonyd.dimse.associate import Rejection
from harmonyd.dimse.engine import Admission, Arrival, ObjectHandler, StoreScpConfig
from harmonyd.dimse.native import core
from harmonyd.dimse.native.inbound import InboundSession, Service, echo, storage_answer
from harmonyd.dimse.native.listener import AssociationListener
from harmonyd.dimse.native.listeners import Listeners
from harmonyd.dimse.native.storing import OUT_OF_RESOURCES, SUCCESS, Offer, Reception, Refused, Storing
from harmonyd.dimse.native.threads import in_thread
from harmonyd.dimse.part10 import InstanceHeader
from harmonyd.waiters import Waiters

FOLDER = "native"
"""Of an endpoint's receiving folders, this engine's; in others lies what a storescp has acknowledged by itself."""


class NativeStoreScp:
    """Implements ``StoreScp``, and ``Owner`` and ``Keeper`` for its AE title. ``folder``: the receiving folders."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        config: StoreScpConfig,
        handler: ObjectHandler,
        admission: Admission,
        folder: Path,
        listeners: Listeners,
    ) -> None:
        self.folder = folder / config.name / FOLDER
        self.services: Mapping[int, Service] = {
            core.CommandField.C_ECHO_RQ: echo,
            core.CommandField.C_STORE_RQ: Storing(reactor, self),
        }
        self._reactor = reactor
        self._config = config
        self._handler = handler
        self._admission = admission
        self._listeners = listeners
        self._listener: AssociationListener | None = None
        self._receptions = 0
        self._run = uuid.uuid4().hex
        self._numbers = count()
        self._idle: Waiters[None] = Waiters()

    async def start(self) -> None:
        """See ``StoreScp``. What lies in the folder was never acknowledged. Raises ``Unavailable`` and OSError."""
        removed = await in_thread(self._reactor, _emptied, self.folder)
        if removed:
            self._log.info(
                "{name}: {count} files of receptions that were cut off are removed; nobody was told that they arrived",
                name=self._config.name, count=removed,
            )  # fmt: skip
        self._listen()

    async def pause(self) -> None:
        """See ``StoreScp``. Associations that run are ended."""
        listener = self._listener
        if listener is not None:
            self._listeners.release(listener, self._config.local_aet, self)
            await listener.end_associations(self)
            self._listener = None

    async def resume(self, config: StoreScpConfig) -> None:
        """See ``StoreScp``."""
        self._config = config
        self._listen()

    async def taken(self) -> None:
        """See ``StoreScp``: nothing that came is under way to the handler any more."""
        while self._receptions:
            await self._idle.wait()

    async def stop(self) -> None:
        """See ``StoreScp``. Nothing is left: what was not taken was not acknowledged."""
        await self.pause()
        await self.taken()

    def _listen(self) -> None:
        config = self._config
        self._listener = self._listeners.claim(config.bind_addr, config.port, config.local_aet, self)

    # --- inbound.Owner

    @property
    def max_pdu(self) -> int:
        return self._config.max_pdu

    @property
    def association_timeout_secs(self) -> float:
        return self._config.association_timeout_secs

    def rejection(self, request: core.AssociateRequest, peer: str) -> Rejection | None:
        """See ``inbound.Owner``."""
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
        return None

    def answer(self, request: core.AssociateRequest) -> core.Answer:
        """See ``inbound.Owner``."""
        return storage_answer(request)

    def ended(self, session: InboundSession) -> None:
        """See ``inbound.Owner``."""

    # --- storing.Keeper

    def begin(self, offer: Offer) -> Reception:
        """See ``storing.Keeper``. When room runs out no object is begun; what is under way may still fit."""
        if self._admission.must_end():
            raise Refused(OUT_OF_RESOURCES, self._admission.refusal() or "no room")
        self._receptions += 1
        return _Reception(self, offer)

    def new_path(self) -> Path:
        """For ``_Reception``: a file that was not there before."""
        return self.folder / f"{self._run}-{next(self._numbers)}.dcm"

    def reception_ended(self) -> None:
        """For ``_Reception``."""
        self._receptions -= 1
        if not self._receptions:
            self._idle.fire(None)

    async def take(self, arrival: Arrival) -> None:
        """For ``_Reception``. Raises what the handler raises."""
        await self._handler([arrival])


class _Reception:
    """Implements ``storing.Reception``."""

    def __init__(self, scp: NativeStoreScp, offer: Offer) -> None:
        self.path = scp.new_path()
        self._scp = scp
        self._offer = offer

    async def keep(self, path: Path, header: InstanceHeader) -> tuple[int, str]:
        """See ``storing.Reception``."""
        offer = self._offer
        await self._scp.take(Arrival(instance_of(path, header), offer.association, offer.move_originator_aet))
        return SUCCESS, ""

    def ended(self) -> None:
        """See ``storing.Reception``."""
        self._scp.reception_ended()


def _emptied(folder: Path) -> int:
    """Make the folder, or remove what is in it; returns how many files that was. Blocking."""
    folder.mkdir(parents=True, exist_ok=True)
    left = list(folder.iterdir())
    for path in left:
        path.unlink()
    return len(left)
