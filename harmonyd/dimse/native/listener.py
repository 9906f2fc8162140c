"""A DICOM port: accepts connections, judges each A-ASSOCIATE-RQ, and runs the associations.

Owners register for the AE titles that they answer to; an endpoint and the deliveries of C-MOVE may share a port.
Whoever sends something else, or sends slowly, or nothing, costs a descriptor for a bounded time.
"""

from __future__ import annotations

import socket
import uuid
from typing import Any, Protocol

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.tcp import Server
from twisted.logger import Logger
from twisted.python.failure import Failure

from harmonyd.dimse.accepting import Acceptor, Refusal
from harmonyd.dimse.associate import Rejection, printable
from harmonyd.dimse.engine import Association
from harmonyd.dimse.native import connection as connections
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.connection import Connection, Silence
from harmonyd.dimse.native.core.items import DEFAULT_MAX_PDU
from harmonyd.dimse.native.inbound import InboundSession, Receiver
from harmonyd.dimse.native.secure import SecureInbound
from harmonyd.dimse.tls_server import SecurePort
from harmonyd.tls import TlsServer

MAX_PENDING = 256
"""Connections without an association yet, or any more; the oldest makes room for the next."""
_INFORMATION = core.UserInformation(
    implementation_class_uid=names.IMPLEMENTATION_CLASS_UID,
    implementation_version_name=names.IMPLEMENTATION_VERSION_NAME,
)


class Owner(Protocol):
    """Who answers to an AE title."""

    def admit(self, request: core.AssociateRequest, peer: str) -> Receiver | Rejection:
        """Who receives over this association, or why nobody does."""
        ...


class AssociationListener(Acceptor):
    """Listens from ``listen`` to ``close``; associations that run go on after that."""

    backlog = 1024
    _log = Logger()

    def __init__(self, reactor: Any, bind_addr: str, port: int) -> None:
        super().__init__(reactor, bind_addr, port)
        self.owners: dict[str, Owner] = {}
        """By called AE title."""
        self.sessions: set[InboundSession] = set()
        self._pending: dict[Connection, None] = {}
        self._tls: SecurePort | None = None

    # --- listening

    @property
    def tls(self) -> TlsServer | None:
        """How connections are secured; None: not."""
        return None if self._tls is None else self._tls.settings

    def secure(self, settings: TlsServer | None) -> None:
        """From now on connections are secured like this. Raises ``Unavailable``, then they are as before."""
        if settings != self.tls:
            self._tls = None if settings is None else SecurePort(settings)

    def close(self) -> None:
        """Accept nothing more, and close connections that are no association. Safe to call twice."""
        super().close()
        for pending in list(self._pending):
            pending.cut()
        self._pending.clear()

    async def end_associations(self, receiver: Receiver) -> None:
        """End those of one receiver; returns when they have ended."""
        running = [session for session in self.sessions if session.receiver is receiver]
        await gatherResults([Deferred.fromCoroutine(session.stop()) for session in running])

    def count(self, receiver: Receiver, peer: str | None = None) -> int:
        """How many associations of this receiver run (with this peer)."""
        return sum(item.receiver is receiver and peer in (None, item.association.peer) for item in self.sessions)

    # --- one connection

    def greet(self, sock: socket.socket, address: Any) -> None:
        """See ``Acceptor``."""
        while len(self._pending) >= MAX_PENDING:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            oldest.cut()
        association = core.Association.acceptor(DEFAULT_MAX_PDU)
        # Until there is a request the ARTIM timer counts, not silence.
        of_it = self._reactor, association, 2 * connections.ARTIM_SECS
        protocol: Any
        if self._tls is None:
            connection = protocol = Connection(*of_it)
        else:
            connection = SecureInbound(*of_it)
            protocol = self._tls.wrap(connection)
        # Twisted asks for its own Port there, and uses it for its log prefix only.
        transport: Any = Server(sock, protocol, address, None, sock.fileno(), self._reactor)  # type: ignore[arg-type]
        transport.repstr = f"<DICOM connection from {address[0]}>"
        self._pending[connection] = None
        connection.closed.addCallback(lambda _: self._pending.pop(connection, None))
        transport.protocol.makeConnection(transport)
        Deferred.fromCoroutine(self._first_event(connection)).addErrback(self._say_failed, connection)

    def _say_failed(self, failure: Failure, connection: Connection) -> None:
        self._log.failure("a connection could not be handled, by our fault", failure, port=self.port)
        connection.cut()

    async def _first_event(self, connection: Connection) -> None:
        try:
            event = await connection.receive()
            if isinstance(event, core.Requested) and connection.association.state is not core.State.STA3:
                event = await connection.receive()  # behind its request came what has ended it already
        except Silence:
            connection.cut()
            return
        match event:
            case core.Requested(request):
                self._requested(connection, request)
            case core.Rejected(text=text):
                self._log.warn("association from {peer}: {text}", peer=connection.peer, text=text, port=self.port)
            case core.Aborted(text=text):
                self._say_no_association(connection, text)
            case _:
                self._say_no_association(connection, "there was no whole A-ASSOCIATE-RQ when the connection ended")

    def _say_no_association(self, connection: Connection, why: str) -> None:
        problem = connection.inbound_problem()
        say = self._log.warn if problem else self._log.info
        say("{peer} connected to port {port}, and asked for no association: {why}",
            peer=connection.peer, port=self.port, why=problem or why)  # fmt: skip
        if problem:
            self.on_refusal(Refusal(connection.peer, self.port, problem))

    def _requested(self, connection: Connection, request: core.AssociateRequest) -> None:
        answer = self._judge(request, connection.peer)
        if not isinstance(answer, Rejection):
            self._accept(connection, request, answer)
            return
        connection.reject(answer)
        self._log.warn(
            "association from {calling} ({peer}) to {called}: {text}",
            calling=printable(request.calling_aet), peer=connection.peer, called=printable(request.called_aet),
            text=answer.text, port=self.port,
        )  # fmt: skip
        self.tell_of(answer, request.calling_aet, request.called_aet, connection.peer)

    def _judge(self, request: core.AssociateRequest, peer: str) -> Receiver | Rejection:
        owner = self.owners.get(request.called_aet)
        if owner is None:
            return Rejection.CALLED_AE_TITLE_NOT_RECOGNIZED
        if not request.calling_aet or request.calling_aet != printable(request.calling_aet):
            return Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED
        return owner.admit(request, peer)

    def _accept(self, connection: Connection, request: core.AssociateRequest, receiver: Receiver) -> None:
        titles = request.called_aet, request.calling_aet
        known = Association(uuid.uuid4().hex, *titles, connection.peer, connection.certificate)
        connection.association.accept(receiver.answer(request), _INFORMATION, max_pdu=receiver.max_pdu)
        connection.allow_silence(receiver.association_timeout_secs)
        connection.flush()
        session = InboundSession(connection, known, receiver)
        self._pending.pop(connection, None)
        self.sessions.add(session)
        self._log.info(
            "association from {calling} ({peer}{proof}) to {called}",
            calling=known.calling_aet, peer=known.peer, called=known.called_aet, association_id=known.id,
            proof=connection.proof and f", {connection.proof}",
        )  # fmt: skip
        Deferred.fromCoroutine(session.run()).addBoth(lambda _: self._ended(session))

    def _ended(self, session: InboundSession) -> None:
        """Its peer may take its time to close the connection."""
        self.sessions.discard(session)
        if self.is_open and not session.connection.closed.called:
            self._pending[session.connection] = None
