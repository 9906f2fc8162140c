"""Server-sent events (WHATWG HTML, section 9.2): the state of an operation whenever it has changed.

Each event is the whole state, so that nothing is queued for a client: one that reads slowly gets fewer events, and one
that comes back needs no more than the next.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout

from harmonyd.errors import Unavailable
from harmonyd.operations.operation import Operation
from harmonyd.services.base import HttpAnswer

__all__ = ["Watchers", "event_stream", "within"]

INTERVAL_SECS = 0.5
"""Least time between two events; the last one does not wait."""
HEARTBEAT_SECS = 15.0
"""After so long without one a comment is sent: proxies end connections that are silent, and we learn who has gone."""
_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Watchers:
    """How many there are, and how many there may be."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.count = 0

    def __enter__(self) -> None:
        """Raises ``Unavailable``."""
        if self.count >= self.most:
            raise Unavailable(
                f"{self.count} clients watch operations already.",
                hint="Ask for the state instead, or raise max_watchers in [operations].",
                retry_after_secs=5,
            )
        self.count += 1

    def __exit__(self, *error: object) -> None:
        self.count -= 1


async def within(waiting: Deferred[Any], secs: float, reactor: Any) -> bool:
    """Wait for so long at most; tell whether it happened. Raises what it raised."""
    try:
        await waiting.addTimeout(secs, reactor)
    except DeferredTimeout:
        return False
    return True


def event_stream(operation: Operation, watchers: Watchers, last_event_id: str, reactor: Any) -> HttpAnswer:
    """Answer with the events of an operation; the stream ends behind the one that says how it ended.

    204 tells a client that comes back although it has had that one to stay away.
    """
    if operation.has_ended and last_event_id == str(operation.version):
        return HttpAnswer(204, {"Cache-Control": "no-store"})
    return HttpAnswer(200, dict(_HEADERS), _events(operation, watchers, reactor))


async def _events(operation: Operation, watchers: Watchers, reactor: Any) -> AsyncGenerator[bytes, None]:
    with watchers:
        sent = operation.version
        yield _event(operation)
        while sent != operation.version or not operation.has_ended:
            if not operation.has_ended:
                await within(operation.ended.wait(), INTERVAL_SECS, reactor)
            while sent == operation.version:
                if not await within(operation.changed.wait(), HEARTBEAT_SECS, reactor):
                    yield b": nothing new\n\n"
            sent = operation.version
            yield _event(operation)


def _event(operation: Operation) -> bytes:
    name = operation.state.value if operation.has_ended else "progress"
    # JSON text has no line feed unless it is asked for.
    data = json.dumps(operation.document, ensure_ascii=False)
    return f"id: {operation.version}\nevent: {name}\ndata: {data}\n\n".encode("utf-8", "backslashreplace")
