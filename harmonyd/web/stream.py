"""Sending an answer: as fast as the client reads and no faster, and never ended as if whole when it is not."""

# mypy: allow-untyped-calls
# (most methods of Twisted's classes have no types)

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from harmonyd.errors import HarmonydError
from harmonyd.services.base import HttpAnswer
from harmonyd.web.pace import taken_bytes

if TYPE_CHECKING:
    from harmonyd.web.request import Request

__all__ = ["BrokenAnswer", "ClientStalled", "close_stream", "send"]

# A message is framed by us, hop by hop (RFC 9110 section 7.6.1); what an upstream server said about that is its matter.
_FRAMING = frozenset(
    {
        "connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_BODILESS = frozenset({204, 304})


class BrokenAnswer(HarmonydError):
    """An endpoint promised a length and gave another."""


class ClientStalled(Exception):
    """The client stopped reading; nobody is there to be told."""


async def send(
    request: Request, answer: HttpAnswer, *, clock: Any, stall_secs: float, least_bytes: float = 1
) -> None:
    """Write ``answer`` and finish ``request``; ``answer.chunks`` is closed in any case.

    Raises whatever ``answer.chunks`` raises. Until ``request.startedWriting`` another answer can still be given: the
    head is not written before the first chunk is there. Raises ``ClientStalled`` when less than ``least_bytes`` were
    read in ``stall_secs``.
    """
    chunks = answer.chunks
    try:
        body = None if request.method == b"HEAD" or answer.status in _BODILESS else chunks
        first = await _next(body) if body is not None else b""
        headers = {name: value for name, value in answer.headers.items() if name.lower() not in _FRAMING}
        request.start(answer.status, headers, _length(request, answer, first))
        if body is not None:
            await _copy(request, first, body, answer.length, _Gate(request, clock, stall_secs, least_bytes))
        request.finish()
    finally:
        await close_stream(chunks)


def _length(request: Request, answer: HttpAnswer, first: bytes) -> int | None:
    if answer.status in _BODILESS:
        return None
    if answer.length is None and request.method != b"HEAD" and not first:
        return 0
    return answer.length


async def _copy(
    request: Request, first: bytes, chunks: AsyncIterator[bytes], length: int | None, gate: _Gate
) -> None:
    request.registerProducer(gate, True)
    sent = 0
    chunk = first
    try:
        while chunk:
            sent += len(chunk)
            if length is not None and sent > length:
                raise BrokenAnswer(f"The body is longer than the {length} bytes it was announced with.")
            request.write(chunk)
            await gate.passed()
            chunk = await _next(chunks)
        if length is not None and sent < length:
            raise BrokenAnswer(f"The body ended after {sent} of {length} bytes.")
    finally:
        gate.close()
        if not request.gone:
            request.unregisterProducer()


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    """Return the next chunk that is not empty; b"" at the end."""
    async for chunk in chunks:
        if chunk:
            return chunk
    return b""


async def close_stream(chunks: AsyncIterator[bytes] | None) -> None:
    """End an iterator that nobody will read, if it can be ended."""
    aclose = getattr(chunks, "aclose", None)
    if aclose is not None:
        await aclose()


@implementer(IPushProducer)
class _Gate:
    """Closed while the transport's buffer is full; gives up on a client that reads too little in ``stall_secs``."""

    def __init__(self, request: Request, clock: Any, stall_secs: float, least_bytes: float) -> None:
        self._channel = request.channel
        self._transport = request.channel.transport
        self._clock = clock
        self._stall_secs = stall_secs
        self._least_bytes = max(least_bytes, 1)
        self._is_paused = False
        self._waiter: Deferred[None] | None = None
        self._timer: Any = None
        self._taken_bytes: int | None = None

    async def passed(self) -> None:
        """Wait until more may be written. Raises ``ClientStalled``."""
        if self._is_paused:
            self._channel.await_reader()
        while self._is_paused:
            self._waiter = Deferred()
            self._watch()
            await self._waiter

    def close(self) -> None:
        """Stop watching the client."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pauseProducing(self) -> None:
        """Take note that the buffer is full (``IPushProducer``)."""
        self._is_paused = True

    def resumeProducing(self) -> None:
        """Take note that the buffer is empty (``IPushProducer``)."""
        self._is_paused = False
        self.close()
        self._channel.go_on_without()
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.called:
            waiter.callback(None)

    def stopProducing(self) -> None:
        """Do nothing: who waits here is cancelled when the connection is lost."""

    def _watch(self) -> None:
        self.close()
        self._taken_bytes = taken_bytes(self._transport)
        self._timer = self._clock.callLater(self._stall_secs, self._check)

    def _check(self) -> None:
        # The buffer empties in big steps (the kernel takes more only when a third of its own is free), so that a client
        # which reads slowly but steadily shows only in what its kernel has acknowledged.
        self._timer = None
        before, now = self._taken_bytes, taken_bytes(self._transport)
        if before is not None and now is not None and now - before >= self._least_bytes:
            self._watch()
            return
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.called:
            waiter.errback(ClientStalled(f"the client read next to nothing for {self._stall_secs:g} s"))
