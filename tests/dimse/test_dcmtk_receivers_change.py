"""Which receivers for C-MOVE stay when the configuration changes, and when the others go."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pydicom import Dataset
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater

from harmonyd.dimse.dcmtk.listeners import Listeners
from harmonyd.dimse.dcmtk.receivers import Receivers
from harmonyd.dimse.dcmtk.run import Toolbox
from harmonyd.dimse.dcmtk.tools import Tool
from harmonyd.dimse.engine import MoveReceiver, OperationContext, Query, QueryLevel, QueryModel, RemoteNode
from harmonyd.dimse.quarantine import Quota
from harmonyd.testing.data import demo_files
from harmonyd.testing.processes import free_port, port_is_free

OLD = MoveReceiver("persistent", "OLD", 11123)
NEW = MoveReceiver("persistent", "NEW", 11123)
OTHER = MoveReceiver("persistent", "OTHER", 11124)
REMOTE = RemoteNode("pacs", "PACS", "127.0.0.1", 104, "HARMONY_SCU")


class Child:
    """A child in name only."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self.state = "RUNNING"
        self.description = ""

    def when_ready(self) -> Deferred[None]:
        return succeed(None)

    async def stop(self) -> None:
        self.state = "STOPPED"


class Supervisor:
    """Knows what is kept, as ``ProcessSupervisor`` does."""

    def __init__(self) -> None:
        self.kept: list[Child] = []

    def keep(self, spec: Any) -> Child:
        assert all(child.spec.port != spec.port for child in self.kept), "two on one port"
        self.kept.append(Child(spec))
        return self.kept[-1]

    def drop(self, child: Child) -> None:
        assert child.state == "STOPPED"
        self.kept.remove(child)

    @property
    def aets(self) -> list[str]:
        return [child.spec.called_aet for child in self.kept]


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


@pytest.fixture
def receivers(started_reactor: Any, supervisor: Supervisor, tmp_path: Path) -> Iterator[Receivers]:
    """Receivers whose processes are in name only."""
    tools = {"storescp": Tool("storescp", Path("/usr/bin/storescp"), (3, 6, 7))}
    box = Toolbox(started_reactor, supervisor, tools, tmp_path, tmp_path, tmp_path, False)  # type: ignore[arg-type]
    listeners, quota = Listeners(box), Quota(box, tmp_path / "quarantine", 10**9)
    made = Receivers(box, tmp_path, tmp_path / "quarantine", listeners, quota)
    yield made
    made.close()
    listeners.close()


@pytest.fixture
def until(started_reactor: Any) -> Callable[[Callable[[], object]], Any]:
    """``await until(condition)``."""

    async def wait(condition: Callable[[], object]) -> None:
        while not condition():
            await deferLater(started_reactor, 0.005)

    return wait


class Move:
    """Holds the turn on a receiver's port until it is told to end."""

    def __init__(self, receivers: Receivers, receiver: MoveReceiver, study: str = "1.2") -> None:
        self.began = False
        self._end: Deferred[None] = Deferred()
        self._running = Deferred.fromCoroutine(self._run(receivers, receiver, study))

    async def _run(self, receivers: Receivers, receiver: MoveReceiver, study: str) -> None:
        from twisted.internet import reactor

        clock: Any = reactor
        op = OperationContext("1", "1", clock.seconds() + 60)
        ds = Dataset()
        ds.StudyInstanceUID = study
        query = Query(QueryLevel.STUDY, QueryModel.STUDY_ROOT, ds)
        async with receivers.turn(receiver, REMOTE, query, op):
            self.began = True
            await self._end

    async def end(self) -> None:
        self._end.callback(None)
        await self._running


@pytest_twisted.ensureDeferred
async def test_what_is_wanted_stays(receivers: Receivers, supervisor: Supervisor) -> None:
    """A receiver that the new configuration names, too, goes on with its process."""
    await receivers.open(OLD)
    before = supervisor.kept[0]
    receivers.keep_only([OLD, OTHER])
    assert supervisor.kept == [before]


@pytest_twisted.ensureDeferred
async def test_what_is_not_wanted_is_closed(
    receivers: Receivers, supervisor: Supervisor, tmp_path: Path, until: Any
) -> None:
    """When nobody uses it, at once; what lies there is put aside, and its port can be opened again."""
    await receivers.open(OLD)
    await receivers.open(OTHER)
    folder = tmp_path / "incoming" / "11123"
    shutil.copyfile(demo_files()[0], folder / "left")
    receivers.keep_only([OTHER])
    await until(lambda: supervisor.aets == ["OTHER"])
    await until(lambda: not list(folder.iterdir()))
    receivers.keep_only([OLD, OTHER])
    await receivers.open(OLD)
    await until(lambda: supervisor.aets == ["OTHER", "OLD"])


@pytest_twisted.ensureDeferred
async def test_a_move_keeps_its_receiver_to_its_end(receivers: Receivers, supervisor: Supervisor, until: Any) -> None:
    """One that runs and one that waits: then it is replaced by the one that takes the port."""
    running = Move(receivers, OLD)
    waiting = Move(receivers, OLD)
    await until(lambda: running.began)
    receivers.keep_only([NEW])
    await receivers.open(NEW)
    assert supervisor.aets == ["OLD"]
    await running.end()
    await until(lambda: waiting.began)
    assert supervisor.aets == ["OLD"]
    await waiting.end()
    await until(lambda: supervisor.aets == ["NEW"])


@pytest_twisted.ensureDeferred
async def test_a_late_move_opens_its_receiver_for_itself(
    receivers: Receivers, supervisor: Supervisor, until: Any
) -> None:
    """It was asked for before the change, and comes to its turn after it: the receiver lives as long as it does."""
    receivers.keep_only([OTHER])
    late = Move(receivers, OLD)
    await until(lambda: late.began)
    assert supervisor.aets == ["OLD"]
    await late.end()
    await until(lambda: supervisor.aets == [])


@pytest_twisted.ensureDeferred
async def test_a_change_that_is_taken_back(receivers: Receivers, supervisor: Supervisor, until: Any) -> None:
    """What is wanted again before it could be closed just goes on."""
    move = Move(receivers, OLD)
    await until(lambda: move.began)
    before = supervisor.kept[0]
    receivers.keep_only([])
    receivers.keep_only([OLD])
    await move.end()
    other = Move(receivers, OLD)
    await until(lambda: other.began)
    await other.end()
    assert supervisor.kept == [before]


@pytest_twisted.ensureDeferred
async def test_another_mode_takes_the_port(receivers: Receivers, supervisor: Supervisor, until: Any) -> None:
    """A port of our own takes the place of a storescp, though not before its last move has ended."""
    port = free_port()
    old, new = MoveReceiver("persistent", "DEST", port), MoveReceiver("per-association", "DEST", port)
    running = Move(receivers, old)
    await until(lambda: running.began)
    receivers.keep_only([new])
    await receivers.open(new)
    waiting = Move(receivers, new)
    assert supervisor.aets == ["DEST"]
    assert port_is_free(port)
    await running.end()
    await until(lambda: waiting.began)
    assert supervisor.aets == []
    assert not port_is_free(port)
    await waiting.end()
    receivers.keep_only([])
    await until(lambda: port_is_free(port))


@pytest_twisted.ensureDeferred
async def test_a_port_of_our_own_stays_to_the_last_move(receivers: Receivers, until: Any) -> None:
    """What is not wanted any more is closed by the last move that uses it."""
    own = MoveReceiver("per-association", "DEST", free_port())
    await receivers.open(own)
    first, second = Move(receivers, own), Move(receivers, own)
    await until(lambda: first.began)
    receivers.keep_only([])
    await first.end()
    await until(lambda: second.began)
    assert not port_is_free(own.port)
    await second.end()
    await until(lambda: port_is_free(own.port))


@pytest_twisted.ensureDeferred
async def test_many_first_moves_open_one_port(receivers: Receivers, until: Any) -> None:
    """Moves that come at once to a port that is not open yet share it, and it is closed with the last of them."""
    own = MoveReceiver("per-association", "DEST", free_port())
    receivers.keep_only([])
    moves = [Move(receivers, own, f"1.{number}") for number in range(4)]
    await until(lambda: all(move.began for move in moves))
    for move in moves:
        assert not port_is_free(own.port)
        await move.end()
    await until(lambda: port_is_free(own.port))


@pytest_twisted.ensureDeferred
async def test_left_overs_of_a_port_of_our_own(receivers: Receivers, tmp_path: Path, until: Any) -> None:
    """What an earlier run left is in quarantine before the first move, and nothing is where it was."""
    own = MoveReceiver("per-association", "DEST", free_port())
    folder = tmp_path / "incoming" / str(own.port)
    (folder / "association").mkdir(parents=True)
    (folder / "empty").mkdir()
    shutil.copyfile(demo_files()[0], folder / "association" / "one")
    shutil.copyfile(demo_files()[1], folder / "two")
    await receivers.open(own)
    assert list(folder.iterdir()) == []
    notes = [json.loads(path.read_text())["reason"] for path in (tmp_path / "quarantine").glob("*.json")]
    assert notes == ["was delivered for a C-MOVE before harmonyd was ended"] * 2
    receivers.keep_only([])
    await until(lambda: port_is_free(own.port))
