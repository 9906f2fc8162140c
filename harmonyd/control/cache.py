"""What the management API and the control interface tell of the cache, and let people do to it: to empty it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from harmonyd.control.methods import changes
from harmonyd.errors import BadRequest, MethodNotAllowed, NotFound


class Cache(Protocol):
    """The one that is operated."""

    def figures(self) -> dict[str, Any]:
        """How much is kept."""
        ...

    async def clear(self) -> dict[str, Any]:
        """Remove all; return how much that was."""
        ...


class CacheResource:
    """``management.Resource`` for the cache."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    async def __call__(self, method: str, path: Sequence[str], query: Mapping[str, Sequence[str]]) -> Any:
        """Tell, or empty it. Raises NotFound, MethodNotAllowed, BadRequest."""
        if path:
            raise NotFound("The management API has nothing at this path.", hint="The cache has nothing below it.")
        if method not in ("GET", "DELETE"):
            allow = ("GET", "HEAD", "DELETE")
            raise MethodNotAllowed(f"{method} is not allowed here, only {', '.join(allow)}.", allow=allow)
        if query:
            raise BadRequest("Nothing can be given here.", key=next(iter(query))[:100])
        return self._cache.figures() if method == "GET" else {"removed": await self._cache.clear()}


class CacheMethods:
    """A part of the namespace ``harmonyd``."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def getCacheInfo(self) -> dict[str, Any]:
        """How much is kept; sizes are strings, since XML-RPC's numbers have 32 bits."""
        return _sayable(self._cache.figures())

    @changes
    async def clearCache(self) -> dict[str, Any]:
        """Remove all that is kept; return how much that was."""
        return _sayable(await self._cache.clear())


def _sayable(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(value, bool) else str(value) for key, value in figures.items()}
