"""The backend half of ``http``: forwards a request to another HTTP server, bodies streamed both ways.

A body is sent on while it arrives, with its length where the client told it and in chunks where not. An answer that
overtakes its request is passed on at once only if it came as a whole in one piece, as errors do; Twisted's client holds
any other one back until the request is sent.

The path after the endpoint's prefix is appended to ``base_url``. It is encoded anew from its decoded form, so that what
middleware looked at is what the upstream server gets. Redirects are passed on, not followed. The values of a response
field that occurs several times are joined with a comma.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NoReturn
from urllib.parse import quote, urlencode

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.web.client import (
    Agent,
    HTTPConnectionPool,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
)
from twisted.web.http_headers import Headers

from harmonyd.config.model import HttpBackendOptions
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import BadRequest, DeadlinePassed, HarmonydError
from harmonyd.services.http.errors import UpstreamFailed, UpstreamUnreachable
from harmonyd.services.http.headers import end_to_end
from harmonyd.services.http.methods import require_passable
from harmonyd.services.http.upstream import BodyProducer, UpstreamBody
from harmonyd.tracing import begin

_MAX_IDLE_CONNECTIONS = 10
_IDLE_SECS = 30
"""Shorter than what servers commonly keep an idle connection open: a POST must not run into one that just closes."""

_VIA = "1.1 harmonyd"
_NOT_PASSED_ON = ("host", "expect", "traceparent", "tracestate")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class HttpBackend:
    """Sends requests to the HTTP server at ``base_url``.

    ``reactor`` is Twisted's, with its clock, TCP and name resolution.
    """

    max_batch = 8
    """Inbound objects that are sent at once."""

    is_http = True
    """What it gets leaves this machine, and is audited by who sends it there."""

    def __init__(self, name: str, options: HttpBackendOptions, reactor: Any) -> None:
        self.name = name
        self._options = options
        self._base = options.base_url.rstrip("/")
        self._reactor = reactor
        self._pool: Any = HTTPConnectionPool(reactor, persistent=True)  # type: ignore[no-untyped-call]
        self._pool.maxPersistentPerHost = _MAX_IDLE_CONNECTIONS
        self._pool.cachedConnectionTimeout = _IDLE_SECS
        self._agent: Any = Agent(  # type: ignore[no-untyped-call]
            reactor, connectTimeout=options.connect_timeout_secs, pool=self._pool
        )

    async def start(self) -> None:
        """Do nothing: connections are opened when they are needed."""

    async def stop(self) -> None:
        """Close the connections that are idle."""
        await self._pool.closeCachedConnections()

    async def send(self, request: RequestEnvelope) -> ResponseEnvelope:
        """Forward the request; the response is there as soon as its header is, its body follows.

        Raises ``BadRequest`` for a path that leaves the base URL, ``UpstreamUnreachable``, ``UpstreamFailed`` and
        ``DeadlinePassed``. The body raises the last two when the upstream server breaks off, or is too slow.
        """
        url = self._url(request)
        deadline = self._deadline(request)
        span = begin(f"HTTP {request.method} {self.name}", request.trace, "client", harmonyd__backend=self.name)
        request.trace = span.trace if span.is_recorded else span.trace and span.trace.child()
        try:
            response = await self._exchange(request, url, deadline)
        except BaseException as error:
            span.end(type(error).__name__)
            raise
        span.end(http__response__status_code=response.code)
        body = UpstreamBody(response.length, deadline, self._reactor)
        response.deliverBody(body)
        return ResponseEnvelope(status=response.code, headers=_received(response.headers), body=body)

    async def _exchange(self, request: RequestEnvelope, url: bytes, deadline: float) -> Any:
        producer = None if request.body.length == 0 else BodyProducer(request.body)
        waiting = self._agent.request(_method(request), url, _to_send(request), producer)
        waiting.addTimeout(
            max(0.0, deadline - self._reactor.seconds()), self._reactor, lambda *_: self._too_late(producer)
        )
        try:
            response = await waiting
        except ConnectingCancelledError as error:
            raise CancelledError from error
        except (ConnectError, DNSLookupError) as error:
            raise self._unreachable(error) from error
        except (RequestGenerationFailed, RequestTransmissionFailed, ResponseFailed) as error:
            raise self._failed(error) from error
        if producer is not None:
            producer.abandon()
        return response

    def _deadline(self, request: RequestEnvelope) -> float:
        ours: float = self._reactor.seconds() + self._options.operation_timeout_secs
        return ours if request.deadline is None else min(ours, request.deadline)

    def _url(self, request: RequestEnvelope) -> bytes:
        path = request.metadata.get("path", request.path if request.protocol == "http" else "")
        query = {name: values for name, values in request.query.items() if name != "backend"}
        url = self._base + _encoded_path(path)
        if query:
            url += "?" + urlencode(query, doseq=True, quote_via=quote, errors="surrogateescape")
        return url.encode("ascii")

    def _unreachable(self, error: Exception) -> HarmonydError:
        if isinstance(error, ConnectTimeout):
            return DeadlinePassed(
                f"The server of backend {self.name} did not accept a connection in "
                f"{self._options.connect_timeout_secs:g} seconds.",
                backend=self.name,
                timeout="connect",
            )
        return UpstreamUnreachable(
            f"The server of backend {self.name} cannot be reached: {_sentence([error])}",
            hint="Check that it runs, and base_url of the backend.",
            backend=self.name,
        )

    def _failed(self, error: RequestGenerationFailed | RequestTransmissionFailed | ResponseFailed) -> Exception:
        reasons = [failure.value for failure in error.reasons]
        for reason in reasons:
            # A cancellation, or what reading the request's body raised, is not the server's doing.
            if isinstance(reason, CancelledError | HarmonydError | OSError):
                return reason
        if isinstance(error, RequestGenerationFailed):
            return HarmonydError(f"The request to backend {self.name} could not be sent.")
        return UpstreamFailed(
            f"The server of backend {self.name} broke off, or sent what is not HTTP: {_sentence(reasons)}",
            backend=self.name,
        )

    def _too_late(self, producer: BodyProducer | None) -> NoReturn:
        if producer is not None and not producer.is_sent:
            raise DeadlinePassed(
                f"The body of the request was not sent to the server of backend {self.name} in time.",
                hint="The client sends slowly, or the server reads slowly; operation_timeout_ms is for all of it.",
                backend=self.name,
            )
        raise DeadlinePassed(f"The server of backend {self.name} did not answer in time.", backend=self.name)


def _sentence(errors: Iterable[BaseException]) -> str:
    return "; ".join(str(error) or type(error).__name__ for error in errors)


def _encoded_path(path: str) -> str:
    """Percent-encode a decoded path. A slash inside a segment comes as ``%2F`` (see ``harmonyd.web.router``)."""
    parts = path.replace("%2F", "/").replace("\\", "/").split("/")
    if "." in parts or ".." in parts:
        # Also where the upstream server would find them only after decoding.
        raise BadRequest("The path has a segment `.` or `..`.", hint="Ask for the path that it stands for.")
    encoded = quote(path.removeprefix("/"), errors="surrogateescape").replace("%252F", "%2F")
    return f"/{encoded}" if encoded else ""


def _method(request: RequestEnvelope) -> bytes:
    if request.protocol != "http":
        return b"POST"
    require_passable(request.method)
    if not _TOKEN.fullmatch(request.method):
        raise BadRequest("The method is not an HTTP method.")
    return request.method.encode("ascii")


def _to_send(request: RequestEnvelope) -> Headers:
    fields = {name: value for name, value in end_to_end(request.headers).items() if name not in _NOT_PASSED_ON}
    if request.protocol == "dicom":
        fields.setdefault("content-type", "application/dicom")
    fields["x-request-id"] = request.id
    if request.trace is not None:
        fields["traceparent"] = request.trace.traceparent
        if request.trace.state:
            fields["tracestate"] = request.trace.state
    fields["via"] = f"{fields['via']}, {_VIA}" if "via" in fields else _VIA
    return Headers({name.encode("latin-1"): [_encoded(value)] for name, value in fields.items()})


def _encoded(value: str) -> bytes:
    """Field values are Latin-1 by tradition (RFC 9110 section 5.5); what does not fit goes as UTF-8."""
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape")


def _received(headers: Headers) -> dict[str, str]:
    return {
        name.decode("latin-1").lower(): b", ".join(values).decode("latin-1")
        for name, values in headers.getAllRawHeaders()
    }
