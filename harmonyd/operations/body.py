"""The body of a request that is answered later: only when it is here, or has been refused, may its client leave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from harmonyd.bodies import EmptyBody
from harmonyd.envelope import Body

__all__ = ["WatchedBody"]


class WatchedBody:
    """Passes ``body`` on; ``taken`` is called when nobody will read more of it."""

    length: int | None

    def __init__(self, body: Body, taken: Callable[[], None]) -> None:
        self.length = body.length
        self.is_taken = body.length == 0
        self.read_bytes = 0
        self._body: Body = body
        self._tell = taken

    async def chunks(self) -> AsyncIterator[bytes]:
        """See ``Body``."""
        try:
            async for chunk in self._body.chunks():
                self.read_bytes += len(chunk)
                yield chunk
        finally:
            self._taken()

    async def read(self, limit_bytes: int) -> bytes:
        """See ``Body``."""
        try:
            data = await self._body.read(limit_bytes)
            self.read_bytes += len(data)
            return data
        finally:
            self._taken()

    async def close(self) -> None:
        """See ``Body``."""
        await self._body.close()

    def let_go(self) -> None:
        """Hold what is in memory of the body no longer: nobody reads it any more."""
        self._body = EmptyBody()

    def _taken(self) -> None:
        self.is_taken = True
        self._tell()
