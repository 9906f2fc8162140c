"""Shared fixtures: supervisors with short intervals, specifications of real receivers, waiting for a condition."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from harmonyd.config.daemon import SupervisionConfig
from harmonyd.supervision.api import KeptSpec
from harmonyd.supervision.probe import associate_rq
from harmonyd.supervision.runner import ProcessSupervisor
from harmonyd.testing.processes import free_port

FAST = SupervisionConfig(
    startup_deadline_secs=20.0,
    probe_interval_secs=0.1,
    probe_timeout_secs=1.0,
    stop_grace_secs=5.0,
    backoff_initial_secs=0.05,
    backoff_max_secs=0.2,
)


@pytest.fixture
def fast() -> SupervisionConfig:
    """The short intervals that ``supervise`` uses, to derive others from."""
    return FAST


@pytest.fixture
def until(started_reactor: Any) -> Callable[[Callable[[], object]], Awaitable[None]]:
    """``await until(condition)``: returns once it holds; the test's deadline bounds the wait."""

    async def wait(condition: Callable[[], object]) -> None:
        while not condition():
            await deferLater(started_reactor, 0.01)

    return wait


@pytest.fixture
def supervise(started_reactor: Any, tmp_path: Path) -> Iterator[Callable[..., ProcessSupervisor]]:
    """Make supervisors; all are stopped at the end of the test."""
    made: list[ProcessSupervisor] = []

    def make(config: SupervisionConfig = FAST, **options: Any) -> ProcessSupervisor:
        made.append(ProcessSupervisor(started_reactor, config, tmp_path / "log", tmp_path / "run", **options))
        return made[-1]

    yield make
    for supervisor in made:
        pytest_twisted.blockon(Deferred.fromCoroutine(supervisor.stop_all()))


@pytest.fixture
def storescp(tmp_path: Path) -> Callable[..., KeptSpec]:
    """Specifications of a real storescp on a free port."""

    def spec(*options: str, name: str = "incoming", port: int | None = None, **fields: Any) -> KeptSpec:
        folder = tmp_path / "received"
        folder.mkdir(exist_ok=True)
        port = port or free_port()
        argv = ("/usr/bin/storescp", "-v", "-od", str(folder), *options, str(port))
        return KeptSpec("storescp", name, argv, port, "ANY", **fields)

    return spec


@pytest.fixture
def dcmqrscp(tmp_path: Path) -> Callable[[], KeptSpec]:
    """Specifications of a real dcmqrscp, which forks a child for each association."""

    def spec() -> KeptSpec:
        area = tmp_path / "area"
        area.mkdir(exist_ok=True)
        config = tmp_path / "dcmqrscp.cfg"
        config.write_text(
            "MaxPDUSize = 16384\nMaxAssociations = 16\n"
            "HostTable BEGIN\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
            f"AETable BEGIN\nQRSCP {area} RW (500, 1024mb) ANY\nAETable END\n"
        )
        port = free_port()
        return KeptSpec("pacs", "qr", ("/usr/bin/dcmqrscp", "-v", "-c", str(config), str(port)), port, "QRSCP")

    return spec


@pytest.fixture
def association() -> Iterator[Callable[[int, str], socket.socket]]:
    """Open associations and leave them idle; they are closed at the end of the test."""
    with ExitStack() as stack:

        def open_one(port: int, called_aet: str) -> socket.socket:
            sock = stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=10)))
            sock.sendall(associate_rq(called_aet))
            assert sock.recv(1) == b"\x02", "an A-ASSOCIATE-AC"
            return sock

        yield open_one
