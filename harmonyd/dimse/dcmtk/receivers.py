"""Who receives what C-MOVE delivers: kept storescp processes, one a port, and whose turn it is.

A storescp cannot tell two moves apart (movescu's message id is always 1), so moves on one port take turns. What arrives
when nobody's turn it is, is put in quarantine and said in the log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from harmonyd.dimse.dcmtk.kept import KeptReceiver
from harmonyd.dimse.dcmtk.listeners import Listeners
from harmonyd.dimse.dcmtk.moves import Delivery, MovePort
from harmonyd.dimse.dcmtk.run import Toolbox
from harmonyd.dimse.dcmtk.turns import MAX_WAITING
from harmonyd.dimse.engine import MoveReceiver, OperationContext, Query, RemoteNode
from harmonyd.dimse.quarantine import Quota, put_aside
from harmonyd.dimse.waiting import until
from harmonyd.errors import DeadlinePassed, Unavailable
from harmonyd.supervision.errors import ChildNotReady, SpawnError
from harmonyd.supervision.ports import problem_text, try_port

PERSISTENT, PER_ASSOCIATION = "persistent", "per-association"
READY_SECS = 10.0
"""How long a move waits for its storescp; a healthy one is up in a fraction of a second."""


class Receivers:
    """All receivers of the engine, by port."""

    _log = Logger()

    def __init__(
        self, box: Toolbox, storage: Path, quarantine_folder: Path, listeners: Listeners, quota: Quota
    ) -> None:
        self._box = box
        self._listeners = listeners
        self._quota = quota
        self._ports: dict[tuple[int, str], MovePort] = {}
        self._port_lock = DeferredLock()
        self._storage = storage
        self._quarantine = quarantine_folder
        self._kept: dict[int, KeptReceiver] = {}
        self._locks: dict[int, DeferredLock] = {}
        self._wanted: Collection[MoveReceiver] | None = None

    async def open(self, receiver: MoveReceiver) -> None:
        """Start receiving for these deliveries unless that is done already, or is done when another mode's move ends.

        Raises ``Unavailable``, ``EngineFailed`` and ``SpawnError``.
        """
        if receiver.store_scp == PERSISTENT or not self._is_held(receiver.port):
            await self._open(receiver)

    async def _open(self, receiver: MoveReceiver) -> None:
        if receiver.store_scp == PER_ASSOCIATION:
            await self._open_port(receiver)
        elif receiver.store_scp == PERSISTENT:
            await self._open_kept(receiver)

    async def _open_port(self, receiver: MoveReceiver) -> MovePort:
        """One at a time, and never while one closes: they share folders."""
        await self._quota.count()
        await self._port_lock.acquire()
        try:
            port = self._ports.get((receiver.port, receiver.destination_aet))
            return port or await self._new_port(receiver)
        finally:
            self._port_lock.release()

    async def _new_port(self, receiver: MoveReceiver) -> MovePort:
        folder = self._storage / "incoming" / str(receiver.port)
        folder.mkdir(parents=True, exist_ok=True)
        is_first = not any(number == receiver.port for number, _ in self._ports)
        port = MovePort(self._box, receiver, folder, self._quarantine, self._listeners, self._quota)
        try:
            # Listed before the reactor turns: nothing of it can have come since the port is ours.
            left = list(folder.iterdir()) if is_first else []
            await self._box.in_thread(put_aside, left, self._quarantine)
        except BaseException:
            await port.close()
            raise
        self._ports[receiver.port, receiver.destination_aet] = port
        return port

    async def _open_kept(self, receiver: MoveReceiver) -> KeptReceiver:
        kept = self._kept.get(receiver.port)
        if kept is None:
            folder = self._storage / "incoming" / str(receiver.port)
            kept = KeptReceiver(self._box, receiver, folder, self._quarantine, self._quota)
            self._kept[receiver.port] = kept
            await kept.put_aside_rest()
        self._in_background(self._quota.count())
        return kept

    def keep_only(self, wanted: Collection[MoveReceiver]) -> None:
        """Close every other kept receiver once no move needs it, and open those that take its port.

        A move that was asked for before is still served, if need be by a receiver that is opened for it alone.
        """
        self._wanted = wanted
        for receiver in wanted:
            port = self._ports.get((receiver.port, receiver.destination_aet))
            if port is not None and port.receiver != receiver and receiver.store_scp == PER_ASSOCIATION:
                port.secure_anew(receiver)
        for key in list(self._ports):
            self._in_background(self._close_port(key))
        for number in list(self._kept):
            lock = self._locks.setdefault(number, DeferredLock())
            self._in_background(self._settle_in_turn(number, lock))

    async def _close_port(self, key: tuple[int, str]) -> None:
        """Unless it is wanted, or a move uses it: then the last of these closes it."""
        await self._port_lock.acquire()
        try:
            port = self._ports.get(key)
            wanted = self._wanted
            if port is None or port.turns.in_use or wanted is None or port.receiver in wanted:
                return
            del self._ports[key]
            await port.close()
        finally:
            self._port_lock.release()

    async def _settle_in_turn(self, port: int, lock: DeferredLock) -> None:
        await lock.acquire()
        await self._settle(port, lock)

    async def _settle(self, port: int, lock: DeferredLock) -> None:
        """Close or replace the receiver of a port that is ours to hold now, then let go of the port."""
        try:
            kept = self._kept.get(port)
            if kept is None or self._is_wanted(kept):
                return
            try:
                await kept.stop()
            finally:
                del self._kept[port]
            for successor in self._wanted or ():
                if successor.port == port:
                    await self._open(successor)
        finally:
            lock.release()

    def _in_background(self, coroutine: Coroutine[Any, Any, None]) -> None:
        def failed(failure: Failure) -> None:
            if not isinstance(failure.value, SpawnError):  # nothing can be started any more: we are stopping
                self._log.failure("a receiver for C-MOVE could not be closed or replaced", failure=failure)

        Deferred.fromCoroutine(coroutine).addErrback(failed)

    def _is_held(self, port: int) -> bool:
        """Whether a receiver of another mode, from before a change, has the port; it goes when its last move ends."""
        return port in self._kept or (port in self._locks and self._locks[port].locked)

    def _is_wanted(self, kept: KeptReceiver) -> bool:
        return self._wanted is None or kept.receiver in self._wanted

    @asynccontextmanager
    async def turn(
        self, receiver: MoveReceiver, remote: RemoteNode, query: Query, op: OperationContext
    ) -> AsyncIterator[Delivery | None]:
        """Get what is delivered for one move; None in transient mode, in which movescu itself receives.

        Raises ``DeadlinePassed`` when the deadline comes first, ``ChildNotReady`` when the storescp does not come up,
        ``Unavailable`` when ``MAX_WAITING`` moves wait already, or when something else has the port.
        """
        if receiver.store_scp != PER_ASSOCIATION:
            async with self._whole_port(receiver, op) as kept:
                yield kept
            return
        if self._is_held(receiver.port):
            lock = self._locks.setdefault(receiver.port, DeferredLock())
            await self._acquire(lock, receiver, op)
            await self._settle(receiver.port, lock)
        port = await self._open_port(receiver)
        try:
            async with port.turn(remote, query, op) as delivery:
                yield delivery
        finally:
            self._in_background(self._close_port((receiver.port, receiver.destination_aet)))

    @asynccontextmanager
    async def _whole_port(self, receiver: MoveReceiver, op: OperationContext) -> AsyncIterator[KeptReceiver | None]:
        """Hold the port for one move."""
        lock = self._locks.setdefault(receiver.port, DeferredLock())
        await self._acquire(lock, receiver, op)
        kept = None
        try:
            if receiver.store_scp == PERSISTENT:
                kept = await self._open_kept(receiver)
                await kept.begin_turn()
                await self._until_ready(kept, op)
                await kept.put_aside_rest()
                kept.write_failed = False
            else:
                await self._box.in_thread(_require_free, receiver.port)
            yield kept
        finally:
            try:
                if kept is not None:
                    await kept.end_turn()
            except OSError as error:
                # The next turn tries again; what the move has to say must not be lost over it.
                self._log.error("what port {port} received stays there: {error}", port=receiver.port, error=error)
            finally:
                if lock.waiting:
                    lock.release()
                else:
                    # Not awaited: the move is over, and its caller may be cancelled.
                    self._in_background(self._settle(receiver.port, lock))

    def close(self) -> None:
        """Stop watching; the children are the supervisor's to end."""
        for kept in self._kept.values():
            kept.close()

    async def _acquire(self, lock: DeferredLock, receiver: MoveReceiver, op: OperationContext) -> None:
        hint = "Moves to one store AE take turns; ask for less at once, or try again later."
        if len(lock.waiting) >= MAX_WAITING:
            waiting = f"{MAX_WAITING} moves wait for their turn on the store SCP of port {receiver.port} already"
            raise Unavailable(waiting, hint=hint, retry_after_secs=5)
        late = "The deadline passed while the move waited for its turn on the store SCP"
        await until(self._box.reactor, op.deadline, lock.acquire(), DeadlinePassed(late, hint=hint, timeout="queue"))

    async def _until_ready(self, kept: KeptReceiver, op: OperationContext) -> None:
        child = kept.child
        assert child is not None
        deadline = min(op.deadline, self._box.reactor.seconds() + READY_SECS)
        try:
            await until(self._box.reactor, deadline, child.when_ready(), DeadlinePassed(""))
        except DeadlinePassed:
            name = f"{child.spec.group}:{child.spec.name}"
            raise ChildNotReady(f"{name} is {child.state}: {child.description}", retry_after_secs=10) from None


def _require_free(port: int) -> None:
    """Raise ``Unavailable`` when nobody could listen on the port now: movescu's own words blame the PACS. Blocking."""
    error = try_port(port)
    if error is not None:
        raise Unavailable(f"No delivery can be received: {problem_text(port, error)}", retry_after_secs=5)
