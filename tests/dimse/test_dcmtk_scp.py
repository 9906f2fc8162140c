"""The small spool behind a store SCP: kept at once, handed on until taken, and nothing that blocks it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from harmonyd.dimse.dcmtk.run import Toolbox
from harmonyd.dimse.dcmtk.scp import DcmtkStoreScp
from harmonyd.dimse.dcmtk.tools import Tool
from harmonyd.dimse.engine import Instance, StoreScpConfig
from harmonyd.errors import RemoteError
from harmonyd.testing.data import demo_files


class FakeSupervisor:
    """Keeps children in name only: the tests put the files where storescp would."""

    def keep(self, spec: Any) -> FakeSupervisor:
        return self

    async def stop(self) -> None: ...


class Handler:
    """Takes objects, but for those whose file holds a UID in ``refused``."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.refused: set[str] = set()

    async def __call__(self, instance: Instance, calling_aet: str | None) -> None:
        if instance.sop_instance_uid in self.refused:
            raise RemoteError("not now")
        self.taken.append(instance.sop_instance_uid)


class Spool:
    """A store SCP on a folder, and what is in there."""

    def __init__(self, reactor: Any, folder: Path, handler: Any) -> None:
        tools = {"storescp": Tool("storescp", Path("/usr/bin/storescp"), (3, 6, 7))}
        box = Toolbox(reactor, FakeSupervisor(), tools, folder, folder, folder, False)  # type: ignore[arg-type]
        self.quarantine = folder / "quarantine"
        self.incoming = folder / "spool" / "scp" / "incoming"
        self.ready = folder / "spool" / "scp" / "ready"
        config = StoreScpConfig("scp", "SCP", "0.0.0.0", 11112)
        self.scp = DcmtkStoreScp(box, config, handler, folder / "spool", self.quarantine)

    def names(self) -> set[Path]:
        return {*self.incoming.iterdir(), *self.ready.iterdir()}

    def reasons(self) -> list[str]:
        return [json.loads(note.read_text())["reason"] for note in self.quarantine.glob("*.json")]


@pytest.fixture
def files() -> list[Path]:
    """Whole objects."""
    return [Path(path) for path in demo_files()[:3]]


@pytest.fixture
def spool(started_reactor: Any, tmp_path: Path) -> Iterator[Callable[[Any], Spool]]:
    """Make spools on one folder; all are stopped at the end."""
    made: list[Spool] = []

    def make(handler: Any) -> Spool:
        made.append(Spool(started_reactor, tmp_path, handler))
        return made[-1]

    yield make
    for each in made:
        pytest_twisted.blockon(Deferred.fromCoroutine(each.scp.stop()))


@pytest.fixture
def until(started_reactor: Any) -> Callable[[Callable[[], object]], Any]:
    """``await until(condition)``."""

    async def wait(condition: Callable[[], object]) -> None:
        while not condition():
            await deferLater(started_reactor, 0.01)

    return wait


@pytest_twisted.ensureDeferred
async def test_taken_and_removed(spool: Any, files: list[Path], until: Any) -> None:
    """A file that was written is handed on, and nothing of it stays."""
    handler = Handler()
    made = spool(handler)
    await made.scp.start()
    for number, file in enumerate(files):
        shutil.copy(file, made.incoming / f"CT.{number}")
    await until(lambda: len(handler.taken) == len(files) and not made.names())


@pytest_twisted.ensureDeferred
async def test_kept_while_others_wait(spool: Any, files: list[Path], until: Any) -> None:
    """While an object waits for its next try, new ones are made durable and handed on."""

    class Refusing(Handler):
        async def __call__(self, instance: Instance, calling_aet: str | None) -> None:
            if not self.refused:
                self.refused.add(instance.sop_instance_uid)
            await super().__call__(instance, calling_aet)

    handler = Refusing()
    made = spool(handler)
    await made.scp.start()
    shutil.copy(files[0], made.incoming / "CT.0")
    await until(lambda: handler.refused)
    shutil.copy(files[1], made.incoming / "CT.1")
    await until(lambda: len(handler.taken) == 1)
    assert not list(made.incoming.iterdir())


@pytest_twisted.ensureDeferred
async def test_left_by_an_earlier_run(spool: Any, files: list[Path], until: Any) -> None:
    """What lies in both folders at the start is handed on."""
    handler = Handler()
    made = spool(handler)
    made.incoming.mkdir(parents=True)
    made.ready.mkdir()
    shutil.copy(files[0], made.incoming / "CT.0")
    shutil.copy(files[1], made.ready / "a.dcm")
    await made.scp.start()
    await until(lambda: len(handler.taken) == 2 and not made.names())


@pytest_twisted.ensureDeferred
async def test_damaged_files(spool: Any, files: list[Path], until: Any) -> None:
    """A damaged file goes to quarantine, from either folder, and the others pass."""
    handler = Handler()
    made = spool(handler)
    made.incoming.mkdir(parents=True)
    made.ready.mkdir()
    for folder in (made.incoming, made.ready):
        (folder / "1.dcm").write_bytes(files[0].read_bytes()[:-10])
        (folder / "2.dcm").write_bytes(b"")
    shutil.copy(files[1], made.ready / "3.dcm")
    await made.scp.start()
    await until(lambda: handler.taken and len(made.reasons()) == 4 and not made.names())
    assert all("damaged" in reason for reason in made.reasons())


@pytest_twisted.ensureDeferred
async def test_gone_files(spool: Any, files: list[Path], until: Any) -> None:
    """A file that somebody removed from the spool is not waited for."""
    taken: list[Path] = []

    async def take_and_remove_others(instance: Instance, calling_aet: str | None) -> None:
        for other in instance.path.parent.iterdir():
            if other != instance.path:
                other.unlink()
        taken.append(instance.path)

    made = spool(take_and_remove_others)
    made.incoming.mkdir(parents=True)
    made.ready.mkdir()
    for name in ("1.dcm", "2.dcm"):
        shutil.copy(files[0], made.ready / name)
    await made.scp.start()
    await until(lambda: taken and not made.names())
    shutil.copy(files[1], made.incoming / "CT.1")
    await until(lambda: len(taken) == 2 and not made.names())


@pytest_twisted.ensureDeferred
async def test_stopped_while_handing_on(spool: Any, files: list[Path], until: Any) -> None:
    """Stopping cancels a delivery, waits until that has ended, and keeps the object for the next run."""
    begun: list[str] = []

    async def hang(instance: Instance, calling_aet: str | None) -> None:
        begun.append("begun")
        try:
            await Deferred()
        finally:
            begun.append("ended")

    first = spool(hang)
    await first.scp.start()
    shutil.copy(files[0], first.incoming / "CT.0")
    await until(lambda: begun)
    await first.scp.stop()
    assert begun == ["begun", "ended"]
    handler = Handler()
    second = spool(handler)
    await second.scp.start()
    await until(lambda: handler.taken and not second.names())
