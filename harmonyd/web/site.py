"""Connections: Twisted's HTTP/1.1 server, with refusals that reach their client and a limit on open connections.

Twisted decides by itself what a body is, when a request is whole and in what order pipelined requests are answered.
Added here is what it leaves open: a request with a big body is passed on, or refused, before the body is there; a
client that is still sending gets to read an answer that comes before the end of its request; one that reads slowly, but
reads, or that waits for us, is not timed out.

What Twisted knows nothing of is such an *upload*, and it is kept out of its sight: handlers run only when its parser
has done with what arrived (``dataReceived``), and a connection on which an answer overtook its request is not used for
another one (``requestDone``).
"""

# mypy: allow-untyped-calls
# (most methods of Twisted's classes have no types)

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Protocol
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from twisted.web import http

from harmonyd.errors import BadRequest, HarmonydError, Unavailable
from harmonyd.web.problem import problem
from harmonyd.web.request import SERVER, Front, Request, request_id
from harmonyd.web.stream import unread_bytes

__all__ = ["Channel", "Site"]

DISCARD_BYTES = 256 * 1024 * 1024
"""How much of a body is thrown away after the answer, for clients that read only after they sent everything."""
LINGER_SECS = 30.0
"""How long that may take."""
_ONCE = (b"host", b"content-length", b"transfer-encoding")
_BUSY_LINGER_SECS = 2.0
_MAX_BUSY = 50


class Channel(http.HTTPChannel):
    """One connection, and the ``Source`` of the body that arrives on it.

    ``_upload`` is the request that is being answered while its body arrives. While ``_discarding``, an answer was given
    and all that still arrives is thrown away.
    """

    # Twisted's classes leave these without types, or with types that are too narrow.
    requestFactory: Any = Request  # noqa: N815
    factory: Any
    transport: Any
    requests: list[Request]
    _command: Any
    _path: Any
    _version: Any
    _networkProducer: Any  # noqa: N815

    asked = False
    """Whether the head of a request has arrived."""
    _upload: Request | None = None
    _held = False
    _discarding = False
    _closing = False
    _discarded_bytes = 0
    _unread_bytes: int | None = None

    def connectionMade(self) -> None:
        """Count the connection."""
        self.factory.connections.add(self)
        super().connectionMade()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Forget the connection."""
        super().connectionLost(reason)
        self._upload = None
        self.factory.forget(self)

    def dataReceived(self, data: bytes) -> None:
        """Parse, and then let the upload go on with what was found; or throw away within limits."""
        if self._discarding:
            self._discard(len(data))
            return
        super().dataReceived(data)
        upload = self._upload
        if upload is not None:
            if upload.is_whole:
                self._upload = None
            upload.go_on()

    def _discard(self, size_bytes: int) -> None:
        self._discarded_bytes += size_bytes
        if self._discarded_bytes > DISCARD_BYTES:
            self.abort()

    def lineReceived(self, line: bytes) -> None:
        """Ignore the rest of a buffer that turned out not to be HTTP."""
        if not self._discarding:
            super().lineReceived(line)

    def rawDataReceived(self, data: bytes) -> None:
        """Ignore the rest of a buffer that turned out not to be HTTP."""
        if not self._discarding:
            super().rawDataReceived(data)

    def lineLengthExceeded(self, line: bytes) -> None:
        """Say so, where the base class only hangs up."""
        self._respondToBadRequestAndDisconnect()

    def headerReceived(self, line: bytes) -> bool:
        """Refuse what another server on the way may understand otherwise (RFC 9112 sections 3.2, 6.1 and 6.3)."""
        name = line.partition(b":")[0].lower()
        known = self.requests[-1].requestHeaders if self.requests else None
        is_again = name in _ONCE and known is not None and known.hasHeader(name)
        if is_again or (name == b"transfer-encoding" and self._version != b"HTTP/1.1"):
            self._respondToBadRequestAndDisconnect()
            return False
        return bool(super().headerReceived(line))

    def allHeadersReceived(self) -> None:
        """Decide about the request before the client is told to go on with the body (RFC 9110 section 10.1.1)."""
        request = self.requests[-1]
        if request.begin(self._command, self._path, self._version, self.length):
            self._upload = request
        self.asked = True
        super().allHeadersReceived()

    def allContentReceived(self) -> None:
        """Leave it to Twisted again what is read from the client, now that the body is there."""
        self.release()
        super().allContentReceived()

    def requestDone(self, request: Request) -> None:
        """Throw away what is missing of a request that was answered before it was whole."""
        if request.is_overtaken:
            self.persistent = False
        if not request.is_whole:
            self._upload = None
            self._discarding = True
        super().requestDone(request)

    def hold(self) -> None:
        """Read nothing from the client until ``release`` (``Source``)."""
        self._held = True
        self.transport.pauseProducing()

    def release(self) -> None:
        """Go on reading (``Source``)."""
        if self._held:
            self._held = False
            self.transport.resumeProducing()

    def want(self) -> None:
        """Let the client know that its body is waited for, if it asked; its silence counts from now (``Source``)."""
        self.resetTimeout()
        if self._upload is not None:
            self._upload.invite()

    def resumeProducing(self) -> None:
        """Let answers flow again; read on only if the body's reader agrees."""
        super().resumeProducing()
        if self._held:
            self.transport.pauseProducing()

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """Keep no connection when we are shutting down."""
        keep = bool(super().checkPersistence(request, version))
        if keep and self.factory.front.stopping:
            request.responseHeaders.setRawHeaders("Connection", ["close"])
            return False
        return keep

    def loseConnection(self) -> None:
        """Close; only our half while the client sends: closing both would reset it and could destroy the answer."""
        if not self._discarding:
            super().loseConnection()
            return
        self._networkProducer.unregisterProducer()
        self._networkProducer.resumeProducing()
        self.transport.loseWriteConnection()
        self.setTimeout(LINGER_SECS)

    def close_soon(self) -> None:
        """Flush what was written and close; abort when the client does not take it in time."""
        self._closing = True
        self.unregisterProducer()
        self.loseConnection()
        self.setTimeout(self.factory.timeOut)

    def close_when_idle(self) -> None:
        """Close now, or after the request that is under way, or that a client who just connected is about to send."""
        if self.asked:
            self.close_when_silent()

    def close_when_silent(self) -> None:
        """Close now, or after the request that is under way."""
        self.persistent = False
        if not self.requests:
            self.close_soon()

    def abort(self) -> None:
        """Reset the connection."""
        self.transport.abortConnection()

    def timeoutConnection(self) -> None:
        """Close a silent connection, unless the client still reads, or waits for us; abort what does not close."""
        unread, before = unread_bytes(self.transport), self._unread_bytes
        self._unread_bytes = unread
        is_reading = bool(unread) and unread != before
        waits_for_us = self._upload is not None and not self._upload.is_awaited and not self._closing
        if (is_reading or waits_for_us) and not self._discarding:
            self.setTimeout(self.factory.timeOut)
        elif self._discarding or self._closing:
            self.abort()
        else:
            self.close_soon()

    def _respondToBadRequestAndDisconnect(self) -> None:
        # Twisted's own answer has neither body nor correlation id. It calls this more than once for one request.
        if self._discarding:
            return
        if self._upload is not None and not self._upload.is_whole:
            # The handler may have begun to answer: it is told, and not talked over.
            self._upload.fail(BadRequest("The body of the request is not in well-formed chunks."))
            self.hold()
            return
        self._discarding = True
        error = BadRequest("This is not an HTTP/1.1 request, or its head is larger than 16 KiB.")
        self.transport.write(_bare_response(error))
        self.loseConnection()


class Busy(Protocol, TimeoutMixin):
    """A connection beyond the limit: told so and closed, without parsing anything."""

    factory: Any
    transport: Any

    def connectionMade(self) -> None:
        """Answer whatever will be asked."""
        self.factory.busy.add(self)
        error = Unavailable("Too many HTTP connections are open.", hint="Try again later, or raise max_connections.")
        self.transport.write(_bare_response(error))
        self.transport.loseWriteConnection()
        self.setTimeout(_BUSY_LINGER_SECS)

    def connectionLost(self, reason: Any = None) -> None:
        """Forget the connection."""
        self.setTimeout(None)
        self.factory.forget(self)

    def timeoutConnection(self) -> None:
        """Wait no longer for the client to close."""
        self.abort()

    def abort(self) -> None:
        """Reset the connection."""
        self.transport.abortConnection()


class Site(http.HTTPFactory):
    """Makes connections, up to the limit. Its own access log is off: the front end's leaves out what may be private."""

    noisy = False
    """No "Starting factory": the front end says where it listens."""

    def __init__(self, reactor: Any, front: Front) -> None:
        super().__init__(timeout=front.limits.request_timeout_secs, reactor=reactor)
        self.front = front
        self.connections: set[Channel] = set()
        self.busy: set[Busy] = set()

    def startFactory(self) -> None:
        """Do nothing, where the base class starts its access log."""

    def stopFactory(self) -> None:
        """Do nothing, where the base class stops its access log."""

    def log(self, request: http.Request) -> None:
        """Do nothing, where the base class writes its access log."""

    def buildProtocol(self, addr: Any) -> Any:
        """Return a connection, one that says that we are busy, or None to hang up."""
        if len(self.busy) > _MAX_BUSY:
            return None
        is_full = len(self.connections) >= self.front.limits.max_connections
        channel: Any = Busy() if is_full else Channel()
        channel.factory = self
        channel.callLater = self.reactor.callLater
        channel.timeOut = None if is_full else self.timeOut
        return channel

    def forget(self, connection: Any) -> None:
        """Take note that a connection is gone."""
        self.connections.discard(connection)
        self.busy.discard(connection)
        self.front.connection_closed()

    @property
    def is_empty(self) -> bool:
        """Whether no connection is open."""
        return not self.connections and not self.busy

    def abort_all(self) -> None:
        """Reset every connection."""
        for channel in list(self.connections):
            channel.abort()
        for busy in list(self.busy):
            busy.abort()


def _bare_response(error: HarmonydError) -> bytes:
    status, headers, body = problem(error, request_id=(fresh := request_id()), operation=None)
    headers |= {"Server": SERVER, "X-Request-ID": fresh, "Content-Length": str(len(body)), "Connection": "close"}
    reason = http.RESPONSES[status].decode("ascii")
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
