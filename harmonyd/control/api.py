"""What the operator's side needs of the daemon. ``harmonyd.testing.control`` has an implementation in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from harmonyd.errors import BadRequest
from harmonyd.supervision.figures import Figures
from harmonyd.telemetry.ring import RingBuffer


class GroupError(BadRequest):
    """Base of what ``Reloader.apply`` refuses."""


class UnknownGroup(GroupError):
    """The configuration has no such group."""

    title = "No such group"


class GroupActive(GroupError):
    """The group is there already."""

    title = "Already added"


class GroupRunning(GroupError):
    """The group has a child that runs: stop it first."""

    title = "Still running"


@dataclass(frozen=True, slots=True)
class LogView:
    """What a child, or the daemon, has said: its end in memory, and a file with more, if there is one."""

    ring: RingBuffer
    path: Path | None
    clear: Callable[[], None]
    """Forget it. Raises ``OSError``."""


class Child(Protocol):
    """A process as the operator sees it: ``group:name``."""

    @property
    def group(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def is_kept(self) -> bool:
        """False for a once-child: it can be stopped and signalled, never started."""
        ...

    @property
    def state(self) -> str:
        """A name from ``supervisor.states.ProcessStates``."""
        ...

    @property
    def pid(self) -> int | None: ...
    @property
    def note(self) -> str:
        """While RUNNING, what is to be said beside pid and uptime ("busy"); otherwise why it is in its state."""
        ...

    @property
    def started_at(self) -> float:
        """Seconds since the epoch; 0 for never. Of the latest process, like ``stopped_at`` and ``exit_code``."""
        ...

    @property
    def stopped_at(self) -> float: ...
    @property
    def exit_code(self) -> int | None:
        """None when a signal ended it, or none has ended yet."""
        ...

    @property
    def starts(self) -> int:
        """How many processes it has had."""
        ...

    @property
    def argv(self) -> tuple[str, ...]: ...
    @property
    def log(self) -> LogView: ...
    @property
    def figures(self) -> Figures | None:
        """The latest that is known, without looking now."""
        ...

    def start(self) -> None:
        """Start a child that is STOPPED, FATAL or in BACKOFF. Raises ``IllegalTransition``."""
        ...

    async def stop(self) -> None:
        """End it; returns when nothing of it is left. Safe to call at any time."""
        ...

    def signal(self, signum: int) -> None:
        """Signal the whole process group."""
        ...


@dataclass(frozen=True, slots=True)
class Changes:
    """What a configuration that was read again would change.

    Names are ``group:name``, where a child is meant: one receiver's new port should not stop its neighbours. A name may
    also stand for something that has no process. Whole groups are not named: a stop of the group would be taken for
    a part of ``supervisorctl update``, which leaves stopping to ``Reloader.apply``.
    """

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


class Action(Enum):
    """What ``Reloader.apply`` does with a name of the latest ``Changes``."""

    ADD = "add"
    REMOVE = "remove"


class Reloader(Protocol):
    """Takes over a changed configuration."""

    async def reread(self) -> Changes:
        """Read and validate the configuration; change nothing. Raises ``ConfigError``, or says why it cannot."""
        ...

    async def apply(self, name: str, action: Action) -> None:
        """Take one change over: REMOVE what is gone, ADD what is new. A changed name is removed, then added.

        Raises ``UnknownGroup``, ``GroupActive``, ``GroupRunning``.
        """
        ...

    async def restart(self) -> None:
        """Read the configuration; when it is valid, stop everything and start again with it.

        Returns when it is known to be valid and the stop is about to begin. Raises ``ConfigError``.
        """
        ...


class Controlled(Protocol):
    """The daemon."""

    @property
    def id(self) -> str: ...
    @property
    def is_stopping(self) -> bool: ...
    @property
    def main_log(self) -> LogView: ...
    @property
    def reloader(self) -> Reloader: ...

    def children(self) -> Sequence[Child]:
        """All that run or are kept."""
        ...

    def shutdown(self) -> None:
        """Begin to stop the daemon; returns at once."""
        ...
