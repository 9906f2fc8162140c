"""Watching a folder when things go wrong: no watch, a flood of files, lost events, a folder that vanishes."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from harmonyd.dimse.dcmtk.arrivals import STALE_SECS, FolderWatch
from harmonyd.dimse.errors import EngineFailed

Make = Callable[..., FolderWatch]


@pytest.fixture
def reported() -> list[str]:
    """Names the watches told."""
    return []


@pytest.fixture
def watch(started_reactor: Any, tmp_path: Path, reported: list[str]) -> Iterator[Make]:
    """Watch ``tmp_path``; all are closed at the end."""
    made: list[FolderWatch] = []

    def make(**options: Any) -> FolderWatch:
        made.append(FolderWatch(started_reactor, tmp_path, reported.append, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def turn(started_reactor: Any) -> Callable[[], Awaitable[None]]:
    """Let the reactor read what there is."""

    async def wait() -> None:
        await deferLater(started_reactor, 0.05)

    return wait


def test_folder_that_cannot_be_watched(started_reactor: Any, tmp_path: Path) -> None:
    """Without a watch there is an error that says what to change, and no reader is left."""
    with pytest.raises(EngineFailed) as raised:
        FolderWatch(started_reactor, tmp_path / "missing", print)
    assert "fs.inotify" in (raised.value.hint or "")


def test_sweep_reads_all_events(watch: Make, tmp_path: Path, reported: list[str]) -> None:
    """However many events wait, a sweep knows which files are closed; none is told twice or forgotten."""
    made = watch(track_open=True)
    for number in range(3000):
        (tmp_path / f"a-name-as-long-as-those-of-received-instances-{number}").write_bytes(b"x")
    assert made.sweep() == []
    assert len(reported) == len(set(reported)) == 3000


def test_file_that_is_still_written(watch: Make, tmp_path: Path, reported: list[str]) -> None:
    """A sweep leaves out what is still open, and tells it when it is closed."""
    made = watch(track_open=True)
    with (tmp_path / "open").open("wb"):
        assert made.sweep() == []
    assert made.sweep() == []
    assert reported == ["open"]


def test_close_that_nobody_told(watch: Make, tmp_path: Path) -> None:
    """A file whose closing was lost (the kernel's queue was full) is found once it has been silent for long."""
    made = watch(track_open=True)
    (tmp_path / "lost").write_bytes(b"x")
    made.sweep()
    made.forget("lost")
    made._open.add("lost")
    assert made.sweep() == []
    os.utime(tmp_path / "lost", (time.time() - STALE_SECS - 1,) * 2)
    assert made.sweep() == ["lost"]


def test_what_is_gone_is_not_remembered_as_open(watch: Make, tmp_path: Path) -> None:
    """The names of files that vanished while they were open are forgotten."""
    made = watch(track_open=True)
    with (tmp_path / "open").open("wb"):
        made.sweep()
        (tmp_path / "open").unlink()
    made.sweep()
    assert made._open == set()


def _remove(folder: Path) -> None:
    folder.rmdir()


@pytest_twisted.ensureDeferred
async def test_folder_that_vanishes(
    watch: Make, tmp_path: Path, reported: list[str], turn: Callable[[], Awaitable[None]]
) -> None:
    """The end of the folder itself is not told as a file."""
    watch()
    _remove(tmp_path)
    await turn()
    assert reported == []
