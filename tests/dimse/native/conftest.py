"""Fixtures for moves of the native engine, and for the SCU half."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from move_kit import Mover
from scu_kit import MAX_ASSOCIATIONS, Scu
from twisted.internet.defer import Deferred


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
