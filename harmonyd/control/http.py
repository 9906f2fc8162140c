"""The HTTP of the control interface: small bodies, few connections, and nothing that a web page could use.

Kept apart from ``harmonyd.web``: what serves the operator must not share limits, queues or defects with what serves
clients.
"""

# mypy: allow-untyped-calls
# (most methods of Twisted's classes have no types)

from __future__ import annotations

import base64
import binascii
import hmac
from io import BytesIO
from typing import Any, Protocol

from twisted.python.failure import Failure
from twisted.web import http

from harmonyd.control.hosts import names_this_machine

MAX_BODY_BYTES = 1_000_000
DISCARD_BYTES = 16_000_000
"""How much of a body that is too large is read and thrown away, so that its sender gets to read why."""
MAX_CONNECTIONS = 100
IDLE_SECS = 60.0


class Refused(Exception):
    """The request is answered with an HTTP status and a line of text."""

    def __init__(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers or {}


class Service(Protocol):
    """Answers requests."""

    def serve(self, request: ControlRequest) -> None:
        """Answer a request whose body is there, or was too large."""
        ...


class ControlRequest(http.Request):
    """A request with its body in memory, up to the limit."""

    channel: Any
    content: Any
    received_bytes = 0
    gone = False

    def gotLength(self, length: int | None) -> None:
        """Keep the body in memory, where the base class opens a file for a large one."""
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        """Keep a piece, or throw it away."""
        self.received_bytes += len(data)
        if self.received_bytes <= MAX_BODY_BYTES:
            self.content.write(data)
        elif self.received_bytes > DISCARD_BYTES:
            self.channel.transport.abortConnection()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Serve it; the base class would parse forms."""
        self.method, self.uri, self.clientproto = command, path, version
        self.channel.factory.service.serve(self)

    def connectionLost(self, reason: Failure) -> None:
        """Remember that nobody waits for an answer."""
        self.gone = True
        super().connectionLost(reason)

    def field(self, name: str) -> str | None:
        """A header, or None."""
        value = self.getHeader(name.encode("ascii"))
        return None if value is None else value.decode("latin-1")

    def begin(self, status: int, headers: dict[str, str]) -> None:
        """Set the head of the answer."""
        self.setResponseCode(status)
        for name, value in headers.items():
            self.responseHeaders.setRawHeaders(name, [value])

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Answer with a whole body; does nothing when the client has left."""
        if not self.gone:
            self.begin(status, {**headers, "Content-Length": str(len(body))})
            self.write(body)
            self.finish()

    def close_after(self) -> None:
        """Close the connection when the answer is finished; ``supervisorctl tail -f`` ends only then."""
        self.channel.persistent = False
        self.responseHeaders.setRawHeaders("Connection", ["close"])


class ControlChannel(http.HTTPChannel):
    """One connection."""

    requestFactory: Any = ControlRequest  # noqa: N815 - Twisted's name
    factory: Any
    transport: Any

    def connectionMade(self) -> None:
        """Count the connection, or close one too many."""
        super().connectionMade()
        self.factory.channels.add(self)
        if len(self.factory.channels) > MAX_CONNECTIONS:
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Forget the connection."""
        super().connectionLost(reason)
        self.factory.forget(self)


class ControlFactory(http.HTTPFactory):
    """Makes connections, and writes no access log."""

    noisy = False

    def __init__(self, reactor: Any, service: Service, on_empty: Any = lambda: None) -> None:
        """``on_empty`` is called when the last connection has closed."""
        super().__init__(timeout=IDLE_SECS, reactor=reactor)
        self.service = service
        self.channels: set[ControlChannel] = set()
        self._on_empty = on_empty

    def startFactory(self) -> None:
        """Do nothing, where the base class starts its access log."""

    def stopFactory(self) -> None:
        """Do nothing, where the base class stops its access log."""

    def log(self, request: http.Request) -> None:
        """Do nothing, where the base class writes its access log."""

    def buildProtocol(self, addr: Any) -> Any:
        """Return a connection."""
        channel: Any = ControlChannel()
        channel.factory = self
        channel.callLater = self.reactor.callLater
        channel.timeOut = self.timeOut
        return channel

    def forget(self, channel: ControlChannel) -> None:
        """Take note that a connection is gone."""
        self.channels.discard(channel)
        if not self.channels:
            self._on_empty()

    def close_idle(self) -> None:
        """Close connections on which nothing is under way, now; the others after their answer."""
        for channel in list(self.channels):
            channel.persistent = False
            if not channel.requests:
                channel.loseConnection()

    def abort_all(self) -> None:
        """Reset what is left."""
        for channel in list(self.channels):
            channel.transport.abortConnection()


class Guard:
    """Who may come in: on the unix socket whoever may open it, on TCP who knows the password."""

    def __init__(self, username: str = "", password: str = "") -> None:
        """Without a user name there is no authentication: for the unix socket."""
        self._expected = f"{username}:{password}".encode() if username else None

    def check(self, request: ControlRequest) -> None:
        """Raises ``Refused``."""
        # Browsers send Origin with every cross-site POST, and supervisorctl never does.
        if request.field("origin") is not None:
            raise Refused(403, "Requests of web pages are not answered here.")
        if self._expected is not None:
            if not names_this_machine(request.field("host") or ""):
                raise Refused(403, "Ask for this machine by its address, its host name or localhost.")
            self._check_password(request.field("authorization") or "")
        if request.received_bytes > MAX_BODY_BYTES:
            raise Refused(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")

    def _check_password(self, authorization: str) -> None:
        scheme, _, encoded = authorization.partition(" ")
        try:
            given = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            given = b""
        # Compared in any case, in a time that depends on what was given alone.
        is_right = hmac.compare_digest(given, self._expected or b"")
        if not is_right or scheme.lower() != "basic":
            raise Refused(401, "User name or password is wrong.", {"WWW-Authenticate": 'Basic realm="harmonyd"'})
