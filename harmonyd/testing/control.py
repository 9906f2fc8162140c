"""A daemon in memory, for tests of what operates one: children that start and stop at once, logs, a reloader."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harmonyd.control.api import Action, Changes, Child, LogView, UnknownGroup
from harmonyd.supervision.figures import Figures
from harmonyd.telemetry.ring import RingBuffer


def fake_log(text: bytes = b"", size_bytes: int = 10_000, path: Path | None = None) -> LogView:
    """A log with something in it; ``path`` is removed by ``clear``."""
    ring = RingBuffer(size_bytes)
    ring.write(text)

    def clear() -> None:
        ring.clear()
        if path is not None:
            path.unlink()

    return LogView(ring, path, clear)


@dataclass
class FakeChild:
    """Implements ``control.api.Child``: RUNNING after ``start``, or ``starts_to``; STOPPED after ``stop``."""

    group: str = "storescp"
    name: str = "incoming"
    state: str = "RUNNING"
    pid: int | None = 4711
    is_kept: bool = True
    note: str = ""
    started_at: float = field(default_factory=time.time)
    stopped_at: float = 0.0
    exit_code: int | None = None
    starts: int = 1
    argv: tuple[str, ...] = ("/bin/true", "11112")
    figures: Figures | None = None
    log: LogView = field(default_factory=fake_log)
    starts_to: str = "RUNNING"
    signals: list[int] = field(default_factory=list)
    """Signals it has got."""

    def start(self) -> None:
        self.state = self.starts_to
        self.starts += self.starts_to != "BACKOFF"
        self.pid = 4711 if self.starts_to == "RUNNING" else None

    async def stop(self) -> None:
        self.state, self.pid = "STOPPED", None
        self.stopped_at = time.time()

    def signal(self, signum: int) -> None:
        self.signals.append(signum)


@dataclass
class FakeReloader:
    """Implements ``control.api.Reloader``: finds ``changes``, or raises ``error``."""

    changes: Changes = field(default_factory=Changes)
    error: Exception | None = None
    applied: list[tuple[str, Action]] = field(default_factory=list)
    restarts: int = 0

    async def reread(self) -> Changes:
        if self.error is not None:
            raise self.error
        return self.changes

    async def apply(self, name: str, action: Action) -> None:
        if self.error is not None:
            raise self.error
        known = self.changes.removed if action is Action.REMOVE else self.changes.added
        if name not in (*known, *self.changes.changed):
            raise UnknownGroup(f"nothing is known of {name}")
        self.applied.append((name, action))

    async def restart(self) -> None:
        if self.error is not None:
            raise self.error
        self.restarts += 1


@dataclass
class FakeDaemon:
    """Implements ``control.api.Controlled``."""

    members: list[Child] = field(default_factory=list)
    id: str = "fake"
    is_stopping: bool = False
    main_log: LogView = field(default_factory=fake_log)
    reloader: FakeReloader = field(default_factory=FakeReloader)

    def children(self) -> Sequence[Child]:
        return self.members

    def shutdown(self) -> None:
        self.is_stopping = True
