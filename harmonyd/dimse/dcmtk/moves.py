"""How a move gets at what is delivered for it: over a port of our own, where many moves run at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from twisted.logger import Logger

from harmonyd.dimse.accept import wanted_keys
from harmonyd.dimse.dcmtk.deliveries import Expectation, MoveDeliveries
from harmonyd.dimse.dcmtk.listener import AssociationListener
from harmonyd.dimse.dcmtk.listeners import Listeners, Place
from harmonyd.dimse.dcmtk.run import Toolbox
from harmonyd.dimse.dcmtk.turns import Turns
from harmonyd.dimse.engine import MoveReceiver, OperationContext, Query, RemoteNode
from harmonyd.dimse.quarantine import Quota
from harmonyd.errors import Unavailable


class Delivery(Protocol):
    """What is delivered for one move, for as long as that has its turn."""

    @property
    def source(self) -> Path:
        """Names of files are relative to it, or absolute."""
        ...

    @property
    def write_failed(self) -> bool:
        """The receiver has said that it could not write an object."""
        ...

    def listen(self, offer: Callable[[str], None]) -> None:
        """Have ``offer`` called with the name of each file from now on."""
        ...

    async def sweep(self) -> list[str]:
        """Return names that were not offered yet, once all that was delivered by now is known."""
        ...

    def taken(self, names: Sequence[str]) -> None:
        """These files are no longer where they were."""
        ...

    def put_aside(self, size_bytes: int) -> None:
        """So much of it nobody had asked for, or it was damaged: the move has put it in quarantine."""
        ...


class MovePort:
    """One move destination: its AE title on a port of our own. Open from ``__init__`` to ``close``."""

    _log = Logger()

    def __init__(
        self, box: Toolbox, receiver: MoveReceiver, folder: Path, quarantine_folder: Path, listeners: Listeners,
        quota: Quota,
    ) -> None:
        """Raises ``Unavailable`` and ``EngineFailed``."""
        self.receiver = receiver
        self.turns = Turns(box.reactor, receiver.port)
        self._listeners = listeners
        self._deliveries = MoveDeliveries(box, receiver.destination_aet, folder, quarantine_folder, quota)
        self._place = Place("0.0.0.0", receiver.port, receiver.destination_aet)
        self._listener: AssociationListener = listeners.claim_for_moves(self._place, self._deliveries, receiver.tls)
        self._deliveries.listener = self._listener

    def secure_anew(self, receiver: MoveReceiver) -> None:
        """The same receiver, secured in another way."""
        self.receiver = receiver
        try:
            self._listener.secure(receiver.tls)
        except Unavailable as error:  # they were right when they were checked, a moment ago
            self._log.error("port {port} goes on as before: {why}", port=receiver.port, why=error.detail)

    async def close(self) -> None:
        """Answer to this AE title no more; returns when nothing that came over it is where it was received."""
        self._listeners.release_moves(self._place, self._deliveries)
        await self._listener.end_associations(self._deliveries)
        await self._deliveries.settle()

    @asynccontextmanager
    async def turn(self, remote: RemoteNode, query: Query, op: OperationContext) -> AsyncIterator[Delivery]:
        """Wait until no move runs that this one could be confused with, then get what is delivered for it.

        Raises ``DeadlinePassed`` and ``Unavailable``.
        """
        wanted = wanted_keys(query)
        await self.turns.acquire(wanted, op.deadline)
        expectation = Expectation(wanted, remote.local_aet, remote.aet, lambda name: None, op.request_id)
        self._deliveries.expect(expectation)
        try:
            yield PortDelivery(self._deliveries, expectation)
        finally:
            try:
                await self._deliveries.forget(expectation)
            finally:
                self.turns.release(wanted)


class PortDelivery:
    """Implements ``Delivery``."""

    write_failed = False  # the disk's room is what tells (``artifacts.raise_if_full``)

    def __init__(self, deliveries: MoveDeliveries, expectation: Expectation) -> None:
        self.source = deliveries.folder
        self._deliveries = deliveries
        self._expectation = expectation

    def listen(self, offer: Callable[[str], None]) -> None:
        self._expectation.offer = offer

    async def sweep(self) -> list[str]:
        await self._deliveries.settle()
        return []

    def taken(self, names: Sequence[str]) -> None:
        for name in names:
            self._deliveries.taken(self._expectation, name)

    def put_aside(self, size_bytes: int) -> None:
        self._deliveries.note_put_aside(size_bytes)
