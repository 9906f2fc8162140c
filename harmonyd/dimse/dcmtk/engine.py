"""``DcmtkEngine``: the Engine interface over DCMTK's programs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from harmonyd.dimse.accepting import Answered, OnRefusal, unheard
from harmonyd.dimse.dcmtk import find, retrieve, store
from harmonyd.dimse.dcmtk.echo import echo
from harmonyd.dimse.dcmtk.listeners import Listeners
from harmonyd.dimse.dcmtk.log_config import support_files, write_support_files
from harmonyd.dimse.dcmtk.per_association import PerAssociationScp
from harmonyd.dimse.dcmtk.receivers import Receivers
from harmonyd.dimse.dcmtk.run import Toolbox
from harmonyd.dimse.dcmtk.scp import DcmtkStoreScp
from harmonyd.dimse.dcmtk.tools import Tool
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
from harmonyd.dimse.quarantine import Quota
from harmonyd.dimse.serving import Handler
from harmonyd.dimse.streams import ItemStream
from harmonyd.supervision.api import Supervisor

VERBOSE_VARIABLE = "HARMONY_TEST_VERBOSE_DCMTK"


class DcmtkEngine:
    """Performs DIMSE operations with DCMTK programs; one for the whole daemon.

    ``storage`` holds the artifact folders, ``incoming/``, ``spool/`` and ``quarantine/``; ``scratch`` holds files that
    live as long as one run.
    """

    def __init__(
        self,
        reactor: Any,
        supervisor: Supervisor,
        tools: Mapping[str, Tool],
        *,
        storage: Path,
        scratch: Path,
        max_unasked_bytes: int = 1000**3,
        on_refusal: OnRefusal = unheard,
    ) -> None:
        log_config, dictionary = support_files(scratch)
        verbose = os.environ.get(VERBOSE_VARIABLE) == "1"
        self._box = Toolbox(reactor, supervisor, tools, log_config, dictionary, scratch, verbose, on_refusal)
        self._storage = storage
        self._quarantine = storage / "quarantine"
        self._listeners = Listeners(self._box, on_refusal)
        self._quota = Quota(self._box, self._quarantine, max_unasked_bytes)
        self._receivers = Receivers(self._box, storage, self._quarantine, self._listeners, self._quota)

    async def start(self) -> None:
        """Empty the scratch folder, where a killed run may have left queries, and fill it. Raises OSError.

        Call it before any operation, and when no other engine uses the folder.
        """
        await self._box.in_thread(_prepare, self._box.scratch)

    async def echo(self, remote: RemoteNode, op: OperationContext) -> Outcome:
        return await echo(self._box, remote, op)

    def find(self, remote: RemoteNode, query: Query, op: OperationContext) -> ItemStream[Match]:
        return find.find(self._box, self._folder(op), remote, query, op)

    def get(self, remote: RemoteNode, query: Query, op: OperationContext) -> ItemStream[Instance]:
        return retrieve.get(self._box, self._places(op), remote, query, op)

    def move(
        self, remote: RemoteNode, receiver: MoveReceiver, query: Query, op: OperationContext
    ) -> ItemStream[Instance]:
        return retrieve.move(self._box, self._places(op), self._receivers, remote, receiver, query, op)

    def store(self, remote: RemoteNode, files: Sequence[Path], op: OperationContext) -> ItemStream[StoreResult]:
        return store.store(self._box, remote, files, op)

    def store_scp(
        self, config: StoreScpConfig, handler: ObjectHandler, admission: Admission, questions: Handler | None = None
    ) -> StoreScp:
        """``questions`` is never asked: storescp only receives."""
        folder = self._storage / "spool" / "receiving"
        if config.store_scp == "per-association":
            return PerAssociationScp(self._box, config, handler, admission, folder, self._listeners)
        return DcmtkStoreScp(self._box, config, handler, admission, folder)

    def association_count(self, only: Collection[Answered] | None = None) -> int:
        """How many associations run that somebody else began, where harmonyd itself listens (with these AE titles)."""
        return self._listeners.association_count(only)

    def accept_no_more(self) -> None:
        """Close the ports on which harmonyd itself listens; associations that run go on."""
        self._listeners.close()

    async def open_receiver(self, receiver: MoveReceiver) -> None:
        """Start the kept receiver for C-MOVE deliveries now instead of with the first move."""
        await self._receivers.open(receiver)

    def limit_unasked(self, max_bytes: int) -> None:
        """How much of what nobody asked for may lie in quarantine."""
        self._quota.max_bytes = max_bytes

    def keep_receivers(self, wanted: Collection[MoveReceiver]) -> None:
        """Close kept receivers that are not among these, once no move needs them."""
        self._receivers.keep_only(wanted)

    async def close(self) -> None:
        """Stop watching folders; the children are the supervisor's to end."""
        self._receivers.close()
        self._listeners.close()

    def _folder(self, op: OperationContext) -> Path:
        return op.storage or self._storage

    def _places(self, op: OperationContext) -> retrieve.Places:
        return retrieve.Places(self._folder(op), self._quarantine)


def _prepare(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    write_support_files(scratch)
