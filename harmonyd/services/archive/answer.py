"""An answer of an archive: its header, and its body as it comes, decompressed, with an end to every silence."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from harmonyd.dimse.errors import DimseTimeout, NonsenseAnswer
from harmonyd.dimse.waiting import until
from harmonyd.mediatypes import MediaType, parse_media_type
from harmonyd.services.archive.errors import ArchiveBroke
from harmonyd.services.http.errors import UpstreamFailed
from harmonyd.services.http.upstream import UpstreamBody

PIECE_BYTES = 256 * 1024
"""Largest chunk that decompression makes of one."""
_GZIP = 16 + zlib.MAX_WBITS
DROP_SECS = 5.0
"""Silence allowed there."""
_DRAIN_BYTES = 64 * 1024
"""Of an answer that nobody wants: read, so that its connection can be used again; a longer one is cut."""


class Answer:
    """Close it always. ``headers``: names in lower case."""

    def __init__(
        self, name: str, status: int, headers: Mapping[str, str], body: UpstreamBody, reactor: Any, idle_secs: float
    ) -> None:
        self.status = status
        self.headers = headers
        self._name = name
        self._body = body
        self._reactor = reactor
        self._idle_secs = idle_secs

    @property
    def media_type(self) -> MediaType | None:
        """None where there is none, or it makes no sense."""
        return parse_media_type(self.headers.get("content-type", ""))

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body; once. Raises ``ArchiveBroke``, ``DimseTimeout``, ``DeadlinePassed``, ``NonsenseAnswer``."""
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise NonsenseAnswer(f"The archive of backend {self._name} answers in an encoding nobody asked for")
        async with aclosing(self._raw()) as raw:
            if encoding in ("", "identity"):
                async for chunk in raw:
                    yield chunk
                return
            decoder = zlib.decompressobj(_GZIP)
            async for chunk in raw:
                while chunk:
                    piece = self._piece(decoder, chunk)
                    chunk = decoder.unconsumed_tail
                    if piece:
                        yield piece
            if not decoder.eof:
                raise ArchiveBroke(f"The archive of backend {self._name} ended in the middle of compressed data")

    def _piece(self, decoder: Any, chunk: bytes) -> bytes:
        try:
            piece: bytes = decoder.decompress(chunk, PIECE_BYTES)
        except zlib.error as error:
            raise NonsenseAnswer(f"The archive of backend {self._name} sent what is not gzip") from error
        return piece

    async def _raw(self) -> AsyncGenerator[bytes, None]:
        chunks = aiter(self._body.chunks())
        silent = DimseTimeout(
            f"The archive of backend {self._name} fell silent in the middle of its answer",
            hint="idle_timeout_ms of the backend says how long a silence may be.",
            timeout="dimse",
        )
        try:
            while True:
                waiting: Deferred[bytes] = Deferred.fromCoroutine(_next(chunks))
                chunk = await until(self._reactor, self._reactor.seconds() + self._idle_secs, waiting, silent)
                if not chunk:
                    return
                yield chunk
        except UpstreamFailed as error:
            raise ArchiveBroke(
                f"The archive of backend {self._name} broke off in the middle of its answer",
                hint="The log of the archive, or of a proxy before it, says why.",
            ) from error
        finally:
            await self._body.close()

    async def read(self, limit_bytes: int) -> bytes:
        """All of it. Raises ``NonsenseAnswer`` for more than that."""
        whole = bytearray()
        async with aclosing(self.chunks()) as chunks:
            async for chunk in chunks:
                whole += chunk
                if len(whole) > limit_bytes:
                    raise NonsenseAnswer(f"The archive of backend {self._name} answers more than {limit_bytes} bytes")
        return bytes(whole)

    async def drop(self) -> None:
        """Nobody wants what it says; the connection is kept where it says little, and soon."""
        self._idle_secs = min(self._idle_secs, DROP_SECS)
        if self._body.length is not None and self._body.length > _DRAIN_BYTES:
            await self._body.close()
            return
        try:
            await self.read(_DRAIN_BYTES)
        except CancelledError:
            raise
        except Exception:  # noqa: BLE001 - whatever it was, it is gone
            await self._body.close()

    async def close(self) -> None:
        """Drop what was not read, and the connection unless it has ended. Safe to call twice."""
        try:
            # What Twisted's parser is just delivering may be the end, after which it keeps the connection.
            await deferLater(self._reactor, 0)
        finally:
            await self._body.close()


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    return await anext(chunks, b"")
