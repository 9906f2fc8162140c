"""Whose turn it is to receive: moves on one port one by one, nothing mixed up, nothing lost, nobody waits for ever."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pydicom import Dataset
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, deferLater

from harmonyd.dimse.dcmtk.kept import KeptReceiver
from harmonyd.dimse.dcmtk.listeners import Listeners
from harmonyd.dimse.dcmtk.receivers import MAX_WAITING, READY_SECS, Receivers
from harmonyd.dimse.dcmtk.run import Toolbox
from harmonyd.dimse.dcmtk.tools import Tool
from harmonyd.dimse.engine import MoveReceiver, OperationContext, Query, QueryLevel, QueryModel, RemoteNode
from harmonyd.dimse.quarantine import Quota
from harmonyd.errors import DeadlinePassed, Unavailable
from harmonyd.supervision.api import KeptSpec
from harmonyd.supervision.errors import ChildNotReady
from harmonyd.testing.data import demo_files
from harmonyd.testing.processes import free_port

PERSISTENT = MoveReceiver("persistent", "DEST", 11123)
OTHER = MoveReceiver("persistent", "DEST", 11124)
REMOTE = RemoteNode("pacs", "PACS", "127.0.0.1", 104, "HARMONY_SCU")
QUERY = Query(QueryLevel.STUDY, QueryModel.STUDY_ROOT, Dataset())


class FakeReactor:
    """The real reactor with a clock that a test moves."""

    def __init__(self, reactor: Any, clock: Clock) -> None:
        self._reactor = reactor
        self.seconds, self.callLater = clock.seconds, clock.callLater

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


class FakeChild:
    """A storescp in name only."""

    description = "the port is taken; next try in 3 s"

    def __init__(self, spec: KeptSpec) -> None:
        self.spec = spec
        self.state = "BACKOFF"
        self.ready = True

    def when_ready(self) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        if self.ready:
            waiter.callback(None)
        return waiter

    async def stop(self) -> None:
        self.state = "STOPPED"


class FakeSupervisor:
    """Keeps such children."""

    def __init__(self) -> None:
        self.kept: list[FakeChild] = []
        self.ready = True

    def keep(self, spec: KeptSpec) -> FakeChild:
        child = FakeChild(spec)
        child.ready = self.ready
        self.kept.append(child)
        return child

    def drop(self, child: FakeChild) -> None:
        assert child.state == "STOPPED"
        self.kept.remove(child)


class Bench:
    """Receivers on a folder, with a clock and a supervisor in the test's hands."""

    def __init__(self, reactor: Any, folder: Path) -> None:
        self.clock, self.supervisor = Clock(), FakeSupervisor()
        tools = {"storescp": Tool("storescp", Path("/usr/bin/storescp"), (3, 6, 7))}
        clocked = FakeReactor(reactor, self.clock)
        box = Toolbox(clocked, self.supervisor, tools, folder, folder, folder, False)  # type: ignore[arg-type]
        self.quarantine = folder / "quarantine"
        self.quota = Quota(box, self.quarantine, 10**9)
        self.receivers = Receivers(box, folder, self.quarantine, Listeners(box), self.quota)

    def reasons(self) -> list[str]:
        return [json.loads(note.read_text())["reason"] for note in self.quarantine.glob("*.json")]

    def asking(self, receiver: MoveReceiver = PERSISTENT, deadline: float = 60.0) -> Turn:
        return Turn(self.receivers, receiver, deadline)


class Turn:
    """Somebody who wants the turn: asked for at once, given back by ``end``."""

    def __init__(self, receivers: Receivers, receiver: MoveReceiver, deadline: float) -> None:
        self.kept: KeptReceiver | None = None
        self.has_it = False
        self._stack = AsyncExitStack()
        op = OperationContext("0" * 32, "request", deadline)
        self.asked = Deferred.fromCoroutine(self._take(receivers, receiver, op))

    async def _take(self, receivers: Receivers, receiver: MoveReceiver, op: OperationContext) -> None:
        delivery = await self._stack.enter_async_context(receivers.turn(receiver, REMOTE, QUERY, op))
        assert delivery is None or isinstance(delivery, KeptReceiver)
        self.kept = delivery
        self.has_it = True

    async def end(self) -> None:
        await self._stack.aclose()

    def failure(self) -> BaseException:
        found: list[BaseException] = []
        self.asked.addErrback(lambda failure: found.append(failure.value))
        assert found, "it did not fail"
        return found[0]


@pytest.fixture
def bench(started_reactor: Any, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(started_reactor, tmp_path)
    yield made
    made.receivers.close()


@pytest.fixture
def until(started_reactor: Any) -> Callable[[Callable[[], object]], Any]:
    """``await until(condition)``."""

    async def wait(condition: Callable[[], object]) -> None:
        while not condition():
            await deferLater(started_reactor, 0.01)

    return wait


@pytest_twisted.ensureDeferred
async def test_one_after_the_other(bench: Bench) -> None:
    """Moves on one port have it one by one, in order; another port is not concerned. One storescp serves them all."""
    first, second, third, elsewhere = bench.asking(), bench.asking(), bench.asking(), bench.asking(OTHER)
    assert [turn.has_it for turn in (first, second, third, elsewhere)] == [True, False, False, True]
    await first.end()
    assert (second.has_it, third.has_it) == (True, False)
    await second.end()
    assert third.has_it
    assert first.kept is second.kept is third.kept
    await third.end()
    await elsewhere.end()
    assert [child.spec.port for child in bench.supervisor.kept] == [11123, 11124]


@pytest_twisted.ensureDeferred
async def test_the_queue_ends(bench: Bench) -> None:
    """When as many wait as may, the next one is refused at once, with the time to try again."""
    turns = [bench.asking() for _ in range(MAX_WAITING + 1)]
    refused = bench.asking().failure()
    assert isinstance(refused, Unavailable)
    assert refused.extra["retry_after_secs"] > 0
    for turn in turns:
        await turn.end()


@pytest_twisted.ensureDeferred
async def test_the_deadline_passes_in_the_queue(bench: Bench) -> None:
    """One whose deadline passes leaves the queue; those behind it move up."""
    first, hasty, patient = bench.asking(), bench.asking(deadline=5.0), bench.asking()
    bench.clock.advance(5.0)
    error = hasty.failure()
    assert isinstance(error, DeadlinePassed)
    assert error.extra["timeout"] == "queue"
    await first.end()
    assert patient.has_it
    await patient.end()


@pytest_twisted.ensureDeferred
async def test_a_client_leaves_the_queue(bench: Bench) -> None:
    """One that is cancelled leaves the queue; those behind it move up."""
    first, leaving, patient = bench.asking(), bench.asking(), bench.asking()
    leaving.asked.cancel()
    assert isinstance(leaving.failure(), CancelledError)
    await first.end()
    assert patient.has_it
    await patient.end()


@pytest_twisted.ensureDeferred
async def test_a_receiver_that_does_not_come_up(bench: Bench) -> None:
    """After a while the move is refused with the child's state and why, and the next one gets its turn."""
    bench.supervisor.ready = False
    first, second = bench.asking(), bench.asking()
    bench.clock.advance(READY_SECS)
    refused = first.failure()
    assert isinstance(refused, ChildNotReady)
    assert "storescp:incoming-11123 is BACKOFF: the port is taken" in refused.detail
    bench.supervisor.kept[0].ready = True
    third = bench.asking()
    bench.clock.advance(READY_SECS)
    assert isinstance(second.failure(), ChildNotReady)
    assert third.has_it
    await third.end()


@pytest_twisted.ensureDeferred
async def test_a_transient_port_that_is_taken(bench: Bench, until: Any) -> None:
    """movescu would blame the PACS: the port is tried first, and who has it is said. Then the turn is free again."""
    receiver = MoveReceiver("transient", "DEST", free_port())
    with socket.create_server(("", receiver.port)):
        refused = bench.asking(receiver)
        await until(lambda: refused.asked.called)
        error = refused.failure()
    assert isinstance(error, Unavailable)
    assert f"port {receiver.port} is held by pid" in error.detail
    free = bench.asking(receiver)
    await until(lambda: free.has_it)
    assert free.kept is None
    await free.end()
    assert not bench.supervisor.kept


@pytest_twisted.ensureDeferred
async def test_deliveries_go_to_whose_turn_it_is(bench: Bench, until: Any) -> None:
    """In a turn the listener is told of each file; without a listener it goes to quarantine with a reason."""
    turn = bench.asking()
    assert turn.kept is not None
    told: list[str] = []
    turn.kept.listen(told.append)
    shutil.copy(demo_files()[0], turn.kept.folder / "mine")
    await until(lambda: told)
    assert told == ["mine"]
    (turn.kept.folder / "mine").unlink()
    await turn.end()
    shutil.copy(demo_files()[0], turn.kept.folder / "stranger")
    await until(bench.reasons)
    assert "no C-MOVE was under way" in bench.reasons()[0]
    assert not list(turn.kept.folder.iterdir())


@pytest_twisted.ensureDeferred
async def test_what_a_turn_leaves_behind(bench: Bench, until: Any) -> None:
    """Files that a move was told of and did not take (its client left) are in quarantine when its turn ends."""
    turn = bench.asking()
    assert turn.kept is not None
    told: list[str] = []
    turn.kept.listen(told.append)
    shutil.copy(demo_files()[0], turn.kept.folder / "left")
    await until(lambda: told)
    await turn.end()
    assert len(bench.reasons()) == 1
    assert not list(turn.kept.folder.iterdir())


@pytest_twisted.ensureDeferred
async def test_what_an_earlier_run_left(bench: Bench, tmp_path: Path) -> None:
    """Files that lie in the folder at the start are put in quarantine before anybody has a turn."""
    folder = tmp_path / "incoming" / "11123"
    folder.mkdir(parents=True)
    shutil.copy(demo_files()[0], folder / "CT.1")
    await bench.receivers.open(PERSISTENT)
    assert len(bench.reasons()) == 1
    assert not list(folder.iterdir())


@pytest_twisted.ensureDeferred
async def test_the_receiver_says_that_it_cannot_write(bench: Bench) -> None:
    """The line is remembered for whose turn it is, and forgotten for the next."""
    first = bench.asking()
    assert first.kept is not None
    on_line = bench.supervisor.kept[0].spec.on_line
    assert on_line is not None
    on_line(b"I: Association Received")
    assert not first.kept.write_failed
    on_line(b"E: Store SCP Failed: 0006:020a DIMSE receiveDataSetInFile: Cannot write to file")
    assert first.kept.write_failed
    await first.end()
    second = bench.asking()
    assert not first.kept.write_failed
    await second.end()


# --- too much of it ---------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_too_much_that_nobody_asked_for(bench: Bench, tmp_path: Path, until: Any) -> None:
    """The storescp is stopped, which cuts off who brings it; nothing is lost, and for the next move it runs again."""
    await bench.receivers.open(PERSISTENT)
    await until(lambda: bench.quota._counted_at is not None)
    bench.quota.max_bytes = 1
    shutil.copy(demo_files()[0], tmp_path / "incoming" / "11123" / "stranger")
    await until(lambda: not bench.supervisor.kept)
    assert len(bench.reasons()) == 1
    turn = bench.asking()
    assert turn.has_it and len(bench.supervisor.kept) == 1
    await turn.end()
    assert not bench.supervisor.kept
    bench.quota.max_bytes = 10**9
    again = bench.asking()
    await again.end()
    assert len(bench.supervisor.kept) == 1


@pytest_twisted.ensureDeferred
async def test_too_much_during_a_move(bench: Bench, until: Any) -> None:
    """What a move puts aside counts; beyond the bound the association that brings it is ended, and the move goes on."""
    turn = bench.asking()
    await until(lambda: bench.quota._counted_at is not None)
    assert turn.kept is not None
    first = turn.kept.child
    bench.quota.max_bytes = 1000
    turn.kept.put_aside(999)
    assert turn.kept.child is first
    turn.kept.put_aside(1)
    await until(lambda: turn.kept is not None and turn.kept.child not in (first, None))
    assert first is not None and first.state == "STOPPED"
    assert [child.state for child in bench.supervisor.kept] == ["BACKOFF"]
    await turn.end()
