"""Spools that are stopped at the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from spool_kit import CONFIG, ClockReactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from harmonyd.spool.spool import DurableSpool

Until = Callable[[Callable[[], Any]], Awaitable[None]]


@pytest.fixture
def clock(started_reactor: Any) -> ClockReactor:
    return ClockReactor(started_reactor)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "storage"


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    return tmp_path / "incoming"


@pytest.fixture
def make_spool(clock: ClockReactor, storage: Path) -> Iterator[Callable[..., DurableSpool]]:
    """Make spools on one folder (one at a time); ``random`` is always in the middle."""
    made: list[DurableSpool] = []

    def make(config: Any = CONFIG, folder: Path = storage, reactor: Any = clock) -> DurableSpool:
        made.append(DurableSpool(reactor, folder, config, random=lambda: 0.5))
        return made[-1]

    yield make
    for spool in made:
        pytest_twisted.blockon(Deferred.fromCoroutine(spool.stop()))


@pytest.fixture
def until(started_reactor: Any) -> Until:
    """Let the reactor run until this is true."""

    async def until(condition: Callable[[], Any]) -> None:
        while not condition():
            await deferLater(started_reactor, 0.002)

    return until
