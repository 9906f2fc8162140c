"""Answers that no route gives: to who is not let in, and to what is not HTTP."""

# mypy: allow-untyped-calls
# (most methods of Twisted's classes have no types)

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Protocol
from twisted.protocols.policies import TimeoutMixin
from zope.interface import implementer

from harmonyd.errors import BadRequest, HarmonydError, Unavailable
from harmonyd.web.problem import problem
from harmonyd.web.request import SERVER, Front, hsts, request_id

_BUSY_LINGER_SECS = 2.0


@implementer(IHandshakeListener)
class Busy(Protocol, TimeoutMixin):
    """A connection beyond the limit: told so and closed, without parsing anything."""

    factory: Any
    transport: Any

    is_secured = False
    verify_code = 0

    def handshakeCompleted(self) -> None:
        """Take note that the answer can leave (``IHandshakeListener``)."""
        self.is_secured = True

    def connectionMade(self) -> None:
        """Answer whatever will be asked."""
        self.factory.busy.add(self)
        error = Unavailable("Too many HTTP connections are open.", hint="Try again later, or raise max_connections.")
        self.transport.write(bare_answer(error))
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


def plain_answer() -> bytes:
    """What is said to who speaks HTTP where TLS is needed."""
    return bare_answer(BadRequest("This port is for HTTPS, and this is plain HTTP.", hint="Ask for https://."))


def bare_answer(error: HarmonydError, front: Front | None = None) -> bytes:
    """A whole answer, after which the connection is closed; ``front``: when it leaves over TLS, of that network."""
    status, headers, body = problem(error, request_id=(fresh := request_id()), operation=None)
    if front is not None:
        headers |= hsts(front, is_secured=True)
    headers |= {"Server": SERVER, "X-Request-ID": fresh, "Content-Length": str(len(body)), "Connection": "close"}
    reason = HTTPStatus(status).phrase
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
