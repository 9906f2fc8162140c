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

from twisted.internet.interfaces import IHandshakeListener
from twisted.python.failure import Failure
from twisted.web import http
from zope.interface import implementer

from harmonyd.errors import BadRequest, HarmonydError, HeadTooLarge, RequestTimeout, UriTooLong
from harmonyd.subject import PeerCertificate
from harmonyd.web.pace import Pace, taken_bytes, unread_bytes
from harmonyd.web.refusing import bare_answer
from harmonyd.web.request import Request
from harmonyd.web.secure import peer_certificate, wire

__all__ = ["Channel"]

DISCARD_BYTES = 256 * 1024 * 1024
"""How much of a body is thrown away after the answer, for clients that read only after they sent everything."""
LINGER_SECS = 30.0
"""How long that may take."""
_ONCE = (b"host", b"content-length", b"transfer-encoding")
_HEAD, _BODY, _ANSWER = "head", "body", "answer"


@implementer(IHandshakeListener)
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
    is_secured = False
    """Whether its TLS stands; False where it has none."""
    verify_code = 0
    """Why the client's certificate is not trusted."""
    certificate: PeerCertificate | None = None
    _head_call: Any = None
    _body_call: Any = None
    _pace: Pace | None = None
    """Of the body that arrives, or of the answer that is taken."""
    _awaited = ""
    """What the client has to send, or to take, before anything else can be done."""
    _has_begun = False
    """Whether something of the head has arrived that is waited for."""
    _upload: Request | None = None
    _held = False
    _discarding = False
    _closing = False
    _discarded_bytes = 0
    _taken_bytes: int | None = None

    def connectionMade(self) -> None:
        """Count the connection."""
        self.factory.connections.add(self)
        super().connectionMade()
        self._await_head()

    def handshakeCompleted(self) -> None:
        """Take note of who the client is (``IHandshakeListener``)."""
        self.is_secured = True
        self.certificate = peer_certificate(self.transport)

    def _await_head(self) -> None:
        self._await_client(_HEAD)
        self._has_begun = False
        if self._head_call is None and not self.asked:
            self._limit_head()

    def await_reader(self) -> None:
        """Take note that the client has to read before anything else can be done."""
        self._await_client(_ANSWER)

    def _await_client(self, what: str) -> None:
        self.go_on_without()
        self._awaited = what
        self.factory.waiting[self] = self.factory.reactor.seconds()

    def go_on_without(self) -> None:
        """Take note that it is our turn."""
        self.factory.waiting.pop(self, None)
        self._awaited = ""
        self._pace = None

    def gives_way(self) -> bool:
        """Tell whether this client may be left for another one, when there is no room for both."""
        is_sending = self._awaited == _BODY
        if not is_sending and not unread_bytes(self.transport):
            return self._awaited == _HEAD
        done_bytes = self.requests[-1].received_bytes if is_sending else taken_bytes(self.transport)
        if done_bytes is None:
            return False
        if self._pace is None:
            self._pace = self._new_pace(done_bytes)
        return self._pace.is_behind(done_bytes)

    def _new_pace(self, done_bytes: int = 0) -> Pace:
        pace = Pace(self.factory.reactor, self.factory.timeOut, self.factory.front.limits.least_bytes, done_bytes)
        pace.wait()
        return pace

    def _limit_head(self) -> None:
        self._head_call = self.callLater(self.factory.front.limits.head_timeout_secs, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_call = None
        if self._has_begun:
            limit_secs = self.factory.front.limits.head_timeout_secs
            self._refuse(RequestTimeout(f"The head of the request did not arrive within {limit_secs:g} s."))
        else:
            self.close_soon()

    def _forget_calls(self) -> None:
        for call in (self._head_call, self._body_call):
            if call is not None:
                call.cancel()
        self._head_call = self._body_call = None

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Forget the connection."""
        self._forget_calls()
        super().connectionLost(reason)
        self._upload = None
        self.factory.forget(self)

    def dataReceived(self, data: bytes) -> None:
        """Parse, and then let the upload go on with what was found; or throw away within limits."""
        if self._discarding:
            self._discard(len(data))
            return
        if not self.requests and not self._has_begun:
            self._has_begun = True
            if self._head_call is None:
                self._limit_head()
        super().dataReceived(data)
        upload = self._upload
        if upload is not None:
            if self._pace is not None:
                self._pace.rest()
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
        self._refuse(self._too_large() if self.requests else UriTooLong("The request line is too long."))

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
        self._forget_calls()
        self.go_on_without()
        if self.length != 0:
            self._await_client(_BODY)
            self._pace = self._new_pace()
            self._body_call = self.callLater(self.factory.timeOut, self._look_at_pace)
        super().allHeadersReceived()

    def _look_at_pace(self) -> None:
        """End a body that comes too slowly."""
        self._body_call = None
        assert self._pace is not None, "there is one as long as a body is awaited"
        next_secs = self._pace.look(self.requests[-1].received_bytes)
        if next_secs:
            self._body_call = self.callLater(next_secs, self._look_at_pace)
            return
        error = RequestTimeout("The body of the request comes too slowly.", hint="See min_bytes_per_sec in [limits].")
        if self._upload is None:
            self._refuse(error)
        else:
            self.hold()
            self._upload.fail(error)
            self._upload.go_on()

    def allContentReceived(self) -> None:
        """Leave it to Twisted again what is read from the client, now that the body is there."""
        self.release()
        self._forget_calls()
        self.go_on_without()
        super().allContentReceived()

    def requestDone(self, request: Request) -> None:
        """Throw away what is missing of a request that was answered before it was whole."""
        if request.is_overtaken:
            self.persistent = False
        if not request.is_whole:
            self._upload = None
            self._discarding = True
            self._forget_calls()
            self.go_on_without()
        super().requestDone(request)
        if not self.requests and not self._closing:
            self._await_head()

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
            if self._pace is not None:
                self._pace.wait()
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
        self._forget_calls()
        self.go_on_without()
        self._closing = True
        if not self._discarding:
            super().loseConnection()
            if self.is_secured:
                # The client's close_notify is not waited for (RFC 8446 section 6.1).
                wire(self.transport).loseConnection()
            self.setTimeout(self.factory.timeOut)
            return
        self._networkProducer.unregisterProducer()
        self._networkProducer.resumeProducing()
        self.transport.loseWriteConnection()
        self.setTimeout(LINGER_SECS)

    def close_soon(self) -> None:
        """Flush what was written and close; abort when the client does not take it in time."""
        self.unregisterProducer()
        self.loseConnection()

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
        taken, before = taken_bytes(self.transport), self._taken_bytes
        self._taken_bytes = taken
        has_taken = before is None or taken is None or taken - before >= self.factory.front.limits.least_bytes
        is_reading = bool(unread_bytes(self.transport)) and has_taken
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
        is_large = self._receivedHeaderSize > self.totalHeadersSize or self._receivedHeaderCount > self.maxHeaders
        self._refuse(self._too_large() if is_large else BadRequest("This is not an HTTP/1.1 request."))

    def _too_large(self) -> HarmonydError:
        limits = self.factory.front.limits
        return HeadTooLarge(
            f"The head of a request may have {limits.max_head_bytes} bytes and {limits.max_header_fields} fields.",
            hint="See max_head_bytes and max_header_fields in [limits].",
        )

    def _refuse(self, error: HarmonydError) -> None:
        """Answer what is no request, or not whole, and read nothing more."""
        if not self._discarding:
            self._discarding = True
            self.transport.write(bare_answer(error, self.factory.front if self.is_secured else None))
            self.loseConnection()
