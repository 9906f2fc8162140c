"""Blocking work out of the reactor's thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.threads import deferToThreadPool

T = TypeVar("T")


async def in_thread(reactor: Any, function: Callable[..., T], *args: Any) -> T:
    """Call this in a thread of the reactor's pool."""
    result: T = await deferToThreadPool(reactor, reactor.getThreadPool(), function, *args)
    return result
