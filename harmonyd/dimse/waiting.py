"""Waiting with an end: deadlines for Deferreds, and the bounded queue in front of a remote node."""

from __future__ import annotations

from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredSemaphore

from harmonyd.errors import DeadlinePassed, Unavailable

T = TypeVar("T")


async def until(reactor: Any, deadline: float, waiting: Deferred[T], error: DeadlinePassed) -> T:
    """The result of ``waiting``; at ``deadline`` (reactor seconds) it is cancelled and ``error`` raised.

    A cancellation from elsewhere stays a ``CancelledError``, or whatever else ``waiting`` makes of it.
    """
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        waiting.cancel()

    call = reactor.callLater(max(0.0, deadline - reactor.seconds()), expire)
    try:
        return await waiting
    except Exception:  # an attempt that was cancelled may raise anything: endpoints have errors of their own for it
        if expired:
            raise error from None
        raise
    finally:
        if call.active():
            call.cancel()


def deadline_passed() -> DeadlinePassed:
    """The error for an operation whose time is over."""
    return DeadlinePassed(
        "The operation did not end within its time; it was cancelled",
        hint="Ask for less at once, or raise operation_timeout_ms.",
        timeout="operation",
    )


class AssociationSlots:
    """At most ``limit`` associations to one node at once; ``max_queue`` more may wait, the next is refused."""

    def __init__(self, reactor: Any, node: str, limit: int, max_queue: int) -> None:
        self._reactor = reactor
        self._node = node
        self._semaphore = DeferredSemaphore(limit)
        self._max_queue = max_queue

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._semaphore.waiting)

    async def acquire(self, deadline: float) -> None:
        """Wait for a slot. Raises ``Unavailable`` (queue full) or ``DeadlinePassed``."""
        if not self._semaphore.tokens and len(self._semaphore.waiting) >= self._max_queue:
            raise Unavailable(
                f"The queue of {self._node} is full: max_queue allows {self._max_queue} to wait",
                hint="Try again later. The backend's max_associations says how many run at once.",
                retry_after_secs=5,
            )
        error = DeadlinePassed(
            f"The deadline passed while the request waited for a free association to {self._node}",
            hint="The node is busy with other requests of ours; raise max_associations if it can take more.",
            timeout="queue",
        )
        await until(self._reactor, deadline, self._semaphore.acquire(), error)

    def release(self) -> None:
        """Give the slot back."""
        self._semaphore.release()
