"""What a hostile or broken peer does to either engine's store SCP costs nothing lasting, and nobody else's object."""

from __future__ import annotations

import os
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
from sender_kit import answers_to, storescu

from harmonyd.testing.data import MadeStudy

CONNECTIONS = 200
LIMIT = 10


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
async def test_no_association(store_scp: Any, first: bytes, half_close: bool) -> None:
    """What is no A-ASSOCIATE-RQ, or is cut, is answered with A-ABORT or nothing, and starts nothing."""
    running = await store_scp()
    kinds = await running.in_thread(lambda: answers_to(running.port, first, half_close=half_close))
    assert kinds in ([], [ABORT])
    assert running.is_untouched


@pytest_twisted.ensureDeferred
async def test_a_request_byte_by_byte(store_scp: Any) -> None:
    """A request that comes in many pieces is a request."""
    running = await store_scp()

    def send() -> int:
        with RawScu(running.port) as scu:
            for byte in associate_rq():
                scu.send(bytes([byte]))
            return scu.receive()[0]

    assert await running.in_thread(send) == ASSOCIATE_AC


@pytest_twisted.ensureDeferred
async def test_128_contexts(store_scp: Any, eventually: Any, study: MadeStudy) -> None:
    """The most presentation contexts that there can be are accepted, and an object over the last of them is taken."""
    running = await store_scp()

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
        store_rq(b"1.2.3") + p_data(bytes(3000), 0) + pdu(5, bytes(4)),
        store_rq(b"1.2.3") + store_rq(b"1.2.3"),
        struct.pack(">BxI", P_DATA, 0xFFFFFFF0) + bytes(100_000),
        pdu(5, bytes(4)) + pdu(0x99, bytes(10)),
        pdu(5, bytes(4)) + store_rq(b"1.2.3"),
    ],
    ids=[
        "context", "context of data", "type", "fragment length", "empty", "command", "random", "twice", "release",
        "command for data", "4 GB", "after the release", "a message after the release",
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_nonsense_in_an_association(store_scp: Any, eventually: Any, after: bytes) -> None:
    """Whatever comes after the association is there ends that at most, and leaves no object.

    The native engine ends it, with A-ABORT, though the peer goes on; storescp may wait for the end of what is cut.
    """
    running = await store_scp()

    def send() -> list[int]:
        with RawScu(running.port) as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            with suppress(OSError):  # closed already
                scu.send(after)
                if running.engine_name == "dcmtk":
                    scu.sock.shutdown(socket.SHUT_WR)
            return scu.rest()

    kinds = await running.in_thread(send)
    assert running.engine_name == "dcmtk" or kinds in ([ABORT], [])
    await eventually(lambda: not running.associations)
    await running.scp.taken()
    assert not running.spool.arrivals and not running.spool.damages
    await eventually(lambda: not list(running.incoming.iterdir()))


@pytest.mark.parametrize("title", [b"$(id)", b"@/etc/hostname", b"`id`", b"-aet", b"a;b|c&d", b"'\""])
@pytest_twisted.ensureDeferred
async def test_titles_are_only_titles(store_scp: Any, eventually: Any, study: MadeStudy, title: bytes) -> None:
    """An AE title is never a command, an option or a file; it is recorded as it is."""
    running = await store_scp()

    def send() -> None:
        with RawScu(running.port) as scu:
            assert scu.associate(calling=title)[0] == ASSOCIATE_AC
            assert scu.store(study.sop_uids[0].encode(), [data_set_of(study.files[0])], originator=title) == P_DATA

    await running.in_thread(send)
    await eventually(lambda: running.spool.arrivals)
    (arrival,) = running.spool.arrivals
    assert (arrival.association.calling_aet, arrival.move_originator_aet) == (title.decode(), title.decode())


@pytest.mark.deadline(240)
@pytest_twisted.ensureDeferred
async def test_200_connections_at_once(store_scp: Any, eventually: Any, study: MadeStudy) -> None:
    """Each of many callers gets an association or is told that there are too many; afterwards all is as before."""
    running = await store_scp(max_associations=LIMIT, max_associations_per_peer=LIMIT)

    def send() -> list[tuple[int, bytes]]:
        callers = [RawScu(running.port) for _ in range(CONNECTIONS)]
        try:
            for caller in callers:
                caller.send(associate_rq())
            with ThreadPoolExecutor(20) as pool:
                return list(pool.map(RawScu.receive, callers))
        finally:
            for caller in callers:
                caller.sock.close()

    answers = await running.in_thread(send)
    accepted = sum(kind == ASSOCIATE_AC for kind, _ in answers)
    limits = sum(kind == ASSOCIATE_RJ and tuple(content[1:]) == (2, 3, 2) for kind, content in answers)
    assert accepted == LIMIT or (accepted > LIMIT and running.engine_name == "dcmtk")
    assert accepted + limits == CONNECTIONS
    await eventually(lambda: not running.associations)
    assert await running.in_thread(storescu, running.port, study.files[0]) == 0
    await running.scp.taken()


@pytest_twisted.ensureDeferred
async def test_silent_connections_make_room(
    store_scp: Any, monkeypatch: pytest.MonkeyPatch, study: MadeStudy
) -> None:
    """However many are connected and say nothing, who asks for an association gets it."""
    running = await store_scp()
    monkeypatch.setattr(running.listener_module, "MAX_PENDING", 20)

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
async def test_ended_in_the_middle(store_scp: Any, eventually: Any, study: MadeStudy, how: str) -> None:
    """Objects before the cut one are there; of the cut one nothing is left, and nobody was told that it arrived."""
    running = await store_scp()
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
    await eventually(lambda: not running.associations)
    await running.scp.taken()
    assert running.spool.uids == [study.sop_uids[0]] and not running.spool.damages
    await eventually(lambda: not list(running.incoming.iterdir()))
