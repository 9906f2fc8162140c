"""What running processes use, and the limit on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest_twisted
from twisted.internet.task import Clock

from harmonyd.supervision import memory
from harmonyd.supervision.api import OnceSpec
from harmonyd.supervision.figures import FRESH_SECS, Figures, Sampler

BIG = Figures(60_000_000, 1.0, 5)


@contextmanager
def sleeper() -> Iterator[int]:
    """A process that does nothing."""
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def ended() -> int:
    """The pid that a process had."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


@pytest_twisted.ensureDeferred
async def test_refresh_reads_what_a_process_uses(started_reactor) -> None:
    """Memory, file descriptors, and from the second look on its share of a processor."""
    with sleeper() as pid:
        sampler = Sampler(started_reactor, lambda: [pid, os.getpid()])
        assert sampler.latest(pid) is None
        await sampler.refresh()
        first = sampler.latest(pid)
        assert first is not None
        assert 0 < first.rss_bytes < 50_000_000
        assert (first.fds, first.cpu_percent) == (3, None)
        own = sampler.latest(os.getpid())
        assert own is not None
        assert own.rss_bytes > 10_000_000
        await sampler.stop()


@pytest_twisted.ensureDeferred
async def test_figures_are_not_read_more_often_than_needed(started_reactor) -> None:
    """Whoever asks within a second gets the same; those who ask at once share one look."""
    looks: list[int] = []
    pids: Callable[[], list[int]] = lambda: looks.append(1) or [os.getpid()]  # noqa: E731
    sampler = Sampler(started_reactor, pids)
    await sampler.refresh()
    first = sampler.latest(os.getpid())
    await sampler.refresh()
    assert sampler.latest(os.getpid()) is first
    assert len(looks) == 1
    assert FRESH_SECS >= 1


@pytest_twisted.ensureDeferred
async def test_a_process_that_is_gone_has_none(started_reactor) -> None:
    """Neither one that never was, nor one that has ended, disturbs the others."""
    with sleeper() as pid:
        gone = ended()
        sampler = Sampler(started_reactor, lambda: [gone, pid])
        await sampler.refresh()
        assert sampler.latest(gone) is None
        assert sampler.latest(pid) is not None
        assert sampler.latest(None) is None


@pytest_twisted.ensureDeferred
async def test_it_looks_regularly_and_only_while_there_are_processes() -> None:
    """Without processes nothing is read; the loop ends with ``stop``."""
    clock: Any = Clock()
    asked: list[float] = []
    sampler = Sampler(clock, lambda: asked.append(clock.seconds()) or [], interval_secs=10.0)
    sampler.start()
    clock.pump([5.0] * 6)
    assert asked == [10.0, 20.0, 30.0]
    await sampler.stop()
    assert clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_a_kept_child_above_the_limit_is_replaced(supervise, storescp, until) -> None:
    """It is ended with the reason in its status, and started again."""
    supervisor = supervise()
    child = supervisor.keep(storescp())
    await child.when_ready()
    pid = child.pid
    memory.enforce(supervisor, 0, {pid: BIG})
    memory.enforce(supervisor, 60, {pid: BIG})
    assert (child.state, child.pid) == ("RUNNING", pid)
    memory.enforce(supervisor, 59, {pid: BIG})
    assert child.state == "BACKOFF"
    assert "it used 60 MB of memory, and memory_limit_mb in [supervision] is 59" in child.description
    await until(lambda: child.state == "RUNNING")
    assert child.pid != pid
    assert child.history.starts == 2


@pytest_twisted.ensureDeferred
async def test_a_once_child_above_the_limit_is_ended(supervise) -> None:
    """Whoever waits for it learns why."""
    supervisor = supervise()
    once = supervisor.run_once(OnceSpec("findscu:1", ("/bin/sleep", "60")))
    memory.enforce(supervisor, 59, {once.pid: BIG})
    record = await once.exited
    assert record.signal == 15
    assert "it used 60 MB of memory" in record.ended_because
