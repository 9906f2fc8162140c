"""One request of ours and its responses: the slot it needs, an association, its deadline, and a clean end of all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from twisted.internet.defer import Deferred

from harmonyd.dimse import status as dimse_status
from harmonyd.dimse.associate import printable
from harmonyd.dimse.dataset_json import MalformedDataset, dataset_to_json
from harmonyd.dimse.engine import ROOTS, OperationContext, RemoteNode, SubOperations
from harmonyd.dimse.errors import AssociationAborted
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.client import ClientAssociation, Proposal
from harmonyd.dimse.native.pool import AssociationPool
from harmonyd.dimse.threads import in_thread
from harmonyd.dimse.uid import is_uid
from harmonyd.dimse.waiting import deadline_passed, until
from harmonyd.errors import DeadlinePassed, HarmonydError

T = TypeVar("T")

CANCEL_SECS = 1.0
"""How long a node may take to answer a C-CANCEL before the association is aborted."""
SERVICES = (
    names.VERIFICATION,
    *(names.FIND[model] for model in ROOTS),
    *(names.MOVE[model] for model in ROOTS),
)
"""What every association for echo, find and move proposes, so that each of them can use it."""


def _contexts(service: str) -> list[tuple[str, Sequence[str]]]:
    """Apart, so that a node that prefers Implicit VR gives us Explicit, and with it the VR of private elements."""
    return [(service, (syntax,)) for syntax in names.UNCOMPRESSED]


_QUESTIONS: Proposal = [context for service in SERVICES for context in _contexts(service)]

Ask: TypeAlias = Callable[[ClientAssociation, core.Context, int], None]
"""Sends the request: association, presentation context, message id."""


@dataclass(frozen=True, slots=True)
class Means:
    """What every operation needs; made once by the engine."""

    reactor: Any
    pool: AssociationPool
    storage: Path
    """Artifact folders, ``quarantine/`` and ``spool/`` are in it."""

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run blocking work in the reactor's thread pool."""
        return await in_thread(self.reactor, function, *args)

    @property
    def quarantine(self) -> Path:
        """For what nobody asked for."""
        return self.storage / "quarantine"


@dataclass(slots=True)
class Incoming:
    """A C-STORE sub-operation of a C-GET (PS3.7 section 9.1.3)."""

    context_id: int
    command: core.Command
    is_whole: bool = False
    """All of its data set was received."""


class Exchange:
    """Await ``begin`` once, ``response`` until the final one, and ``end`` in every case.

    Whether somebody reads or not, the association is ended at the deadline.
    """

    association: ClientAssociation
    context: core.Context
    message_id: int

    def __init__(self, means: Means, remote: RemoteNode, op: OperationContext) -> None:
        self._means = means
        self._remote = remote
        self._op = op
        self._first: tuple[core.Command, bytes] | None = None
        self._holds_slot = False
        self.can_be_cancelled = True
        """With C-CANCEL: a C-FIND, C-GET or C-MOVE."""
        self.idle_secs = remote.idle_secs
        """How long the association may wait afterwards for another operation that can use it."""
        self.incoming: Incoming | None = None
        """A C-STORE of the node to us that is not answered yet."""
        self._is_used = False
        self._is_final = True
        """No request of ours is under way."""
        self._is_expired = False
        remaining = max(0.0, op.deadline - means.reactor.seconds())
        self._deadline_call: Any = means.reactor.callLater(remaining, self._expire)

    async def begin(
        self, service: str, ask: Ask, message_id: int | None = None, *, can_be_cancelled: bool = True
    ) -> None:
        """Send a request for a service, and wait for the first response.

        An association that was idle may have been ended by its peer without our knowing: then another one is asked.
        Raises a ``DimseError``, ``Unavailable`` or ``DeadlinePassed``.
        """
        await self.slot()
        self.can_be_cancelled = can_be_cancelled
        needed = [(service, names.UNCOMPRESSED)]
        while True:
            usual = _QUESTIONS if service in SERVICES else _contexts(service)
            association = await self._means.pool.take(
                self._remote, needed, usual, self._op.deadline, _contexts(service)
            )
            self.use(association)
            self.context = association.context(service, *names.UNCOMPRESSED)
            self.message_id = association.next_message_id() if message_id is None else message_id
            self.asked()
            try:
                ask(association, self.context, self.message_id)
                self._first = await self._response()
            except AssociationAborted:
                if not association.was_idle:
                    raise
                self.let_go()
            else:
                return

    async def slot(self) -> None:
        """Wait until the node may have one more association of ours. Raises ``Unavailable`` and ``DeadlinePassed``."""
        self._op.steps.queued()
        if self._op.slots is not None and not self._holds_slot:
            await self._op.slots.acquire(self._op.deadline)
            self._holds_slot = True
        self._op.steps.began()
        self._op.progress.began()

    def use(self, association: ClientAssociation) -> None:
        """From now on the deadline, and ``end``, are about this association."""
        self.association = association
        self._is_used = True
        self._op.steps.associated()

    @property
    def is_reusable(self) -> bool:
        """The association is good for another request."""
        return self._is_used and self._is_final and self.association.is_open

    def let_go(self) -> None:
        """Have nothing to do any more with an association that is no good; another one may be used."""
        if self._is_used:
            self._is_used = False
            self._part()

    def _part(self) -> None:
        association, is_final, self._is_final = self.association, self._is_final, True
        if is_final and association.is_established:
            self._means.pool.give_back(association, self.idle_secs)
        else:
            association.abort()

    def asked(self) -> None:
        """A request goes out: until its final response the association is good for nothing else.

        Raises ``DeadlinePassed``.
        """
        if self._is_expired:
            raise deadline_passed()
        self._is_final = False

    async def response(self) -> tuple[core.Command, bytes]:
        """The next response, and its data set. Raises as ``ClientAssociation.response`` does."""
        first, self._first = self._first, None
        return first if first is not None else await self._response()

    async def _response(self) -> tuple[core.Command, bytes]:
        command, data = await self.association.response(self.message_id)
        self.saw(command)
        return command, data

    def saw(self, response: core.Command) -> None:
        """A response came; after the final one there is nothing to cancel."""
        status = response.status
        self.association.was_idle = False
        self._is_final = status is not None and not is_pending(status)
        if response.field in (core.CommandField.C_GET_RSP, core.CommandField.C_MOVE_RSP):
            self._op.progress.counted(response.completed, response.failed, response.warning, response.remaining)

    async def end(self) -> None:
        """Cancel the operation if it still runs; give the association back, or end it; then the slot."""
        if self._deadline_call.active():
            self._deadline_call.cancel()
        try:
            if self._is_used:
                await self._end_association()
        finally:
            if self._holds_slot and self._op.slots is not None:
                self._holds_slot = False
                self._op.slots.release()

    async def _end_association(self) -> None:
        association = self.association
        self._is_used = False
        try:
            if not self._is_final and association.is_established:
                await self._cancel()
        finally:
            self._part()

    async def _cancel(self) -> None:
        """C-CANCEL (PS3.7 section 9.3.2.3), and a moment for the final response to it."""
        association, reactor = self.association, self._means.reactor
        if not self.can_be_cancelled or association.connection.association.sending:
            return
        try:
            association.send(self.context.id, core.c_cancel_rq(self.message_id))
            rest = Deferred.fromCoroutine(self._rest())
            await until(
                reactor, reactor.seconds() + CANCEL_SECS, rest, DeadlinePassed("the C-CANCEL had no effect")
            )
        except (HarmonydError, ValueError):
            self._is_final = False

    async def _rest(self) -> None:
        """Let go by what was under way, to the end of the final response; objects that still come are refused."""
        if self.incoming is not None and self.incoming.is_whole:
            self._refuse(self.incoming)
        while not self._is_final:
            match await self.association.receive():
                case core.CommandReceived(_, command) if command.is_response:
                    await self.association.data_set(command)
                    self.saw(command)
                case core.CommandReceived(context_id, command):
                    self.incoming = Incoming(context_id, command, not command.has_data)
                    if self.incoming.is_whole:
                        self._refuse(self.incoming)
                case core.DataReceived(_, _, True) if self.incoming is not None:
                    self._refuse(self.incoming)

    def _refuse(self, incoming: Incoming) -> None:
        self.incoming = None
        self.association.send(incoming.context_id, incoming.command.response(dimse_status.OUT_OF_RESOURCES))

    def _expire(self) -> None:
        self._is_expired = True
        if self._is_used and not self._is_final:
            self.association.interrupt(deadline_passed())


def is_pending(status: int) -> bool:
    """More responses follow."""
    return dimse_status.category(status) is dimse_status.StatusCategory.PENDING


def comment_of(command: core.Command) -> str | None:
    """The Error Comment of a response, as it may stand in an answer and a log."""
    return command.error_comment and printable(command.error_comment)


def suboperations_of(command: core.Command) -> SubOperations:
    """The counters of a response (PS3.7 section 9.1.3)."""
    return SubOperations(command.completed, command.failed, command.warning, command.remaining)


def failed_uids(identifier: bytes, context: core.Context) -> tuple[str, ...]:
    """Failed SOP Instance UID List (0008,0058) of a final response; what cannot be read has none."""
    if not identifier:
        return ()
    try:
        document = json.loads(dataset_to_json(identifier, context.transfer_syntax))
    except MalformedDataset:
        return ()
    return tuple(str(uid) for uid in document.get("00080058", {}).get("Value", ()) if is_uid(str(uid)))
