"""Those who wait for something to happen, each on a Deferred of its own."""

from __future__ import annotations

from typing import Generic, TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")


class Waiters(Generic[T]):
    """Cancelling a waiter's Deferred only ends that waiting."""

    def __init__(self) -> None:
        self._waiting: list[Deferred[T]] = []

    def wait(self) -> Deferred[T]:
        """A new Deferred for the next ``fire`` or ``fail``."""
        waiter: Deferred[T] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        return waiter

    def fire(self, result: T) -> None:
        for waiter in self._take():
            waiter.callback(result)

    def fail(self, error: Exception) -> None:
        for waiter in self._take():
            waiter.errback(error)

    def _take(self) -> list[Deferred[T]]:
        waiting, self._waiting = self._waiting, []
        return waiting
