"""What running processes use: memory, CPU, file descriptors. Read with psutil in a thread, never by those who ask."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from harmonyd.supervision.process import in_thread
from harmonyd.waiters import Waiters

INTERVAL_SECS = 10.0
FRESH_SECS = 1.0
"""Younger figures are not read again; nor would a shorter time give a CPU share that means something."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one process, without its descendants."""

    rss_bytes: int
    cpu_percent: float | None
    """Of one processor, since the look before; None at the first look."""
    fds: int | None
    """None where we may not see them."""
    cpu_secs: float | None = None
    """Since it was started."""


class Sampler:
    """Looks at processes regularly, and remembers the latest figures."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        pids: Callable[[], Collection[int]],
        on_sample: Callable[[Mapping[int, Figures]], None] = lambda found: None,
        interval_secs: float = INTERVAL_SECS,
    ) -> None:
        """``on_sample`` gets every new set of figures, by pid."""
        self._reactor = reactor
        self._pids = pids
        self._on_sample = on_sample
        self._interval_secs = interval_secs
        self._processes: dict[int, psutil.Process] = {}
        self._latest: Mapping[int, Figures] = {}
        self._read_at = float("-inf")
        self._reading = False
        self._waiters: Waiters[None] = Waiters()
        self._loop = LoopingCall(self._look)
        self._loop.clock = reactor

    def start(self) -> None:
        """Look regularly from now on."""
        self._loop.start(self._interval_secs, now=False).addErrback(
            lambda failure: self._log.failure("no more figures of processes", failure)
        )

    async def stop(self) -> None:
        """Look no more; returns when no look is under way."""
        if self._loop.running:
            self._loop.stop()
        if self._reading:
            await self._waiters.wait()

    def latest(self, pid: int | None) -> Figures | None:
        """What is known of a process. For one that is not known yet, the next answer may be better."""
        if pid is not None and pid not in self._latest and self._loop.running and self._is_old():
            self._look()
        return None if pid is None else self._latest.get(pid)

    async def refresh(self) -> None:
        """Have figures that are not older than ``FRESH_SECS``."""
        if self._is_old():
            self._look()
        if self._reading:
            await self._waiters.wait()

    def _is_old(self) -> bool:
        return not self._reading and self._reactor.seconds() - self._read_at >= FRESH_SECS

    def _look(self) -> Deferred[None] | None:
        pids = list(self._pids())
        if self._reading or not pids:
            return None
        self._processes = {pid: process for pid, process in self._processes.items() if pid in pids}
        self._reading = True
        reading = in_thread(self._reactor, _read_all, self._processes, pids)
        reading.addCallback(self._found).addErrback(self._failed).addBoth(self._done)
        return reading

    def _found(self, found: Mapping[int, Figures]) -> None:
        self._latest = found
        self._read_at = self._reactor.seconds()
        self._on_sample(found)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("cannot read the figures of processes", failure)

    def _done(self, _: None) -> None:
        self._reading = False
        self._waiters.fire(None)


def _read_all(processes: dict[int, psutil.Process], pids: Collection[int]) -> dict[int, Figures]:
    """Blocking. ``processes`` remembers what CPU shares are computed from."""
    found = {pid: _read(processes, pid) for pid in pids}
    return {pid: figures for pid, figures in found.items() if figures is not None}


def _read(processes: dict[int, psutil.Process], pid: int) -> Figures | None:
    try:
        known = processes.get(pid)
        process = known or psutil.Process(pid)
        cpu_percent = process.cpu_percent(None)
        processes[pid] = process
        times = process.cpu_times()
        rss_bytes = process.memory_info().rss
        return Figures(rss_bytes, cpu_percent if known else None, _fds(process), times.user + times.system)
    except (psutil.Error, OSError):
        processes.pop(pid, None)
        return None


def _fds(process: psutil.Process) -> int | None:
    try:
        return int(process.num_fds())
    except psutil.AccessDenied:
        return None
