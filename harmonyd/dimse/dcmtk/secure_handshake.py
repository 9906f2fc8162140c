"""An accepted connection on a port with TLS, until its A-ASSOCIATE-RQ is there as a whole; and what then leads to it.

We end TLS. A storescp gets one end of a pair of sockets that have no name, so that nobody else can come in between.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from harmonyd.dimse.associate import (
    ARTIM_SECS,
    HEADER_BYTES,
    AssociateRequest,
    NotAnAssociateRequest,
    Rejection,
    abort_pdu,
    read_request,
    request_bytes,
)
from harmonyd.dimse.dcmtk.handshake import CLOSE_SECS
from harmonyd.dimse.dcmtk.relay import End, SecureEnd, attach
from harmonyd.dimse.tls_server import SecurePort, caller_problem, shown_by
from harmonyd.subject import PeerCertificate


class SecureWire:
    """Implements ``wire.Wire``."""

    env: Mapping[str, str] = {"TCP_NODELAY": "0"}
    """DCMTK does not take a socket on which that cannot be set; there is nothing to delay on this one."""

    def __init__(self, sock: socket.socket, end: End) -> None:
        self.sock = sock
        self._end = end

    def received_bytes(self) -> int:
        """See ``Wire``."""
        return self._end.received_bytes


@implementer(IHandshakeListener)
class SecureHandshake(SecureEnd):
    """The same as ``handshake.Handshake``, over TLS; ARTIM counts for that, too. Implements ``tls_server.Caller``."""

    raw_bytes = b""
    verify_code = 0

    def __init__(
        self,
        reactor: Any,
        peer: str,
        on_request: Callable[[SecureHandshake, AssociateRequest], None],
        on_end: Callable[[SecureHandshake, str], None],
    ) -> None:
        super().__init__(reactor)
        self.peer = peer
        self.proof = ""
        self.certificate: PeerCertificate | None = None
        self.problem = ""
        self.on_close: Callable[[], object] = lambda: None
        self._on_request = on_request
        self._on_end = on_end
        self._ours: socket.socket | None = None
        self._is_over = False
        """It was asked for an association, or will not be."""
        self._is_refused = False
        self._timer = reactor.callLater(ARTIM_SECS, self._time_is_over)

    def begin(self, sock: socket.socket, port: SecurePort) -> None:
        """Shake hands over an accepted connection. Raises OSError when the peer is gone already."""
        attach(self._reactor, sock, port.wrap(self), self.peer)

    def handshakeCompleted(self) -> None:
        self.is_secured = True
        self.proof, self.certificate = shown_by(self.transport.getHandle())

    def _hold(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._held += data
        if self._is_over:
            self.pauseProducing()
            return
        try:
            self._look()
        except NotAnAssociateRequest as error:
            self.transport.write(abort_pdu())
            self._give_up(error.detail)
            self.refused()

    def _look(self) -> None:
        data = bytes(self._held)
        if data[0] != 1:
            request_bytes(data.ljust(HEADER_BYTES, b"\0"))
        if len(data) < HEADER_BYTES or len(data) < request_bytes(data):
            return
        request = read_request(data[: request_bytes(data)])
        self._settle()
        self.pauseProducing()
        self._on_request(self, request)

    def _settle(self) -> None:
        self._is_over = True
        if self._timer.active():
            self._timer.cancel()

    def _give_up(self, why: str) -> None:
        if not self._is_over:
            self._settle()
            self._on_end(self, why)

    def _time_is_over(self) -> None:
        self.problem = caller_problem(self, None, is_secured=self.is_secured)
        self._give_up(f"no whole A-ASSOCIATE-RQ within {ARTIM_SECS:g} s")
        self.cut()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self.problem = caller_problem(self, self.reason, is_secured=self.is_secured)
        self._give_up("there was no whole A-ASSOCIATE-RQ when the connection ended")
        self.on_close()

    # --- what becomes of it

    def refuse(self, rejection: Rejection) -> SecureHandshake:
        """Answer with an A-ASSOCIATE-RJ, and close once the peer has. The request itself is thrown away."""
        self.transport.write(rejection.pdu())
        self.refused()
        return self

    def refused(self) -> None:
        """All is said; the peer has ``CLOSE_SECS`` to close."""
        self._is_refused = True
        self._held.clear()
        self.last_words_secs = CLOSE_SECS
        self.finish()

    def close(self) -> None:
        """Close the connection, unless it was handed over."""
        self._settle()
        self.cut()

    def hand_over(self) -> SecureWire:
        """What a storescp gets: ``handed_over`` or ``kept`` must be called next. Raises OSError."""
        self._ours, theirs = socket.socketpair()
        return SecureWire(theirs, self)

    def kept(self) -> None:
        """Nobody has taken it."""
        if self._ours is not None:
            self._ours.close()

    def handed_over(self) -> None:
        """The storescp runs: it gets the request, and all that comes."""
        assert self._ours is not None
        end = End(self._reactor)
        with contextlib.suppress(OSError):
            attach(self._reactor, self._ours, end)
            end.join(self)
