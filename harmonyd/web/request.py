"""One HTTP request on Twisted's side: admitted when its head is there, passed on with its body or before it."""

# mypy: allow-untyped-calls
# (most methods of Twisted's classes have no types)

from __future__ import annotations

import re
import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from twisted.web import http
from twisted.web.http_headers import Headers

from harmonyd import __version__
from harmonyd.bodies import too_large
from harmonyd.config.model import LimitsConfig
from harmonyd.envelope import Body
from harmonyd.errors import BadRequest, HarmonydError
from harmonyd.services.base import HttpRequest
from harmonyd.subject import Caller, PeerCertificate
from harmonyd.tracing import Trace, note, parse
from harmonyd.web.proxies import TrustedProxies
from harmonyd.web.route import Route
from harmonyd.web.router import Match
from harmonyd.web.upload import MEMORY_BYTES, UploadBody

if TYPE_CHECKING:
    from twisted.python.failure import Failure

__all__ = ["Front", "Request", "hsts", "request_id"]

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_JSON = re.compile(r"(application/json|[^;]*\+json)\s*(;.*)?", re.IGNORECASE)
_REASONS = {each.value: each.phrase.encode("ascii") for each in HTTPStatus}
"""Twisted knows no 429 and no 431."""
SERVER = f"harmonyd/{__version__}"


class Front(Protocol):
    """What a request needs of the front end it arrived at."""

    limits: LimitsConfig
    hsts_max_age_secs: int
    proxies: TrustedProxies
    stopping: bool

    def admit(self, request: Request) -> None:
        """Find the route; set ``match`` and ``query``. Raises a ``HarmonydError`` to refuse."""
        ...

    def process(self, request: Request) -> None:
        """Answer the request, whose body may still be arriving; once for each request."""
        ...

    def connection_closed(self) -> None:
        """Take note that there is one connection less."""
        ...


def hsts(front: Front, *, is_secured: bool) -> dict[str, str]:
    """Return what has browsers come over TLS the next time, too (RFC 6797); never told without TLS (section 7.2)."""
    secs = front.hsts_max_age_secs if is_secured else 0
    return {"Strict-Transport-Security": f"max-age={secs}"} if secs else {}


def request_id(given: str = "") -> str:
    """Return the client's correlation id when it is sane, else a fresh one."""
    return given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex


class Request(http.Request):
    """A request; ``refusal`` is why it will not be passed on, known perhaps before its body arrived."""

    # http.Request gives these no types, or types that are too narrow.
    channel: Any
    match: Match[Route] | None = None

    def __init__(self, channel: Any, *_: object) -> None:
        super().__init__(channel)
        self.front: Front = channel.factory.front
        # Twisted takes the channel away at the end of the answer.
        self._is_secured: bool = channel.is_secured
        self._certificate: PeerCertificate | None = channel.certificate
        self.id = ""
        self.trace: Trace | None = None
        """Of the client, and from ``process`` on our span in it."""
        self.query: dict[str, list[str]] = {}
        self.refusal: Exception | None = None
        self.gone = False
        self.is_whole = False
        self.is_overtaken = False
        """Whether the answer began before the request was whole. The connection ends with it."""
        self._is_passed_on = False
        self._asks = False
        self._body: UploadBody | None = None

    def begin(self, method: bytes, uri: bytes, version: bytes, length: int | None) -> bool:
        """Take note of the head; return whether the request is to be passed on, or refused, before its body is there.

        ``length`` is the body's length, None when it comes in chunks.
        """
        self.method, self.uri, self.clientproto = method, uri, version
        self.id = request_id(self._field(b"x-request-id"))
        self.trace = parse(self._joined(b"traceparent"), self._joined(b"tracestate"))
        if self.trace is not None:
            note(self.id, self.trace.trace_id)
        limit_bytes = self._limit_bytes()
        try:
            self.front.admit(self)
            if length is not None and length > limit_bytes:
                raise too_large(limit_bytes)
        except HarmonydError as exc:
            self.refusal = exc
        self._body = UploadBody(self.channel, length, limit_bytes)
        # A small body is cheaper to read than a new connection is to open, even where nobody wants it.
        is_small = length is not None and length <= MEMORY_BYTES
        asks = self._field(b"expect").lower() == "100-continue"
        if is_small and not (asks and length and self.refusal is not None):
            return False
        # Twisted would tell the client to go on before anybody wants the body.
        self.requestHeaders.removeHeader(b"expect")
        self._asks = asks and version == b"HTTP/1.1"
        return True

    @property
    def received_bytes(self) -> int:
        """How much of the body has arrived."""
        return self._body.received_bytes if self._body is not None else 0

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for more of the body."""
        return self._body is not None and self._body.is_awaited

    def invite(self) -> None:
        """Send 100 (Continue) if the client waits for it; not when it has begun to send, or we to answer."""
        asks, self._asks = self._asks, False
        if asks and not self.startedWriting and self._body is not None and not self._body.received_bytes:
            self.channel.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def gotLength(self, length: int | None) -> None:
        """Do nothing, where the base class opens a file for the body."""

    def handleContentChunk(self, data: bytes) -> None:
        """Take a piece of the body, if anybody may want it."""
        if self.refusal is None and self._body is not None:
            self._body.feed(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Take note that the body is whole; the base class would parse forms, which are the endpoint's business."""
        self.is_whole = True
        if self._body is not None:
            self._body.finish()
        if not self._is_passed_on:
            self.process()

    def go_on(self) -> None:
        """Answer, if that has not begun; else let the reader of the body have what arrived."""
        if not self._is_passed_on:
            self.process()
        elif self._body is not None:
            self._body.wake()

    def fail(self, error: Exception) -> None:
        """Let the reader of the body have ``error``, when it goes on."""
        if self._body is not None:
            self._body.fail(error)

    def process(self) -> None:
        """Answer now."""
        self._is_passed_on = True
        self.front.process(self)

    def connectionLost(self, reason: Failure) -> None:
        """End the answering, and the body if it was not whole."""
        self.gone = True
        self.fail(BadRequest("The client closed the connection before its request was whole."))
        super().connectionLost(reason)
        if self._body is not None:
            self._body.wake()

    def take_body(self) -> Body:
        """Hand the body over: in memory, or to be read while it arrives."""
        assert self._body is not None, "begin makes it"
        return self._body.settled()

    def as_http(self, match: Match[Route], body: Body) -> HttpRequest:
        """Return what an endpoint sees."""
        return HttpRequest(
            id=self.id,
            method=self.method.decode("ascii"),
            uri=self.uri.decode("latin-1"),
            path=match.path,
            prefix=match.prefix,
            headers=self.fields(),
            query=self.query,
            body=body,
            caller=self.caller(),
            is_secure=self._is_secured,
            trace=self.trace,
        )

    def caller(self) -> Caller:
        """Where the request comes from: the one before the proxies that are trusted."""
        peer = str(getattr(self.client, "host", ""))
        values = self.requestHeaders.getRawHeaders(b"x-forwarded-for", [])
        origin = self.front.proxies.origin(peer, b",".join(values).decode("latin-1"))
        # A proxy's certificate is not that of who asks through it.
        is_others = self.front.proxies.speaks_for_others(peer, has_field=bool(values))
        return Caller(origin, None if is_others else self._certificate)

    def start(self, status: int, headers: dict[str, str], length: int | None) -> None:
        """Set the head of the answer; it leaves with the first byte of the body, or with ``finish``."""
        self.setResponseCode(status, _REASONS.get(status))
        self.is_overtaken = self.is_overtaken or not self.is_whole
        # What an earlier attempt at an answer set goes; whether the connection stays was decided before.
        connection = ["close"] if self.is_overtaken else self.responseHeaders.getRawHeaders("connection", [])
        self.responseHeaders = Headers({"connection": connection} if connection else {})
        for name, value in headers.items():
            self.responseHeaders.setRawHeaders(name, [value])
        self.responseHeaders.setRawHeaders("Server", [SERVER])
        self.responseHeaders.setRawHeaders("Date", [http.datetimeToString()])
        self.responseHeaders.setRawHeaders("X-Request-ID", [self.id])
        for name, value in hsts(self.front, is_secured=self._is_secured).items():
            self.responseHeaders.setRawHeaders(name, [value])
        if length is not None:
            self.responseHeaders.setRawHeaders("Content-Length", [str(length)])

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Answer with a body that is whole, and finish."""
        self.start(status, headers, len(body))
        self.write(body)
        self.finish()

    def cut(self, *, flush: bool = True) -> None:
        """End the connection in the middle of the answer, so that the client cannot take it for whole.

        What was written is flushed where the missing end is visible (no last chunk, too few bytes); an answer that ends
        with the connection has no visible end, so that connection is reset.
        """
        if self.gone or self.finished:
            return
        self.gone = True
        has_visible_end = self.chunked or self.responseHeaders.hasHeader("content-length")
        if flush and has_visible_end:
            self.channel.close_soon()
        else:
            self.channel.abort()

    def fields(self) -> dict[str, str]:
        """The header: names in lower case, repeated fields joined (RFC 9110 section 5.3)."""
        return {
            name.decode("latin-1").lower(): b", ".join(values).decode("latin-1")
            for name, values in self.requestHeaders.getAllRawHeaders()
        }

    def _field(self, name: bytes) -> str:
        # As bytes: asked for as text, Twisted takes it for UTF-8 and raises when it is not.
        return (self.getHeader(name) or b"").decode("latin-1")

    def _joined(self, name: bytes) -> str:
        values = self.requestHeaders.getRawHeaders(name) or ()
        return b",".join(values).decode("latin-1")

    def _limit_bytes(self) -> int:
        kind = self._field(b"content-type").strip()
        limits = self.front.limits
        return limits.max_json_bytes if not kind or _JSON.fullmatch(kind) else limits.max_body_bytes
