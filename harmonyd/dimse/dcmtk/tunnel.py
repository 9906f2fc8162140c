"""TLS for DCMTK's SCUs: we connect to the node and secure the connection, and the program comes to a port of ours.

The node has proved who it is before the program starts. The port is on the loopback interface, for one run, and for a
process of this run alone: the kernel tells whose a connection is (``supervision.ports``). Any other is closed unread.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from harmonyd.dimse.accepting import Acceptor, OnRefusal, Refusal, unheard
from harmonyd.dimse.connecting import connect
from harmonyd.dimse.dcmtk.relay import End, SecureEnd, attach
from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.errors import EngineFailed, TlsFailed
from harmonyd.dimse.threads import in_thread
from harmonyd.dimse.tls_client import Verdict, tls_problem
from harmonyd.errors import Unavailable
from harmonyd.supervision.api import OnceChild
from harmonyd.supervision.ports import Address, connected_by_session, connected_by_text

LOOPBACK = "127.0.0.1"
MAX_UNKNOWN = 16
"""So many connections may wait until it is known whose they are; meanwhile others wait in the kernel."""


@implementer(IHandshakeListener)
class RemoteEnd(SecureEnd):
    """The node's (``connecting.Attempted``)."""

    verdict: Verdict

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self.secured: Deferred[bool] | None = Deferred()

    def problem(self, remote: RemoteNode) -> TlsFailed | None:
        """What went wrong in TLS; None when it was not TLS that ended the connection."""
        return tls_problem(remote, self.verdict, self.reason, is_secured=self.is_secured)

    def handshakeCompleted(self) -> None:
        """Nothing is said to a peer whose certificate was not looked at, whatever the library thinks of it."""
        if not self.verdict.is_good:
            self.cut()
            return
        self.is_secured = True
        self._tell(True)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._tell(False)

    def _tell(self, is_secured: bool) -> None:
        if self.secured is not None and not self.secured.called:
            self.secured.callback(is_secured)


class Tunnel(Acceptor):
    """Open from ``open_tunnel`` until ``end``, which must be awaited; nothing is left of it then."""

    backlog = 16
    _log = Logger()

    def __init__(self, reactor: Any, remote: RemoteNode, end: RemoteEnd, on_refusal: OnRefusal = unheard) -> None:
        """Raises ``EngineFailed``."""
        super().__init__(reactor, LOOPBACK, 0)
        self._remote = remote
        self._remote_end = end
        self._on_refusal = on_refusal
        self._child: OnceChild | None = None
        self._name = ""
        self._unknown: set[LocalEnd] = set()
        self._local_end: LocalEnd | None = None
        self._turn = DeferredLock()
        try:
            self.listen()
        except Unavailable as error:
            raise EngineFailed(f"No port for a secure connection to {remote.name}: {error.detail}") from error
        self.hold()  # until it is known who may come
        self.node = replace(remote, host=LOOPBACK, port=self.port)
        """What the program connects to."""

    def admit(self, child: OnceChild, name: str) -> None:
        """The program has been started."""
        self._child, self._name = child, name
        self.go_on()

    def problem(self) -> TlsFailed | None:
        """What went wrong in TLS, should there be no association; None when nothing did."""
        return self._remote_end.problem(self._remote)

    async def end(self) -> None:
        """End it: the node has a short time to take what is left to be said. Safe to call twice."""
        self.close()
        for local in (*self._unknown, self._local_end):
            if local is not None and local.is_connected:
                local.cut()
                await local.closed
        remote = self._remote_end
        if remote.is_connected:
            remote.finish()
            remote.wire().loseConnection()  # its close_notify is of no use to us
            await remote.closed

    # --- who comes

    def greet(self, sock: socket.socket, address: Any) -> None:
        """See ``Acceptor``."""
        end = LocalEnd(self._reactor, address, sock.getsockname())
        attach(self._reactor, sock, end)
        self._unknown.add(end)
        if len(self._unknown) >= MAX_UNKNOWN:
            self.hold()
        Deferred.fromCoroutine(self._look_at(end)).addErrback(
            lambda failure: self._log.failure("who has connected could not be found out", failure, child=self._name)
        )

    async def _look_at(self, end: LocalEnd) -> None:
        try:
            async with self._turn:
                if self._local_end is None and await self._is_own(end):
                    self._local_end = end
                    self.close()
                    end.join(self._remote_end)
        finally:
            if end is not self._local_end:
                await self._turn_away(end)
            self._unknown.discard(end)
            self.go_on()

    async def _is_own(self, end: LocalEnd) -> bool:
        assert self._child is not None
        return await in_thread(self._reactor, connected_by_session, end.peer, end.here, self._child.pid)

    async def _turn_away(self, end: LocalEnd) -> None:
        try:
            who = await in_thread(self._reactor, connected_by_text, end.peer, end.here)
        finally:
            end.cut()
        self._log.warn(
            "security: {who} has connected to the port that is for {child} alone; it was turned away",
            who=who, child=self._name, port=self.port,
        )  # fmt: skip
        self._on_refusal(Refusal(end.peer[0], self.port, f"{who} is not {self._name}, which it is for"))


class LocalEnd(End):
    """Whoever has connected to our port; nothing is read from it before it is known that it may."""

    def __init__(self, reactor: Any, peer: Address, here: Address) -> None:
        super().__init__(reactor)
        self.peer = peer
        self.here = here

    def connectionMade(self) -> None:
        super().connectionMade()
        self.pauseProducing()


async def open_tunnel(
    reactor: Any, remote: RemoteNode, deadline: float, on_refusal: OnRefusal = unheard
) -> Tunnel:
    """Connect to the node and secure the connection. Raises what ``connecting.connect`` does."""
    end = await connect(reactor, remote, lambda: RemoteEnd(reactor), deadline)
    try:
        return Tunnel(reactor, remote, end, on_refusal)
    except BaseException:
        end.cut()
        raise
