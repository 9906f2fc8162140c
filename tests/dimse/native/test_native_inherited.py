"""What a storescp acknowledged before the endpoint became the native engine's reaches the handler all the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from harmonyd.dimse.native import inherited
from harmonyd.testing.data import MadeStudy

ASSOCIATION = "a" * 32


@pytest.fixture
def left(tmp_path: Path, study: MadeStudy) -> Path:
    """The folder of a storescp; in it one object, and another in the folder of an association."""
    folder = tmp_path / "host" / "storage" / "spool" / "receiving" / "scp" / "incoming"
    (folder / ASSOCIATION).mkdir(parents=True)
    shutil.copy(study.files[0], folder / "CT.0")
    shutil.copy(study.files[1], folder / ASSOCIATION / "CT.1")
    return folder


@pytest_twisted.ensureDeferred
async def test_it_is_taken(native: Any, left: Path, study: MadeStudy) -> None:
    """As it would have been by another storescp; nothing is left of it."""
    running = await native(folder=left.parents[4])
    await running.scp.taken()
    assert sorted(running.spool.uids) == sorted(study.sop_uids[:2])
    assert {arrival.association.called_aet for arrival in running.spool.arrivals} == {"SCP"}
    assert ASSOCIATION in {arrival.association.id for arrival in running.spool.arrivals}
    assert names_in(left) == []


@pytest_twisted.ensureDeferred
async def test_what_is_damaged_is_told(native: Any, left: Path, study: MadeStudy) -> None:
    """The handler is told of a file that is not whole, and takes the rest."""
    (left / "CT.0").write_bytes(study.files[0].read_bytes()[:-100])
    running = await native(folder=left.parents[4])
    await running.scp.taken()
    assert running.spool.uids == [study.sop_uids[1]]
    assert [name for name, *_ in running.spool.damages] == ["CT.0"]


@pytest_twisted.ensureDeferred
async def test_it_is_offered_again(
    native: Any, left: Path, study: MadeStudy, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
) -> None:
    """What is not taken at first stays, and is offered again until it is; ``taken`` waits for it."""
    monkeypatch.setattr(inherited, "SWEEP_SECS", 0.05)
    running = await native(folder=left.parents[4])
    running.spool.refused.update(study.sop_uids[:1])
    await eventually(lambda: running.spool.attempts > 2)
    taken = Deferred.fromCoroutine(running.scp.taken())
    assert not taken.called
    running.spool.refused.clear()
    await taken
    assert sorted(running.spool.uids) == sorted(study.sop_uids[:2])


@pytest_twisted.ensureDeferred
async def test_a_stop_leaves_what_is_not_taken(native: Any, left: Path, study: MadeStudy) -> None:
    """It waits for the next start, and holds nothing up."""
    running = await native(folder=left.parents[4])
    await running.scp.taken()
    await running.scp.stop()
    running.spool.refused.update(study.sop_uids[2:3])
    put(study.files[2], left)
    for _ in range(2):
        await running.scp.start()
        await running.scp.stop()
        assert names_in(left) == ["CT.2"]
    running.spool.refused.clear()
    await running.scp.start()
    await running.scp.taken()
    assert running.spool.uids[2:] == [study.sop_uids[2]]


def put(path: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder / "CT.2")


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]
