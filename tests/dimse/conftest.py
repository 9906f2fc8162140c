"""Fixtures for real receivers, and for pydicom as the judge of the decoder."""

from __future__ import annotations

import logging
import ssl
import warnings
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from engine_kit import ENGINES, Asking
from inbound_kit import Inbound
from native_inbound_kit import NativeInbound
from pynetdicom import AE
from pynetdicom.sop_class import (
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from harmonyd.testing.certificates import Authority, Issued, server_context
from harmonyd.testing.data import MadeStudy, make_study

STUDY_ROOT = (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the certificates of the next ones are."""
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def ca(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
def server(ca: Authority) -> Issued:
    """For localhost and 127.0.0.1."""
    return ca.issue("server")


@pytest.fixture(scope="module")
def caller(ca: Authority) -> Issued:
    """Without a name."""
    return ca.issue("caller", ())


@pytest.fixture
def told(started_reactor: Any) -> Iterator[Callable[[str], bool]]:
    """``told("text")``: whether the log has this text."""
    lines: list[str] = []

    def note(event: LogEvent) -> None:
        lines.append(f"{event['log_level'].name}: {formatEvent(event)}")

    globalLogPublisher.addObserver(note)
    yield lambda text: any(text in line for line in lines)
    globalLogPublisher.removeObserver(note)


@pytest.fixture
def secure_scp(server: Issued) -> Iterator[Callable[..., Any]]:
    """``secure_scp(handlers, context)``: an SCP of pynetdicom's that speaks TLS only."""
    running: list[Any] = []

    def start(handlers: list[Any] = [], context: ssl.SSLContext | None = None) -> Any:  # noqa: B006
        node: Any = AE("SECURE")
        node.maximum_pdu_size = 65536
        for uid in (Verification, *STUDY_ROOT):
            node.add_supported_context(uid)
        node.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
        node.add_requested_context(CTImageStorage)
        started = node.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=context or server_context(server)
        )
        started.aet, started.port = "SECURE", started.server_address[1]
        running.append(started)
        return started

    yield start
    for each in running:
        each.shutdown()


@pytest.fixture(params=ENGINES)
def asking(request: pytest.FixtureRequest, started_reactor: Any, tmp_path: Path) -> Iterator[Asking]:
    """An engine that asks, either one in turn. At the end nothing of it is left."""
    made = Asking(started_reactor, tmp_path / "engine", request.param)
    pytest_twisted.blockon(Deferred.fromCoroutine(made.start()))
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.stop()))
    give_up = started_reactor.seconds() + 5
    while made.left() and started_reactor.seconds() < give_up:
        pytest_twisted.blockon(deferLater(started_reactor, 0.02))
    assert not made.left()
