"""Fixtures for the tests against other implementations."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from interop_kit import Gateway, Sample, make_samples
from twisted.internet.defer import Deferred

from harmonyd.testing.processes import free_port


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, unless '-m peers' asks for them, the implementations that have to be installed first."""
    if "peers" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("peers")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("peers")]


@pytest.fixture(autouse=True)
def quiet_peers() -> Iterator[None]:
    """pydicom and pynetdicom complain about test data, and about peers that leave, in silence."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """One study with an object in every transfer syntax that pydicom ships."""
    return make_samples(tmp_path_factory.mktemp("interop") / "samples")


@pytest.fixture(scope="session")
def move_port() -> int:
    """Where C-MOVE delivers."""
    return free_port()


@pytest.fixture
def gateway(started_reactor: Any, tmp_path: Path, move_port: int) -> Iterator[Gateway]:
    """A native engine."""
    made = Gateway(started_reactor, tmp_path, move_port)
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.close()))
