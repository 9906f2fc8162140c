"""``dimse.Engine`` over a DICOMweb archive, so that all that asks a PACS can ask one: QIDO-RS is its C-FIND, WADO-RS
its C-GET and C-MOVE, STOW-RS its C-STORE.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from harmonyd.config.archive_model import DicomwebBackendOptions
from harmonyd.dimse import artifacts
from harmonyd.dimse.accept import Intake
from harmonyd.dimse.engine import (
    Admission,
    Instance,
    Match,
    MoveReceiver,
    ObjectHandler,
    OperationContext,
    OperationStream,
    Outcome,
    Query,
    QueryModel,
    RemoteNode,
    StoreResult,
    StoreScp,
    StoreScpConfig,
)
from harmonyd.dimse.errors import EngineFailed, NoPresentationContext
from harmonyd.dimse.serving import Handler
from harmonyd.dimse.streams import ItemStream, ahead
from harmonyd.dimse.wire import changed_query, json_of
from harmonyd.services.archive.client import Client
from harmonyd.services.archive.credentials import InThread
from harmonyd.services.archive.retrieve import Retrieve
from harmonyd.services.archive.search import Searcher
from harmonyd.services.archive.stow import Storer

_AHEAD = 1000
"""Matches that may wait for whoever reads them."""


class ArchiveEngine:
    """Of one backend: whichever node is named, its own archive is asked. ``storage``: for artifact folders."""

    def __init__(
        self, reactor: Any, remote: RemoteNode, options: DicomwebBackendOptions, storage: Path, in_thread: InThread
    ) -> None:
        self._options = options
        self._storage = storage
        self._in_thread = in_thread
        self._client = client = Client(reactor, remote.name, remote, options, in_thread)
        fuzzy = options.fuzzy_matching
        self._searcher = Searcher(client, options.qido_prefix, options.page_size, fuzzy=fuzzy)
        self._storer = Storer(
            client, options.stow_prefix, options.max_store_objects, options.max_store_bytes, in_thread
        )

    async def close(self) -> None:
        """Close the connections that are idle."""
        await self._client.close()

    async def echo(self, remote: RemoteNode, op: OperationContext) -> Outcome:
        """The cheapest search there is."""
        async with self._slot(op):
            await self._searcher.echo(op.deadline)
            op.steps.associated()
        return Outcome(status=0, status_text="Success")

    def find(self, remote: RemoteNode, query: Query, op: OperationContext) -> OperationStream[Match]:
        """Lazy: the search begins when the first match is asked for. Matches are JSON, however they are wanted."""

        async def produce(stream: ItemStream[Match]) -> AsyncGenerator[Match, None]:
            asked = _in_full(query)
            async with self._slot(op), aclosing(self._searcher.find(asked, op, stream.outcome)) as found:
                async for match in found:
                    op.steps.associated()
                    yield match

        return ItemStream(lambda stream: ahead(produce(stream), _AHEAD))

    def get(self, remote: RemoteNode, query: Query, op: OperationContext) -> OperationStream[Instance]:
        """Lazy. A connection is held as long as the archive sends, not as long as somebody takes to read it."""
        return self._retrieve("get", query, op)

    def move(
        self, remote: RemoteNode, receiver: MoveReceiver, query: Query, op: OperationContext
    ) -> OperationStream[Instance]:
        """The same: an archive sends to who asks, and nowhere else."""
        return self._retrieve("move", query, op)

    def _retrieve(self, operation: str, query: Query, op: OperationContext) -> OperationStream[Instance]:
        folder = artifacts.folder_of(op.storage or self._storage, operation, op.id)

        async def produce(stream: ItemStream[Instance]) -> AsyncGenerator[Instance, None]:
            stream.folder = folder
            intake = Intake(query, folder, self._storage / "quarantine")
            retrieve = Retrieve(
                self._client,
                self._searcher,
                self._options.wado_prefix,
                query,
                op,
                intake,
                self._options.max_instance_bytes,
                self._in_thread,
            )
            async with self._slot(op), aclosing(retrieve.instances()) as found:
                async for instance in found:
                    op.steps.associated()
                    yield instance
            retrieve.conclude(stream.outcome)

        return ItemStream(lambda stream: ahead(produce(stream)))

    def store(self, remote: RemoteNode, files: Sequence[Path], op: OperationContext) -> OperationStream[StoreResult]:
        """Lazy."""

        async def produce(stream: ItemStream[StoreResult]) -> AsyncGenerator[StoreResult, None]:
            async with self._slot(op), aclosing(self._storer.store(files, op)) as results:
                async for result in results:
                    op.steps.associated()
                    yield result

        return ItemStream(produce)

    def store_scp(
        self, config: StoreScpConfig, handler: ObjectHandler, admission: Admission, questions: Handler | None = None
    ) -> StoreScp:
        """Never: nobody sends with DIMSE here."""
        raise EngineFailed("A DICOMweb archive receives nothing for us")

    async def open_receiver(self, receiver: MoveReceiver) -> None:
        """Nothing to open: what is moved comes over the connection that asks for it."""

    @asynccontextmanager
    async def _slot(self, op: OperationContext) -> AsyncIterator[None]:
        op.steps.queued()
        if op.slots is not None:
            await op.slots.acquire(op.deadline)
        try:
            op.steps.began()
            yield
        finally:
            if op.slots is not None:
                op.slots.release()


def _in_full(query: Query) -> Query:
    """The query with all its keys: of one that a caller sent with DIMSE, ``dataset`` has only some.

    Raises ``NoPresentationContext`` for a worklist, and what is wrong with the identifier.
    """
    if query.model is QueryModel.WORKLIST:
        raise NoPresentationContext(
            "A DICOMweb archive has no modality worklist",
            hint="Give the endpoint of the modalities a pipeline whose backend is the system that has it, over DIMSE.",
        )
    return query if query.received is None else changed_query(json.loads(json_of(query.received)), query.model)
