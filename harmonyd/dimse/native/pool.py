"""Associations that stay open between operations: a question on one of them costs no connection and no negotiation.

One that is not used for a while is released; one that its peer ends meanwhile is forgotten. Every connection counts
towards its node's limit until it is closed. Whoever needs one more waits for that, and idle ones give way.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.errors import AssociationAborted, AssociationRejected
from harmonyd.dimse.native import core
from harmonyd.dimse.native.client import ClientAssociation, Proposal, open_association
from harmonyd.dimse.native.connection import Connection, Silence
from harmonyd.dimse.native.core.reasons import RESULTS
from harmonyd.dimse.tls_client import files_now
from harmonyd.dimse.waiting import until
from harmonyd.errors import DeadlinePassed, Unavailable
from harmonyd.waiters import Waiters

_FOR_THE_MOMENT = RESULTS[2]
_STANDING = (core.State.STA5, core.State.STA6)
_NOTICE_SECS = 0.2
"""Nodes notice the end of an association later than that of its connection."""


class AssociationPool:
    """For all remote nodes of an engine. Nobody shares an association: it is taken, used, and given back."""

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._nodes: dict[RemoteNode, _Node] = {}
        """Those with anything open."""
        self._plain: set[RemoteNode] = set()
        """Nodes that abort when more is proposed than what the operation needs."""
        self._opening: set[Deferred[ClientAssociation]] = set()
        self._changed: Waiters[None] = Waiters()
        """Something was closed, or became idle."""
        self._is_closing = False

    def open_count(self, remote: RemoteNode) -> int:
        """How many connections there are to a node: idle ones, and those that are being opened or ended, included."""
        return self._node(remote).count

    def idle_count(self, remote: RemoteNode) -> int:
        """How many of them are for anybody to take."""
        return len(self._node(remote).idle)

    async def take(
        self, remote: RemoteNode, needed: Proposal, usual: Proposal, deadline: float, least: Proposal = ()
    ) -> ClientAssociation:
        """An idle one with all that is ``needed``, or a new one that proposes ``usual``.

        ``least`` is proposed to nodes that abort when they do not know everything (PS3.8 section 9.3.3 has them refuse
        it). What was accepted is for the caller to look at. Raises what ``open_association`` raises, and
        ``Unavailable`` after ``close``.
        """
        while True:
            files = files_now(remote.tls)
            for idle in list(reversed(self._node(remote).idle)):
                if idle.association.made_with != files:
                    self._end(idle)  # what it was secured with may not be trusted any more, by us or by the node
                elif idle.association.has_all(needed):
                    if self._wake(idle):
                        return idle.association
                    idle.association.abort()
            if not self._has_room(remote):
                await self._change(deadline)
                continue
            try:
                return await self._open_usual(remote, usual, least, deadline)
            except AssociationRejected as rejected:
                if not await self._others_end(remote, rejected, deadline, needed):
                    raise

    async def open(
        self, remote: RemoteNode, proposed: Proposal, deadline: float, roles: Sequence[core.RoleSelection] = ()
    ) -> ClientAssociation:
        """A new one, not for keeping unless it is given back. Raises as ``take`` does."""
        while True:
            await self._room(remote, deadline)
            try:
                return await self._open_counted(remote, proposed, deadline, roles)
            except AssociationRejected as rejected:
                if not await self._others_end(remote, rejected, deadline):
                    raise

    def give_back(self, association: ClientAssociation, idle_secs: float) -> None:
        """It may be used again within this time; one that is over, or may not wait, is released meanwhile."""
        if self._is_closing or not idle_secs or not association.is_open:
            self._release(association)
            return
        idle = _Idle(association)
        association.was_idle = True
        self._node(association.remote).idle.append(idle)
        idle.call = self._reactor.callLater(idle_secs, self._end, idle)
        idle.watch = self._in_background(self._watch(idle))
        self._changed.fire(None)

    async def close(self) -> None:
        """End everything: idle ones are released, operations under way fail. Returns when nothing is open."""
        self._is_closing = True
        for idle in [idle for node in self._nodes.values() for idle in node.idle]:
            self._end(idle)
        for connection in [each for node in self._nodes.values() for each in node.connections - node.ending]:
            connection.interrupt(_closed())
        for opening in list(self._opening):
            opening.cancel()
        self._changed.fire(None)
        while self._nodes:
            await self._changed.wait()

    # --- room

    def _node(self, remote: RemoteNode) -> _Node:
        return self._nodes.get(remote) or _Node()

    async def _room(self, remote: RemoteNode, deadline: float) -> None:
        while not self._has_room(remote):
            await self._change(deadline)

    def _has_room(self, remote: RemoteNode) -> bool:
        """Whether one more may be opened now; else an idle one is ended."""
        if self._is_closing:
            raise _closed()
        node = self._node(remote)
        if node.count < remote.max_associations:
            return True
        if node.idle:
            self._end(node.idle[0])
        return False

    async def _change(self, deadline: float) -> None:
        """Wait for something to be closed or given back."""
        error = DeadlinePassed(
            "The deadline passed while the request waited for an association to end",
            hint="The PACS takes long to end associations; its log says why. Or raise max_associations.",
            timeout="queue",
        )
        await until(self._reactor, deadline, self._changed.wait(), error)
        if self._is_closing:
            raise _closed()

    async def _others_end(
        self, remote: RemoteNode, rejected: AssociationRejected, deadline: float, needed: Proposal = ()
    ) -> bool:
        """Whether to try once more: a node may have a limit of its own, which our other associations reach.

        Idle ones are ended, but for one that is as ``needed``; where the node rejects for the moment only, one that is
        used is waited for, too.
        """
        others = {each for each in self._node(remote).connections if each.association.state in _STANDING}
        if not others or not (self._node(remote).idle or rejected.extra["reject_result"] == _FOR_THE_MOMENT):
            return False
        try:
            while others <= self._node(remote).connections:
                for idle in list(self._node(remote).idle):
                    if needed and idle.association.has_all(needed):
                        return True
                    self._end(idle)
                await self._change(deadline)
            moment: Deferred[None] = deferLater(self._reactor, _NOTICE_SECS)
            await until(self._reactor, deadline, moment, DeadlinePassed("no time to try again"))
        except DeadlinePassed:
            return False
        return True

    def _gone(self, remote: RemoteNode) -> None:
        node = self._nodes[remote]
        if not node.count:
            del self._nodes[remote]
        self._changed.fire(None)

    # --- opening

    async def _open_usual(
        self, remote: RemoteNode, usual: Proposal, least: Proposal, deadline: float
    ) -> ClientAssociation:
        proposed = least if least and remote in self._plain else usual
        try:
            return await self._open_counted(remote, proposed, deadline)
        except AssociationAborted:
            if not least or proposed is least:
                raise
        await self._room(remote, deadline)
        association = await self._open_counted(remote, least, deadline)
        self._plain.add(remote)
        return association

    async def _open_counted(
        self, remote: RemoteNode, proposed: Proposal, deadline: float, roles: Sequence[core.RoleSelection] = ()
    ) -> ClientAssociation:
        node = self._nodes.setdefault(remote, _Node())
        node.opening += 1
        is_connected = False

        def connected(connection: Connection) -> None:
            nonlocal is_connected
            is_connected = True
            node.opening -= 1
            node.connections.add(connection)
            connection.closed.addCallback(lambda _: self._closed(remote, connection))

        opening = Deferred.fromCoroutine(
            open_association(self._reactor, remote, proposed, deadline, roles, connected)
        )
        self._opening.add(opening)
        try:
            return await opening
        except CancelledError:
            if self._is_closing:
                raise _closed() from None
            raise
        finally:
            self._opening.discard(opening)
            if not is_connected:
                node.opening -= 1
                self._gone(remote)

    def _closed(self, remote: RemoteNode, connection: Connection) -> None:
        node = self._nodes[remote]
        node.connections.discard(connection)
        node.ending.discard(connection)
        self._gone(remote)

    # --- idle ones

    def _wake(self, idle: _Idle) -> bool:
        """Take it out; False when it has just ended."""
        self._take_out(idle)
        idle.watch.cancel()
        return idle.association.is_open

    def _take_out(self, idle: _Idle) -> None:
        self._nodes[idle.association.remote].idle.remove(idle)
        if idle.call.active():
            idle.call.cancel()

    async def _watch(self, idle: _Idle) -> None:
        """Whatever a peer says to an idle association ends it."""
        connection = idle.association.connection
        try:
            event = await connection.receive()
        except CancelledError:
            return
        except Silence:  # it may be shorter than the time to be idle
            self._take_out(idle)
            self._release(idle.association)
            return
        self._take_out(idle)
        if isinstance(event, core.ReleaseRequested):
            connection.let_go()
        else:
            connection.abort()

    def _end(self, idle: _Idle) -> None:
        self._wake(idle)
        self._release(idle.association)

    def _release(self, association: ClientAssociation) -> None:
        """In the background; the association counts until its connection is closed."""
        node = self._nodes.get(association.remote)
        if node is not None and association.connection in node.connections:
            node.ending.add(association.connection)
            self._in_background(association.release())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> Deferred[None]:
        return Deferred.fromCoroutine(work).addErrback(
            lambda failure: self._log.failure("an association could not be ended as it should", failure)
        )


class _Node:
    """What is open to one remote node."""

    def __init__(self) -> None:
        self.opening = 0
        """Before there is a connection."""
        self.connections: set[Connection] = set()
        self.ending: set[Connection] = set()
        """Those of them that are being released."""
        self.idle: list[_Idle] = []

    @property
    def count(self) -> int:
        return self.opening + len(self.connections)


class _Idle:
    """An association that waits for its next use."""

    def __init__(self, association: ClientAssociation) -> None:
        self.association = association
        self.call: Any = None
        self.watch: Deferred[None] = Deferred()


def _closed() -> Unavailable:
    return Unavailable("harmonyd is stopping; the operation was ended", hint="Try again later.")
