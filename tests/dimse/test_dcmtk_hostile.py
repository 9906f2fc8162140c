"""What a hostile or broken peer does costs nothing: no process, descriptor or directory, and nobody else's object."""

from __future__ import annotations

import os
import signal
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from raw_scu import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    P_DATA,
    RELEASE_RP,
    RawScu,
    associate_rq,
    data_set_of,
    p_data,
    pdu,
    store_rq,
)
from test_dcmtk_listener import storescu

from harmonyd.dimse.dcmtk import arrivals, handshake, inetd, listener
from harmonyd.dimse.dcmtk.arrivals import FolderWatch
from harmonyd.dimse.dcmtk.arrivals import natural_order as in_order
from harmonyd.testing.data import MadeStudy
from harmonyd.testing.processes import wait_until

CONNECTIONS = 200


def answers_to(port: int, *pieces: bytes, half_close: bool = False) -> list[int]:
    """Send bytes; the kinds of PDUs that come until the peer closes. Blocking."""
    with RawScu(port) as scu:
        try:
            for piece in pieces:
                scu.send(piece)
            if half_close:
                scu.sock.shutdown(socket.SHUT_WR)
        except OSError:  # closed already
            return []
        return scu.rest()


@pytest.mark.parametrize(
    ("first", "half_close"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", False),
        (b"\x16\x03\x01\x02\x00\x01", False),
        (bytes(200), False),
        (pdu(P_DATA, bytes(100)), False),
        (pdu(0x99, bytes(100)), False),
        (struct.pack(">BxI", 1, 0xFFFFFFFF), False),
        (struct.pack(">BxI", 1, 0), False),
        (pdu(1, bytes(2000)), False),
        (associate_rq(contexts=129), False),
        (pdu(1, associate_rq()[6:] + b"\x20\0\xff\xff"), False),
        (associate_rq()[:100], True),
        (b"\x01", True),
        (b"", True),
    ],
)
@pytest_twisted.ensureDeferred
async def test_no_association(inbound: Any, first: bytes, half_close: bool) -> None:
    """What is no A-ASSOCIATE-RQ, or is cut, is answered with A-ABORT or nothing, and starts no process."""
    running = await inbound()
    kinds = await running.in_thread(lambda: answers_to(running.port, first, half_close=half_close))
    assert kinds in ([], [ABORT])
    assert not running.supervisor.exit_records and not running.children


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
async def test_a_request_byte_by_byte(inbound: Any) -> None:
    """A request that comes in many pieces is a request."""
    running = await inbound()

    def send() -> int:
        with RawScu(running.port) as scu:
            for byte in associate_rq():
                scu.send(bytes([byte]))
            return scu.receive()[0]

    assert await running.in_thread(send) == ASSOCIATE_AC


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
async def test_128_contexts(inbound: Any, eventually: Any, study: MadeStudy) -> None:
    """The most presentation contexts that there can be are accepted, and an object over the last of them is taken."""
    running = await inbound()

    def send() -> None:
        with RawScu(running.port) as scu:
            assert scu.associate(contexts=128)[0] == ASSOCIATE_AC
            scu.send(store_rq(study.sop_uids[0].encode(), context_id=255))
            scu.send(p_data(data_set_of(study.files[0]), 2, 255))
            assert scu.receive()[0] == P_DATA
            assert scu.release() == RELEASE_RP

    await running.in_thread(send)
    await eventually(lambda: running.spool.uids == [study.sop_uids[0]])


@pytest.mark.parametrize(
    "after",
    [
        store_rq(b"1.2.3", context_id=77),
        store_rq(b"1.2.3") + p_data(b"1234", 2, 77),
        pdu(0x99, bytes(10)),
        pdu(P_DATA, struct.pack(">IBB", 1_000_000, 1, 3) + bytes(100)),
        pdu(P_DATA, b""),
        p_data(b"\x00\x00", 3),
        p_data(os.urandom(500), 3),
        associate_rq(),
    ],
    ids=["context", "context of data", "type", "fragment length", "empty", "command", "random", "twice"],
)
@pytest_twisted.ensureDeferred
async def test_nonsense_in_an_association(inbound: Any, eventually: Any, after: bytes) -> None:
    """Whatever comes after the association is there ends that at most, and leaves no object."""
    running = await inbound()

    def send() -> None:
        with RawScu(running.port) as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            scu.send(after)
            with suppress(OSError):  # storescp may have closed already
                scu.sock.shutdown(socket.SHUT_WR)
            scu.rest()

    await running.in_thread(send)
    await eventually(lambda: not running.engine.association_count())
    await running.scp.taken()
    assert not running.spool.arrivals and not running.spool.damages


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


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


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


@pytest.mark.parametrize("title", [b"$(id)", b"@/etc/hostname", b"`id`", b"-aet", b"a;b|c&d", b"'\""])
@pytest_twisted.ensureDeferred
async def test_titles_are_only_titles(inbound: Any, eventually: Any, study: MadeStudy, title: bytes) -> None:
    """An AE title is never a command, an option or a file; it is recorded as it is."""
    running = await inbound()

    def send() -> None:
        with RawScu(running.port) as scu:
            assert scu.associate(calling=title)[0] == ASSOCIATE_AC
            assert scu.store(study.sop_uids[0].encode(), [data_set_of(study.files[0])], originator=title) == P_DATA

    await running.in_thread(send)
    await eventually(lambda: running.spool.arrivals)
    (arrival,) = running.spool.arrivals
    assert (arrival.association.calling_aet, arrival.move_originator_aet) == (title.decode(), title.decode())


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


@pytest.mark.deadline(120)
@pytest_twisted.ensureDeferred
async def test_200_connections_at_once(inbound: Any, eventually: Any, study: MadeStudy) -> None:
    """Each of many callers gets an association or is told that there are too many; afterwards all is as before."""
    running = await inbound(max_associations=10, max_associations_per_peer=10)

    def ask(scu: RawScu) -> tuple[int, bytes]:
        return scu.receive()

    def send() -> list[tuple[int, bytes]]:
        callers = [RawScu(running.port) for _ in range(CONNECTIONS)]
        try:
            for caller in callers:
                caller.send(associate_rq())
            with ThreadPoolExecutor(20) as pool:
                return list(pool.map(ask, callers))
        finally:
            for caller in callers:
                caller.sock.close()

    answers = await running.in_thread(send)
    accepted = sum(kind == ASSOCIATE_AC for kind, _ in answers)
    limits = sum(kind == ASSOCIATE_RJ and tuple(content[1:]) == (2, 3, 2) for kind, content in answers)
    assert accepted >= 10 and accepted + limits == CONNECTIONS
    await eventually(lambda: not running.engine.association_count())
    assert await running.in_thread(storescu, running.port, study.files[0]) == 0
    await running.scp.taken()


@pytest_twisted.ensureDeferred
async def test_silent_connections_make_room(
    inbound: Any, monkeypatch: pytest.MonkeyPatch, study: MadeStudy
) -> None:
    """However many are connected and say nothing, who asks for an association gets it."""
    monkeypatch.setattr(listener, "MAX_PENDING", 20)
    running = await inbound()

    def send() -> int:
        silent = [RawScu(running.port) for _ in range(50)]
        try:
            return storescu(running.port, study.files[0])
        finally:
            for caller in silent:
                caller.sock.close()

    assert await running.in_thread(send) == 0
    await running.scp.taken()
    assert len(running.spool.arrivals) == 1


@pytest.mark.parametrize("how", ["abort", "close", "reset"])
@pytest_twisted.ensureDeferred
async def test_ended_in_the_middle(inbound: Any, eventually: Any, study: MadeStudy, how: str) -> None:
    """Objects before the cut one are handed over; the cut one was acknowledged to nobody, and is no alarm."""
    running = await inbound()
    one, two = (data_set_of(path) for path in study.files[:2])

    def send() -> None:
        with RawScu(running.port) as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            assert scu.store(study.sop_uids[0].encode(), [one]) == P_DATA
            scu.send(store_rq(study.sop_uids[1].encode()) + p_data(two[:-200], 0))
            if how == "abort":
                scu.send(pdu(ABORT, bytes(4)))
                scu.rest()
            elif how == "reset":
                scu.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    await running.in_thread(send)
    await eventually(lambda: not running.engine.association_count())
    await running.scp.taken()
    assert running.spool.uids == [study.sop_uids[0]] and not running.spool.damages


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
            (child,) = running.children
            assert scu.store(uid, [one]) == P_DATA
            wait_until(lambda: running.spool.arrivals, "the first object is handed over")
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


@pytest.mark.deadline(120)
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
