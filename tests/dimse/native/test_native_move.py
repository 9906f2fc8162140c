"""C-MOVE of the native engine: a real PACS and scripted ones, many at once, each with exactly what it asked for."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import pytest_twisted
from move_kit import Mover, items, uids
from pynetdicom import AE
from raw_scu import RawScu, p_data, store_rq
from test_native_storing import small_disk
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from harmonyd.dimse.engine import MoveReceiver, QueryLevel, RemoteNode
from harmonyd.dimse.errors import AssociationAborted, DimseFailure
from harmonyd.dimse.native import move_ports
from harmonyd.errors import DeadlinePassed, StorageFull, Unavailable
from harmonyd.testing.data import CT_IMAGE_STORAGE, EXPLICIT_LITTLE_ENDIAN, demo_files, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port, port_is_free

AET = "HARMONY_SCU"


def to_pacs(pacs: RunningPacs) -> tuple[RemoteNode, MoveReceiver]:
    receiver = MoveReceiver("per-association", "HARMONY_MOVE", pacs.destinations["HARMONY_MOVE"])
    return RemoteNode("pacs", pacs.aet, "127.0.0.1", pacs.port, AET), receiver


def scripted(peer: Any, **options: Any) -> tuple[RemoteNode, MoveReceiver, Any]:
    port = free_port()
    running = peer("serve", destinations={"DEST": port}, **options)
    return RemoteNode("peer", running.aet, "127.0.0.1", running.port, AET), MoveReceiver("x", "DEST", port), running


def studies_in_pacs() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in demo_files():
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        found.setdefault(str(ds.StudyInstanceUID), set()).add(str(ds.SOPInstanceUID))
    return found


@pytest_twisted.ensureDeferred
async def test_a_study(mover: Mover, pacs: RunningPacs) -> None:
    """Every instance of a study arrives, as a file in the operation's folder; the outcome has the PACS's counters."""
    remote, receiver = to_pacs(pacs)
    study_uid, expected = max(studies_in_pacs().items(), key=lambda item: len(item[1]))
    stream = mover.move(remote, receiver, study_uid)
    instances = await items(stream)
    assert uids(instances) == sorted(expected)
    assert stream.outcome.complete and stream.outcome.status == 0 and not stream.outcome.warnings
    assert stream.outcome.suboperations is not None and stream.outcome.suboperations.completed == len(expected)
    assert {instance.path.parent for instance in instances} == {stream.folder}
    assert all(pydicom.dcmread(item.path).SOPInstanceUID == item.sop_instance_uid for item in instances)
    assert json.loads((mover.storage / "movescu_last.json").read_text())["status"] == 0


@pytest_twisted.ensureDeferred
async def test_many_of_one_study_at_once(mover: Mover, pacs: RunningPacs) -> None:
    """Twelve moves of the same study, of others, and of single images at once: each gets exactly its own."""
    remote, receiver = to_pacs(pacs)
    studies = studies_in_pacs()
    study_uid, expected = max(studies.items(), key=lambda item: len(item[1]))
    wanted = [(study_uid, expected)] * 6 + list(studies.items())[:6]
    moves = [mover.move(remote, receiver, uid) for uid, _ in wanted]
    found = await gatherResults([Deferred.fromCoroutine(items(stream)) for stream in moves])
    for stream, instances, (_, expected_uids) in zip(moves, found, wanted, strict=True):
        assert uids(instances) == sorted(expected_uids)
        assert stream.outcome.complete and not stream.outcome.warnings
        assert {instance.path.parent for instance in instances} == {stream.folder}
    assert not mover.reasons


@pytest.mark.parametrize("originator", [True, False])
@pytest_twisted.ensureDeferred
async def test_with_and_without_an_originator(mover: Mover, peer: Any, originator: bool) -> None:
    """Moves of the same study at once get one of each object, whether or not the PACS says which move it is for."""
    remote, receiver, _ = scripted(peer, count=4, interval_secs=0.02, originator=originator)
    first = await items(mover.move(remote, receiver, "1.2.3"))
    study_uid = first[0].study_instance_uid
    moves = [mover.move(remote, receiver, study_uid) for _ in range(4)]
    found = await gatherResults([Deferred.fromCoroutine(items(stream)) for stream in moves])
    assert [len(set(uids(instances))) for instances in found] == [4] * 4
    assert all(stream.outcome.complete for stream in moves)
    assert not mover.reasons


@pytest_twisted.ensureDeferred
async def test_someone_else_is_named(mover: Mover, peer: Any) -> None:
    """What names somebody else as its originator is not ours: it is put aside, and the outcome says what is missing."""
    remote, receiver, _ = scripted(peer, count=2, originator_aet="STRANGER")
    stream = mover.move(remote, receiver, "1.2.3")
    assert not await items(stream)
    assert not stream.outcome.complete
    assert len(mover.reasons) == 2


@pytest_twisted.ensureDeferred
async def test_late_objects(mover: Mover, peer: Any) -> None:
    """Objects that come behind the final response are waited for."""
    remote, receiver, _ = scripted(peer, count=4, late=2, late_secs=0.3)
    stream = mover.move(remote, receiver, "1.2.3")
    assert len(await items(stream)) == 4
    assert stream.outcome.complete


@pytest_twisted.ensureDeferred
async def test_withheld_objects(mover: Mover, peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the PACS counts and never sends makes the move incomplete."""
    monkeypatch.setattr("harmonyd.dimse.native.move.LATE_SECS", 0.1)
    remote, receiver, _ = scripted(peer, count=3, withheld=1)
    stream = mover.move(remote, receiver, "1.2.3")
    assert len(await items(stream)) == 2
    assert not stream.outcome.complete and "3 instances delivered, 2 arrived" in str(stream.outcome.incomplete_reason)


@pytest_twisted.ensureDeferred
async def test_an_object_that_does_not_end(
    mover: Mover, peer: Any, eventually: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that begins late, and stalls, does not hold up a move that has got everything else."""
    monkeypatch.setattr("harmonyd.dimse.native.move.LATE_SECS", 60.0)
    monkeypatch.setattr("harmonyd.dimse.native.move.SETTLE_SECS", 0.3)
    remote, receiver, _ = scripted(peer, count=3, withheld=1, originator=False)
    settled: list[object] = []
    real = mover.ports.settle

    async def settle(*args: Any) -> None:
        await real(*args)
        settled.append(args)

    mover.ports.settle = settle  # type: ignore[method-assign]
    stream = mover.move(remote, receiver, "1.2.3")
    arriving = stream.__aiter__()
    found = [await arriving.__anext__(), await arriving.__anext__()]
    await eventually(lambda: settled)
    with await mover.means.in_thread(RawScu, receiver.port) as stalled:
        await mover.means.in_thread(lambda: stalled.associate(called=b"DEST"))
        stalled.send(store_rq(b"1.2.3") + p_data(bytes(100), 0))
        (port,) = mover.ports._ports.values()
        await eventually(lambda: port.deliveries._under_way)
        study = make_study(tmp_path / "study", 1, study_uid=found[0].study_instance_uid)
        assert await mover.means.in_thread(send, receiver.port, study.files) == [0]
        found += [instance async for instance in arriving]
        assert port.deliveries._under_way
    assert len(found) == 3 and stream.outcome.complete
    await eventually(lambda: not port.deliveries._under_way)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder of another file system than that of the spool."""
    if not Path("/dev/shm").is_dir() or Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs another file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.parametrize("originator", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_folder_of_another_file_system(mover: Mover, peer: Any, elsewhere: Path, originator: bool) -> None:
    """A move keeps what it gets where its backend says, though nothing can be renamed into it."""
    remote, receiver, _ = scripted(peer, count=2, originator=originator)
    stream = mover.move(remote, receiver, "1.2.3", storage=elsewhere)
    instances = await items(stream)
    assert stream.outcome.complete and len(instances) == 2
    assert {instance.path.parent for instance in instances} == {stream.folder}
    assert all(pydicom.dcmread(item.path).SOPInstanceUID == item.sop_instance_uid for item in instances)


@pytest_twisted.ensureDeferred
async def test_what_was_not_asked_for(mover: Mover, peer: Any) -> None:
    """Objects of another study in a move's own name are put aside, and the outcome says so."""
    remote, receiver, _ = scripted(peer, count=2, extra=1)
    stream = mover.move(remote, receiver, "1.2.3")
    assert len(await items(stream)) == 2
    assert len(mover.reasons) == 1
    assert stream.outcome.complete and stream.outcome.warnings == ["1 received files put in quarantine: not asked for"]


@pytest_twisted.ensureDeferred
async def test_each_twice(mover: Mover, peer: Any) -> None:
    """Of objects that come twice the second one is put aside."""
    remote, receiver, _ = scripted(peer, count=2, duplicate=True)
    stream = mover.move(remote, receiver, "1.2.3")
    assert len(await items(stream)) == 2
    assert mover.reasons == ["the same SOP Instance UID arrived twice"] * 2


@pytest.mark.parametrize("broken", ["abort", "short"])
@pytest_twisted.ensureDeferred
async def test_a_broken_object(mover: Mover, peer: Any, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """An object that is cut off, or not whole, leaves nothing, and the move is incomplete."""
    monkeypatch.setattr("harmonyd.dimse.native.move.LATE_SECS", 0.1)
    remote, receiver, _ = scripted(peer, count=3, broken=broken)
    stream = mover.move(remote, receiver, "1.2.3")
    assert len(await items(stream)) == 2
    assert not stream.outcome.complete
    assert stream.folder is not None
    assert len(list(stream.folder.iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "error"), [({"status": 0xA702}, DimseFailure), ({"after": 1, "then": "abort"}, AssociationAborted)]
)
@pytest_twisted.ensureDeferred
async def test_failures(mover: Mover, peer: Any, options: dict[str, Any], error: type[Exception]) -> None:
    """A failure status, or an abort, is raised behind what had arrived."""
    remote, receiver, _ = scripted(peer, count=2, **options)
    found = []
    with pytest.raises(error):
        async for instance in mover.move(remote, receiver, "1.2.3"):
            found.append(instance)
    assert found


@pytest_twisted.ensureDeferred
async def test_deadline(mover: Mover, peer: Any) -> None:
    """At its deadline a move ends, and its port is free for the next one."""
    remote, receiver, _ = scripted(peer, count=50, interval_secs=0.1)
    with pytest.raises(DeadlinePassed):
        await items(mover.move(remote, receiver, "1.2.3", deadline_secs=0.5))
    assert len(await items(mover.move(*scripted(peer, count=1)[:2], "1.2.3"))) == 1


@pytest_twisted.ensureDeferred
async def test_the_client_leaves(mover: Mover, peer: Any, eventually: Any) -> None:
    """A move that is closed is cancelled at the PACS; what still comes for it is nobody's, not the next move's."""
    remote, receiver, running = scripted(peer, count=100, interval_secs=0.05, ignore_cancel=False)
    stream = mover.move(remote, receiver, "1.2.3")
    async for _ in stream:
        break
    await stream.aclose()
    assert running.events("cancel")
    assert not mover.ports._used_ids


@pytest_twisted.ensureDeferred
async def test_transient_and_kept_ports(mover: Mover, peer: Any, eventually: Any) -> None:
    """A transient receiver's port is closed behind its last move; another one stays until it is not wanted."""
    remote, receiver, _ = scripted(peer, count=1)
    assert len(await items(mover.move(remote, receiver, "1.2.3"))) == 1
    assert not port_is_free(receiver.port)
    mover.ports.keep_only([receiver])
    await deferLater(mover.reactor, 0.05)
    assert not port_is_free(receiver.port)
    mover.ports.keep_only([])
    await eventually(lambda: port_is_free(receiver.port))
    transient = MoveReceiver(move_ports.TRANSIENT, receiver.destination_aet, receiver.port)
    assert len(await items(mover.move(remote, transient, "1.2.3"))) == 1
    await eventually(lambda: port_is_free(receiver.port))


@pytest_twisted.ensureDeferred
async def test_a_taken_port(mover: Mover, peer: Any) -> None:
    """A port that cannot be had is a failure of the move."""
    remote, _, running = scripted(peer)
    taken = MoveReceiver("x", "DEST", running.port)
    with pytest.raises(Unavailable, match="cannot be used"):
        await items(mover.move(remote, taken, "1.2.3"))


def send(port: int, files: list[Path], calling: str = "MODALITY", called: str = "DEST", **named: Any) -> list[int]:
    """Statuses; [] when the association was refused. Blocking."""
    node = AE(calling)
    node.dimse_timeout = 5
    node.add_requested_context(CT_IMAGE_STORAGE, EXPLICIT_LITTLE_ENDIAN)
    association = node.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        return []
    try:
        return [association.send_c_store(pydicom.dcmread(path), **named).Status for path in files]
    finally:
        association.release()


@pytest_twisted.ensureDeferred
async def test_beside_an_endpoint(mover: Mover, peer: Any, tmp_path: Path) -> None:
    """On one port and AE title the moves get what is theirs, and the endpoint all else, of the same study too."""
    remote, receiver, _ = scripted(peer, count=6, interval_secs=0.1)
    await mover.open_endpoint(receiver.port, "DEST")
    stream = mover.move(remote, receiver, "1.2.3")
    arriving = stream.__aiter__()
    first = await arriving.__anext__()
    study = make_study(tmp_path / "study", 2, study_uid=first.study_instance_uid)
    assert await mover.means.in_thread(send, receiver.port, study.files) == [0, 0]
    rest = [instance async for instance in arriving]
    assert len(rest) == 5 and not {item.sop_instance_uid for item in rest} & set(study.sop_uids)
    assert sorted(mover.spool.uids) == sorted(study.sop_uids)
    assert stream.outcome.complete and not stream.outcome.warnings and not mover.reasons


@pytest_twisted.ensureDeferred
async def test_the_endpoint_refuses_the_pacs(mover: Mover, peer: Any) -> None:
    """A PACS that the endpoint does not know delivers what was asked for, and nothing else."""
    remote, receiver, _ = scripted(peer, count=2)
    await mover.open_endpoint(receiver.port, "DEST", allowed_calling_aets=("CT",))
    stream = mover.move(remote, receiver, "1.2.3")
    assert len(await items(stream)) == 2
    assert await mover.means.in_thread(send, receiver.port, demo_files()[:1], "PEER") == []
    assert not mover.spool.uids


@pytest_twisted.ensureDeferred
async def test_nobody_asked(mover: Mover, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes while no move runs is put aside, durably, with a warning, until the quarantine's bound is reached."""
    flushed: list[str] = []
    real = os.fsync

    def fsync(number: int) -> None:
        real(number)
        flushed.append(str(Path(f"/proc/self/fd/{number}").readlink()))

    monkeypatch.setattr(os, "fsync", fsync)
    receiver = MoveReceiver("x", "DEST", free_port())
    await mover.ports.open(receiver)
    study = make_study(tmp_path / "study", 3, size=64)
    mover.quota.max_bytes = 12_000
    statuses = await mover.means.in_thread(send, receiver.port, study.files)
    assert statuses == [0xB000, 0xB000, 0xA700]
    assert len(mover.reasons) == 2
    assert {str(path) for path in mover.means.quarantine.glob("*.dcm")} < set(flushed)
    assert str(mover.means.quarantine) in flushed
    assert await mover.means.in_thread(send, receiver.port, study.files) == []


@pytest_twisted.ensureDeferred
async def test_what_an_earlier_run_left(mover: Mover) -> None:
    """What was being received is removed, and what another kind of receiver had received is put aside."""
    receiver = MoveReceiver("x", "DEST", free_port())
    folder = mover.storage / "incoming" / str(receiver.port)
    folder.mkdir(parents=True)
    (folder / "native-cut.dcm").write_bytes(b"1")
    (folder / "whole").write_bytes(b"2")
    await mover.ports.open(receiver)
    assert not list(folder.iterdir())
    assert mover.reasons == ["was delivered for a C-MOVE before harmonyd was ended"]


@pytest_twisted.ensureDeferred
async def test_an_object_of_a_move_that_has_ended(mover: Mover, peer: Any, tmp_path: Path) -> None:
    """What names a move that is over is not given to another one that runs, though that asked for the same study."""
    remote, receiver, _ = scripted(peer, count=3, interval_secs=0.2)
    first = mover.move(remote, receiver, "1.2.3")
    study_uid = (await items(first))[0].study_instance_uid
    ended_id = mover.ports._last_id
    study = make_study(tmp_path / "study", 1, study_uid=study_uid)
    second = mover.move(remote, receiver, study_uid, level=QueryLevel.STUDY)
    arriving = second.__aiter__()
    found = [await arriving.__anext__()]
    named = {"originator_aet": AET, "originator_id": ended_id}
    statuses = await mover.means.in_thread(lambda: send(receiver.port, study.files, **named))
    assert statuses == [0xB000]
    found += [instance async for instance in arriving]
    assert study.sop_uids[0] not in uids(found) and len(found) == 3


@pytest.mark.root
@pytest_twisted.ensureDeferred
async def test_a_full_disk(mover: Mover, peer: Any, tmp_path: Path) -> None:
    """When there is no room for what a move brings, the PACS is told so, and the answer says whose disk it is."""
    remote, receiver, running = scripted(peer, count=3, size=512)
    with small_disk(tmp_path / "small", 1_200_000):
        stream = mover.move(remote, receiver, "1.2.3", storage=tmp_path / "small")
        with pytest.raises(StorageFull):
            await items(stream)
        assert stream.folder is not None
        kept = [path for path in stream.folder.iterdir() if path.is_file()]
        assert len(kept) == 2
        assert {event["status"] for event in running.events("stored")} in ({0, 0xA700}, set())
