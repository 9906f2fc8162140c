"""One request of ours and its responses: the slot it needs, an association, its deadline, and a clean end of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from harmonyd.dimse import status as dimse_status
from harmonyd.dimse.associate import printable
from harmonyd.dimse.engine import OperationContext, QueryModel, RemoteNode, SubOperations
from harmonyd.dimse.errors import AssociationAborted, DimseError
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.client import ClientAssociation, deadline_passed
from harmonyd.dimse.native.pool import AssociationPool, Proposal
from harmonyd.dimse.waiting import until
from harmonyd.errors import DeadlinePassed

T = TypeVar("T")

CANCEL_SECS = 1.0
"""How long a node may take to answer a C-CANCEL before the association is aborted."""
SERVICES = (
    names.VERIFICATION,
    *(names.FIND[model] for model in QueryModel),
    *(names.MOVE[model] for model in QueryModel),
)
"""What every association for echo, find and move proposes, so that each of them can use it."""


def _contexts(service: str) -> Proposal:
    """Apart, so that a node that prefers Implicit VR gives us Explicit, and with it the VR of private elements."""
    return tuple((service, (syntax,)) for syntax in names.UNCOMPRESSED)


_QUESTIONS: Proposal = tuple(context for service in SERVICES for context in _contexts(service))

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
        result: T = await deferToThreadPool(self.reactor, self.reactor.getThreadPool(), function, *args)
        return result

    @property
    def quarantine(self) -> Path:
        """For what nobody asked for."""
        return self.storage / "quarantine"


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
        self.incoming: core.Command | None = None
        """A C-STORE of the node whose data set is under way to us."""
        self._is_used = False
        self._is_final = True
        """No request of ours is under way."""
        self._is_expired = False
        remaining = max(0.0, op.deadline - means.reactor.seconds())
        self._deadline_call: Any = means.reactor.callLater(remaining, self._expire)

    async def begin(
        self, service: str, ask: Ask, message_id: int | None = None, *, can_be_cancelled: bool = True
    ) -> None:
        """Send a request for one of ``SERVICES``, and wait for the first response.

        An association that was idle may have been ended by its peer without our knowing: then another one is asked.
        Raises a ``DimseError``, ``Unavailable`` or ``DeadlinePassed``.
        """
        await self.slot()
        self.can_be_cancelled = can_be_cancelled
        while True:
            needed = _contexts(service)
            association = await self._means.pool.take(self._remote, needed, _QUESTIONS, self._op.deadline)
            was_idle = association.was_idle
            self.use(association)
            self.context = association.context(service, *names.UNCOMPRESSED)
            self.message_id = association.next_message_id() if message_id is None else message_id
            self.asked()
            try:
                ask(association, self.context, self.message_id)
                self._first = await self._response()
            except AssociationAborted:
                if not was_idle:
                    raise
                association.abort()
            else:
                return

    async def slot(self) -> None:
        """Wait until the node may have one more association of ours. Raises ``Unavailable`` and ``DeadlinePassed``."""
        if self._op.slots is not None and not self._holds_slot:
            await self._op.slots.acquire(self._op.deadline)
            self._holds_slot = True

    def use(self, association: ClientAssociation) -> None:
        """From now on the deadline, and ``end``, are about this association."""
        self.association = association
        self._is_used = True
        if self._is_expired:
            association.interrupt(deadline_passed())

    def asked(self) -> None:
        """A request goes out: until its final response the association is good for nothing else."""
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
        self._is_final = status is not None and not is_pending(status)

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
        if not self._is_final and association.connection.association.established:
            await self._cancel()
        if not self._is_final or not association.is_open:
            association.abort()
        else:
            await self._means.pool.give_back(association, self.idle_secs)

    async def _cancel(self) -> None:
        """C-CANCEL (PS3.7 section 9.3.2.3), and a moment for the final response to it."""
        association, reactor = self.association, self._means.reactor
        if not self.can_be_cancelled or association.connection.association.sending:
            return
        association.send(self.context.id, core.c_cancel_rq(self.message_id))
        rest = Deferred.fromCoroutine(self._rest())
        try:
            await until(reactor, reactor.seconds() + CANCEL_SECS, rest, DeadlinePassed("the C-CANCEL had no effect"))
        except (DimseError, DeadlinePassed):
            association.abort()

    async def _rest(self) -> None:
        """Let go by what was under way; objects that still come are refused."""
        while not self._is_final:
            match await self.association.receive():
                case core.CommandReceived(_, command) if command.is_response:
                    self.saw(command)
                case core.CommandReceived(_, command):
                    self.incoming = command
                case core.DataReceived(context_id, _, True) if self.incoming is not None:
                    self.association.send(context_id, self.incoming.response(dimse_status.OUT_OF_RESOURCES))
                    self.incoming = None

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
