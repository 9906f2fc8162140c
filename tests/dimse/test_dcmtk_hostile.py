"""What a hostile or broken peer does costs the dcmtk engine nothing lasting; see also ``test_store_scp_hostile``."""

from __future__ import annotations

import os
import signal
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from raw_scu import (
    ABORT,
    ASSOCIATE_AC,
    P_DATA,
    RELEASE_RP,
    RawScu,
    associate_rq,
    data_set_of,
    p_data,
    pdu,
    store_rq,
)
from sender_kit import answers_to, files_below, storescu

from harmonyd.dimse.dcmtk import arrivals, handshake, inetd
from harmonyd.dimse.dcmtk.arrivals import FolderWatch
from harmonyd.dimse.dcmtk.arrivals import natural_order as in_order
from harmonyd.testing.data import MadeStudy
from harmonyd.testing.processes import wait_until


@pytest_twisted.ensureDeferred
async def test_slow_before_the_association(inbound: Any, monkeypatch: pytest.MonkeyPatch, study: MadeStudy) -> None:
    """Who does not send a whole request in time is closed, and others are served meanwhile."""
    running = await inbound()
    with RawScu(running.port) as slow:
        slow.send(associate_rq()[:20])
        assert await running.in_thread(storescu, running.port, study.files[0]) == 0
    monkeypatch.setattr(handshake, "ARTIM_SECS", 0.2)
    for first in (b"", b"\x01", associate_rq()[:20]):
        assert not await running.in_thread(answers_to, running.port, first)
    await running.scp.taken()
    assert len(running.spool.arrivals) == 1


@pytest_twisted.ensureDeferred
async def test_slow_after_the_association(inbound: Any, study: MadeStudy) -> None:
    """Who sends a byte now and then inside a PDU is ended after the association timeout."""
    running = await inbound(association_timeout_secs=1.0)

    def send() -> None:
        with RawScu(running.port) as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            scu.send(store_rq(b"1.2.3") + p_data(bytes(30_000), 0)[:10])
            scu.sock.settimeout(0.1)
            while True:
                try:
                    scu.send(b"\0")
                    if not scu.sock.recv(100):
                        return
                except TimeoutError:
                    pass
                except ConnectionError:
                    return

    await running.in_thread(send)
    await running.scp.taken()
    assert not running.spool.arrivals and not running.spool.damages


@pytest_twisted.ensureDeferred
async def test_released_and_not_closed(
    inbound: Any, study: MadeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who releases and keeps the connection open is closed after the ARTIM time; then another is let in."""
    monkeypatch.setattr(inetd, "ARTIM_SECS", 0.3)
    running = await inbound(max_associations=1)

    def send(scu: RawScu) -> list[int]:
        assert scu.associate()[0] == ASSOCIATE_AC
        assert scu.store(study.sop_uids[0].encode(), [data_set_of(study.files[0])]) == P_DATA
        assert scu.release() == RELEASE_RP
        return scu.rest()

    with RawScu(running.port) as scu:
        assert await running.in_thread(send, scu) == []
        await running.scp.taken()
        assert not running.children
        assert await running.in_thread(storescu, running.port, study.files[1]) == 0
    await running.scp.taken()
    assert sorted(running.spool.uids) == sorted(study.sop_uids[:2])


@pytest_twisted.ensureDeferred
async def test_a_pdu_of_four_gigabytes(inbound: Any, eventually: Any) -> None:
    """A length of 4 GB in an association makes nobody allocate it: the association ends with the sender."""
    running = await inbound()

    def send() -> None:
        with RawScu(running.port) as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            scu.send(struct.pack(">BxI", P_DATA, 0xFFFFFFF0) + bytes(100_000))

    await running.in_thread(send)
    await eventually(lambda: not running.engine.association_count())
    assert not running.spool.arrivals


UIDS = [b"../../x", b"/etc/x", b"", b"." * 64, b"@/etc/hostname", b"1.2\n3", b"$(id)", b"a b;c"]


@pytest.mark.parametrize("uid", UIDS)
@pytest_twisted.ensureDeferred
async def test_instance_uids(inbound: Any, eventually: Any, tmp_path: Path, study: MadeStudy, uid: bytes) -> None:
    """A SOP Instance UID names no path: what is accepted is written where it belongs, and nothing beside that."""
    running = await inbound()

    def send() -> None:
        with RawScu(running.port) as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            scu.store(uid, [data_set_of(study.files[0])])

    before = files_below(tmp_path)
    await running.in_thread(send)
    await eventually(lambda: not running.engine.association_count())
    await running.scp.taken()
    written = files_below(tmp_path) - before
    assert {path.parent for path in written} <= {running.spool.folder}
    assert not (tmp_path.parent / "x").exists()
    assert set(running.spool.uids) <= {study.sop_uids[0]}


@pytest_twisted.ensureDeferred
async def test_a_forged_log_line(inbound: Any, eventually: Any, study: MadeStudy) -> None:
    """A UID that imitates a line of the log changes nothing about the objects of another association."""
    running = await inbound()
    honest, forged = study.sop_uids[0].encode(), b"1\nMove Originator AE Title      : EVIL"

    def send() -> None:
        with RawScu(running.port) as one, RawScu(running.port) as two:
            assert one.associate()[0] == two.associate()[0] == ASSOCIATE_AC
            one.store(forged, [data_set_of(study.files[1])], originator=b"x\n@DEBUG|Mov")
            assert two.store(honest, [data_set_of(study.files[0])], originator=b"GOOD") == P_DATA

    await running.in_thread(send)
    await eventually(lambda: study.sop_uids[0] in running.spool.uids)
    found = {arrival.instance.sop_instance_uid: arrival.move_originator_aet for arrival in running.spool.arrivals}
    assert found[study.sop_uids[0]] == "GOOD"


@pytest.mark.parametrize("whole_looking", [False, True])
@pytest_twisted.ensureDeferred
async def test_storescp_is_killed(inbound: Any, eventually: Any, study: MadeStudy, whole_looking: bool) -> None:
    """The peer sees the end at once; acknowledged objects are handed over, and what there is of the last one is not.

    Not even when it was cut between two elements, so that it looks whole.
    """
    running = await inbound()
    uid, one = study.sop_uids[0].encode(), data_set_of(study.files[0])

    def send() -> None:
        with RawScu(running.port) as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            assert scu.store(uid, [one]) == P_DATA
            wait_until(lambda: running.spool.arrivals, "the first object is handed over")
            (child,) = running.children  # it may have spoken before the reactor's thread knew its pid
            meta_bytes = running.spool.arrivals[0].instance.size_bytes - len(one)
            scu.send(store_rq(uid))
            for at in range(0, len(two := one + tail(meta_bytes + len(one))), 8000):
                scu.send(p_data(two[at : at + 8000], 0))
            wait_until(lambda: written(child), "storescp writes the second object")
            os.killpg(child, signal.SIGKILL)
            assert not scu.rest()

    def tail(offset: int) -> bytes:
        """What is cut anywhere, or, at a multiple of eight bytes of the file, between two empty elements."""
        if not whole_looking:
            return struct.pack("<HH2sHI", 0x7FE1, 0x1010, b"OB", 0, 100_000) + bytes(50_000)
        padding = -offset % 8
        first = struct.pack("<HH2sH", 0x7FE1, 0x1000, b"LO", padding) + bytes(padding)
        return first + b"".join(struct.pack("<HH2sH", 0x7FE1, 0x1001 + number, b"LO", 0) for number in range(6000))

    def written(child: int) -> bool:
        paths = [Path(os.readlink(path)) for path in Path(f"/proc/{child}/fd").iterdir()]  # noqa: PTH115
        return any(running.incoming in path.parents and path.stat().st_size > 4096 for path in paths)

    await running.in_thread(send)
    await eventually(lambda: not running.engine.association_count())
    await running.scp.taken()
    assert running.spool.uids == [study.sop_uids[0]] and not running.spool.damages


@pytest.mark.deadline(240)
@pytest_twisted.ensureDeferred
async def test_eight_senders_of_one_study(inbound: Any, eventually: Any, study: MadeStudy) -> None:
    """Eight associations with the same objects at once: each arrives from each of them, whole."""
    running = await inbound()
    titles = [f"SENDER{number}" for number in range(8)]

    def send() -> list[int]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda title: storescu(running.port, *study.files, calling=title), titles))

    assert await running.in_thread(send) == [0] * 8
    await eventually(lambda: len(running.spool.arrivals) == 8 * len(study.files))
    found = {(item.association.calling_aet, item.instance.sop_instance_uid) for item in running.spool.arrivals}
    assert found == {(title, uid) for title in titles for uid in study.sop_uids}
    assert len({item.association.id for item in running.spool.arrivals}) == 8


@pytest.mark.parametrize("how", ["killed", "aborted"])
@pytest_twisted.ensureDeferred
async def test_ended_in_the_middle_and_nothing_heard(
    inbound: Any, eventually: Any, study: MadeStudy, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Though the kernel told of no file, all that was acknowledged is handed over, and only what was cut is removed.

    storescp removes that itself when it is not killed.
    """
    monkeypatch.setattr(FolderWatch, "_event", lambda *event: None)
    monkeypatch.setattr(arrivals, "natural_order", lambda name: [(-number, text) for number, text in in_order(name)])
    running = await inbound()
    *whole, last = (data_set_of(path) for path in study.files[:6])

    def send(scu: RawScu) -> None:
        assert scu.associate()[0] == ASSOCIATE_AC
        for uid, data in zip(study.sop_uids, whole, strict=False):
            assert scu.store(uid.encode(), [data]) == P_DATA
        scu.send(store_rq(study.sop_uids[5].encode()) + p_data(last[:-200], 0))

    with RawScu(running.port) as scu:
        await running.in_thread(send, scu)
        (association,) = running.engine._listeners._open["127.0.0.1", running.port].associations
        await eventually(lambda: association._log_of.is_cut and len(list(running.incoming.glob("*/*"))) == 6)
        if how == "killed":
            os.kill(running.children[0], signal.SIGKILL)
        else:
            scu.send(pdu(ABORT, bytes(4)))
        await eventually(lambda: not running.engine.association_count())
    await running.scp.taken()
    assert sorted(running.spool.uids) == sorted(study.sop_uids[:5])
    assert not running.spool.damages
    assert {arrival.association.calling_aet for arrival in running.spool.arrivals} == {"RAW"}
