"""The C-MOVE half of the native engine for tests, with everything it needs."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inbound_kit import FakeSpool, descriptors
from pydicom import Dataset

from harmonyd.dimse.engine import (
    Instance,
    MoveReceiver,
    OperationContext,
    Query,
    QueryLevel,
    QueryModel,
    RemoteNode,
    StoreScpConfig,
)
from harmonyd.dimse.native.exchange import Means
from harmonyd.dimse.native.listeners import Listeners
from harmonyd.dimse.native.move import move
from harmonyd.dimse.native.move_ports import MovePorts
from harmonyd.dimse.native.pool import AssociationPool
from harmonyd.dimse.native.scp import NativeStoreScp
from harmonyd.dimse.quarantine import Quota
from harmonyd.dimse.streams import ItemStream


class Mover:
    """Moves into folders below ``storage``."""

    def __init__(self, reactor: Any, folder: Path, max_unasked_bytes: int = 10**9) -> None:
        self.reactor = reactor
        self.storage = folder / "storage"
        self.storage.mkdir()
        self.means = Means(reactor, AssociationPool(reactor), self.storage)
        self.listeners = Listeners(reactor)
        self.quota = Quota(self.means, self.means.quarantine, max_unasked_bytes)
        self.ports = MovePorts(self.means, self.storage, self.means.quarantine, self.listeners, self.quota)
        self.spool = FakeSpool(folder / "taken")
        self.endpoint: NativeStoreScp | None = None
        self.descriptors = set(descriptors())

    async def open_endpoint(self, port: int, aet: str, **options: Any) -> NativeStoreScp:
        """An endpoint on the port of the moves."""
        config = StoreScpConfig("scp", aet, "0.0.0.0", port, **options)
        folder = self.storage / "spool" / "receiving"
        self.endpoint = NativeStoreScp(self.reactor, config, self.spool, self.spool, folder, self.listeners)
        await self.endpoint.start()
        return self.endpoint

    def move(
        self,
        remote: RemoteNode,
        receiver: MoveReceiver,
        study_uid: str,
        *,
        deadline_secs: float = 30.0,
        level: QueryLevel = QueryLevel.STUDY,
        storage: Path | None = None,
        **more: Any,
    ) -> ItemStream[Instance]:
        ds = Dataset()
        ds.QueryRetrieveLevel = level.value
        ds.StudyInstanceUID = study_uid
        for keyword, value in more.items():
            setattr(ds, keyword, value)
        op = OperationContext(uuid.uuid4().hex, "request", self.reactor.seconds() + deadline_secs, storage=storage)
        return move(self.means, self.ports, remote, receiver, Query(level, QueryModel.STUDY_ROOT, ds), op)

    @property
    def reasons(self) -> list[str]:
        return [json.loads(path.read_text())["reason"] for path in self.means.quarantine.glob("*.json")]

    async def close(self) -> None:
        if self.endpoint is not None:
            await self.endpoint.stop()
        await self.ports.close()
        await self.means.pool.close()
        self.listeners.close()


async def items(stream: ItemStream[Instance]) -> list[Instance]:
    """All of it."""
    return [instance async for instance in stream]


def uids(instances: Sequence[Instance]) -> list[str]:
    return sorted(instance.sop_instance_uid for instance in instances)
