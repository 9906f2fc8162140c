"""Fixtures for real receivers, and for pydicom as the judge of the decoder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from inbound_kit import Inbound
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from harmonyd.testing.data import MadeStudy, make_study


@pytest.fixture
def quiet_pydicom() -> Iterator[None]:
    """Let pydicom complain about test data in silence."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def eventually(started_reactor: Any) -> Callable[[Callable[[], object]], Awaitable[None]]:
    """``await eventually(condition)``: returns once it holds; the test's deadline bounds the wait."""

    async def wait(condition: Callable[[], object]) -> None:
        while not condition():
            await deferLater(started_reactor, 0.01)

    return wait


@pytest.fixture
def study(tmp_path: Path) -> MadeStudy:
    """Ten small CT instances."""
    return make_study(tmp_path / "study", 10)


@pytest.fixture
def inbound(started_reactor: Any, tmp_path: Path) -> Iterator[Callable[..., Awaitable[Inbound]]]:
    """``await inbound(max_associations=2)``: a running store SCP. At the end nothing of it may be left."""
    made: list[Inbound] = []

    async def start(**options: Any) -> Inbound:
        folder = tmp_path / f"inbound-{len(made)}"
        folder.mkdir()
        made.append(Inbound(started_reactor, folder, **options))
        await made[-1].start()
        return made[-1]

    yield start
    for each in made:
        pytest_twisted.blockon(Deferred.fromCoroutine(each.stop()))
        assert not each.children
        assert not each.spool.refused and not list(each.incoming.iterdir())
    give_up = started_reactor.seconds() + 5
    while made and (left := _kept_open(made[0])) and started_reactor.seconds() < give_up:
        pytest_twisted.blockon(deferLater(started_reactor, 0.02))
    assert not made or not left


def _kept_open(first: Inbound) -> list[str]:
    kinds = ("socket:", "pipe:", "anon_inode:inotify")
    return [what for what in first.new_descriptors().values() if what.startswith(kinds) or str(first.incoming) in what]
