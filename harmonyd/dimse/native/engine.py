"""``NativeEngine``: the Engine interface without any other program."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from harmonyd.dimse.accepting import Answered, Explain, OnRefusal, explain, unheard
from harmonyd.dimse.engine import (
    Admission,
    Instance,
    Match,
    MoveReceiver,
    ObjectHandler,
    OperationContext,
    Outcome,
    Query,
    RemoteNode,
    StoreResult,
    StoreScp,
    StoreScpConfig,
)
from harmonyd.dimse.native import find, get, move, normalized, store
from harmonyd.dimse.native.answering import services_for
from harmonyd.dimse.native.exchange import Means
from harmonyd.dimse.native.listeners import Listeners
from harmonyd.dimse.native.move_ports import MovePorts
from harmonyd.dimse.native.pool import AssociationPool
from harmonyd.dimse.native.scp import NativeStoreScp
from harmonyd.dimse.normalized import Listening, NormalizedAnswer, NormalizedRequest
from harmonyd.dimse.quarantine import Quota
from harmonyd.dimse.serving import Handler
from harmonyd.dimse.streams import ItemStream


class NativeEngine:
    """Performs DIMSE operations; one for the whole daemon.

    ``storage`` holds the artifact folders, ``spool/`` and ``quarantine/``; ``why`` puts into words why one cannot
    listen on a port.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        storage: Path,
        max_unasked_bytes: int = 1000**3,
        why: Explain = explain,
        on_refusal: OnRefusal = unheard,
    ) -> None:
        means = self._means = Means(reactor, AssociationPool(reactor), storage)
        self._listeners = Listeners(reactor, why, on_refusal)
        self._quota = Quota(means, means.quarantine, max_unasked_bytes)
        self._ports = MovePorts(means, storage, means.quarantine, self._listeners, self._quota)

    async def start(self) -> None:
        """Nothing has to be prepared."""

    async def echo(self, remote: RemoteNode, op: OperationContext) -> Outcome:
        return await find.echo(self._means, remote, op)

    def find(self, remote: RemoteNode, query: Query, op: OperationContext) -> ItemStream[Match]:
        return find.find(self._means, remote, query, op)

    def get(self, remote: RemoteNode, query: Query, op: OperationContext) -> ItemStream[Instance]:
        return get.get(self._means, remote, query, op)

    def move(
        self, remote: RemoteNode, receiver: MoveReceiver, query: Query, op: OperationContext
    ) -> ItemStream[Instance]:
        return move.move(self._means, self._ports, remote, receiver, query, op)

    def store(self, remote: RemoteNode, files: Sequence[Path], op: OperationContext) -> ItemStream[StoreResult]:
        return store.store(self._means, remote, files, op)

    async def normalized(
        self,
        remote: RemoteNode,
        request: NormalizedRequest,
        op: OperationContext,
        *,
        as_scp: bool = False,
        listening: Listening | None = None,
        answered: Callable[[NormalizedAnswer], None] = lambda answer: None,
    ) -> NormalizedAnswer:
        """See ``NormalizedEngine``."""
        return await normalized.perform(
            self._means, remote, request, op, as_scp=as_scp, listening=listening, answered=answered
        )

    def store_scp(
        self, config: StoreScpConfig, handler: ObjectHandler, admission: Admission, questions: Handler | None = None
    ) -> StoreScp:
        folder = self._means.storage / "spool" / "receiving"
        others = services_for(self._means, questions)
        return NativeStoreScp(self._means.reactor, config, handler, admission, folder, self._listeners, others)

    async def open_receiver(self, receiver: MoveReceiver) -> None:
        """Listen for C-MOVE deliveries now instead of with the first move."""
        await self._ports.open(receiver)

    def association_count(self, only: Collection[Answered] | None = None) -> int:
        """How many associations run that somebody else began (with these called AE titles)."""
        return self._listeners.association_count(only)

    def accept_no_more(self) -> None:
        """Close the ports; associations that run go on."""
        self._listeners.close()

    def limit_unasked(self, max_bytes: int) -> None:
        """How much of what nobody asked for may lie in quarantine."""
        self._quota.max_bytes = max_bytes

    def keep_receivers(self, wanted: Collection[MoveReceiver]) -> None:
        """Close receivers that are not among these, once no move needs them."""
        self._ports.keep_only(wanted)

    async def close(self) -> None:
        """End every operation and association, and listen no more."""
        try:
            await self._means.pool.close()
        finally:
            try:
                await self._ports.close()
            finally:
                self._listeners.close()
