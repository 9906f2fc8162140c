"""The SCU half of the native engine against real peers, for tests: its means, a node, an operation."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydicom import Dataset
from twisted.internet.defer import Deferred

from harmonyd.dimse.engine import OperationContext, Query, QueryLevel, QueryModel, RemoteNode
from harmonyd.dimse.native.exchange import Means
from harmonyd.dimse.native.pool import AssociationPool
from harmonyd.dimse.streams import ItemStream
from harmonyd.dimse.waiting import AssociationSlots

MAX_ASSOCIATIONS = 4


@dataclass
class Scu:
    """What an engine has for its SCU operations, and permits that are counted."""

    reactor: Any
    storage: Path

    def __post_init__(self) -> None:
        self.pool = AssociationPool(self.reactor)
        self.means = Means(self.reactor, self.pool, self.storage)
        self.slots = AssociationSlots(self.reactor, "node", MAX_ASSOCIATIONS, 100)

    @property
    def permits(self) -> int:
        """Free ones."""
        return self.slots._semaphore.tokens

    def node(self, peer: Any = None, **options: Any) -> RemoteNode:
        """``peer`` has an AE title and a port on 127.0.0.1."""
        aet, port = (peer.aet, peer.port) if peer is not None else ("NOBODY", 0)
        made = RemoteNode("node", aet, "127.0.0.1", port, "HARMONY_SCU", max_associations=MAX_ASSOCIATIONS)
        return replace(made, **options)

    def op(self, secs: float = 20.0, **options: Any) -> OperationContext:
        """One that has this long."""
        context = OperationContext(uuid.uuid4().hex, "test", self.reactor.seconds() + secs, slots=self.slots)
        return replace(context, **options)

    def start(self, stream: ItemStream[Any], take: int | None = None) -> tuple[list[Any], Deferred[None]]:
        """Read a stream (its first ``take`` items, and then close it) in the background."""
        items: list[Any] = []
        return items, Deferred.fromCoroutine(read(stream, items, take))


async def read(stream: ItemStream[Any], items: list[Any] | None = None, take: int | None = None) -> list[Any]:
    """The items of a stream, all or the first ``take``; it is closed in any case."""
    items = [] if items is None else items
    try:
        if take == 0:
            return items
        async for item in stream:
            items.append(item)
            if len(items) == take:
                break
    finally:
        await stream.aclose()
    return items


def query(level: QueryLevel = QueryLevel.STUDY, keys: Mapping[str, Any] | None = None, **more: Any) -> Query:
    """A Study Root query."""
    ds = Dataset()
    ds.QueryRetrieveLevel = level.value
    for keyword, value in itertools.chain((keys or {}).items(), more.items()):
        setattr(ds, keyword, value)
    return Query(level, QueryModel.STUDY_ROOT, ds)


Made = Callable[..., Scu]
