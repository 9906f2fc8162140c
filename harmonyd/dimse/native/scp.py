"""A store SCP for a dicom endpoint: a C-STORE is answered with Success when the handler has made the object durable.

Or, where the configuration asks for it, when the pipeline has delivered it (``deciding``).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

from twisted.logger import Logger

from harmonyd.dimse.accept import instance_of
from harmonyd.dimse.associate import Rejection
from harmonyd.dimse.engine import Admission, Arrival, ObjectHandler, StoreScpConfig
from harmonyd.dimse.native import core
from harmonyd.dimse.native.batches import Batches
from harmonyd.dimse.native.deciding import delivered
from harmonyd.dimse.native.inbound import InboundSession, Offered, Receiver, Service, echo
from harmonyd.dimse.native.inherited import Inherited
from harmonyd.dimse.native.listener import AssociationListener
from harmonyd.dimse.native.listeners import Listeners, Place
from harmonyd.dimse.native.offering import answer_for
from harmonyd.dimse.native.storing import OUT_OF_RESOURCES, SUCCESS, Kept, Offer, Reception, Refused, Storing
from harmonyd.dimse.part10 import InstanceHeader
from harmonyd.dimse.serving import REPORT, STORE
from harmonyd.dimse.threads import ReactorThreads, in_thread
from harmonyd.waiters import Waiters

FOLDER, OTHERS_FOLDER = "native", "incoming"
"""Of an endpoint's receiving folders, this engine's, and where lies what a storescp has acknowledged by itself."""


class NativeStoreScp:
    """Implements ``StoreScp``, ``listeners.Endpoint`` and ``storing.Keeper``. ``folder``: the receiving folders."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        config: StoreScpConfig,
        handler: ObjectHandler,
        admission: Admission,
        folder: Path,
        listeners: Listeners,
        others: Mapping[int, Offered] = MappingProxyType({}),
    ) -> None:
        """``others``: services beside C-ECHO and C-STORE, by Command Field."""
        self.folder = folder / config.name / FOLDER
        self._known: Mapping[int, Offered] = {
            core.CommandField.C_ECHO_RQ: ("echo", echo),
            core.CommandField.C_STORE_RQ: (STORE, Storing(reactor, self)),
            **others,
        }
        self._reactor = reactor
        self._config = config
        self._handler = handler
        self._admission = admission
        self._listeners = listeners
        self._listener: AssociationListener | None = None
        self._batches = Batches(lambda arrivals: self._handler(arrivals))
        self._receptions = 0
        self._run = uuid.uuid4().hex
        self._numbers = count()
        self._place = _place(config)
        listeners.reserve(self._place, self)
        parent = folder / config.name
        self._inherited = Inherited(ReactorThreads(reactor), parent / OTHERS_FOLDER, handler, config.name)
        self._idle: Waiters[None] = Waiters()

    async def start(self) -> None:
        """See ``StoreScp``. What lies in our folder was never acknowledged. Raises ``Unavailable`` and OSError."""
        removed = await in_thread(self._reactor, _emptied, self.folder)
        if removed:
            self._log.info(
                "{name}: {count} files of receptions that were cut off are removed; nobody was told that they arrived",
                name=self._config.name, count=removed,
            )  # fmt: skip
        await self._inherited.start(self._config.local_aet)
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
        """See ``StoreScp``: nothing that came is under way to the handler any more."""
        await self._receptions_end()
        await self._inherited.taken()

    async def _receptions_end(self) -> None:
        while self._receptions:
            await self._idle.wait()

    async def stop(self) -> None:
        """See ``StoreScp``. Of what we received nothing is left: what was not taken was not acknowledged."""
        await self.pause()
        self._listeners.release(self._place, self)
        await self._receptions_end()
        await self._inherited.stop()

    def _listen(self) -> None:
        self._listener = self._listeners.claim(self._place, self, self._config.tls)

    # --- listener.Owner, and inbound.Receiver

    @property
    def services(self) -> Mapping[int, Service]:
        """See ``inbound.Receiver``."""
        return {field: service for field, (name, service) in self._known.items() if self._offers(name)}

    def _offers(self, name: str) -> bool:
        return name in ("echo", REPORT) or name in self._config.services

    @property
    def max_pdu(self) -> int:
        return self._config.max_pdu

    @property
    def association_timeout_secs(self) -> float:
        return self._config.association_timeout_secs

    def admit(self, request: core.AssociateRequest, peer: str) -> Receiver | Rejection:
        """See ``listener.Owner``."""
        config, listener = self._config, self._listener
        if config.allowed_calling_aets and request.calling_aet not in config.allowed_calling_aets:
            return Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED
        refusal = self._admission.refusal() if self._offers(STORE) else None
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

    def answer(self, request: core.AssociateRequest) -> core.Answer:
        """See ``inbound.Receiver``."""
        return answer_for(request, self._config.services)

    def ended(self, session: InboundSession) -> None:
        """See ``inbound.Receiver``."""

    # --- storing.Keeper

    def begin(self, offer: Offer) -> Reception:
        """See ``storing.Keeper``. When room runs out no object is begun; what is under way may still fit."""
        moves = self._listeners.moves_at(self._place)
        if self._admission.must_end() and not (moves and moves.names_a_move(offer)):
            raise Refused(OUT_OF_RESOURCES, self._admission.refusal() or "no room")
        self._receptions += 1
        path = self.folder / f"{self._run}-{next(self._numbers)}.dcm"
        if moves is not None:
            return moves.reception(offer, path, self._take, shared=True, ended=self._reception_ended)
        in_spool = self._config.acknowledge is None
        return Reception(path, lambda at, header: self._take(offer, at, header), self._reception_ended, flush=in_spool)

    async def _take(self, offer: Offer, path: Path, header: InstanceHeader) -> Kept:
        """Raises what the handler raises."""
        flushed = path.parent == self.folder  # and not what was written for a move that has not asked for it
        arrival = Arrival(instance_of(path, header), offer.association, offer.move_originator_aet, flushed)
        if (answers := self._config.acknowledge) is not None:
            return await delivered(self._reactor, self._handler, answers, offer.session, arrival)
        await self._batches.take(arrival)
        return SUCCESS, ""

    def _reception_ended(self) -> None:
        self._receptions -= 1
        if not self._receptions:
            self._idle.fire(None)


def _place(config: StoreScpConfig) -> Place:
    return Place(config.bind_addr, config.port, config.local_aet)


def _emptied(folder: Path) -> int:
    """Make the folder, or remove what is in it; returns how many files that was. Blocking."""
    folder.mkdir(parents=True, exist_ok=True)
    left = list(folder.iterdir())
    for path in left:
        path.unlink()
    return len(left)
