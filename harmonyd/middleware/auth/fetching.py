"""A small document from a URL, whole and soon, or not at all."""

# mypy: allow-untyped-calls
# (Twisted's client has no types)

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, ResponseDone
from twisted.web.http_headers import Headers

from harmonyd.errors import DeadlinePassed, RemoteError

__all__ = ["FETCH_SECS", "fetch"]

FETCH_SECS = 5.0


class _Collector(Protocol):
    transport: Any

    def __init__(self, most_bytes: int) -> None:
        self.done: Deferred[bytes] = Deferred(lambda _: self.hang_up())
        self._most_bytes = most_bytes
        self._data = bytearray()

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > self._most_bytes and not self.done.called:
            self.done.errback(RemoteError(f"It has more than {self._most_bytes} bytes."))
            self.hang_up()

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self.done.called:
            return
        if reason is not None and reason.check(ResponseDone):
            self.done.callback(bytes(self._data))
        else:
            self.done.errback(RemoteError("The server broke off in the middle of its answer."))

    def hang_up(self) -> None:
        """Drop the connection, whatever the server still wants to send."""
        # The transport is Twisted's proxy, which can only ask nicely.
        behind = getattr(self.transport, "_producer", None)
        if behind is not None:
            getattr(behind, "abortConnection", behind.loseConnection)()


async def fetch(reactor: Any, url: str, ca: bytes, most_bytes: int) -> bytes:
    """Return what is at ``url``. ``ca``: certificates (PEM) that are trusted instead of the system's.

    Redirects are not followed. Raises ``DeadlinePassed`` after ``FETCH_SECS``, ``RemoteError``, and what Twisted's
    client raises.
    """
    agent = Agent(reactor, _policy(ca), connectTimeout=FETCH_SECS)
    asked = Deferred.fromCoroutine(_fetched(agent, url.encode("ascii"), most_bytes))
    is_late = False

    def late(result: Any, _: float) -> Any:
        nonlocal is_late
        is_late = True
        return result

    asked.addTimeout(FETCH_SECS, reactor, late)
    try:
        return await asked
    except Exception:
        if is_late:
            raise DeadlinePassed(f"The server did not answer within {FETCH_SECS:g} s.") from None
        raise


async def _fetched(agent: Any, url: bytes, most_bytes: int) -> bytes:
    response = await agent.request(b"GET", url, Headers({b"Accept": [b"application/json"]}))
    collector = _Collector(most_bytes)
    response.deliverBody(collector)
    if response.code != 200:
        collector.done.addErrback(lambda _: None)
        collector.hang_up()
        raise RemoteError(f"The server answered with status {response.code}.")
    return await collector.done


def _policy(ca: bytes) -> Any:
    if not ca:
        return BrowserLikePolicyForHTTPS()
    from twisted.internet.ssl import Certificate, trustRootFromCertificates

    pieces = ca.split(b"-----END CERTIFICATE-----")
    whole = [piece + b"-----END CERTIFICATE-----\n" for piece in pieces if b"BEGIN CERTIFICATE" in piece]
    return BrowserLikePolicyForHTTPS(trustRootFromCertificates([Certificate.loadPEM(each) for each in whole]))
