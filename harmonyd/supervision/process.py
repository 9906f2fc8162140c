"""One running process and its group: output, exit, drain, and the certainty that nothing of it is left.

The exit is what counts, never the end of the pipes: a grandchild can hold them open. After it the pipes are drained
for a bounded time, then closed, and the group is watched until it is empty.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from harmonyd.landlock import Rights
from harmonyd.supervision.api import ExitRecord
from harmonyd.supervision.lines import LineSplitter
from harmonyd.supervision.spawn import spawn
from harmonyd.supervision.watcher import Stat, kill_quietly, members, read_stat
from harmonyd.waiters import Waiters

DRAIN_STEP_SECS = 0.25
DRAIN_MAX_STEPS = 20
"""Pipes that stay open after the exit are closed after two quiet steps in a row, or after this many altogether."""
GROUP_POLL_SECS = (0.01, 0.2)
"""First and longest delay between looks at a group that is not empty."""


class ChildProcess(ProcessProtocol):
    """A process started by ``spawn``. Everything happens on the reactor's thread.

    ``on_lines`` gets each batch of lines of stdout and stderr. ``on_exit`` is called at the exit, ``on_drained`` when
    the output is complete, ``on_gone`` when the output is complete and the group is empty; each once, in this order.
    """

    log = Logger()
    transport: Any

    def __init__(
        self,
        reactor: Any,
        name: str,
        *,
        on_lines: Callable[[list[bytes]], None],
        on_exit: Callable[[], None] = lambda: None,
        on_drained: Callable[[], None] = lambda: None,
        on_gone: Callable[[], None] = lambda: None,
        max_output_bytes: int = 4096,
        log_fields: Mapping[str, str] | None = None,
    ) -> None:
        self._reactor = reactor
        self.name = name
        self._on_lines = on_lines
        self._on_exit = on_exit
        self._on_drained = on_drained
        self._on_gone = on_gone
        self._log_fields = dict(log_fields or {})
        self.forget: Callable[[], None] = lambda: None
        """Called before ``on_gone``: for whoever keeps a list of processes."""
        self._gone_waiters: Waiters[None] = Waiters()
        self._splitters = {1: LineSplitter(), 2: LineSplitter(), 3: LineSplitter()}
        self._output: list[bytes] = []
        self._last_line = b""
        self._room_bytes = max_output_bytes
        self.output_bytes = 0
        """Everything the process has written so far, kept or not."""
        self.pid = 0
        self.start_ticks = 0
        """Start time in clock ticks since boot: with the pid it names this process and no later one."""
        self._started_at = 0.0
        self._runtime_secs = 0.0
        self.exit_code: int | None = None
        self.exit_signal: int | None = None
        self.ended_because = ""
        self.exited = False
        self.drained = False
        self.group_empty = False

    # --- starting and signalling

    def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        stdin: int | None = None,
        log_pipe: bool = False,
        rights: Rights | None = None,
    ) -> None:
        """Start it as ``spawn`` does. Raises ``SpawnError``; the callbacks can come before this returns."""
        self._started_at = self._reactor.seconds()
        spawn(self._reactor, self, argv, env, stdin=stdin, log_pipe=log_pipe, rights=rights)
        self.log.debug("{child} started as pid {pid}", child=self.name, pid=self.pid, **self._log_fields)

    @property
    def gone(self) -> bool:
        """True when the output is complete and no process of the group is left."""
        return self.drained and self.group_empty

    def signal(self, signum: int) -> None:
        """Signal the whole group; does nothing when it is gone."""
        if self.pid and not self.group_empty and not self._signal_group(signum) and not self.exited:
            # Between spawn and setsid the process is not yet the leader of a group of its own.
            kill_quietly(self.pid, signum)

    def when_gone(self) -> Deferred[None]:
        """Fires when ``gone``; cancellable."""
        waiter = self._gone_waiters.wait()
        if self.gone:
            self._gone_waiters.fire(None)
        return waiter

    def exit_record(self) -> ExitRecord:
        """How it ended; meaningful once ``drained``."""
        output = b"".join(self._output)
        return ExitRecord(
            self.pid, self.exit_code, self.exit_signal, output, self._runtime_secs, self.ended_because,
            self._last_line,
        )  # fmt: skip

    def _signal_group(self, signum: int) -> bool:
        try:
            os.killpg(self.pid, signum)
        except ProcessLookupError:
            return False
        except OSError as error:
            if error.errno != errno.EPERM:  # something is there, though not ours to signal
                raise
        return True

    # --- ProcessProtocol

    def connectionMade(self) -> None:
        self.pid = self.transport.pid
        stat = read_stat(self.pid)
        self.start_ticks = stat.start if stat else 0

    def childDataReceived(self, childFD: int, data: bytes) -> None:  # noqa: N803 - Twisted's name
        self.output_bytes += len(data)
        lines = self._splitters[childFD].feed(data)
        if lines:
            self._deliver(lines)

    def processExited(self, reason: Failure) -> None:
        self.exited = True
        self._runtime_secs = self._reactor.seconds() - self._started_at
        status: Any = reason.value  # ProcessDone or ProcessTerminated
        self.exit_code = status.exitCode
        self.exit_signal = status.signal
        self.group_empty = not self._signal_group(0)
        self._drain(steps_left=DRAIN_MAX_STEPS, quiet=0, seen_bytes=self.output_bytes)
        self._on_exit()
        if not self.group_empty:
            self._look_at_group(GROUP_POLL_SECS[0])

    def processEnded(self, reason: Failure) -> None:
        if self._drain_call.active():
            self._drain_call.cancel()
        for splitter in self._splitters.values():
            self._deliver(splitter.flush())
        self.drained = True
        self._on_drained()
        self._check_gone()

    # --- output

    def _deliver(self, lines: list[bytes]) -> None:
        if not lines:
            return
        if self._room_bytes > 0:
            kept = (b"\n".join(lines) + b"\n")[: self._room_bytes]
            self._room_bytes -= len(kept)
            self._output.append(kept)
        self._last_line = next(filter(None, reversed(lines)), self._last_line)
        self._on_lines(lines)

    def _drain(self, steps_left: int, quiet: int, seen_bytes: int) -> None:
        """Close the pipes once nothing comes any more, although somebody still holds them."""
        if quiet == 2 or steps_left == 0:
            self.transport.loseConnection()
            return
        self._drain_call = self._reactor.callLater(DRAIN_STEP_SECS, self._drain_step, steps_left - 1, quiet, seen_bytes)

    def _drain_step(self, steps_left: int, quiet: int, seen_bytes: int) -> None:
        quiet = quiet + 1 if self.output_bytes == seen_bytes else 0
        self._drain(steps_left, quiet, self.output_bytes)

    # --- the group

    def _look_at_group(self, delay_secs: float) -> None:
        self._reactor.callLater(delay_secs, self._count_group, min(2 * delay_secs, GROUP_POLL_SECS[1]))

    def _count_group(self, next_delay_secs: float) -> None:
        """Look again. Signal 0 also finds zombies that nobody reaps, so what it finds is looked up in /proc."""
        if not self._signal_group(0):
            self._group_is_empty()
            return

        def counted(left: Sequence[Stat]) -> None:
            # The leader is reaped: a process with its pid is a stranger who got the number after the group's end.
            if left and all(stat.pid != self.pid for stat in left):
                self._look_at_group(next_delay_secs)
            else:
                self._group_is_empty()

        in_thread(self._reactor, members, self.pid).addCallback(counted)

    def _group_is_empty(self) -> None:
        self.group_empty = True
        self._check_gone()

    def _check_gone(self) -> None:
        if not self.gone:
            return
        self.forget()
        self._on_gone()
        self._gone_waiters.fire(None)


def in_thread(reactor: Any, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
    """Run something that may block in the reactor's thread pool."""
    return deferToThreadPool(reactor, reactor.getThreadPool(), function, *args)


def exit_text(exit_code: int | None, exit_signal: int | None) -> str:
    """How a process ended, in words."""
    if exit_signal is not None:
        named = exit_signal in set(signal.Signals)  # most real-time signals have no name
        return f"ended by {signal.Signals(exit_signal).name if named else f'signal {exit_signal}'}"
    return f"exited with code {exit_code}"
