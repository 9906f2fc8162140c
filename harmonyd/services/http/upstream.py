"""Bodies on their way to and from an upstream HTTP server, with back-pressure between Twisted's client and us."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from harmonyd.bodies import too_large
from harmonyd.envelope import Body
from harmonyd.errors import DeadlinePassed
from harmonyd.services.http.errors import UpstreamFailed

_BUFFER_BYTES = 256 * 1024
"""The upstream connection is not read while this much waits for the client."""


@implementer(IBodyProducer)
class BodyProducer:
    """Feeds an envelope's body to Twisted's HTTP client, which pauses it while the server does not read."""

    def __init__(self, body: Body) -> None:
        self.length: Any = UNKNOWN_LENGTH if body.length is None else body.length
        self._body = body
        self._consumer: Any = None
        self._gate: Deferred[None] | None = None
        self._job: Deferred[None] | None = None
        self._stopped = False
        self.is_sent = False
        """Whether all of it was handed over."""

    def startProducing(self, consumer: Any) -> Deferred[None]:
        """Write the body to ``consumer``. Cancelling the Deferred stops it."""
        finished: Deferred[None] = Deferred(lambda _: self._cancel())
        self._consumer = consumer
        self._job = Deferred.fromCoroutine(self._copy(consumer))
        self._job.addBoth(self._end, finished)
        return finished

    def pauseProducing(self) -> None:
        """Write no more until ``resumeProducing``."""
        if self._gate is None:
            self._gate = Deferred()

    def resumeProducing(self) -> None:
        """Go on."""
        gate, self._gate = self._gate, None
        if gate is not None:
            _fire(gate)

    def stopProducing(self) -> None:
        """Stop for good; the Deferred of ``startProducing`` does not fire any more, as its interface demands."""
        self._stopped = True
        self._cancel()

    def abandon(self) -> None:
        """Drop the connection if the server gave its whole answer before it got the whole body."""
        if self._job is None or self._stopped or self._job.called:
            return
        self.stopProducing()
        # Twisted only closes it once what was written is read. Its two wrappers name what they wrap like this.
        transport = getattr(self._consumer, "transport", None) or getattr(self._consumer, "_consumer", None)
        if transport is not None:
            transport.abortConnection()

    async def _copy(self, consumer: Any) -> None:
        async for chunk in self._body.chunks():
            while self._gate is not None:
                await self._gate
            consumer.write(chunk)
        self.is_sent = True

    def _cancel(self) -> None:
        if self._job is not None:
            self._job.cancel()

    def _end(self, result: Failure | None, finished: Deferred[None]) -> None:
        if not self._stopped:
            finished.callback(result)  # a Failure here becomes an errback


class UpstreamBody(Protocol):
    """The body of an upstream response, as a ``harmonyd.envelope.Body``. Starts to buffer when it is connected."""

    def __init__(self, length: Any, deadline: float, reactor: Any) -> None:
        """``length`` as Twisted's response has it; ``deadline`` in seconds on the reactor's clock."""
        self.length: int | None = None if length is UNKNOWN_LENGTH else length
        self._buffer: deque[bytes] = deque()
        self._buffered = 0
        self._paused = False
        self._ended = False
        self._error: Exception | None = None
        self._waiter: Deferred[None] | None = None
        self._reactor = reactor
        self._timer: Any = reactor.callLater(max(0.0, deadline - reactor.seconds()), self._expire)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises ``UpstreamFailed`` when it is cut, and ``DeadlinePassed``."""
        try:
            while data := await self._next():
                yield data
        finally:
            await self.close()

    async def read(self, limit_bytes: int) -> bytes:
        """Return the whole body; raise ``PayloadTooLarge`` beyond ``limit_bytes``, and what ``chunks`` raises."""
        whole = bytearray()
        try:
            while data := await self._next():
                whole += data
                if len(whole) > limit_bytes:
                    raise too_large(limit_bytes)
        finally:
            await self.close()
        return bytes(whole)

    async def close(self) -> None:
        """Drop what was not read, and the connection unless the body has ended. Safe to call twice."""
        self._buffer.clear()
        if not self._ended:
            self._end(UpstreamFailed("The body was closed before its end."))
            self._abort()

    def dataReceived(self, data: bytes) -> None:
        """Keep a chunk; stop reading from the connection when enough of them wait."""
        if self._ended:
            return
        self._buffer.append(data)
        self._buffered += len(data)
        if self._buffered >= _BUFFER_BYTES and not self._paused:
            self._paused = True
            self.transport.pauseProducing()  # type: ignore[union-attr]
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Note the end: clean, or cut. Without a length and without chunks the end of the connection is the end."""
        if not self._ended:
            whole = isinstance(reason.value, ResponseDone | PotentialDataLoss)
            self._end(None if whole else UpstreamFailed("The upstream server broke off in the middle of its answer."))

    async def _next(self) -> bytes:
        while not self._buffer:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            self._waiter = Deferred()
            await self._waiter
        data = self._buffer.popleft()
        self._buffered -= len(data)
        if self._paused and self._buffered < _BUFFER_BYTES // 2:
            self._paused = False
            self.transport.resumeProducing()  # type: ignore[union-attr]
        return data

    def _expire(self) -> None:
        self._timer = None
        self._end(DeadlinePassed("The upstream server did not finish its answer before the deadline."))
        self._abort()

    def _end(self, error: Exception | None) -> None:
        self._ended = True
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()

    def _wake(self) -> None:
        # Not at once: the reader may close, and what Twisted's parser is just delivering may be the response's end,
        # after which the connection is kept for the next request.
        if self._waiter is not None:
            self._reactor.callLater(0, _fire, self._waiter)
            self._waiter = None

    def _abort(self) -> None:
        # The transport is Twisted's proxy, which can only close after what we sent was read; a server that has stopped
        # reading would keep it for ever. What it stands for can be dropped at once.
        behind = getattr(self.transport, "_producer", None)
        if behind is not None:
            getattr(behind, "abortConnection", behind.loseConnection)()


def _fire(waiter: Deferred[None]) -> None:
    if not waiter.called:
        waiter.callback(None)
