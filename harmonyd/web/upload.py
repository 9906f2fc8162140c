"""A request body while it arrives: handed to whoever reads it as it comes, and no faster than that."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from twisted.internet.defer import Deferred

from harmonyd.bodies import CHUNK_BYTES, BytesBody, EmptyBody, too_large
from harmonyd.envelope import Body
from harmonyd.errors import HarmonydError

__all__ = ["BUFFER_BYTES", "MEMORY_BYTES", "Source", "UploadBody"]

MEMORY_BYTES = 64 * 1024
"""A body that says beforehand that it is no larger is received before its request is passed on."""
BUFFER_BYTES = 256 * 1024
"""Nothing is read from the client while this much waits for the reader."""


class Source(Protocol):
    """The connection that a body comes from."""

    def hold(self) -> None:
        """Read nothing from the client until ``release``. Safe to call twice."""
        ...

    def release(self) -> None:
        """Go on reading. Safe to call twice."""
        ...

    def want(self) -> None:
        """Take note that from now on somebody waits for the client."""
        ...


class UploadBody:
    """A body (``harmonyd.envelope.Body``) of at most ``limit_bytes``, whose reader waits for what has not arrived.

    What arrives is put in with ``feed``, ``finish`` and ``fail``; the reader learns of it with ``wake``. These are two
    steps, because the reader must not run (and answer, and so end the request) in the middle of Twisted's parser.
    """

    length: int | None

    def __init__(self, source: Source, length: int | None, limit_bytes: int) -> None:
        self.length = length
        self.received_bytes = 0
        self.is_whole = False
        self._source = source
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()
        self._error: Exception | None = None
        self._waiter: Deferred[None] | None = None

    @property
    def is_awaited(self) -> bool:
        """Whether it is the client who keeps the reader waiting."""
        return self._waiter is not None

    def feed(self, data: bytes) -> None:
        """Take a piece that arrived; hold the client when the reader does not keep up, or when it is too much."""
        self.received_bytes += len(data)
        if self.received_bytes > self._limit_bytes:
            self.fail(too_large(self._limit_bytes))
            self._source.hold()
        elif self._error is None:
            self._buffer += data
            if len(self._buffer) >= BUFFER_BYTES:
                self._source.hold()

    def finish(self) -> None:
        """Take note that all has arrived."""
        self.is_whole = True

    def fail(self, error: Exception) -> None:
        """Let the reader have ``error`` instead of the rest, unless all had arrived."""
        if not self.is_whole:
            self._break(error)

    def wake(self) -> None:
        """Let the reader go on."""
        if self._waiter is not None and not self._waiter.called:
            self._waiter.callback(None)

    def settled(self) -> Body:
        """Return the body as one in memory if it is there as a whole, else itself."""
        if not self.is_whole or self._error is not None:
            return self
        return BytesBody(bytes(self._buffer)) if self._buffer else EmptyBody()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives, in chunks of at most ``CHUNK_BYTES``.

        Raises ``PayloadTooLarge`` when it turns out to be, ``BadRequest`` when it is cut or malformed.
        """
        while data := await self._next():
            yield data

    async def read(self, limit_bytes: int) -> bytes:
        """Return the whole body; raise ``PayloadTooLarge`` beyond ``limit_bytes``, and what ``chunks`` raises."""
        if self.length is not None and self.length > limit_bytes:
            raise too_large(limit_bytes)
        whole = bytearray()
        while data := await self._next():
            whole += data
            if len(whole) > limit_bytes:
                raise too_large(limit_bytes)
        return bytes(whole)

    async def close(self) -> None:
        """Drop what was not read; what still arrives is thrown away. Safe to call twice."""
        if self._buffer or not self.is_whole:
            # Not the end: whoever still reads must not take what it got for the whole.
            self._break(HarmonydError("The body of the request was closed before its end."))
        if not self.is_whole:
            self._source.release()
        self.wake()

    def _break(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
            self._buffer = bytearray()

    async def _next(self) -> bytes:
        while not self._buffer and self._error is None and not self.is_whole:
            await self._arrival()
        if self._error is not None:
            raise self._error
        data = bytes(self._buffer[:CHUNK_BYTES])
        del self._buffer[:CHUNK_BYTES]
        if len(self._buffer) < BUFFER_BYTES // 2 and not self.is_whole:
            self._source.release()
        return data

    async def _arrival(self) -> None:
        self._waiter = Deferred()
        self._source.want()
        try:
            await self._waiter
        finally:
            self._waiter = None
