"""Associations that stay open between operations: a question on one of them costs no connection and no negotiation.

One that is not used for a while is released; one that its peer ends meanwhile is forgotten. It counts towards the
node's limit as long as it is open, and gives way when the limit is needed for another kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from twisted.internet.defer import CancelledError, Deferred

from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.errors import AssociationAborted, AssociationRejected
from harmonyd.dimse.native import core
from harmonyd.dimse.native.client import ClientAssociation, open_association
from harmonyd.dimse.native.connection import Silence

Proposal: TypeAlias = Sequence[tuple[str, Sequence[str]]]
"""(abstract syntax, transfer syntaxes), one for each presentation context."""


class AssociationPool:
    """For all remote nodes of an engine. Nobody shares an association: it is taken, used, and given back."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._idle: dict[RemoteNode, list[_Idle]] = {}
        self._open: dict[RemoteNode, int] = {}
        """How many there are, idle ones included."""
        self._plain: set[RemoteNode] = set()
        """Nodes that abort when more is proposed than what the operation needs."""
        self._closing = False

    def open_count(self, remote: RemoteNode) -> int:
        """How many associations are open to a node, idle ones included."""
        return self._open.get(remote, 0)

    def idle_count(self, remote: RemoteNode) -> int:
        """How many of them nobody uses."""
        return len(self._idle.get(remote, ()))

    async def take(
        self, remote: RemoteNode, needed: Proposal, usual: Proposal, deadline: float
    ) -> ClientAssociation:
        """An idle one that has what is ``needed``, or a new one that proposes all of ``usual``.

        What was accepted is for the caller to look at. Raises what ``open_association`` raises.
        """
        for idle in list(reversed(self._idle.get(remote, []))):
            if idle.association.has_all(needed):
                if self._wake(idle):
                    return idle.association
                idle.association.abort()
        return await self._open_usual(remote, needed, usual, deadline)

    async def open(
        self, remote: RemoteNode, proposed: Proposal, deadline: float, roles: Sequence[core.RoleSelection] = ()
    ) -> ClientAssociation:
        """A new one, not for keeping unless it is given back; an idle one makes room. Raises as ``take`` does."""
        while self.open_count(remote) >= remote.max_associations and self._idle.get(remote):
            await self._end(self._idle[remote][0])
        try:
            return await self._open_counted(remote, proposed, deadline, roles)
        except AssociationRejected:
            if not self._idle.get(remote):
                raise
        # Perhaps it is our own idle ones that are too many for it.
        for idle in list(self._idle.get(remote, [])):
            await self._end(idle)
        return await self._open_counted(remote, proposed, deadline, roles)

    async def give_back(self, association: ClientAssociation, idle_secs: float) -> None:
        """It may be used again within this time; one that is over is forgotten."""
        if self._closing or not association.is_open or not idle_secs:
            await association.release()
            return
        association.was_idle = True
        idle = _Idle(association)
        self._idle.setdefault(association.remote, []).append(idle)
        idle.call = self._reactor.callLater(idle_secs, self._end_soon, idle)
        idle.watch = Deferred.fromCoroutine(self._watch(idle))

    async def close(self) -> None:
        """Release what is idle, and everything that is given back from now on."""
        self._closing = True
        for idle in [idle for kept in self._idle.values() for idle in kept]:
            await self._end(idle)

    # --- opening

    async def _open_usual(
        self, remote: RemoteNode, needed: Proposal, usual: Proposal, deadline: float
    ) -> ClientAssociation:
        if remote in self._plain or len(needed) == len(usual):
            return await self.open(remote, needed, deadline)
        try:
            return await self.open(remote, usual, deadline)
        except AssociationAborted:
            # Some abort instead of refusing a presentation context that they do not know.
            association = await self.open(remote, needed, deadline)
            self._plain.add(remote)
            return association

    async def _open_counted(
        self, remote: RemoteNode, proposed: Proposal, deadline: float, roles: Sequence[core.RoleSelection]
    ) -> ClientAssociation:
        self._open[remote] = self.open_count(remote) + 1
        try:
            association = await open_association(self._reactor, remote, proposed, deadline, roles)
        except BaseException:
            self._gone(remote)
            raise
        association.closed.addCallback(lambda _: self._gone(remote))
        return association

    def _gone(self, remote: RemoteNode) -> None:
        self._open[remote] -= 1
        if not self._open[remote]:
            del self._open[remote]

    # --- idle ones

    def _wake(self, idle: _Idle) -> bool:
        """Take it out; False when it has just ended."""
        self._take_out(idle)
        idle.watch.cancel()
        return idle.association.is_open

    def _take_out(self, idle: _Idle) -> None:
        kept = self._idle[idle.association.remote]
        kept.remove(idle)
        if not kept:
            del self._idle[idle.association.remote]
        if idle.call.active():
            idle.call.cancel()

    async def _watch(self, idle: _Idle) -> None:
        """Whatever a peer says to an idle association ends it."""
        try:
            event = await idle.association.connection.receive()
        except CancelledError:
            return
        except Silence:
            event = None
        self._take_out(idle)
        if isinstance(event, core.ReleaseRequested):
            idle.association.connection.respond_release()
        else:
            idle.association.abort()

    def _end_soon(self, idle: _Idle) -> None:
        Deferred.fromCoroutine(self._end(idle))

    async def _end(self, idle: _Idle) -> None:
        if idle not in self._idle.get(idle.association.remote, ()):
            return  # its peer has ended it while we ended another
        if self._wake(idle):
            await idle.association.release()
        else:
            idle.association.abort()


class _Idle:
    """An association that waits for its next use."""

    def __init__(self, association: ClientAssociation) -> None:
        self.association = association
        self.call: Any = None
        self.watch: Deferred[None] = Deferred()
