"""A move destination on a port of our own: a real port, a storescp for each association, and senders of pynetdicom."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pydicom import Dataset, dcmread
from pynetdicom import AE
from pynetdicom.association import Association
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from harmonyd.config.daemon import SupervisionConfig
from harmonyd.dimse.dcmtk.deliveries import UNASKED
from harmonyd.dimse.dcmtk.listeners import Listeners
from harmonyd.dimse.dcmtk.log_config import support_files, write_support_files
from harmonyd.dimse.dcmtk.moves import MovePort
from harmonyd.dimse.dcmtk.run import Toolbox
from harmonyd.dimse.dcmtk.tools import find_tools
from harmonyd.dimse.engine import MoveReceiver, OperationContext, Query, QueryLevel, QueryModel, RemoteNode
from harmonyd.dimse.quarantine import COUNT_SECS, Quota
from harmonyd.supervision.runner import ProcessSupervisor
from harmonyd.testing.data import CT_IMAGE_STORAGE, EXPLICIT_LITTLE_ENDIAN, MadeStudy, make_study
from harmonyd.testing.processes import free_port, port_is_free, wait_until

REMOTE = RemoteNode("pacs", "PACS", "127.0.0.1", 104, "HARMONY_SCU")


class Bench:
    """A move destination, and what is below its folders."""

    def __init__(self, reactor: Any, folder: Path) -> None:
        self.reactor = reactor
        self.incoming, self.quarantine = folder / "incoming", folder / "quarantine"
        self.incoming.mkdir()
        self.supervisor = ProcessSupervisor(reactor, SupervisionConfig(), folder / "log", folder / "run")
        scratch = folder / "scratch"
        write_support_files(scratch)
        self.box = Toolbox(reactor, self.supervisor, find_tools(), *support_files(scratch), scratch, False)
        self.quota = Quota(self.box, self.quarantine, 10**9)
        self.receiver = MoveReceiver("per-association", "DEST", free_port())
        self.listeners = Listeners(self.box)
        self.port = MovePort(self.box, self.receiver, self.incoming, self.quarantine, self.listeners, self.quota)

    def turn(self, study: MadeStudy) -> Any:
        """The turn of a move of this study."""
        ds = Dataset()
        ds.StudyInstanceUID = study.study_uid
        op = OperationContext("0" * 32, "request", self.reactor.seconds() + 30)
        return self.port.turn(REMOTE, Query(QueryLevel.STUDY, QueryModel.STUDY_ROOT, ds), op)

    async def associate(self) -> Association:
        return await self.box.in_thread(_associate, self.receiver.port)

    async def send(self, paths: Sequence[Path], originator: str | None = None) -> Association:
        """Store over an association that stays open; every object is acknowledged."""
        association = await self.associate()
        assert await self.box.in_thread(_store, association, paths, originator) == [0] * len(paths)
        return association

    @property
    def reasons(self) -> list[str]:
        return [json.loads(path.read_text())["reason"] for path in self.quarantine.glob("*.json")]

    async def close(self) -> None:
        await self.port.close()
        await self.supervisor.stop_all()


def _associate(port: int) -> Association:
    node = AE("PACS")
    node.add_requested_context(CT_IMAGE_STORAGE, EXPLICIT_LITTLE_ENDIAN)
    return node.associate("127.0.0.1", port, ae_title="DEST")


def _store(association: Association, paths: Sequence[Path], originator: str | None) -> list[int]:
    named = {} if originator is None else {"originator_aet": originator, "originator_id": 1}
    statuses = []
    for path in paths:
        # pynetdicom's own reader must have gone on after the last store, or it takes the answer to this one.
        wait_until(lambda: not association._is_paused, "pynetdicom reads again")
        statuses.append(association.send_c_store(dcmread(path), **named).Status)
    return statuses


@pytest.fixture
def bench(started_reactor: Any, tmp_path: Path) -> Iterator[Bench]:
    """Open; at the end it is closed, its port is free, and nothing lies where it was received."""
    made = Bench(started_reactor, tmp_path)
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.close()))
    assert port_is_free(made.receiver.port)
    assert list(made.incoming.iterdir()) == []


@pytest.fixture
def studies(tmp_path: Path) -> list[MadeStudy]:
    return [make_study(tmp_path / name, 2, patient_id=name, size=8) for name in ("A", "B", "C")]


@pytest.fixture
def until(started_reactor: Any) -> Callable[[Callable[[], object]], Awaitable[None]]:
    """``await until(condition)``."""

    async def wait(condition: Callable[[], object]) -> None:
        while not condition():
            await deferLater(started_reactor, 0.01)

    return wait


def uids(names: Sequence[str]) -> list[str]:
    return [str(dcmread(name).SOPInstanceUID) for name in names]


def take(delivery: Any, names: Sequence[str]) -> None:
    """As a retrieve does with what it is offered."""
    for name in names:
        (delivery.source / name).unlink()
    delivery.taken(names)


@pytest_twisted.ensureDeferred
async def test_each_its_own(bench: Bench, studies: list[MadeStudy]) -> None:
    """Two moves run at once; what comes over one association is known, and each one's, once they have swept."""
    offered: list[list[str]] = [[], []]
    async with bench.turn(studies[0]) as first, bench.turn(studies[1]) as second:
        first.listen(offered[0].append)
        second.listen(offered[1].append)
        paths = [path for pair in zip(*(study.files for study in studies), strict=True) for path in pair]
        association = await bench.send(paths, "HARMONY_SCU")
        assert [await first.sweep(), await second.sweep()] == [[], []]
        assert [sorted(uids(names)) for names in offered] == [sorted(study.sop_uids) for study in studies[:2]]
        take(first, offered[0])
        take(second, offered[1])
    assert bench.reasons == [f"arrived at DEST {UNASKED}"] * 2
    await bench.box.in_thread(association.release)


@pytest_twisted.ensureDeferred
async def test_bytes_are_kept(bench: Bench, studies: list[MadeStudy]) -> None:
    """The data set is that which was sent, byte for byte."""
    async with bench.turn(studies[0]) as delivery:
        offered: list[str] = []
        delivery.listen(offered.append)
        association = await bench.send(studies[0].files[:1])
        await delivery.sweep()
        sent = studies[0].files[0].read_bytes()
        received = await bench.box.in_thread(Path(offered[0]).read_bytes)
        begin = sent.index(b"\x08\x00\x08\x00CS")
        assert received.endswith(sent[begin:])
        take(delivery, offered)
        await bench.box.in_thread(association.release)


@pytest_twisted.ensureDeferred
async def test_moved_by_somebody_else(bench: Bench, studies: list[MadeStudy]) -> None:
    """Objects of the study that a move wants, but with another Move Originator, are not that move's."""
    async with bench.turn(studies[0]) as delivery:
        offered: list[str] = []
        delivery.listen(offered.append)
        association = await bench.send(studies[0].files, "WORKSTATION")
        await delivery.sweep()
        assert offered == []
    await bench.box.in_thread(association.release)
    assert bench.reasons == [f"arrived at DEST {UNASKED}"] * 2


@pytest_twisted.ensureDeferred
async def test_closed_under_an_association(bench: Bench, studies: list[MadeStudy]) -> None:
    """Closing ends what runs; what it brought is in quarantine, and no process is left."""
    association = await bench.send(studies[0].files)
    await bench.port.close()
    assert not bench.supervisor.once_children()
    assert len(bench.reasons) == 2
    assert list(bench.incoming.iterdir()) == []
    await bench.box.in_thread(association.join)
    assert association.is_aborted
    bench.port = MovePort(bench.box, bench.receiver, bench.incoming, bench.quarantine, bench.listeners, bench.quota)


@pytest_twisted.ensureDeferred
async def test_the_quota(bench: Bench, studies: list[MadeStudy], until: Any) -> None:
    """Too much of what nobody asked for ends its association, and the next is refused until the folder is emptied."""
    bench.quota.max_bytes = 1
    association = await bench.send(studies[0].files[:1])
    await bench.box.in_thread(association.join)
    assert association.is_aborted
    assert len(bench.reasons) == 1
    assert (await bench.associate()).is_rejected
    for path in bench.quarantine.iterdir():
        path.unlink()
    bench.quota._counted_at = None
    await bench.quota.count()
    again = await bench.associate()
    assert again.is_established
    await bench.box.in_thread(again.release)


@pytest_twisted.ensureDeferred
async def test_what_the_quota_counts(bench: Bench) -> None:
    """It counts what lies in the folder, whatever put it there, and looks again after a while only."""
    bench.quota.max_bytes = 100
    await bench.quota.count()
    assert bench.quota(0)
    bench.quarantine.mkdir()
    (bench.quarantine / "file").write_bytes(bytes(100))
    await bench.quota.count()
    assert bench.quota(0)
    assert bench.quota._counted_at is not None
    bench.quota._counted_at -= COUNT_SECS + 1
    await bench.quota.count()
    assert not bench.quota(0)
