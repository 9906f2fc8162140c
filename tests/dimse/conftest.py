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
from native_inbound_kit import NativeInbound
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
    """``await inbound(max_associations=2)``: a running store SCP of the dcmtk engine; nothing of it is left."""
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


@pytest.fixture
def native(started_reactor: Any, tmp_path: Path) -> Iterator[Callable[..., Awaitable[NativeInbound]]]:
    """``await native(max_associations=2)``: a running store SCP of the native engine; nothing of it is left."""
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
        assert not each.associations
        assert not each.incoming.exists() or not list(each.incoming.iterdir())
    give_up = started_reactor.seconds() + 5
    while made and (left := made[0].new_descriptors()) and started_reactor.seconds() < give_up:
        pytest_twisted.blockon(deferLater(started_reactor, 0.02))
    assert not made or not [what for what in left if what.startswith("socket:") or str(made[0].incoming) in what]


@pytest.fixture(params=["dcmtk", "native"])
def store_scp(request: pytest.FixtureRequest) -> Callable[..., Awaitable[Inbound | NativeInbound]]:
    """``await store_scp(max_associations=2)``: a running store SCP, of either engine in turn."""
    name = {"dcmtk": "inbound", "native": "native"}[request.param]
    start: Callable[..., Awaitable[Inbound | NativeInbound]] = request.getfixturevalue(name)
    return start
