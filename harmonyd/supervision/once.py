"""A child that runs to its end: an SCU tool."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from harmonyd.supervision.api import ExitRecord, OnceSpec
from harmonyd.supervision.handlers import LineHandler
from harmonyd.supervision.process import ChildProcess
from harmonyd.supervision.states import State
from harmonyd.telemetry.ring import RingBuffer
from harmonyd.waiters import Waiters

OUTPUT_BYTES = 64_000
"""Last output of a running once-child that can be looked at."""


class Once:
    """Implements ``api.OnceChild``. Start it with ``ProcessSupervisor.run_once``."""

    log = Logger()

    def __init__(self, reactor: Any, spec: OnceSpec, stop_grace_secs: float, on_gone: Callable[[Once], None]) -> None:
        self.spec = spec
        self._reactor = reactor
        self._grace_secs = stop_grace_secs
        self._report_gone = on_gone
        self._waiters: Waiters[ExitRecord] = Waiters()
        self._kill_call: DelayedCall | None = None
        self._stopping = False
        self._handler = LineHandler(spec.name, spec.on_line)
        self.output = RingBuffer(OUTPUT_BYTES)
        self.started_at: float = reactor.seconds()
        self.process = ChildProcess(
            reactor,
            spec.name,
            on_lines=self._lines,
            on_exit=self._exited,
            on_drained=self._drained,
            on_gone=self._gone,
            max_output_bytes=spec.max_output_bytes,
            log_fields=spec.log_fields,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def state(self) -> str:
        """RUNNING, STOPPING or EXITED (``supervisor.states``)."""
        if self.process.exited:
            return State.EXITED.value
        return State.STOPPING.value if self._stopping else State.RUNNING.value

    @property
    def exited(self) -> Deferred[ExitRecord]:
        """See ``api.OnceChild``."""
        waiter = self._waiters.wait()
        if self.process.drained:
            self._waiters.fire(self.process.exit_record())
        return waiter

    async def stop(self) -> ExitRecord:
        """See ``api.OnceChild``. The child is ended even when the caller does not wait for it."""
        self._end()
        await self.process.when_gone()
        return self.process.exit_record()

    def end(self, why: str) -> None:
        """Stop it, and have its exit record say why; returns at once."""
        self.process.ended_because = self.process.ended_because or why
        self._end()

    def _end(self) -> None:
        if self._stopping or self.process.gone:
            return
        self._stopping = True
        self.process.signal(signal.SIGTERM)
        self._kill_call = self._reactor.callLater(self._grace_secs, self.process.signal, signal.SIGKILL)

    def _lines(self, lines: list[bytes]) -> None:
        self.output.write(b"\n".join(lines) + b"\n")
        self._handler(lines)

    def _exited(self) -> None:
        if not self.process.group_empty:
            self._end()  # a grandchild is left, and nobody waits for its work

    def _drained(self) -> None:
        record = self.process.exit_record()
        self.log.debug(
            "{child} ended after {secs:.3f} s: code {code}, signal {signal}",
            child=self.spec.name, pid=record.pid, secs=record.runtime_secs, code=record.exit_code,
            signal=record.signal, **self.spec.log_fields,
        )  # fmt: skip
        self._waiters.fire(record)

    def _gone(self) -> None:
        if self._kill_call is not None and self._kill_call.active():
            self._kill_call.cancel()
        self._report_gone(self)
