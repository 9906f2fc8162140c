"""The persistent store SCP: files are offered until they are taken, and nothing is received without room."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from inbound_kit import FakeSpool
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from harmonyd.dimse.dcmtk import scp as scp_module
from harmonyd.dimse.dcmtk.run import Toolbox
from harmonyd.dimse.dcmtk.scp import DcmtkStoreScp
from harmonyd.dimse.dcmtk.tools import Tool
from harmonyd.dimse.engine import StoreScpConfig
from harmonyd.dimse.part10 import check_complete
from harmonyd.testing.data import demo_files


class FakeChild:
    """A child in name only: the tests put the files where storescp would."""

    def __init__(self, supervisor: FakeSupervisor, spec: Any) -> None:
        self.spec = spec
        self._supervisor = supervisor

    async def stop(self) -> None:
        self._supervisor.running.remove(self)


class FakeSupervisor:
    def __init__(self) -> None:
        self.running: list[FakeChild] = []

    def keep(self, spec: Any) -> FakeChild:
        self.running.append(FakeChild(self, spec))
        return self.running[-1]

    def drop(self, child: FakeChild) -> None:
        assert child not in self.running


class Made:
    """A store SCP on a folder, and what is in there."""

    def __init__(self, reactor: Any, folder: Path) -> None:
        self.supervisor = FakeSupervisor()
        self.spool = FakeSpool(folder / "taken")
        tools = {"storescp": Tool("storescp", Path("/usr/bin/storescp"), (3, 6, 7))}
        box = Toolbox(reactor, self.supervisor, tools, folder, folder, folder, False)  # type: ignore[arg-type]
        self.config = StoreScpConfig("scp", "SCP", "0.0.0.0", 11112)
        self.incoming = folder / "receiving" / "scp" / "incoming"
        self.scp = DcmtkStoreScp(box, self.config, self.spool, self.spool, folder / "receiving")

    def put(self, path: Path, name: str) -> str:
        """Write a file as storescp would; its SOP Instance UID."""
        shutil.copy(path, self.incoming / name)
        return check_complete(path).sop_instance_uid

    @property
    def is_empty(self) -> bool:
        return not any(self.incoming.iterdir())


@pytest.fixture
def files() -> list[Path]:
    """Whole objects."""
    return [Path(path) for path in demo_files()[:3]]


@pytest_twisted.async_yield_fixture
async def made(started_reactor: Any, tmp_path: Path) -> AsyncIterator[Made]:
    """One that is not started yet, and stopped at the end."""
    given = Made(started_reactor, tmp_path)
    yield given
    given.spool.refused.clear()
    await given.scp.stop()


@pytest.fixture
def until(started_reactor: Any) -> Callable[[Callable[[], object]], Any]:
    """``await until(condition)``."""

    async def wait(condition: Callable[[], object]) -> None:
        while not condition():
            await deferLater(started_reactor, 0.01)

    return wait


@pytest_twisted.ensureDeferred
async def test_taken_at_once(made: Made, files: list[Path], until: Any) -> None:
    """A file that was written is taken, and nothing of it stays."""
    await made.scp.start()
    uids = [made.put(file, f"CT.{number}") for number, file in enumerate(files)]
    await until(lambda: len(made.spool.uids) == len(files))
    assert sorted(made.spool.uids) == sorted(uids)
    assert made.is_empty
    assert {arrival.association.called_aet for arrival in made.spool.arrivals} == {"SCP"}


@pytest_twisted.ensureDeferred
async def test_offered_until_taken(
    made: Made, files: list[Path], until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the handler does not take stays, holds up nothing, and is offered again."""
    monkeypatch.setattr(scp_module, "SWEEP_SECS", 0.05)
    await made.scp.start()
    refused = check_complete(files[0]).sop_instance_uid
    made.spool.refused.add(refused)
    made.put(files[0], "CT.0")
    await until(lambda: made.spool.attempts)
    assert not made.is_empty
    taken = made.put(files[1], "CT.1")
    made.spool.refused.clear()
    await until(lambda: made.is_empty)
    assert sorted(made.spool.uids) == sorted([refused, taken])


@pytest_twisted.ensureDeferred
async def test_taken_means_all(made: Made, files: list[Path], until: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that goes is asked whether all is taken: not while something lies there that could not be."""
    monkeypatch.setattr(scp_module, "SWEEP_SECS", 0.05)
    await made.scp.start()
    made.spool.refused.add(check_complete(files[0]).sop_instance_uid)
    made.put(files[0], "CT.0")
    await until(lambda: made.spool.attempts)
    await made.scp.pause()
    taken = Deferred.fromCoroutine(made.scp.taken())
    before = made.spool.attempts
    await until(lambda: made.spool.attempts > before + 2)
    assert not taken.called
    made.spool.refused.clear()
    await taken
    assert made.is_empty


@pytest_twisted.ensureDeferred
async def test_left_by_an_earlier_run(made: Made, files: list[Path], until: Any) -> None:
    """What lies there at the start was acknowledged, and is taken."""
    made.incoming.mkdir(parents=True)
    uid = made.put(files[0], "CT.0")
    await made.scp.start()
    await until(lambda: made.spool.uids == [uid])


@pytest_twisted.ensureDeferred
async def test_left_by_another_kind_of_receiver(made: Made, files: list[Path], until: Any) -> None:
    """What lies in the folder of an association is taken, too, and the folder goes."""
    folder = made.incoming / ("a" * 32)
    folder.mkdir(parents=True)
    uid = made.put(files[0], f"{folder.name}/CT.0")
    await made.scp.start()
    await until(lambda: made.spool.uids == [uid] and made.is_empty)
    assert made.spool.arrivals[0].association.id == folder.name


@pytest_twisted.ensureDeferred
async def test_left_by_another_kind_and_not_taken_at_first(
    made: Made, files: list[Path], until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another kind of receiver left is offered until it is taken, too."""
    monkeypatch.setattr(scp_module, "SWEEP_SECS", 0.05)
    folder = made.incoming / ("a" * 32)
    folder.mkdir(parents=True)
    uid = made.put(files[0], f"{folder.name}/CT.0")
    made.spool.refused.add(uid)
    await made.scp.start()
    await until(lambda: made.spool.attempts)
    made.spool.refused.clear()
    await until(lambda: made.spool.uids == [uid] and made.is_empty)


@pytest_twisted.ensureDeferred
async def test_damaged_files(made: Made, files: list[Path], until: Any) -> None:
    """A file that is not whole is told as damaged, with the reason, and others are taken all the same."""
    await made.scp.start()
    (made.incoming / "CT.cut").write_bytes(files[0].read_bytes()[:-50])
    uid = made.put(files[1], "CT.1")
    await until(lambda: made.spool.damages and made.spool.uids)
    [(name, association, reason)] = made.spool.damages
    assert (name, association.called_aet) == ("CT.cut", "SCP")
    assert "beyond the end" in reason
    assert made.spool.uids == [uid]


@pytest_twisted.ensureDeferred
async def test_files_that_are_gone(made: Made, files: list[Path], until: Any) -> None:
    """A file that somebody removed is nobody's error."""
    await made.scp.start()
    made.put(files[0], "CT.0")
    (made.incoming / "CT.0").unlink()
    await made.scp.taken()
    assert made.spool.damages == []


@pytest_twisted.ensureDeferred
async def test_stopped_while_there_is_no_room(made: Made) -> None:
    """storescp cannot refuse by itself, so it runs exactly while something may be received."""
    made.spool.full = "the disk is full"
    await made.scp.start()
    assert made.supervisor.running == []
    made.spool.set_full(None)
    assert len(made.supervisor.running) == 1
    made.spool.set_full("the disk is full")
    assert made.supervisor.running == []


@pytest_twisted.ensureDeferred
async def test_paused_and_resumed(made: Made, files: list[Path], until: Any) -> None:
    """A paused one receives nothing, but what it received is taken; resumed it runs as it was told then."""
    await made.scp.start()
    await made.scp.pause()
    assert made.supervisor.running == []
    uid = made.put(files[0], "CT.0")
    await until(lambda: made.spool.uids == [uid])
    await made.scp.resume(StoreScpConfig("scp", "SCP", "0.0.0.0", 11113))
    assert [child.spec.port for child in made.supervisor.running] == [11113]
    made.spool.set_full("the disk is full")
    await made.scp.pause()
    made.spool.set_full(None)
    assert made.supervisor.running == []
