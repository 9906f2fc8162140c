"""What lies below the storage path and is in no journal: seen, said, and left where it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_twisted import ensureDeferred
from spool_kit import ENDPOINT, Pacs
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

from harmonyd.spool.api import Pile
from harmonyd.spool.layout import quarantine
from harmonyd.spool.spool import DurableSpool


def left(storage: Path, endpoint: str, *names: str) -> list[Path]:
    """Files that a receiver of this endpoint has left, of 100 bytes, each a second older than the one before."""
    paths = [storage / "spool" / "receiving" / endpoint / "incoming" / name for name in names]
    for age, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    return paths


@ensureDeferred
async def test_an_endpoint_that_is_gone(make_spool: Callable[..., DurableSpool], storage: Path) -> None:
    """What it had received and nothing took is counted, said once, and stays; endpoints that are there do not count."""
    said: list[LogEvent] = []
    spool = make_spool()
    await spool.start()
    spool.attach(ENDPOINT, Pacs(), in_order=False)
    paths = left(storage, "old", "a/1", "a/2", "3") + left(storage, ENDPOINT, "b/4")
    (storage / "spool" / "receiving" / "empty" / "incoming").mkdir(parents=True)
    cut = storage / "spool" / "receiving" / "old" / "native" / "cut.dcm"
    cut.parent.mkdir()
    cut.write_bytes(b"1")
    globalLogPublisher.addObserver(said.append)
    try:
        assert (await spool.summary()).untaken == {"old": Pile(3, 300, 998)}
        await spool.untaken.look()
        await spool.untaken.look()
    finally:
        globalLogPublisher.removeObserver(said.append)
    (error,) = [formatEvent(event) for event in said if event["log_level"] is LogLevel.error]
    assert "3 objects (300 bytes) that endpoint old has received lie in" in error
    assert all(path.exists() for path in paths)


@ensureDeferred
async def test_an_endpoint_that_comes_back(make_spool: Callable[..., DurableSpool], storage: Path) -> None:
    """It is its own matter again."""
    spool = make_spool()
    await spool.start()
    left(storage, ENDPOINT, "b/4")
    await spool.untaken.look()
    assert list(spool.untaken.found) == [ENDPOINT]
    spool.attach(ENDPOINT, Pacs(), in_order=False)
    await spool.untaken.look()
    assert not spool.untaken.found
    assert (await spool.summary()).untaken == {}


@ensureDeferred
async def test_before_anything_was_received(make_spool: Callable[..., DurableSpool]) -> None:
    """There is no folder yet, and nothing is said."""
    spool: Any = make_spool()
    await spool.start()
    await spool.untaken.look()
    assert not spool.untaken.found


@ensureDeferred
async def test_the_quarantine_folder(make_spool: Callable[..., DurableSpool], storage: Path) -> None:
    """Its objects are counted, without the notes beside them; a folder that is not there holds nothing."""
    spool = make_spool()
    await spool.start()
    assert (await spool.summary()).set_aside == Pile(0, 0, None)
    paths = left(storage, "moves", "one", "two")
    for path in paths:
        quarantine(path, storage / "quarantine", "nobody asked for it")
    assert (await spool.summary()).set_aside == Pile(2, 200, 999)
