"""Fixtures for a real native store SCP, and for the SCU half."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from move_kit import Mover
from scp_kit import NativeInbound
from scu_kit import MAX_ASSOCIATIONS, Scu
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater


@pytest.fixture
def native(started_reactor: Any, tmp_path: Path) -> Iterator[Callable[..., Awaitable[NativeInbound]]]:
    """``await native(max_associations=2)``: a running store SCP. At the end nothing of it may be left."""
    made: list[NativeInbound] = []

    async def start(*, folder: Path | None = None, **options: Any) -> NativeInbound:
        folder = folder or tmp_path / f"inbound-{len(made)}"
        folder.mkdir(exist_ok=True)
        made.append(NativeInbound(started_reactor, folder, **options))
        await made[-1].start()
        return made[-1]

    yield start
    for each in made:
        pytest_twisted.blockon(Deferred.fromCoroutine(each.stop()))
        assert not each.sessions
        assert not each.incoming.exists() or not list(each.incoming.iterdir())
    give_up = started_reactor.seconds() + 5
    while made and (left := made[0].new_descriptors()) and started_reactor.seconds() < give_up:
        pytest_twisted.blockon(deferLater(started_reactor, 0.02))
    assert not made or not [what for what in left if what.startswith("socket:") or str(made[0].incoming) in what]


@pytest.fixture
def mover(started_reactor: Any, tmp_path: Path) -> Iterator[Mover]:
    """Moves; at the end all is closed, and nothing lies where it was received."""
    made = Mover(started_reactor, tmp_path)
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.close()))
    assert not made.listeners.association_count()
    left = [path for path in (made.storage / "incoming").rglob("*") if path.is_file()]
    assert not left


@pytest.fixture
def scu(started_reactor: Any, tmp_path: Path) -> Iterator[Scu]:
    """The means of an engine. At the end all permits are back, and closing it leaves nothing."""
    storage = tmp_path / "storage"
    storage.mkdir()
    made = Scu(started_reactor, storage)
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.pool.close()))
    assert made.permits == MAX_ASSOCIATIONS
    assert not made.pool._nodes and not made.pool._opening
