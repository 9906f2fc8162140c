"""Handing on files one by one until each was taken, without one holding up the others for long."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from harmonyd.errors import HarmonydError
from harmonyd.supervision.waiters import Waiters

RETRY_SECS = (1.0, 5.0, 15.0, 60.0)
"""Wait before a file is offered again; the last value repeats."""
MAX_FAILURES = 3
"""After so many failures in a row whoever takes the files is taken for away. Then the waits above are between any two
attempts, whatever the file; only a new one is tried at once."""


def wait_secs(failures: int) -> float:
    """How long to wait after so many failures."""
    return RETRY_SECS[min(failures, len(RETRY_SECS)) - 1]


class DeliveryQueue:
    """Offers each file to ``hand_on`` until that returns. One at a time, in order, failed ones after the others.

    ``clock`` provides ``IReactorTime``; ``name`` is for the log.
    """

    _log = Logger()

    def __init__(self, clock: Any, hand_on: Callable[[Path], Awaitable[None]], name: str) -> None:
        self._clock = clock
        self._hand_on = hand_on
        self._name = name
        self._queue: deque[tuple[Path, int]] = deque()
        """Files and how often each has failed."""
        self._put_off: list[tuple[float, int, Path, int]] = []
        """A heap by the time a file is due again."""
        self._numbers = count()
        self._failures = 0
        self._worker: Deferred[None] | None = None
        self._emptied: Waiters[None] = Waiters()
        self._timer: Any = None
        self._stopped = False

    def __len__(self) -> int:
        """How many files wait, the one that is being handed on left out."""
        return len(self._queue) + len(self._put_off)

    def add(self, path: Path) -> None:
        """Hand this file on, after those that are there."""
        self._queue.append((path, 0))
        self._work()

    async def emptied(self) -> None:
        """Return when every file has been taken."""
        if len(self) or self._worker is not None:
            await self._emptied.wait()

    async def stop(self) -> None:
        """Hand nothing on any more; what is being handed on is cancelled. Returns when that has ended."""
        self._stopped = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        worker = self._worker
        if worker is not None:
            worker.cancel()
            await worker

    def _work(self) -> None:
        if self._worker is None and self._queue and not self._stopped:
            self._worker = worker = Deferred.fromCoroutine(self._drain())
            worker.addBoth(self._paused)

    async def _drain(self) -> None:
        while self._queue and not self._stopped:
            path, failures = self._queue.popleft()
            try:
                await self._hand_on(path)
            except CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one file, or its taker, it stays ours
                self._failed(path, failures + 1, error)
                if self._failures >= MAX_FAILURES:
                    return
            else:
                self._failures = 0

    def _failed(self, path: Path, failures: int, error: Exception) -> None:
        self._failures += 1
        wait = wait_secs(failures)
        heapq.heappush(self._put_off, (self._clock.seconds() + wait, next(self._numbers), path, failures))
        if not isinstance(error, HarmonydError | OSError):
            self._log.failure("an object could not be handed on, by our fault", child=self._name)
        self._log.error(
            "an object received by {child} could not be handed on: {why}; again in {wait:g} s ({waiting} waiting)",
            child=self._name,
            why=_reason(error),
            wait=wait,
            waiting=len(self),
        )

    def _paused(self, result: Any) -> None:
        """Nothing can be handed on now: go on when the next file is due."""
        self._worker = None
        if isinstance(result, Failure):
            result.trap(CancelledError)  # type: ignore[no-untyped-call]
        if not len(self):
            self._emptied.fire(None)
        if len(self) and not self._stopped and (self._timer is None or not self._timer.active()):
            due = self._put_off[0][0] - self._clock.seconds()
            delay = wait_secs(self._failures) if self._failures >= MAX_FAILURES else max(0.0, due)
            self._timer = self._clock.callLater(delay, self._again)

    def _again(self) -> None:
        now = self._clock.seconds()
        while self._put_off and self._put_off[0][0] <= now:
            _, _, path, failures = heapq.heappop(self._put_off)
            self._queue.append((path, failures))
        self._work()
        if self._worker is None:
            self._paused(None)


def _reason(error: Exception) -> str:
    if isinstance(error, HarmonydError):
        return error.detail
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__
