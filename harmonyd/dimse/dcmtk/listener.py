"""A DICOM port of our own: looks at each A-ASSOCIATE-RQ, refuses, or hands the connection to a storescp of its own.

Each AE title that is answered to has an owner, who says for each association who receives over it.
"""

from __future__ import annotations

import socket
import uuid
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from harmonyd.dimse.accepting import Acceptor
from harmonyd.dimse.associate import APPLICATION_CONTEXT, AssociateRequest, Rejection, printable
from harmonyd.dimse.dcmtk.arrivals import SharedInotify
from harmonyd.dimse.dcmtk.handshake import Handshake, Refused
from harmonyd.dimse.dcmtk.inetd import InboundAssociation, Receiving
from harmonyd.dimse.dcmtk.run import Toolbox
from harmonyd.dimse.dcmtk.secure_handshake import SecureHandshake
from harmonyd.dimse.engine import Association
from harmonyd.dimse.tls_server import SecurePort
from harmonyd.errors import HarmonydError
from harmonyd.supervision.ports import problem_text
from harmonyd.tls import TlsServer

MAX_PENDING = 256
"""Connections without a whole A-ASSOCIATE-RQ, and refused ones not closed yet; the oldest makes room for the next."""


class Owner(Protocol):
    """Who answers to an AE title."""

    def admit(self, request: AssociateRequest, peer: str) -> Receiving | Rejection:
        """Who receives over this association, or why it is refused."""
        ...


Opening = Handshake | SecureHandshake


class AssociationListener(Acceptor):
    """Listens from ``open`` to ``close``; associations that run go on after that."""

    _log = Logger()

    def __init__(self, box: Toolbox, bind_addr: str, port: int) -> None:
        super().__init__(box.reactor, bind_addr, port)
        self.owners: dict[str, Owner] = {}
        """By called AE title."""
        self.associations: set[InboundAssociation] = set()
        self._box = box
        self._inotify: SharedInotify | None = None
        self._pending: dict[Opening | Refused, None] = {}
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

    def open(self, folder: Path) -> None:
        """Listen. ``folder`` is named where the kernel gives no inotify. Raises ``Unavailable``, ``EngineFailed``."""
        self._inotify = self._inotify or SharedInotify(self._box.reactor, folder)
        try:
            self.listen(problem_text)
        except BaseException:
            self._close_inotify()
            raise

    def close(self) -> None:
        """Accept nothing more, and end connections that are no association yet. Safe to call twice."""
        super().close()
        for pending in list(self._pending):
            pending.close()
        self._pending.clear()
        self._close_inotify()

    async def end_associations(self, receiving: Receiving) -> None:
        """End those over which it receives; returns when they have ended."""
        running = [item for item in self.associations if item.receiving is receiving]
        await gatherResults([Deferred.fromCoroutine(association.stop()) for association in running])

    def count(self, receiving: Receiving, peer: str | None = None) -> int:
        """Over how many associations (with this peer) it receives now."""
        return sum(
            item.receiving is receiving and peer in (None, item.association.peer) for item in self.associations
        )

    def _close_inotify(self) -> None:
        if self._sock is None and not self.associations and self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    # --- one connection

    def greet(self, sock: socket.socket, address: Any) -> None:
        """See ``Acceptor``."""
        while len(self._pending) >= MAX_PENDING:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            oldest.close()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = str(address[0]).removeprefix("::ffff:")
        if self._tls is None:
            self._pending[Handshake(self._box.reactor, sock, peer, self._requested, self._gone)] = None
            return
        secure = SecureHandshake(self._box.reactor, peer, self._requested, self._gone)
        self._pending[secure] = None
        try:
            secure.begin(sock, self._tls)
        except BaseException:
            self._pending.pop(secure, None)
            secure.close()
            raise

    def _gone(self, handshake: Opening, why: str) -> None:
        self._pending.pop(handshake, None)
        say = self._log.warn if handshake.problem else self._log.info
        say("{peer} connected to port {port}, and asked for no association: {why}",
            peer=handshake.peer, port=self.port, why=handshake.problem or why)  # fmt: skip

    def _requested(self, handshake: Opening, request: AssociateRequest) -> None:
        answer = self._judge(request, handshake.peer)
        rejection = answer if isinstance(answer, Rejection) else self._accept(handshake, request, answer)
        if rejection is None:
            return
        self._pending.pop(handshake, None)
        refused = handshake.refuse(rejection)
        self._pending[refused] = None
        refused.on_close = lambda: self._pending.pop(refused, None)
        self._log.warn(
            "association from {calling} ({peer}) to {called}: {text}",
            calling=printable(request.calling_aet), peer=handshake.peer, called=printable(request.called_aet),
            text=rejection.text, port=self.port,
        )  # fmt: skip
        self.tell_of(rejection, request.calling_aet, request.called_aet, handshake.peer)

    def _judge(self, request: AssociateRequest, peer: str) -> Receiving | Rejection:
        if not request.protocol_version & 1:
            return Rejection.PROTOCOL_VERSION_NOT_SUPPORTED
        if request.application_context != APPLICATION_CONTEXT:
            return Rejection.APPLICATION_CONTEXT_NAME_NOT_SUPPORTED
        owner = self.owners.get(request.called_aet)
        if owner is None:
            return Rejection.CALLED_AE_TITLE_NOT_RECOGNIZED
        if not request.calling_aet or request.calling_aet != printable(request.calling_aet):
            return Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED
        return owner.admit(request, peer)

    def _accept(self, handshake: Opening, request: AssociateRequest, receiving: Receiving) -> Rejection | None:
        titles = request.called_aet, request.calling_aet
        known = Association(uuid.uuid4().hex, *titles, handshake.peer, handshake.certificate)
        assert self._inotify is not None
        try:
            association = InboundAssociation(self._box, handshake.hand_over(), known, receiving, self._ended)
            association.start(self._inotify)
        except (HarmonydError, OSError) as error:
            self._log.error("no storescp for an association: {error}", error=error, port=self.port)
            handshake.kept()
            return Rejection.TEMPORARY_CONGESTION
        self._pending.pop(handshake, None)
        handshake.handed_over()
        if not association.has_ended:
            self.associations.add(association)
        self._log.info(
            "association from {calling} ({peer}{proof}) to {called}",
            calling=known.calling_aet, peer=known.peer, called=known.called_aet, child=f"storescp:{known.id}",
            proof=handshake.proof and f", {handshake.proof}",
        )  # fmt: skip
        return None

    def _ended(self, association: InboundAssociation) -> None:
        self.associations.discard(association)
        self._close_inotify()
