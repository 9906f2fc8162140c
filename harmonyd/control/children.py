"""The children of ``ProcessSupervisor`` as the operator sees them."""

from __future__ import annotations

from collections.abc import Callable

from harmonyd.control.api import Child, LogView
from harmonyd.supervision.figures import Figures, Sampler
from harmonyd.supervision.kept import Kept
from harmonyd.supervision.once import Once
from harmonyd.supervision.runner import ProcessSupervisor


class KeptView:
    """Implements ``Child`` for a kept child."""

    is_kept = True

    def __init__(self, kept: Kept, figures: Callable[[int | None], Figures | None]) -> None:
        self._kept = kept
        self._figures = figures
        self.group = kept.spec.group
        self.name = kept.spec.name
        self.argv = kept.spec.argv
        self.start = kept.start
        self.stop = kept.stop
        self.signal = kept.signal

    @property
    def state(self) -> str:
        return self._kept.state

    @property
    def pid(self) -> int | None:
        return self._kept.pid

    @property
    def note(self) -> str:
        return self._kept.note if self.state == "RUNNING" else self._kept.description

    @property
    def started_at(self) -> float:
        return self._kept.history.started_at

    @property
    def stopped_at(self) -> float:
        return self._kept.history.stopped_at

    @property
    def exit_code(self) -> int | None:
        return self._kept.exits[-1].exit_code if self._kept.exits else None

    @property
    def starts(self) -> int:
        return self._kept.history.starts

    @property
    def log(self) -> LogView:
        output = self._kept.output
        return LogView(output.ring, output.file.path, output.clear)

    @property
    def figures(self) -> Figures | None:
        return self._figures(self.pid)


class OnceView:
    """Implements ``Child`` for a once-child."""

    is_kept = False
    starts = 1
    stopped_at = 0.0

    def __init__(self, once: Once, figures: Callable[[int | None], Figures | None]) -> None:
        self._once = once
        self._figures = figures
        self.group, _, name = once.spec.name.partition(":")
        self.name = name or self.group
        self.argv = once.spec.argv
        self.started_at = once.started_at
        self.log = LogView(once.output, None, once.output.clear)

    @property
    def state(self) -> str:
        return self._once.state

    @property
    def pid(self) -> int | None:
        return None if self._once.process.exited else self._once.pid

    @property
    def note(self) -> str:
        return ""

    @property
    def exit_code(self) -> int | None:
        return self._once.process.exit_code

    @property
    def figures(self) -> Figures | None:
        return self._figures(self.pid)

    def start(self) -> None:
        """Nothing: it was started when there was something to do."""

    async def stop(self) -> None:
        await self._once.stop()

    def signal(self, signum: int) -> None:
        self._once.process.signal(signum)


def children_of(supervisor: ProcessSupervisor, sampler: Sampler) -> list[Child]:
    """All children, kept ones first."""
    kept: list[Child] = [KeptView(kept, sampler.latest) for kept in supervisor.children()]
    return kept + [OnceView(once, sampler.latest) for once in supervisor.once_children()]


def pids_of(supervisor: ProcessSupervisor) -> list[int]:
    """The processes to look at."""
    kept = [child.pid for child in supervisor.children() if child.pid is not None]
    return kept + [once.pid for once in supervisor.once_children() if not once.process.exited]
