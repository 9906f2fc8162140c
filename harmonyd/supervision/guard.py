"""The daemon's side of the watcher: starts it, tells it every child, starts it again when it dies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from harmonyd.supervision import watcher
from harmonyd.supervision.watcher import kill_quietly

RESTART_SECS = 1.0
"""A watcher that dies is started again at once; one that keeps dying, at this interval."""
STOP_SECS = 5.0
"""How long a watcher may take to go when its pipe is closed."""


class _WatcherProtocol(ProcessProtocol):
    transport: Any

    def __init__(self, on_start: Callable[[int], None], on_exit: Callable[[], None]) -> None:
        self._on_start = on_start
        self._on_exit = on_exit

    def connectionMade(self) -> None:
        self._on_start(self.transport.pid)

    def processExited(self, reason: Failure) -> None:
        self._on_exit()


class Guard:
    """Keeps one watcher process informed. Owned and called by the supervisor, on the reactor's thread."""

    log = Logger()

    def __init__(self, reactor: Any, command: tuple[str, ...] | None = None) -> None:
        self._reactor = reactor
        self._command = command or (sys.executable, "-I", "-S", str(Path(watcher.__file__).resolve()))
        self._children: dict[int, int] = {}
        self._pipe: int | None = None
        self._started_at = float("-inf")
        self._restart: DelayedCall | None = None
        self._stopped: Deferred[None] | None = None
        self.pid: int | None = None

    def start(self) -> None:
        """Start the watcher unless it runs. A failure is logged and tried again: children work without it."""
        if self._pipe is not None or self._restart is not None:
            return
        self._stopped = None
        self._started_at = self._reactor.seconds()
        try:
            self._launch()
        except OSError as error:
            self.log.error("the watcher could not be started: {error}", error=str(error))
            self._start_later()
            return
        for pid, start in self._children.items():
            self._tell(f"+ {pid} {start}\n")

    def add(self, pid: int, start: int) -> None:
        """A child was started: ``start`` is its start time in clock ticks since boot."""
        self._children[pid] = start
        self._tell(f"+ {pid} {start}\n")

    def remove(self, pid: int) -> None:
        """A child and its group are gone."""
        if self._children.pop(pid, None) is not None:
            self._tell(f"- {pid}\n")

    @property
    def children(self) -> Mapping[int, int]:
        """pid → start time of what the watcher would end."""
        return self._children

    async def stop(self) -> None:
        """Let the watcher go, and wait for it."""
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if self.pid is not None:
            self._stopped = Deferred()
            self._close_pipe()
            last_resort = self._reactor.callLater(STOP_SECS, kill_quietly, self.pid, signal.SIGKILL)
            await self._stopped
            if last_resort.active():
                last_resort.cancel()

    def _launch(self) -> None:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.set_blocking(write_end, False)
        self._pipe = write_end
        try:
            self._reactor.spawnProcess(
                _WatcherProtocol(self._launched, self._exited), self._command[0], list(self._command), env={},
                childFDs={0: read_end, 1: null, 2: null},
            )  # fmt: skip
        except OSError:
            self._close_pipe()
            raise
        finally:
            os.close(read_end)
            os.close(null)

    def _launched(self, pid: int) -> None:
        self.pid = pid

    def _tell(self, line: str) -> None:
        if self._pipe is None:
            return
        try:
            os.write(self._pipe, line.encode())
        except BlockingIOError:
            # A stopped watcher does not read. A new one is told everything.
            self.log.error("the watcher does not read; it is replaced", pid=self.pid)
            if self.pid is not None:
                kill_quietly(self.pid, signal.SIGKILL)
        except BrokenPipeError:
            pass  # it just died, and its exit is about to be noticed

    def _exited(self) -> None:
        self.pid = None
        self._close_pipe()
        if self._stopped is not None:
            self._stopped.callback(None)
            return
        self.log.warn("the watcher died; it is started again")
        if self._reactor.seconds() - self._started_at < RESTART_SECS:
            self._start_later()
        else:
            self.start()

    def _start_later(self) -> None:
        def due() -> None:
            self._restart = None
            self.start()

        self._restart = self._reactor.callLater(RESTART_SECS, due)

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
