"""One association over a Twisted transport, for both roles: ``core`` decides, this moves the bytes.

Nothing is called back: whoever drives the association asks for its next event, and sends when there is room. What
waits to be read is bounded, by not reading from the socket, and so is what waits to be written.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from harmonyd.dimse.associate import Rejection
from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.errors import DimseError
from harmonyd.dimse.native import core
from harmonyd.dimse.native.silence import SilenceWatch, unsent_bytes
from harmonyd.dimse.tls_failures import inbound_plain_problem, speaks_tls
from harmonyd.subject import PeerCertificate

MAX_WAITING_BYTES = 1024 * 1024
"""So much of data sets may wait to be read; more stays in the socket."""
MAX_WAITING_EVENTS = 1000
ARTIM_SECS = 30.0
"""The peer's time to send its request, and to close the connection when all is said (PS3.8 section 9.1.5)."""
LAST_WORDS_SECS = 2.0
"""How long the peer may take to read our A-ABORT before the connection is cut."""
PROGRESS_BYTES = 1000
"""So much of a data set ends a silence; a byte now and then does not."""
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


class Silence(Exception):
    """The peer neither said anything (or hardly anything), nor took what was sent, for as long as is allowed."""


@implementer(IPushProducer)
class Connection(Protocol):
    """Made for one association; ``closed`` fires once, with None, when the transport connection is gone."""

    transport: Any
    cut_secs = 10.0
    """How long what was written may take to leave, once all is said."""
    secured: Deferred[bool] | None = None
    """See ``connecting.Attempted``."""
    proof = ""
    """What the peer has shown of itself, for the log; nothing without TLS."""
    certificate: PeerCertificate | None = None

    def __init__(self, reactor: Any, association: core.Association, silence_secs: float) -> None:
        self.association = association
        self.closed: Deferred[None] = Deferred()
        self.peer = ""
        """IP address."""
        self._reactor = reactor
        self._events: deque[core.Event] = deque()
        self._waiting_bytes = 0
        self._waiters: list[Deferred[None]] = []
        self._interruption: Exception | None = None
        self._silence = SilenceWatch(
            reactor, silence_secs, lambda: unsent_bytes(self._wire()), lambda: self._fail_waiters(Silence())
        )
        self._trickled_bytes = 0
        self._end_call: Any = None
        self._is_reading = True
        self._may_write = True
        self._is_connected = False
        self._is_losing = False
        self._is_half_closed = False
        self._first_bytes = b""

    def problem(self, remote: RemoteNode) -> DimseError | None:
        """What is wrong below DICOM, where there is no association; None when nothing is."""
        return speaks_tls(remote, self._first_bytes)

    def inbound_problem(self) -> str:
        """The same for a connection that the peer began, for the log; empty when nothing is."""
        return inbound_plain_problem(self._first_bytes)

    # --- events

    async def receive(self) -> core.Event:
        """The next event; ``ConnectionLost`` for ever after the one that ended the association.

        Raises ``Silence``, and what ``interrupt`` was given.
        """
        self.check()
        while not self._events:
            if not self._is_connected:
                return core.ConnectionLost()
            await self._wait()
        event = self._events.popleft()
        if isinstance(event, core.DataReceived):
            self._waiting_bytes -= len(event.fragment)
        if not self._is_reading and self._has_room(MAX_WAITING_BYTES // 2):
            self._read_on()
        return event

    def interrupt(self, error: Exception) -> None:
        """Have whoever waits, or is going to, get this error instead; the association is aborted."""
        self._interruption = error
        self.abort()
        self._fail_waiters(error)

    def check(self) -> None:
        """Raise what ``interrupt`` was given, if anything."""
        if self._interruption is not None:
            raise self._interruption

    @property
    def has_events(self) -> bool:
        """``receive`` would return at once."""
        return bool(self._events)

    def _has_room(self, limit_bytes: int) -> bool:
        return self._waiting_bytes < limit_bytes and len(self._events) < MAX_WAITING_EVENTS

    def _read_on(self) -> None:
        self._is_reading = True
        self._silence.broken()
        if self._is_connected:
            self.transport.resumeProducing()

    @property
    def silence_secs(self) -> float:
        """How long the peer may be silent."""
        return self._silence.secs

    def allow_silence(self, secs: float) -> None:
        """From now on another time."""
        self._silence.allow(secs)

    # --- sending

    @property
    def is_stuck(self) -> bool:
        """Something that was written waits for the peer to take it."""
        return self._is_connected and unsent_bytes(self._wire()) > 0

    def send(self, context_id: int, command: core.Command, data: bytes | None = None) -> None:
        """A whole message, in one write. Raises ``core.NotAllowed``."""
        self.association.send(context_id, command, has_data=data is not None)
        if data is not None:
            self.association.send_data(context_id, data, True)
        self.flush()

    def flush(self) -> None:
        """Write what the association has to say, and close the connection when that is all."""
        if not self._is_connected:
            return
        data = self.association.data_to_send()
        if data:
            self._silence.broken()
            self.transport.write(data)
        if self.association.artim:
            self._give_until(ARTIM_SECS)
            if self.association.closing:
                self._close_our_direction()
        elif self.association.closing:
            self._lose()
        elif not self._is_losing:
            self._cancel_end_call()

    async def writable(self) -> None:
        """Wait until what was written is mostly gone, or the association is over. Raises as ``receive`` does."""
        while not self._may_write and self._is_connected and self.association.established:
            self.check()
            await self._wait()
        self.check()

    # --- ending

    def release(self) -> None:
        """Ask for the end of the association; events go on until ``core.Released``. Raises ``core.NotAllowed``."""
        self.association.release()
        self.flush()

    def respond_release(self) -> None:
        """Let the peer have the end that it asked for."""
        self.association.respond_release()
        self.flush()

    def let_go(self) -> None:
        """The same, whatever the state is; unless the peer closes the connection soon, we do. Safe at any time."""
        try:
            self.respond_release()
        except core.NotAllowed:  # inside of a message, or it is gone already
            self.abort()
        else:
            self._give_until(LAST_WORDS_SECS)

    def reject(self, rejection: Rejection) -> None:
        """Refuse the association that was requested."""
        self.association.reject(rejection)
        self.flush()

    def abort(self) -> None:
        """A-ABORT, and the connection closed soon. Safe at any time."""
        self.association.abort()
        self._events.clear()
        self._waiting_bytes = 0
        if not self._is_reading:
            self._read_on()
        self.flush()
        self._give_until(LAST_WORDS_SECS)

    def _close_our_direction(self) -> None:
        """The peer sees the end behind our last words; closing with its bytes unread would destroy those."""
        if not self._is_half_closed and not self._is_losing:
            self._is_half_closed = True
            self.transport.unregisterProducer()
            self._end_writing()

    def _end_writing(self) -> None:
        self.transport.loseWriteConnection()

    def cut(self) -> None:
        """Close the connection without a word. Safe at any time."""
        if self._is_connected:
            self.transport.abortConnection()

    def _lose(self) -> None:
        if not self._is_losing:
            self._is_losing = True
            self.transport.unregisterProducer()
            self.transport.loseConnection()
            self._cancel_end_call()
            self._end_call = self._reactor.callLater(self.cut_secs, self.transport.abortConnection)

    def _give_until(self, secs: float) -> None:
        """The peer closes the connection within this time, or we do."""
        if not self._is_connected or self._is_losing:
            return
        at = self._reactor.seconds() + secs
        if self._end_call is not None and self._end_call.active() and self._end_call.getTime() <= at:
            return
        self._cancel_end_call()
        self._end_call = self._reactor.callLater(secs, self._time_is_over)

    def _time_is_over(self) -> None:
        self.association.artim_expired()
        self.transport.abortConnection()

    def _cancel_end_call(self) -> None:
        if self._end_call is not None and self._end_call.active():
            self._end_call.cancel()

    # --- waiting

    async def _wait(self) -> None:
        """Until something happens. One may wait to receive, and one to write."""
        self._silence.begin()
        waiter: Deferred[None] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)

    def _fail_waiters(self, error: Exception) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.errback(error)

    # --- Protocol

    def connectionMade(self) -> None:
        self._is_connected = True
        self._silence.broken()
        self.peer = getattr(self.transport.getPeer(), "host", "").removeprefix("::ffff:")
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        self.transport.registerProducer(self, True)
        self._connected()

    def _connected(self) -> None:
        self._begin()

    def _begin(self) -> None:
        """Ask for the association, when it is ours to ask."""
        if self.association.request is not None:
            self.association.connected()
        self.flush()

    def dataReceived(self, data: bytes) -> None:
        self._acknowledge()
        if not self._first_bytes:
            self._first_bytes = data[:3]
        self._happened(self.association.receive(data))
        if self._is_connected:
            self.flush()

    def _acknowledge(self) -> None:
        """At once, in the socket: a peer with Nagle's algorithm waits for it before it sends the rest of a message."""
        sock = self._wire().getHandle()
        if _QUICKACK is not None and isinstance(sock, socket.socket):
            sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def _wire(self) -> Any:
        """The transport that has the socket."""
        return self.transport

    def _happened(self, events: list[core.Event]) -> None:
        self._events.extend(events)
        fragments = [len(event.fragment) for event in events if isinstance(event, core.DataReceived)]
        data_bytes = sum(fragments)
        self._waiting_bytes += data_bytes
        self._trickled_bytes += data_bytes
        if self._trickled_bytes >= PROGRESS_BYTES or len(fragments) < len(events):
            self._trickled_bytes = 0
            self._silence.broken()
        if self._is_connected and self._is_reading and not self._has_room(MAX_WAITING_BYTES):
            self._is_reading = False
            self.transport.pauseProducing()
        if events:
            self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._is_connected = False
        self._happened(self.association.receive_eof())
        self._cancel_end_call()
        self._silence.stop()
        self._wake()
        self.closed.callback(None)

    # --- IPushProducer, for the transport

    def pauseProducing(self) -> None:
        self._may_write = False

    def resumeProducing(self) -> None:
        self._may_write = True
        self._wake()

    def stopProducing(self) -> None:
        self._may_write = False
