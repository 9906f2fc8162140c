"""The same over TLS: it asks for its association, or lets the peer ask, when the peer has proved who it is."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.errors import DimseError
from harmonyd.dimse.native import connection
from harmonyd.dimse.native.connection import LAST_WORDS_SECS, Connection
from harmonyd.dimse.tls_client import Verdict, tls_problem
from harmonyd.dimse.tls_server import caller_problem, shown_by


class OverTls(Connection):
    """What both roles have in common."""

    cut_secs = LAST_WORDS_SECS
    """The peer's close_notify is of no use to us: DICOM says by itself when all is said."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._reason: BaseException | None = None
        self._is_secured = False

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._reason = reason.value
        super().connectionLost(reason)

    def _connected(self) -> None:
        """The handshake comes first."""

    def _wire(self) -> Any:
        return self.transport.transport

    def _end_writing(self) -> None:
        """A close_notify; what the peer still sends is read until it closes, too (RFC 8446 section 6.1)."""
        self.transport.loseConnection()


@implementer(IHandshakeListener)
class SecureConnection(OverTls):
    """``secured`` fires once: with True after the handshake, with False when the connection is gone before."""

    verdict: Verdict

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.secured = Deferred()

    def problem(self, remote: RemoteNode) -> DimseError | None:
        """What went wrong in TLS; None when it was not TLS that ended the connection."""
        return tls_problem(remote, self.verdict, self._reason, is_secured=self._is_secured)

    def handshakeCompleted(self) -> None:
        """Nothing is said to a peer whose certificate was not looked at, whatever the library thinks of it."""
        if not self.verdict.is_good:
            self.cut()
            return
        self._is_secured = True
        self._begin()
        self._tell(True)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._tell(False)

    def _tell(self, is_secured: bool) -> None:
        if self.secured is not None and not self.secured.called:
            self.secured.callback(is_secured)


@implementer(IHandshakeListener)
class SecureInbound(OverTls):
    """A connection that a peer began (``tls_server.Caller``); ARTIM counts for its handshake, too."""

    raw_bytes = b""
    verify_code = 0

    def inbound_problem(self) -> str:
        """What went wrong in TLS; empty when nothing did."""
        return caller_problem(self, self._reason, is_secured=self._is_secured)

    def handshakeCompleted(self) -> None:
        self._is_secured = True
        self.proof, self.certificate = shown_by(self.transport.getHandle())
        self._begin()

    def _connected(self) -> None:
        self._give_until(connection.ARTIM_SECS)
