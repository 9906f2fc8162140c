"""A run of one program: its files, its deadline, its slot, and its end, whoever reads how fast. Scripts play DCMTK."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from harmonyd.config.daemon import SupervisionConfig
from harmonyd.dimse.dcmtk.run import MAX_BATCH, Toolbox, ToolRun
from harmonyd.dimse.engine import OperationContext, RemoteNode
from harmonyd.dimse.waiting import AssociationSlots
from harmonyd.errors import DeadlinePassed, Unavailable
from harmonyd.supervision.api import OnceSpec
from harmonyd.supervision.errors import SpawnError
from harmonyd.supervision.once import Once
from harmonyd.supervision.runner import ProcessSupervisor

REMOTE = RemoteNode("peer", "PEER", "127.0.0.1", 104, "US")
Until = Callable[[Callable[[], object]], Awaitable[None]]


class Lenient(ProcessSupervisor):
    """Lets children do what we may: unlike DCMTK's programs, a shell starts others."""

    def run_once(self, spec: OnceSpec) -> Once:
        return super().run_once(replace(spec, rights=None))


class Bench:
    """A toolbox, and runs of scripts in it."""

    def __init__(self, reactor: Any, folder: Path) -> None:
        self.reactor = reactor
        self.folder = folder
        self.supervisor = Lenient(reactor, SupervisionConfig(), folder / "log", folder / "run")
        self.box = Toolbox(reactor, self.supervisor, {}, folder, folder, folder, False)
        self.runs: list[ToolRun] = []

    def run(self, *, secs: float = 30.0, slots: AssociationSlots | None = None) -> ToolRun:
        number = f"{len(self.runs)}"
        op = OperationContext(number, "request", self.reactor.seconds() + secs, slots=slots)
        self.runs.append(ToolRun(self.box, op, folder=self.folder / number))
        return self.runs[-1]

    def folder_of(self, run: ToolRun) -> Path:
        return self.folder / str(self.runs.index(run))

    async def start(self, run: ToolRun, script: str) -> None:
        """Start a shell in the folder of the run."""
        text = f"cd {shlex.quote(str(self.folder_of(run)))}; {script}"
        await run.start_to(REMOTE, lambda _: ["/bin/sh", "-c", text])


@pytest.fixture
def bench(started_reactor: Any, tmp_path: Path) -> Iterator[Bench]:
    """All runs are closed at the end."""
    made = Bench(started_reactor, tmp_path)
    yield made
    for run in made.runs:
        pytest_twisted.blockon(Deferred.fromCoroutine(run.close()))
    pytest_twisted.blockon(Deferred.fromCoroutine(made.supervisor.stop_all()))


@pytest.fixture
def until(started_reactor: Any) -> Until:
    """``await until(condition)``."""

    async def wait(condition: Callable[[], object]) -> None:
        while not condition():
            await deferLater(started_reactor, 0.01)

    return wait


async def _names(run: ToolRun) -> list[str]:
    return [name async for batch in run.batches() for name in batch]


@pytest_twisted.ensureDeferred
async def test_every_file_once(bench: Bench) -> None:
    """All files are named, each once, in batches of limited size."""
    run = bench.run()
    await bench.start(run, "for i in $(seq 1200); do echo x > file$i; done")
    sizes = []
    names = []
    async for batch in run.batches():
        sizes.append(len(batch))
        names += batch
    assert sorted(names) == sorted(f"file{number}" for number in range(1, 1201))
    assert max(sizes) <= MAX_BATCH


@pytest_twisted.ensureDeferred
async def test_files_the_kernel_has_yet_to_tell(bench: Bench, until: Until) -> None:
    """Files whose events were not read when the program ended are not lost."""
    run = bench.run()
    await bench.start(run, "read line < fifo || true")
    folder = bench.folder_of(run)
    run._watch._inotify.stopReading()  # type: ignore[union-attr]
    _write_files(folder, 1000)
    await run._child.stop()  # type: ignore[union-attr]
    await until(lambda: run.record is not None)
    assert len(await _names(run)) == 1000


def _write_files(folder: Path, count: int) -> None:
    for number in range(count):
        (folder / f"a-rather-long-name-as-those-of-instances-are-{number}").write_bytes(b"x")


@pytest_twisted.ensureDeferred
async def test_deadline(bench: Bench) -> None:
    """At the deadline the program is ended and the reader told."""
    run = bench.run(secs=0.2)
    await bench.start(run, "sleep 60")
    with pytest.raises(DeadlinePassed):
        await _names(run)


@pytest_twisted.ensureDeferred
async def test_deadline_while_files_arrive(bench: Bench) -> None:
    """Files that keep coming do not put the deadline off."""
    run = bench.run(secs=0.3)
    await bench.start(run, "while true; do echo x > $(date +%s%N); done")
    with pytest.raises(DeadlinePassed):
        await _names(run)


@pytest_twisted.ensureDeferred
async def test_deadline_while_nobody_reads(bench: Bench, until: Until) -> None:
    """At the deadline the program is ended even while its reader is busy with something else."""
    slots = AssociationSlots(bench.reactor, "node", 1, 0)
    run = bench.run(secs=0.3, slots=slots)
    await bench.start(run, "echo x > one; sleep 60")
    async with aclosing(run.batches()) as batches:
        assert await anext(batches) == ["one"]
        await until(lambda: not bench.supervisor.once_children())
        await slots.acquire(bench.reactor.seconds() + 1.0)
        with pytest.raises(DeadlinePassed):
            await anext(batches)


@pytest_twisted.ensureDeferred
async def test_slot_is_free_after_the_exit(bench: Bench, until: Until) -> None:
    """A slow reader does not hold the slot of a program that has ended, nor does its deadline matter any more."""
    slots = AssociationSlots(bench.reactor, "node", 1, 0)
    run = bench.run(secs=0.5, slots=slots)
    await bench.start(run, "echo x > one; echo x > two")
    async with aclosing(run.batches()) as batches:
        names = await anext(batches)
        await until(lambda: run.record is not None)
        await slots.acquire(bench.reactor.seconds() + 1.0)
        await deferLater(bench.reactor, 0.6)
        names += [name async for batch in batches for name in batch]
    assert sorted(names) == ["one", "two"]
    await run.close()
    with pytest.raises(Unavailable):
        await slots.acquire(bench.reactor.seconds() + 1.0)


@pytest_twisted.ensureDeferred
async def test_no_folder_without_a_slot(bench: Bench) -> None:
    """A request that is turned away leaves no folder, and takes no slot."""
    slots = AssociationSlots(bench.reactor, "node", 1, 0)
    await slots.acquire(bench.reactor.seconds() + 1.0)
    run = bench.run(slots=slots)
    with pytest.raises(Unavailable):
        await bench.start(run, "true")
    await run.close()
    assert bench.folder_of(run) not in _content(bench.folder)
    slots.release()
    await slots.acquire(bench.reactor.seconds() + 1.0)


def _content(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest_twisted.ensureDeferred
async def test_program_that_cannot_start(bench: Bench) -> None:
    """When the program cannot be started, the slot is given back."""
    slots = AssociationSlots(bench.reactor, "node", 1, 0)
    run = bench.run(slots=slots)
    with pytest.raises(SpawnError):
        await run.start_to(REMOTE, lambda _: ["/nowhere/findscu"])
    await run.close()
    await slots.acquire(bench.reactor.seconds() + 1.0)


@pytest_twisted.ensureDeferred
async def test_cancelled_while_waiting_for_a_slot(bench: Bench) -> None:
    """Who leaves the queue takes no slot with him."""
    slots = AssociationSlots(bench.reactor, "node", 1, 5)
    await slots.acquire(bench.reactor.seconds() + 1.0)
    run = bench.run(slots=slots)
    waiting = Deferred.fromCoroutine(bench.start(run, "true"))
    waiting.cancel()
    with pytest.raises(CancelledError):
        await waiting
    await run.close()
    slots.release()
    await slots.acquire(bench.reactor.seconds() + 1.0)


@pytest_twisted.ensureDeferred
async def test_cancelled_while_files_are_awaited(bench: Bench) -> None:
    """Closing after a cancellation ends the whole group and gives the slot back; closing again does no harm."""
    slots = AssociationSlots(bench.reactor, "node", 1, 0)
    run = bench.run(slots=slots)
    await bench.start(run, "sleep 60 & sleep 60")
    reading = Deferred.fromCoroutine(_names(run))
    reading.cancel()
    with pytest.raises(CancelledError):
        await reading
    await run.close()
    assert not bench.supervisor.once_children()
    await slots.acquire(bench.reactor.seconds() + 1.0)
    await run.close()


@pytest_twisted.ensureDeferred
async def test_offered_after_the_end(bench: Bench) -> None:
    """A file that is offered to a closed run leaves no call behind."""
    run = bench.run()
    await bench.start(run, "true")
    await run.finish()
    await run.close()
    run.offer("late")
    assert run._wake_call is None or not run._wake_call.active()
