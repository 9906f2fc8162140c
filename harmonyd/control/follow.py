"""``tail -f``: the end of a log, then all that comes, until its reader leaves or its child is gone.

Nothing is queued for a reader. It is fed from the log's ring buffer as fast as it reads, and told how much it missed
when the ring was faster.
"""

# mypy: allow-untyped-calls
# (most functions of Twisted have no types)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import LoopingCall
from twisted.python.threadable import isInIOThread
from zope.interface import implementer

from harmonyd.control.api import LogView
from harmonyd.control.reading import last_bytes
from harmonyd.control.text import shown

HEAD_BYTES = 1024
"""What is shown of the past, as supervisord does."""
LOOK_SECS = 1.0
"""How often it is asked whether the log is still there."""


@implementer(IPushProducer)
class Follower:
    """Feeds one request. ``is_there`` tells whether the log is still that of something."""

    def __init__(self, reactor: Any, request: Any, log: LogView, is_there: Callable[[], bool]) -> None:
        self._reactor = reactor
        self._request = request
        self._log = log
        self._is_there = is_there
        self._position = log.ring.total_bytes
        self._paused = self._scheduled = self._done = False
        self._unwatch: Callable[[], None] = lambda: None
        self._look = LoopingCall(self._end_when_gone)
        self._look.clock = reactor

    async def run(self) -> None:
        """Show the end of the log and begin to follow. Returns then; what follows ends by itself, or with ``end``."""
        self._request.notifyFinish().addBoth(lambda _: self._release())
        head = await last_bytes(self._reactor, self._log, HEAD_BYTES)
        if self._done:
            return
        self._request.registerProducer(self, True)
        self._request.write(b"")  # the head, also while there is nothing to show
        self._write(head)
        self._unwatch = self._log.ring.watch(self._written)
        self._look.start(LOOK_SECS, now=False)
        self._pull()

    def end(self) -> None:
        """Show what is there yet, then end the answer."""
        if not self._done:
            self._pull()
            self._release()
            self._request.unregisterProducer()
            self._request.finish()

    # --- IPushProducer

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._schedule()

    def stopProducing(self) -> None:
        self._release()

    # --- from the ring to the request

    def _written(self) -> None:
        """Called by whoever writes; the daemon's own log is written by any thread."""
        if isInIOThread():
            self._schedule()
        else:
            self._reactor.callFromThread(self._schedule)

    def _schedule(self) -> None:
        # Not at once: a log line must not have consequences inside the code that logs it.
        if not self._scheduled and not self._done:
            self._scheduled = True
            self._reactor.callLater(0, self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self._pull()

    def _pull(self) -> None:
        if self._paused or self._done:
            return
        data, end = self._log.ring.read(self._position)
        missed = end - self._position - len(data)
        self._position = end
        if missed > 0:
            self._write(b"\n==> %d bytes were not shown <==\n" % missed)
        self._write(data)

    def _write(self, data: bytes) -> None:
        text = shown(data)
        if text:
            self._request.write(text.encode("utf-8"))

    def _end_when_gone(self) -> None:
        if not self._is_there():
            self.end()

    def _release(self) -> None:
        if self._done:
            return
        self._done = True
        self._unwatch()
        if self._look.running:
            self._look.stop()
