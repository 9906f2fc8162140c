"""A daemon in this process: start, stop in every state, and what must not end with one failure."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from harmonyd import config as configuration
from harmonyd.daemon.build import Folders
from harmonyd.daemon.daemon import Daemon
from harmonyd.daemon.lock import AlreadyRunning
from harmonyd.errors import HarmonydError
from harmonyd.testing.config_files import write_config
from harmonyd.testing.leftovers import LoggedFailures
from harmonyd.testing.processes import free_port

Make = Callable[..., Daemon]


@pytest.fixture
def make(started_reactor: Any, tmp_path: Path) -> Iterator[Make]:
    """Make daemons without DICOM, all with one storage path; they are stopped at the end."""
    made: list[Daemon] = []

    def one(http_port: int | None = None) -> Daemon:
        folder = tmp_path / f"config-{len(made)}"
        path = write_config(
            folder,
            http_port=http_port or free_port(),
            backends={"echo": {"service": "echo"}},
            sections={"storage": {"options": {"path": str(tmp_path / "storage")}}},
        )
        made.append(Daemon(configuration.load(path), started_reactor, None))
        return made[-1]

    yield one
    for daemon in made:
        pytest_twisted.blockon(daemon.stop())


@pytest_twisted.ensureDeferred
async def test_start_and_stop(make: Make) -> None:
    """It listens, stops, stops again, and its storage path is free for the next one."""
    first = make()
    await first.start()
    assert first.health.ready()[0]
    await first.stop()
    await first.stop()
    assert not first.health.ready()[0]
    second = make()
    await second.start()


@pytest_twisted.ensureDeferred
async def test_stopped_before_it_started(make: Make) -> None:
    """A daemon that never started can be stopped."""
    await make().stop()


@pytest_twisted.ensureDeferred
async def test_one_storage_path_for_one_daemon(make: Make) -> None:
    """A second one is refused, and its end takes nothing from the first."""
    first, second = make(), make()
    await first.start()
    with pytest.raises(AlreadyRunning):
        await second.start()
    await second.stop()
    assert first.health.ready()[0]
    third = make()
    with pytest.raises(AlreadyRunning):
        await third.start()


@pytest_twisted.ensureDeferred
async def test_a_start_that_fails_half_way(make: Make) -> None:
    """When the HTTP port is taken, the daemon says so and can be stopped; then everything is free again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        failing = make(taken.getsockname()[1])
        with pytest.raises(HarmonydError):
            await failing.start()
        await failing.stop()
    await make().start()


class BrokenPart:
    """A part that does not stop as it should."""

    async def stop(self) -> None:
        raise RuntimeError("broken")


@pytest_twisted.ensureDeferred
async def test_stops_the_rest_when_a_part_fails(make: Make, logged_failures: LoggedFailures) -> None:
    """A part that fails to stop is logged, and keeps neither the others running nor the lock taken."""
    broken = make()
    await broken.start()
    broken._parts.endpoints["broken"] = BrokenPart()  # type: ignore[assignment]
    await broken.stop()
    assert len(logged_failures.flush(RuntimeError)) == 1
    await make().start()


def _artifact(storage: Path, age_secs: float) -> Path:
    folder = storage / f"dcmtk_get_{int(age_secs):032x}"
    folder.mkdir(parents=True)
    (folder / "CT.1").write_bytes(b"x")
    os.utime(folder, (time.time() - age_secs,) * 2)
    return folder


@pytest_twisted.ensureDeferred
async def test_retention(make: Make) -> None:
    """Old artifact folders go when the daemon starts, and only those."""
    daemon = make()
    storage = daemon.config.storage.path
    old, young = _artifact(storage, 10 * 24 * 3600), _artifact(storage, 60)
    await daemon._clean_artifacts()
    assert _there(old, young, Folders(storage).run) == [False, True, False]


def _there(*paths: Path) -> list[bool]:
    return [path.exists() for path in paths]


@pytest_twisted.ensureDeferred
async def test_retention_goes_on_after_an_error(make: Make) -> None:
    """A folder that cannot be read now does not end the retention for good."""
    daemon = make()
    _make_file(daemon.config.storage.path)
    await daemon._clean_artifacts()
    _remove_file(daemon.config.storage.path)
    await daemon.start()
    assert daemon._retention.running


def _make_file(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")


def _remove_file(path: Path) -> None:
    path.unlink()
