"""A control server with a daemon in memory behind it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from control_kit import Client
from twisted.internet.defer import Deferred

from harmonyd.config.daemon import ControlConfig
from harmonyd.control.server import ControlServer
from harmonyd.testing.control import FakeDaemon


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="hd"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def daemon_in_memory() -> FakeDaemon:
    """What ``serve`` serves when it is given nothing else."""
    return FakeDaemon()


@pytest.fixture
def serve(
    started_reactor: Any, folder: Path, daemon_in_memory: FakeDaemon
) -> Iterator[Callable[..., Awaitable[Client]]]:
    """``await serve()`` starts a server, with the keys of ``ControlConfig``; they are stopped at the end."""
    servers: list[ControlServer] = []

    async def start(**options: Any) -> Client:
        config = ControlConfig(**{"socket": folder / "control.sock", **options})
        servers.append(ControlServer(started_reactor, config, daemon_in_memory))
        await servers[-1].start()
        return Client(folder / "control.sock", servers[-1])

    yield start
    for server in servers:
        pytest_twisted.blockon(Deferred.fromCoroutine(server.stop()))
