"""C-STORE at a native SCP: the status is what the handler made of the object, and nothing else is left behind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
import pytest_twisted
from pynetdicom import AE, build_context
from raw_scu import (
    ABORT,
    ASSOCIATE_AC,
    CT_IMAGE,
    EXPLICIT_VR_LE,
    IMPLICIT_VR_LE,
    P_DATA,
    RELEASE_RP,
    VERIFICATION,
    RawScu,
    data_set_of,
    item,
    p_data,
    pdu,
    store_rq,
)
from sender_kit import status_of, storescu
from twisted.internet.defer import Deferred

from harmonyd.dimse.elements import Cursor, FileSource, read_file_meta
from harmonyd.dimse.engine import Arrival
from harmonyd.dimse.native import core, inherited, names
from harmonyd.dimse.native.core import command_set
from harmonyd.dimse.native.object_file import GATHER_BYTES
from harmonyd.dimse.part10 import DamagedFile, InstanceHeader, check_complete
from harmonyd.dimse.uid import is_uid
from harmonyd.errors import StorageFull, Unavailable
from harmonyd.testing.data import MadeStudy, shipped_folder
from harmonyd.testing.processes import dcmtk


def stored(port: int, uid: bytes, content: bytes, command: bytes | None = None) -> int:
    """One C-STORE; its status, after which the association goes on. Blocking."""
    with RawScu(port) as scu:
        assert scu.associate()[0] == ASSOCIATE_AC
        scu.send((command or store_rq(uid)) + p_data(content, 2))
        kind, answer = scu.receive()
        assert kind == P_DATA
        assert scu.release() == RELEASE_RP
        return status_of(answer)


class Raising:
    """An ``ObjectHandler`` that fails, as the spool does."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.arrivals: list[Arrival] = []

    async def __call__(self, arrivals: Sequence[Arrival]) -> None:
        self.arrivals += arrivals
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StorageFull("no room"), 0xA700),
        (Unavailable("stopped"), 0xA700),
        (OSError(28, "No space left on device"), 0xA700),
        (OSError(5, "Input/output error"), 0xA700),
        (ZeroDivisionError(), 0x0110),
    ],
)
@pytest_twisted.ensureDeferred
async def test_not_taken(native: Any, study: MadeStudy, logged_failures: Any, error: Exception, status: int) -> None:
    """What the handler does not take is answered with a failure, and removed; the association goes on."""
    running = await native()
    running.scp._handler = Raising(error)
    uid = study.sop_uids[0].encode()
    assert await running.in_thread(stored, running.port, uid, data_set_of(study.files[0])) == status
    assert len(running.scp._handler.arrivals) == 1
    assert not list(running.incoming.iterdir())
    assert bool(logged_failures.flush(ZeroDivisionError)) == (status == 0x0110)


@pytest.mark.parametrize(
    ("cut", "uid", "command", "status"),
    [
        (-100, b"", None, 0xC000),
        (3, b"", None, 0xC000),
        (0, b"", None, 0xC000),
        (None, b"1.2.3", None, 0xA900),
        (None, b"", lambda uid: store_rq(uid).replace(CT_IMAGE, CT_IMAGE[:-1] + b"4"), 0xA900),
        (None, b"", lambda uid: store_rq(uid).replace(CT_IMAGE.ljust(26, b"\0"), VERIFICATION.ljust(26, b"\0")), 0x122),
    ],
    ids=["cut", "no element", "nothing", "another instance", "another class", "no storage class"],
)
@pytest_twisted.ensureDeferred
async def test_not_what_it_should_be(
    native: Any, study: MadeStudy, cut: int | None, uid: bytes, command: Any, status: int
) -> None:
    """A data set that is not whole, or contradicts its command, is refused, and nothing of it is kept."""
    running = await native()
    uid = uid or study.sop_uids[0].encode()
    content = data_set_of(study.files[0])[:cut]
    request = command(uid) if command else None
    assert await running.in_thread(stored, running.port, uid, content, request) == status
    assert not list(running.incoming.iterdir())
    assert not running.spool.arrivals and not running.spool.damages


@pytest_twisted.ensureDeferred
async def test_an_unknown_command(native: Any, study: MadeStudy) -> None:
    """A request that no service answers gets 0x0211, its data set is skipped, and the association goes on."""
    running = await native()
    uid, content = study.sop_uids[0].encode(), data_set_of(study.files[0])
    def message(command: core.Command) -> bytes:
        return p_data(command_set.encode(command), 3)

    c_find = message(replace(core.c_find_rq(7, CT_IMAGE.decode()), data_set_type=1))
    response = message(replace(core.c_store_rq(7, "1.2", "1.3").response(0), data_set_type=1))
    c_cancel = message(core.c_cancel_rq(7))

    def send() -> list[int]:
        with RawScu(running.port) as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            found = []
            for request in (c_find, response + p_data(content, 2) + c_cancel + store_rq(uid)):
                scu.send(request + p_data(content, 2))
                found.append(status_of(scu.receive()[1]))
            assert scu.release() == RELEASE_RP
            return found

    assert await running.in_thread(send) == [0x0211, 0x0000]
    assert running.spool.uids == [study.sop_uids[0]]


@pytest_twisted.ensureDeferred
async def test_no_room_under_way(native: Any, study: MadeStudy) -> None:
    """When room runs out no object is begun any more, and associations need not end for that."""
    running = await native()
    uid, content = study.sop_uids[0].encode(), data_set_of(study.files[0])

    def send() -> list[int]:
        with RawScu(running.port) as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            found = []
            for full in (True, False):
                running.spool.ends = full
                scu.send(store_rq(uid) + p_data(content, 2))
                found.append(status_of(scu.receive()[1]))
            return found

    assert await running.in_thread(send) == [0xA700, 0x0000]


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.root
@pytest.mark.parametrize("size", [3000, 300_000, 5_000_000], ids=["tiny", "medium", "big"])
@pytest_twisted.ensureDeferred
async def test_a_full_disk(native: Any, tmp_path: Path, study: MadeStudy, size: int) -> None:
    """An object that finds no room is answered with 0xA700 and leaves nothing; with room it is taken."""
    with small_disk(tmp_path / "disk", 4_000_000):
        running = await native(folder=tmp_path / "disk")
        ballast = tmp_path / "disk" / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
        uid, content = study.sop_uids[0].encode(), padded(data_set_of(study.files[0]), size)
        assert await running.in_thread(stored, running.port, uid, content) == 0xA700
        assert not list(running.incoming.iterdir())
        os.truncate(ballast, 0)
        enough = size < 4_000_000
        assert await running.in_thread(stored, running.port, uid, content) == (0 if enough else 0xA700)
        assert len(running.spool.arrivals) == enough
        await running.stop()


def padded(content: bytes, size: int) -> bytes:
    """A data set with so many bytes more, in an element of its own."""
    return content + b"\xfc\xff\xfc\xffOB\0\0" + size.to_bytes(4, "little") + bytes(size)


@pytest_twisted.ensureDeferred
async def test_a_big_object(native: Any, study: MadeStudy) -> None:
    """An object of many megabytes is written while it comes, and arrives as it was."""
    running = await native(max_pdu=32768)
    content = padded(data_set_of(study.files[0]), 20 * GATHER_BYTES + 2)
    uid = study.sop_uids[0].encode()

    def send() -> int:
        with RawScu(running.port) as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            scu.send(store_rq(uid))
            step = 32762
            for at in range(0, len(content), step):
                scu.send(p_data(content[at : at + step], 2 * (at + step >= len(content))))
            return status_of(scu.receive()[1])

    assert await running.in_thread(send) == 0
    assert data_set_of(running.spool.arrivals[0].instance.path) == content


@pytest_twisted.ensureDeferred
async def test_what_an_earlier_run_left(native: Any, study: MadeStudy) -> None:
    """Files of receptions that a crash cut off were acknowledged to nobody: they are removed, not offered."""
    running = await native()
    await running.scp.stop()
    (running.incoming / "whole.dcm").write_bytes(study.files[0].read_bytes())
    (running.incoming / "cut.dcm").write_bytes(b"1234")
    await running.scp.start()
    assert not list(running.incoming.iterdir())
    assert not running.spool.arrivals and not running.spool.damages


@pytest_twisted.ensureDeferred
async def test_what_a_storescp_left(
    native: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch, study: MadeStudy
) -> None:
    """What a storescp had acknowledged before the endpoint changed to this engine is offered until it is taken."""
    monkeypatch.setattr(inherited, "SWEEP_SECS", 0.05)
    running = await native()
    await running.scp.stop()
    folder = running.receiving / "scp" / "incoming"
    (folder / ("a" * 32)).mkdir(parents=True)
    (folder / "CT.1").write_bytes(study.files[0].read_bytes())
    (folder / ("a" * 32) / "CT.2").write_bytes(study.files[1].read_bytes())
    (folder / ("a" * 32) / "CT.3").write_bytes(b"")
    running.spool.refused = {study.sop_uids[0]}
    await running.scp.start()
    await eventually(lambda: running.spool.attempts > 1)
    running.spool.refused = set()
    await eventually(lambda: len(running.spool.uids) == 2)
    assert sorted(running.spool.uids) == sorted(study.sop_uids[:2])
    assert len(running.spool.damages) == 1
    await running.scp.taken()
    assert not folder.exists()


@pytest_twisted.ensureDeferred
async def test_pause_waits_for_what_is_being_taken(native: Any, eventually: Any, study: MadeStudy) -> None:
    """An object that the handler has is answered before its association is ended; one that is under way is not."""
    running = await native()
    turn: Deferred[None] = Deferred()
    taken: list[Arrival] = []

    async def slow(arrivals: Sequence[Arrival]) -> None:
        await turn
        await running.spool(arrivals)
        taken.extend(arrivals)

    running.scp._handler = slow
    one, two = RawScu(running.port), RawScu(running.port)
    content = data_set_of(study.files[0])

    def begin() -> None:
        for scu in (one, two):
            assert scu.associate()[0] == ASSOCIATE_AC
        one.send(store_rq(study.sop_uids[0].encode()) + p_data(content, 2))
        two.send(store_rq(study.sop_uids[1].encode()) + p_data(content[:5000], 0))

    def end() -> tuple[int, list[int], list[int]]:
        answer = status_of(one.receive()[1])
        found = answer, one.rest(), two.rest()
        one.sock.close()
        two.sock.close()
        return found

    await running.in_thread(begin)
    await eventually(lambda: any(session._is_busy for session in running.listener.sessions))
    ending = Deferred.fromCoroutine(running.in_thread(end))
    pausing = Deferred.fromCoroutine(running.scp.pause())
    await eventually(lambda: len(running.listener.sessions) == 1)
    assert not pausing.called
    turn.callback(None)
    assert await ending == (0, [ABORT], [ABORT])
    await pausing
    assert [arrival.instance.sop_instance_uid for arrival in taken] == [study.sop_uids[0]]


@pytest_twisted.ensureDeferred
async def test_a_peer_that_leaves_while_its_object_is_taken(native: Any, eventually: Any, study: MadeStudy) -> None:
    """What is being taken stays taken when its sender does not wait for the answer."""
    running = await native()
    turn: Deferred[None] = Deferred()

    async def slow(arrivals: Sequence[Arrival]) -> None:
        await turn
        await running.spool(arrivals)

    running.scp._handler = slow

    def send() -> None:
        with RawScu(running.port) as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            scu.send(store_rq(study.sop_uids[0].encode()) + p_data(data_set_of(study.files[0]), 2))

    await running.in_thread(send)
    await eventually(lambda: any(session._is_busy for session in running.listener.sessions))
    turn.callback(None)
    await eventually(lambda: not running.associations)
    assert running.spool.uids == [study.sop_uids[0]]


def whole_files() -> list[tuple[Path, InstanceHeader]]:
    """What pydicom ships and is whole; two files of each SOP class and transfer syntax."""
    found: dict[tuple[str, str], list[tuple[Path, InstanceHeader]]] = {}
    for path in sorted(shipped_folder().rglob("*")):
        if path.is_file():
            with suppress(DamagedFile):
                header = check_complete(path)
                if names.is_storage(header.sop_class_uid) and is_uid(header.sop_instance_uid):
                    key = header.sop_class_uid, header.transfer_syntax_uid
                    found.setdefault(key, []).append((path, header))
    return [item for items in found.values() for item in items[:2]]


def with_pynetdicom(port: int, files: Sequence[Path]) -> list[int]:
    """Send each over a context with its own transfer syntax alone; the statuses. Blocking."""
    data_sets = [pydicom.dcmread(path, force=True) for path in files]
    pairs = {(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID) for ds in data_sets}
    ae = AE("PYNET")
    ae.requested_contexts = [build_context(sop_class, [syntax]) for sop_class, syntax in sorted(pairs)][:128]
    ae.dimse_timeout = 3
    statuses: list[int] = []
    while len(statuses) < len(data_sets):
        association = ae.associate("127.0.0.1", port, ae_title="SCP")
        assert association.is_established and not association.rejected_contexts
        for ds in data_sets[len(statuses) :]:
            answer = association.send_c_store(ds)
            if "Status" not in answer:  # its own threads race for an answer that comes fast, and it is lost
                break
            statuses.append(answer.Status)
        association.release()
    return statuses


@pytest_twisted.ensureDeferred
async def test_pynetdicom(native: Any, quiet_pydicom: None) -> None:
    """Objects in many transfer syntaxes arrive over one association of pynetdicom."""
    running = await native()
    by_uid = {header.sop_instance_uid: (path, header) for path, header in whole_files() if header.study_instance_uid}
    chosen = list(by_uid.values())
    assert len({header.transfer_syntax_uid for _, header in chosen}) >= 8
    paths = [path for path, _ in chosen]
    statuses = await running.in_thread(with_pynetdicom, running.port, paths)
    assert statuses == [0] * len(chosen)
    arrived = {arrival.instance.sop_instance_uid: arrival.instance.path for arrival in running.spool.arrivals}
    for path, header in chosen:
        sent, got = pydicom.dcmread(path), pydicom.dcmread(arrived[header.sop_instance_uid])
        assert got.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
        assert got.get("PixelData") == sent.get("PixelData")  # pynetdicom encodes the rest anew
        assert got.file_meta.SourceApplicationEntityTitle == "PYNET"
        assert got.file_meta.ImplementationClassUID == names.IMPLEMENTATION_CLASS_UID


@pytest_twisted.ensureDeferred
async def test_every_transfer_syntax(native: Any) -> None:
    """Every whole file that pydicom ships arrives byte for byte, with the transfer syntax that was negotiated."""
    running = await native()
    chosen = whole_files()

    def send() -> list[int]:
        return [send_raw(running.port, path, header) for path, header in chosen]

    assert await running.in_thread(send) == [0] * len(chosen)
    for (path, header), arrival in zip(chosen, running.spool.arrivals, strict=True):
        got = arrival.instance
        assert (got.sop_instance_uid, got.sop_class_uid) == (header.sop_instance_uid, header.sop_class_uid)
        assert got.transfer_syntax_uid == header.transfer_syntax_uid
        assert data_set_of(got.path) == behind_meta(path)
        assert got.path.stat().st_size == got.size_bytes


def behind_meta(path: Path) -> bytes:
    """The data set of a file whose group length may be wrong or missing."""
    with FileSource(path) as source:
        cursor = Cursor(b"", source)
        read_file_meta(cursor)
        return path.read_bytes()[cursor.base + cursor.pos :]


def send_raw(port: int, path: Path, header: InstanceHeader) -> int:
    """The status for a file's data set, sent as it is. Blocking."""
    command = core.c_store_rq(1, header.sop_class_uid, header.sop_instance_uid)
    with RawScu(port) as scu:
        scu.send(proposal([(header.sop_class_uid.encode(), [header.transfer_syntax_uid.encode()])]))
        assert scu.receive()[0] == ASSOCIATE_AC
        content = behind_meta(path)
        scu.send(p_data(command_set.encode(command), 3))
        for at in range(0, len(content), 65530):
            scu.send(p_data(content[at : at + 65530], 2 * (at + 65530 >= len(content))))
        return status_of(scu.receive()[1])


def proposal(proposed: list[tuple[bytes, list[bytes]]]) -> bytes:
    """An A-ASSOCIATE-RQ with these contexts."""
    items = item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, (abstract, transfer) in enumerate(proposed):
        content = bytes([2 * number + 1, 0, 0, 0]) + item(0x30, abstract)
        items += item(0x20, content + b"".join(item(0x40, uid) for uid in transfer))
    items += item(0x50, item(0x51, b"\0\0\x40\0") + item(0x52, b"1.2.3"))
    return pdu(1, b"\0\1\0\0" + b"SCP".ljust(16) + b"RAW".ljust(16) + bytes(32) + items)


def answers(port: int, proposed: list[tuple[bytes, list[bytes]]]) -> list[tuple[int, bytes]]:
    """Result and transfer syntax for each proposed context. Blocking."""
    with RawScu(port) as scu:
        scu.send(proposal(proposed))
        kind, content = scu.receive()
        assert kind == ASSOCIATE_AC
        at, found = 68, []
        while at < len(content):
            kind, length = content[at], int.from_bytes(content[at + 2 : at + 4], "big")
            if kind == 0x21:
                found.append((content[at + 6], content[at + 12 : at + 4 + length]))
            at += 4 + length
        return found


@pytest_twisted.ensureDeferred
async def test_presentation_contexts(native: Any) -> None:
    """The first transfer syntax that the requestor names, whatever it is; and the right result for what we do not."""
    running = await native()
    jpeg_ls, private, mime = b"1.2.840.10008.1.2.4.80", b"1.2.826.0.1.3680043.9.1", b"1.2.840.10008.1.2.6.1"
    proposed = [
        (CT_IMAGE, [jpeg_ls, EXPLICIT_VR_LE]),
        (CT_IMAGE, [IMPLICIT_VR_LE, EXPLICIT_VR_LE]),
        (b"1.3.12.2.1107.5.9.1", [private]),
        (b"1.2.840.10008.5.1.4.1.2.2.1", [IMPLICIT_VR_LE]),
        (CT_IMAGE, [mime]),
        (VERIFICATION, [IMPLICIT_VR_LE]),
    ]
    found = await running.in_thread(answers, running.port, proposed)
    assert [result for result, _ in found] == [0, 0, 0, 3, 4, 0]
    assert [found[number][1] for number in (0, 1, 2)] == [jpeg_ls, IMPLICIT_VR_LE, private]


@pytest_twisted.ensureDeferred
async def test_dcmsend(native: Any, study: MadeStudy) -> None:
    """dcmsend is content with every answer."""
    running = await native()
    command = [dcmtk("dcmsend"), "-aec", "SCP", "127.0.0.1", str(running.port), *map(str, study.files)]
    result = await running.in_thread(lambda: subprocess.run(command, check=False, capture_output=True))
    assert result.returncode == 0, result.stderr
    assert sorted(running.spool.uids) == sorted(study.sop_uids)


@pytest_twisted.ensureDeferred
async def test_many_associations_are_taken_together(native: Any, eventually: Any, study: MadeStudy) -> None:
    """What comes over other associations while objects are taken is handed over together, one call at a time."""
    running = await native()
    turns: list[Deferred[None]] = []

    async def slow(arrivals: Sequence[Arrival]) -> None:
        turns.append(Deferred())
        await turns[-1]
        await running.spool(arrivals)

    running.scp._handler = slow
    senders = [Deferred.fromCoroutine(running.in_thread(storescu, running.port, path)) for path in study.files[:6]]
    await eventually(lambda: running.scp._receptions == 6 and len(running.scp._batches._queue) == 5)
    assert len(turns) == 1
    turns[0].callback(None)
    await eventually(lambda: len(turns) == 2)
    turns[1].callback(None)
    assert [await sender for sender in senders] == [0] * 6
    assert sorted(running.spool.batches) == [1, 5]


@pytest_twisted.ensureDeferred
async def test_one_does_not_spoil_another(native: Any, eventually: Any, study: MadeStudy) -> None:
    """Of objects that were handed over together, only the one that cannot be taken is refused."""
    running = await native()
    running.spool.refused = {study.sop_uids[1]}
    first: Deferred[None] = Deferred()
    calls: list[int] = []

    async def slow(arrivals: Sequence[Arrival]) -> None:
        calls.append(len(arrivals))
        if len(calls) == 1:
            await first
        await running.spool(arrivals)

    running.scp._handler = slow

    def status(number: int) -> int:
        return stored(running.port, study.sop_uids[number].encode(), data_set_of(study.files[number]))

    found = [Deferred.fromCoroutine(running.in_thread(status, 3))]
    await eventually(lambda: len(calls) == 1)
    found += [Deferred.fromCoroutine(running.in_thread(status, number)) for number in (0, 1, 2, 4)]
    await eventually(lambda: len(running.scp._batches._queue) == 4)
    first.callback(None)
    assert [await answer for answer in found] == [0, 0, 0xA700, 0, 0]
    assert 4 in calls
    assert study.sop_uids[1] not in running.spool.uids and len(running.spool.uids) == 4
    running.spool.refused = set()
