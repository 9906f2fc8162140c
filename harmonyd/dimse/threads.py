"""Blocking work out of the reactor's thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from twisted.internet.threads import deferToThreadPool

T = TypeVar("T")


class Threads(Protocol):
    """Who can do blocking work: the tools of an engine."""

    @property
    def reactor(self) -> Any: ...

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Call this in a thread."""
        ...


class ReactorThreads:
    """Implements ``Threads`` with the reactor's thread pool."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """See ``Threads``."""
        return await in_thread(self.reactor, function, *args)


async def in_thread(reactor: Any, function: Callable[..., T], *args: Any) -> T:
    """Call this in a thread of the reactor's pool."""
    result: T = await deferToThreadPool(reactor, reactor.getThreadPool(), function, *args)
    return result
