"""Supervision whose settings change, and children that are dropped."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted

from harmonyd.config.daemon import SupervisionConfig
from harmonyd.supervision.api import KeptSpec
from harmonyd.supervision.backoff import Backoff
from harmonyd.supervision.logs import RotatedFile
from harmonyd.supervision.runner import ProcessSupervisor
from harmonyd.telemetry.ring import RingBuffer

Until = Callable[[Callable[[], object]], Awaitable[None]]


@pytest_twisted.ensureDeferred
async def test_a_dropped_child_is_forgotten(
    supervise: Callable[..., ProcessSupervisor], storescp: Callable[..., KeptSpec]
) -> None:
    """Only when it is STOPPED; whoever follows the states hears of it; the name is free again."""
    supervisor = supervise()
    changes: list[int] = []
    child = supervisor.keep(storescp())
    await child.when_ready()
    with pytest.raises(ValueError, match="stop it first"):
        supervisor.drop(child)
    await child.stop()
    supervisor.on_change = lambda: changes.append(len(supervisor.children()))
    supervisor.drop(child)
    supervisor.drop(child)
    assert changes == [0]
    again = supervisor.keep(storescp())
    supervisor.drop(child)
    assert supervisor.children() == [again]


@pytest_twisted.ensureDeferred
async def test_running_children_go_by_new_settings(
    supervise: Callable[..., ProcessSupervisor], storescp: Callable[..., KeptSpec], until: Until,
    fast: SupervisionConfig,
) -> None:  # fmt: skip
    """One that kept failing is given up after as many failures as are allowed now."""
    supervisor = supervise(replace(fast, fatal_after_failures=1000))
    child = supervisor.keep(storescp("--no-such-option-at-all"))
    await until(lambda: child.state == "FATAL")  # a wrong option is fatal whatever the settings
    supervisor.configure(replace(fast, ring_buffer_bytes=1000))
    child.output.lines(1, [b"x" * 3000])
    assert len(child.output.ring) == 1000


def test_backoff_counts_on() -> None:
    """Failures from before count towards the new limit; delays follow the new ones."""
    backoff = Backoff(1.0, 60.0, 100, lambda: 0.5)
    assert [backoff.failed(now) for now in (0.0, 1.0)] == [1.0, 2.0]
    backoff.configure(0.1, 0.2, 4)
    assert backoff.failed(2.0) == pytest.approx(0.2)
    assert backoff.failed(3.0) is None


def test_a_log_file_goes_by_its_new_size(tmp_path: Path) -> None:
    """Lines after the change are counted against the new limit."""
    file = RotatedFile(tmp_path / "c.log", 1_000_000, 3, lambda: 0.0)
    file.write(b"a" * 500)
    file.configure(600, 1)
    file.write(b"b" * 500)
    file.close()
    assert (tmp_path / "c.log").read_bytes() == b"b" * 500
    assert (tmp_path / "c.log.1").read_bytes() == b"a" * 500


def test_a_ring_buffer_is_shortened_and_lengthened() -> None:
    """What does not fit goes at once; positions go on."""
    ring = RingBuffer(10)
    ring.write(b"0123456789")
    ring.resize(4)
    assert ring.tail(100) == b"6789"
    ring.resize(8)
    ring.write(b"abcdef")
    assert ring.tail(100) == b"89abcdef"
    assert ring.total_bytes == 16
