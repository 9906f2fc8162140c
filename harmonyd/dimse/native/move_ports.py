"""The ports on which C-MOVE delivers: opened with the first move that needs one, or before, and shared by all moves."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger

from harmonyd.dimse.engine import Instance, MoveReceiver, Query, RemoteNode
from harmonyd.dimse.native.deliveries import RECEIVING, Delivery, MoveDeliveries
from harmonyd.dimse.native.listeners import Listeners, Place
from harmonyd.dimse.quarantine import Quota, put_aside
from harmonyd.dimse.threads import Threads
from harmonyd.errors import Unavailable

TRANSIENT = "transient"
_IDS = range(1000, 0x8000)
"""Message IDs of C-MOVE requests: none that a PACS may make up, and none that it may take for a negative number."""


@dataclass(slots=True, eq=False)
class _Port:
    receiver: MoveReceiver
    place: Place
    deliveries: MoveDeliveries


class MovePorts:
    """All of them. A ``transient`` receiver's port is closed when no move needs it any more."""

    _log = Logger()

    def __init__(
        self, threads: Threads, storage: Path, quarantine_folder: Path, listeners: Listeners, quota: Quota
    ) -> None:
        self._threads = threads
        self._storage = storage
        self._quarantine = quarantine_folder
        self._listeners = listeners
        self._quota = quota
        self._ports: dict[tuple[int, str], _Port] = {}
        self._turn = DeferredLock()
        self._wanted: Collection[MoveReceiver] | None = None
        self._used_ids: set[int] = set()
        self._last_id = random.choice(_IDS)

    async def open(self, receiver: MoveReceiver) -> None:
        """Receive for these deliveries, unless that is done already. Raises ``Unavailable`` and OSError."""
        await self._opened(receiver)

    async def expect(
        self,
        receiver: MoveReceiver,
        remote: RemoteNode,
        query: Query,
        folder: Path,
        offer: Callable[[Instance], None],
        request_id: str = "",
    ) -> Delivery:
        """Receive for one move, into ``folder``, which is made. Await ``settle`` and ``forget`` with it.

        Raises ``Unavailable`` and OSError.
        """
        await self._threads.in_thread(lambda: folder.mkdir(parents=True, exist_ok=True))
        delivery = Delivery(
            query,
            originator_aet=remote.local_aet,
            message_id=self._new_id(),
            remote_aet=remote.aet,
            folder=folder,
            quarantine_folder=self._quarantine,
            offer=offer,
            request_id=request_id,
        )
        try:
            (await self._opened(receiver, delivery)).deliveries.expect(delivery)
        except BaseException:
            self._used_ids.discard(delivery.message_id)
            raise
        return delivery

    async def settle(self, receiver: MoveReceiver, delivery: Delivery) -> None:
        """Return when every object that is under way by now, and may be for this move, has arrived or has not."""
        port = self._ports.get(_key(receiver))
        if port is not None:
            await port.deliveries.settle(delivery)

    def forget(self, receiver: MoveReceiver, delivery: Delivery) -> None:
        """The move is over."""
        self._used_ids.discard(delivery.message_id)
        self._ports[_key(receiver)].deliveries.forget(delivery)
        self._close_soon(_key(receiver))

    def keep_only(self, wanted: Collection[MoveReceiver]) -> None:
        """Close every other port once no move needs it."""
        self._wanted = wanted
        for receiver in wanted:
            self._secure_anew(receiver)
        for key in list(self._ports):
            self._close_soon(key)

    async def close(self) -> None:
        """Close all; returns when nothing is under way on them any more."""
        self._wanted = ()
        for key in list(self._ports):
            await self._close(key)

    # --- one port

    async def _opened(self, receiver: MoveReceiver, delivery: Delivery | None = None) -> _Port:
        """One at a time, and never while one closes: they share folders."""
        await self._quota.count()
        await self._turn.acquire()
        try:
            port = self._ports.get(_key(receiver))
            return port or await self._open(receiver)
        finally:
            self._turn.release()

    async def _open(self, receiver: MoveReceiver) -> _Port:
        parent = self._storage / "incoming" / str(receiver.port)
        deliveries = MoveDeliveries(self._threads, parent, self._quarantine, self._quota)
        place = Place("0.0.0.0", receiver.port, receiver.destination_aet)
        if not any(number == receiver.port for number, _ in self._ports):
            # Before anything can come; nobody else receives there, as the port would be taken.
            await self._threads.in_thread(_prepare, parent, self._quarantine)
        deliveries.listener = self._listeners.claim_for_moves(place, deliveries, receiver.tls)
        port = self._ports[_key(receiver)] = _Port(receiver, place, deliveries)
        return port

    def _secure_anew(self, receiver: MoveReceiver) -> None:
        port = self._ports.get(_key(receiver))
        if port is None or port.receiver == receiver or port.deliveries.listener is None:
            return
        port.receiver = receiver
        try:
            port.deliveries.listener.secure(receiver.tls)
        except Unavailable as error:  # they were right when they were checked, a moment ago
            self._log.error("port {port} goes on as before: {why}", port=receiver.port, why=error.detail)

    def _close_soon(self, key: tuple[int, str]) -> None:
        Deferred.fromCoroutine(self._close(key)).addErrback(
            lambda failure: self._log.failure("a port for C-MOVE could not be closed", failure=failure)
        )

    async def _close(self, key: tuple[int, str]) -> None:
        """Unless it is wanted, or a move uses it: then the last of these closes it."""
        await self._turn.acquire()
        try:
            port = self._ports.get(key)
            if port is None or port.deliveries.in_use or self._is_wanted(port.receiver):
                return
            del self._ports[key]
            self._listeners.release_moves(port.place, port.deliveries)
            if port.deliveries.listener is not None:
                await port.deliveries.listener.end_associations(port.deliveries)
        finally:
            self._turn.release()

    def _is_wanted(self, receiver: MoveReceiver) -> bool:
        if self._wanted is None:
            return receiver.store_scp != TRANSIENT
        return receiver in self._wanted and receiver.store_scp != TRANSIENT

    def _new_id(self) -> int:
        """A Message ID (0000,0110) that no other move has."""
        while True:
            self._last_id = self._last_id + 1 if self._last_id + 1 in _IDS else _IDS[0]
            if self._last_id not in self._used_ids:
                self._used_ids.add(self._last_id)
                return self._last_id


def _key(receiver: MoveReceiver) -> tuple[int, str]:
    return receiver.port, receiver.destination_aet


def _prepare(folder: Path, quarantine_folder: Path) -> None:
    """Remove what nobody was told the success of; put aside what an earlier run left. Blocking."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"{RECEIVING}*"):
        path.unlink()
    put_aside(list(folder.iterdir()), quarantine_folder)
