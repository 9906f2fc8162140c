"""An accepted connection until its A-ASSOCIATE-RQ is there as a whole. It is looked at, never taken out of the socket.

Whoever sends something else, or sends slowly, or nothing, costs a descriptor for a bounded time, and no process.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

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
from harmonyd.dimse.dcmtk.wire import PlainWire
from harmonyd.dimse.tls_failures import inbound_plain_problem
from harmonyd.subject import PeerCertificate

CLOSE_SECS = 5.0
"""For a peer that was refused, to close its side."""
_POLL_SECS = 0.05
_DISCARD_BYTES = 65536
_CLOSE_WAIT = 8
"""TCP_CLOSE_WAIT (linux/tcp_states.h), the first byte of ``struct tcp_info``: the peer has sent all it will send."""


class Reader:
    """A socket in the reactor for a bounded time; what inherits adds ``doRead`` (``IReadDescriptor``)."""

    def __init__(self, reactor: Any, sock: socket.socket, limit_secs: float) -> None:
        self.sock = sock
        self.on_close: Callable[[], object] = lambda: None
        self._reactor = reactor
        self._timer = reactor.callLater(limit_secs, self.timed_out)
        self._again: Any = None
        reactor.addReader(self)

    def fileno(self) -> int:
        return self.sock.fileno()

    def logPrefix(self) -> str:
        return "dicom"

    def connectionLost(self, reason: Any) -> None:
        """The reactor gives up on the descriptor, or ends."""
        self.close()

    def timed_out(self) -> None:
        self.close()

    def detach(self) -> None:
        """Leave the reactor; the socket stays open."""
        for call in (self._timer, self._again):
            if call is not None and call.active():
                call.cancel()
        self._reactor.removeReader(self)

    def close(self) -> None:
        """Leave the reactor and close the socket. Safe to call twice."""
        if self.sock.fileno() >= 0:
            self.detach()
            self.sock.close()
            self.on_close()

    def look_later(self) -> None:
        """Bytes are there, but not enough of them: a level-triggered reactor would ask again at once."""
        self._reactor.removeReader(self)
        self._again = self._reactor.callLater(_POLL_SECS, self._reactor.addReader, self)


class Handshake(Reader):
    """Calls ``on_request`` with itself and the request once that is there, and ``on_end`` when it will not be."""

    proof = ""
    """What the peer has shown of itself."""
    certificate: PeerCertificate | None = None

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket,
        peer: str,
        on_request: Callable[[Handshake, AssociateRequest], None],
        on_end: Callable[[Handshake, str], None],
    ) -> None:
        self.peer = peer
        self.problem = ""
        """What is wrong below DICOM."""
        self._on_request = on_request
        self._on_end = on_end
        self._want = HEADER_BYTES
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, HEADER_BYTES)
        super().__init__(reactor, sock, ARTIM_SECS)

    def _set_low_water_mark(self, count: int) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    def doRead(self) -> None:
        """Look whether the request is there."""
        try:
            data = self.sock.recv(self._want, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError as error:
            self.give_up(error.strerror or "the connection broke")
            return
        try:
            self._look(data)
        except NotAnAssociateRequest as error:
            self.problem = inbound_plain_problem(data)
            with contextlib.suppress(OSError):
                self.sock.send(abort_pdu())
            self.give_up(error.detail)

    def _look(self, data: bytes) -> None:
        if not data:
            self.give_up("nothing was sent")
        elif data[0] != 1:
            request_bytes(data.ljust(HEADER_BYTES, b"\0"))
        elif len(data) < self._want:
            if self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSE_WAIT:
                self.give_up("it ended in the middle of the first PDU")
            else:
                self.look_later()
        elif self._want == HEADER_BYTES:
            self._want = request_bytes(data)
            self._set_low_water_mark(self._want)
            self.doRead()
        else:
            request = read_request(data)
            self._set_low_water_mark(1)
            self._on_request(self, request)

    def timed_out(self) -> None:
        self.give_up(f"no whole A-ASSOCIATE-RQ within {ARTIM_SECS:g} s")

    def give_up(self, why: str) -> None:
        """Close the connection."""
        self.close()
        self._on_end(self, why)

    def hand_over(self) -> PlainWire:
        """What a storescp gets: ``handed_over`` or ``kept`` must be called next. Raises OSError.

        It is a descriptor of its own: should the program not start, this one can still answer.
        """
        return PlainWire(self.sock.dup())

    def kept(self) -> None:
        """Nobody has taken it."""
        self.sock.setblocking(False)

    def handed_over(self) -> None:
        """The storescp runs."""
        self.close()

    def refuse(self, rejection: Rejection) -> Refused:
        """Answer with an A-ASSOCIATE-RJ, and close once the peer has. The request itself is thrown away."""
        self.detach()
        with contextlib.suppress(OSError):
            self.sock.recv(self._want)
            self.sock.send(rejection.pdu())
            self.sock.shutdown(socket.SHUT_WR)
        return Refused(self._reactor, self.sock, CLOSE_SECS)


class Refused(Reader):
    """Waits until the peer has closed: closing first, with bytes unread, would destroy the answer on its way."""

    def doRead(self) -> None:
        """Throw away what still comes."""
        try:
            if not self.sock.recv(_DISCARD_BYTES):
                self.close()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
