"""The audit trail of a daemon: events in, from any thread and at once; messages out, by threads of their own.

An event waits in memory until the writer's thread has it on disk, a moment later. From there it goes to the file, and
to the backlog that the sender brings to the collector.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from twisted.logger import Logger

from harmonyd.audit.api import AuditEvent, AuditFigures, AuditKind, Outcome
from harmonyd.audit.backlog import Backlog
from harmonyd.audit.file import AuditFile
from harmonyd.audit.messages import Reporter, message, severity
from harmonyd.audit.sender import Sender
from harmonyd.audit.sinks import RETRY_SECS, Line, Sink
from harmonyd.audit.syslog import framed
from harmonyd.config.audit_model import AuditConfig
from harmonyd.errors import HarmonydError

FOLDER = "audit"
"""Below the storage path."""
MOST_EVENTS = 10_000
"""That wait for the writer."""
MOST_AT_ONCE = 200
GATHER_SECS = 0.02
"""An event waits so long for others, which then share its way to the disk."""
STOP_WRITE_SECS = 5.0
STOP_SEND_SECS = 3.0


class AuditUnusable(HarmonydError):
    """The audit trail is configured, and cannot be written."""

    title = "The audit trail cannot be written"


class AuditTrail:
    """Implements ``api.Auditor``. ``start`` and ``stop`` block."""

    _log = Logger("harmonyd.audit")

    def __init__(self, storage: Path, config: AuditConfig) -> None:
        self._config = config
        self._backlog = Backlog(storage / FOLDER, config.max_backlog_bytes)
        self._sender = Sender(self._backlog, self._made_room)
        self._events: deque[tuple[float, AuditEvent | AuditConfig]] = deque()
        """And, between them, from where on another configuration counts."""
        self._memory = Sink("memory", len)
        self._changed = threading.Condition()
        self._file: AuditFile | None = None
        self._sinks: list[Sink] = []
        self._earlier: dict[str, int] = {}
        """Dropped by sinks that are no more."""
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._written = 0
        self._set_up(config)

    def __call__(self, event: AuditEvent) -> None:
        """See ``api.Auditor``."""
        if not self._config.enabled:
            return
        with self._changed:
            if len(self._events) >= MOST_EVENTS:
                self._memory.drop(1)
                return
            self._events.append((time.time(), event))
            self._changed.notify()

    @property
    def enabled(self) -> bool:
        """Whether events go anywhere."""
        return self._config.enabled

    # --- life

    def start(self) -> None:
        """Write and send from now on, what an earlier run left on disk first. Raises ``AuditUnusable``."""
        config = self._config
        if not config.enabled:
            return
        try:
            if config.syslog is not None:
                self._backlog.open()
            if self._file is not None:
                self._file.append([])
        except (OSError, sqlite3.Error) as error:
            raise AuditUnusable(
                f"The audit trail cannot be written: {error}",
                hint="Let harmonyd write to [audit] file and to the folder audit below the storage path.",
            ) from error
        self._run()
        self._sender.configure(config.syslog)

    def configure(self, config: AuditConfig) -> None:
        """Another configuration is in force: from the next event on."""
        with self._changed:
            self._config = config
            self._events.append((time.time(), config))
            self._changed.notify()
        if config.enabled:
            self._run()
        self._sender.configure(config.syslog if config.enabled else None)

    def stop(self) -> None:
        """Write what waits in memory, send what can be sent soon, and end the threads. Events are taken no more."""
        thread = self._thread
        with self._changed:
            self._stopping.set()
            self._changed.notify()
        if thread is not None:
            thread.join(STOP_WRITE_SECS)
        self._sender.stop(STOP_SEND_SECS)
        if self._backlog.count:
            self._log.warn("{count} audit messages wait on disk for the next start", count=self._backlog.count)
        self._backlog.close()
        if self._file is not None:
            self._file.close()

    def figures(self) -> AuditFigures:
        """How it is, without waiting for anything that waits."""
        backlog, sender = self._backlog, self._sender
        dropped = dict(self._earlier)
        for sink in (self._memory, *self._sinks):
            dropped[sink.name] = dropped.get(sink.name, 0) + sink.dropped
        return AuditFigures(
            enabled=self._config.enabled,
            waiting=backlog.count,
            waiting_bytes=backlog.bytes,
            oldest_at=backlog.oldest_at,
            written=self._written,
            delivered=sender.delivered,
            dropped=dropped,
            delivered_at=sender.delivered_at,
            connected=sender.connected if self._config.enabled and self._config.syslog is not None else None,
        )

    # --- details

    def _set_up(self, config: AuditConfig) -> None:
        """In the writer's thread, but for the first time."""
        self._reporter = Reporter(
            config.source_id, config.enterprise_site, socket.gethostname(), os.getpid(), config.patient_identifiers
        )
        self._backlog.max_bytes = config.max_backlog_bytes
        known = {sink.name: sink for sink in self._sinks}
        if config.file is None or self._file is None or self._file.path != config.file:
            self._forget(known.pop("file", None))
            self._file = AuditFile(config.file) if config.file is not None else None
        if config.syslog is None:
            self._forget(known.pop("syslog", None))
        self._sinks = []
        if self._file is not None:
            self._sinks.append(known.get("file") or Sink("file", self._to(self._file)))
        if config.syslog is not None:
            self._sinks.append(known.get("syslog") or Sink("syslog", self._to_backlog))

    def _forget(self, sink: Sink | None) -> None:
        if sink is not None:
            self._earlier[sink.name] = self._earlier.get(sink.name, 0) + sink.dropped + sink.waiting

    def _run(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="harmonyd-audit", daemon=True)
            self._thread.start()

    def _made_room(self) -> None:
        if any(sink.untold for sink in self._sinks):
            with self._changed:
                self._changed.notify()

    # --- in the writer's thread

    def _main(self) -> None:
        while True:
            events = self._next()
            sinks, reporter = self._sinks, self._reporter
            lines = [line for at, event in events if (line := self._line(at, event, reporter)) is not None]
            for sink in sinks:
                sink.add(lines)
                sink.flush()
            self._written += len(lines)
            self._sender.wake()
            self._tell_of_losses(sinks)
            if self._stopping.is_set() and not self._events:
                for sink in sinks:
                    sink.drop(sink.waiting)
                return

    def _next(self) -> list[tuple[float, AuditEvent]]:
        """What there is to be written; nothing when something that failed is to be tried again."""
        with self._changed:
            failing = any(sink.is_failing for sink in self._sinks)
            if not self._events and not self._stopping.is_set():
                self._changed.wait(RETRY_SECS if failing else None)
            is_one_of_few = 0 < len(self._events) < MOST_AT_ONCE
        if is_one_of_few:
            self._stopping.wait(GATHER_SECS)
        with self._changed:
            events: list[tuple[float, AuditEvent]] = []
            while self._events and len(events) < MOST_AT_ONCE:
                at, item = self._events[0]
                if isinstance(item, AuditConfig):
                    break
                events.append((at, item))
                self._events.popleft()
            config = self._events.popleft()[1] if self._events and not events else None
        if isinstance(config, AuditConfig):
            self._set_up(config)
            if self._file is not None:
                self._file.reopen()
        return events

    def _line(self, at: float, event: AuditEvent, reporter: Reporter) -> Line | None:
        try:
            return Line(at, severity(event.outcome), message(event, at, reporter))
        except Exception:  # noqa: BLE001 - the thread goes on
            self._log.failure("an audit message cannot be written, by our fault")
            self._memory.drop(1)
            return None

    def _tell_of_losses(self, sinks: list[Sink]) -> None:
        """Once there is room again, whoever reads the trail learns what it lacks."""
        for sink in (self._memory, *sinks):
            if not sink.untold or sink.is_failing or sink.waiting or self._events or self._is_nearly_full(sink):
                continue
            count, sink.untold = sink.untold, 0
            text = f"{count} audit messages were dropped: there was no room in {sink.name}"
            self._log.critical("{text}", text=text)
            details = {"alert": "audit-recording-stopped"}
            self(AuditEvent(AuditKind.SECURITY_ALERT, Outcome.SERIOUS_FAILURE, text, details=details))

    def _is_nearly_full(self, sink: Sink) -> bool:
        return sink.name == "syslog" and self._backlog.bytes > 0.9 * self._backlog.max_bytes

    def _to(self, file: AuditFile) -> Callable[[list[Line]], int]:
        def write(lines: list[Line]) -> int:
            file.append([line.xml for line in lines])
            return len(lines)

        return write

    def _to_backlog(self, lines: list[Line]) -> int:
        host, pid = self._reporter.host, self._reporter.pid
        return self._backlog.add([(each.at, framed(each.xml, each.at, each.severity, host, pid)) for each in lines])
