"""A server of questions for tests: the real listener and services, a handler that is told what to do, and callers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from inbound_kit import FakeSpool
from pydicom import Dataset
from twisted.internet.defer import Deferred

from harmonyd.dimse.accept import instance_of
from harmonyd.dimse.engine import Instance, QueryModel, RemoteNode, StoreScpConfig
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.answering import services_for
from harmonyd.dimse.native.client import ClientAssociation, open_association
from harmonyd.dimse.native.exchange import Means
from harmonyd.dimse.native.listeners import Listeners
from harmonyd.dimse.native.pool import AssociationPool
from harmonyd.dimse.native.scp import NativeStoreScp
from harmonyd.dimse.normalized import NormalizedAnswer, NormalizedAsked
from harmonyd.dimse.part10 import InstanceHeader, check_complete
from harmonyd.dimse.recode import EXPLICIT_VR_LE
from harmonyd.dimse.serving import SERVICES, Asked, NotServed, Pending
from harmonyd.dimse.wire import written

CT = "1.2.840.10008.5.1.4.1.1.2"
FIND = names.FIND[QueryModel.STUDY_ROOT]
GET, MOVE = names.GET[QueryModel.STUDY_ROOT], names.MOVE[QueryModel.STUDY_ROOT]
Step = Pending | Instance | Exception | Deferred[None]


def keys(**given: Any) -> bytes:
    """An identifier."""
    ds = Dataset()
    for keyword, value in {"QueryRetrieveLevel": "STUDY", **given}.items():
        setattr(ds, keyword, value)
    return written(ds, EXPLICIT_VR_LE)


def instance(path: Path) -> Instance:
    return instance_of(path, check_complete(path))


@dataclass
class Retrieved:
    """A ``Retrieval`` that does its steps."""

    steps: Sequence[Step]
    total: int | None = None
    missed: int = 0
    missed_uids: tuple[str, ...] = ()
    doubt: str = ""
    closed: int = 0
    heard: list[tuple[str, str]] = field(default_factory=list)
    """SOP Instance UID of each object that was sent on, and why not."""

    async def __aiter__(self) -> AsyncIterator[Instance]:
        for step in self.steps:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Deferred):
                await step
            else:
                assert isinstance(step, Instance)
                yield step

    def told(self, header: InstanceHeader, problem: str) -> None:
        self.heard.append((header.sop_instance_uid, problem))

    async def aclose(self) -> None:
        self.closed += 1


@dataclass
class Asking:
    """A ``Handler`` that does its steps, and the server in front of it."""

    reactor: Any
    folder: Path
    steps: list[Step] = field(default_factory=list)
    retrieval: Retrieved | NotServed | None = None
    destinations: dict[str, RemoteNode] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    managed: list[NormalizedAsked] = field(default_factory=list)
    answer: Any = None
    """Of DIMSE-N: a coroutine function."""
    taken: int = 0
    """Steps of C-FINDs."""
    closed: int = 0
    """C-FINDs that have ended, in whichever way."""

    # --- Handler

    async def find(self, asked: Asked) -> AsyncGenerator[Pending, None]:
        self.asked.append(asked)
        try:
            for step in list(self.steps):
                self.taken += 1
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, Deferred):
                    await step
                else:
                    assert isinstance(step, Pending)
                    yield step
        finally:
            self.closed += 1

    async def retrieve(self, asked: Asked) -> Any:
        self.asked.append(asked)
        if isinstance(self.retrieval, Exception):
            raise self.retrieval
        return self.retrieval

    def destination(self, asked: Asked) -> RemoteNode:
        found = self.destinations.get(asked.destination_aet)
        if found is None:
            raise NotServed(0xA801, f"{asked.destination_aet} is unknown")
        return found

    async def normalized(self, asked: NormalizedAsked) -> NormalizedAnswer:
        self.managed.append(asked)
        return await self.answer(asked)

    # --- the server

    async def start(self, **options: Any) -> None:
        self.pool = AssociationPool(self.reactor)
        self.means = Means(self.reactor, self.pool, self.folder)
        self.listeners = Listeners(self.reactor)
        given = {"bind_addr": "127.0.0.1", "services": SERVICES, **options}
        config = StoreScpConfig("qr", "QR", port=0, **given)
        self.spool = FakeSpool(self.folder / "taken")
        others = services_for(self.means, self)
        self.scp = NativeStoreScp(
            self.reactor, config, self.spool, self.spool, self.folder / "receiving", self.listeners, others
        )
        await self.scp.start()
        ((_, listener),) = self.listeners._open.items()
        self.port = listener.port

    async def stop(self) -> None:
        await self.pool.close()
        await self.scp.stop()
        self.listeners.close()

    # --- callers

    def node(self, **options: Any) -> RemoteNode:
        return replace(RemoteNode("node", "QR", "127.0.0.1", self.port, "WS", association_timeout_secs=20), **options)

    async def call(self, *services: str, receives: Sequence[tuple[str, str]] = ()) -> ClientAssociation:
        """An association; ``receives``: (storage class, transfer syntax) that may come over it."""
        proposal = [(uid, (EXPLICIT_VR_LE,)) for uid in services] + [(uid, (syntax,)) for uid, syntax in receives]
        roles = [core.RoleSelection(uid, False, True) for uid in dict.fromkeys(uid for uid, _ in receives)]
        deadline = self.reactor.seconds() + 20
        return await open_association(self.reactor, self.node(), proposal, deadline, roles)


def ask(assoc: ClientAssociation, service: str, command: core.Command, identifier: bytes | None = None) -> int:
    """Send a request; its message id."""
    assoc.send(assoc.context(service).id, command, keys() if identifier is None else identifier)
    return command.message_id or 0


async def all_responses(assoc: ClientAssociation, message_id: int) -> list[tuple[core.Command, bytes]]:
    """To the final one."""
    found = []
    while True:
        found.append(await assoc.response(message_id))
        if found[-1][0].status not in (0xFF00, 0xFF01):
            return found


async def served(
    assoc: ClientAssociation, statuses: Sequence[int] = (), cancel_after: int | None = None
) -> tuple[list[core.Command], list[tuple[core.Command, bytes]]]:
    """Answer the C-STOREs of a C-GET; those commands, and its responses.

    ``statuses``: what they are answered with in turn, at last Success. After ``cancel_after`` of them: C-CANCEL.
    """
    stores: list[core.Command] = []
    responses: list[tuple[core.Command, bytes]] = []
    answers = list(statuses)
    while True:
        event = await assoc.receive()
        assert isinstance(event, core.CommandReceived)
        data = await assoc.data_set(event.command)
        if event.command.field == core.CommandField.C_STORE_RQ:
            stores.append(event.command)
            if len(stores) == cancel_after:
                assoc.send(assoc.context(GET).id, core.c_cancel_rq(1))
            assoc.send(event.context_id, event.command.response(answers.pop(0) if answers else 0))
        else:
            responses.append((event.command, data))
            if event.command.status != 0xFF00:
                return stores, responses
