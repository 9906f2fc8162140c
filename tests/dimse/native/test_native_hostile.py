"""What a hostile or broken peer does to a native store SCP costs nothing lasting, and nobody else's object."""

from __future__ import annotations

import os
import resource
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
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
from test_native_scp import storescu
from twisted.internet.defer import Deferred

from harmonyd.dimse.native import connection, listener
from harmonyd.dimse.part10 import check_complete
from harmonyd.testing.data import MadeStudy

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
async def test_no_association(native: Any, first: bytes, half_close: bool) -> None:
    """What is no A-ASSOCIATE-RQ, or is cut, is answered with A-ABORT or nothing."""
    running = await native()
    kinds = await running.in_thread(lambda: answers_to(running.port, first, half_close=half_close))
    assert kinds in ([], [ABORT])
    assert not running.sessions


@pytest.mark.parametrize("first", [b"", b"\x01", associate_rq()[:20]])
@pytest_twisted.ensureDeferred
async def test_slow_before_the_association(
    native: Any, monkeypatch: pytest.MonkeyPatch, study: MadeStudy, first: bytes
) -> None:
    """Who does not send a whole request in time is closed, however it trickles; others are served meanwhile."""
    monkeypatch.setattr(connection, "ARTIM_SECS", 0.5)
    running = await native()

    def trickle() -> bool:
        with RawScu(running.port) as slow:
            slow.send(first)
            assert storescu(running.port, study.files[0]) == 0
            slow.sock.settimeout(0.05)
            for byte in associate_rq()[len(first) : 150]:
                try:
                    slow.send(bytes([byte]))
                    if not slow.sock.recv(1):
                        return True
                except TimeoutError:
                    continue
                except ConnectionError:
                    return True
        return False

    assert await running.in_thread(trickle)


@pytest_twisted.ensureDeferred
async def test_a_request_byte_by_byte(native: Any) -> None:
    """A request that comes in many pieces is a request."""
    running = await native()

    def send() -> int:
        with RawScu(running.port) as scu:
            for byte in associate_rq():
                scu.send(bytes([byte]))
            return scu.receive()[0]

    assert await running.in_thread(send) == ASSOCIATE_AC


@pytest.mark.parametrize("inside", [True, False])
@pytest_twisted.ensureDeferred
async def test_slow_after_the_association(native: Any, inside: bool) -> None:
    """Who sends a byte now and then inside a data set, or a command, is ended after the association timeout."""
    running = await native(association_timeout_secs=0.5)

    def send() -> list[int]:
        with RawScu(running.port) as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            scu.send(store_rq(b"1.2.3") + p_data(bytes(30_000), 0)[:10] if inside else store_rq(b"1.2.3")[:8])
            scu.sock.settimeout(0.05)
            for _ in range(200):
                try:
                    scu.send(b"\0")
                    return [scu.receive()[0]]
                except TimeoutError:
                    continue
                except ConnectionError:
                    return []
        return [0]

    assert await running.in_thread(send) in ([ABORT], [])
    assert not running.spool.arrivals


@pytest_twisted.ensureDeferred
async def test_a_busy_association_is_not_silent(native: Any, study: MadeStudy) -> None:
    """Who sends an object now and then, or an echo, is not ended."""
    running = await native(association_timeout_secs=0.6)
    content = data_set_of(study.files[0])

    def send() -> None:
        with RawScu(running.port) as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            for _ in range(5):
                scu.sock.settimeout(0.3)
                with suppress(TimeoutError):
                    scu.sock.recv(1)
                scu.sock.settimeout(30)
                assert scu.store(study.sop_uids[0].encode(), [content]) == P_DATA
            assert scu.release() == RELEASE_RP

    await running.in_thread(send)
    assert len(running.spool.arrivals) == 5


@pytest_twisted.ensureDeferred
async def test_128_contexts(native: Any, study: MadeStudy) -> None:
    """The most presentation contexts that there can be are accepted, and an object over the last of them is taken."""
    running = await native()

    def send() -> None:
        with RawScu(running.port) as scu:
            assert scu.associate(contexts=128)[0] == ASSOCIATE_AC
            scu.send(store_rq(study.sop_uids[0].encode(), context_id=255))
            scu.send(p_data(data_set_of(study.files[0]), 2, 255))
            assert scu.receive()[0] == P_DATA
            assert scu.release() == RELEASE_RP

    await running.in_thread(send)
    assert running.spool.uids == [study.sop_uids[0]]


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
async def test_nonsense_in_an_association(native: Any, eventually: Any, after: bytes) -> None:
    """Whatever comes after the association is there ends that at most, with A-ABORT, and leaves no object."""
    running = await native()

    def send() -> list[int]:
        with RawScu(running.port) as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            with suppress(OSError):  # closed already
                scu.send(after)
            return scu.rest()

    assert await running.in_thread(send) in ([ABORT], [])
    await eventually(lambda: not running.sessions)
    assert not running.spool.arrivals and not list(running.incoming.iterdir())


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


UIDS = [b"../../x", b"/etc/x", b"", b"." * 64, b"@/etc/hostname", b"1.2\n3", b"$(id)", b"a b;c", b"1" * 65]


@pytest.mark.parametrize("uid", UIDS)
@pytest_twisted.ensureDeferred
async def test_instance_uids(native: Any, tmp_path: Path, study: MadeStudy, uid: bytes) -> None:
    """A SOP Instance UID names no path, and what is none is refused."""
    running = await native()

    def send() -> tuple[int, bytes]:
        with RawScu(running.port) as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            scu.send(store_rq(uid) + p_data(data_set_of(study.files[0]), 2))
            return scu.receive()

    before = files_below(tmp_path)
    kind, content = await running.in_thread(send)
    assert kind == P_DATA and status_of(content) in (0x0117, 0xA900)
    assert files_below(tmp_path) == before
    assert not (tmp_path.parent / "x").exists()


def status_of(content: bytes) -> int:
    """Status (0000,0900) in a P-DATA-TF with a response."""
    at = content.index(b"\0\0\0\x09\2\0\0\0")
    return int.from_bytes(content[at + 8 : at + 10], "little")


@pytest.mark.parametrize("title", [b"$(id)", b"@/etc/hostname", b"`id`", b"-aet", b"a;b|c&d", b"'\""])
@pytest_twisted.ensureDeferred
async def test_titles_are_only_titles(native: Any, study: MadeStudy, title: bytes) -> None:
    """An AE title is never a command, an option or a file; it is recorded as it is."""
    running = await native()

    def send() -> None:
        with RawScu(running.port) as scu:
            assert scu.associate(calling=title)[0] == ASSOCIATE_AC
            assert scu.store(study.sop_uids[0].encode(), [data_set_of(study.files[0])], originator=title) == P_DATA

    await running.in_thread(send)
    (arrival,) = running.spool.arrivals
    assert (arrival.association.calling_aet, arrival.move_originator_aet) == (title.decode(), title.decode())


@pytest_twisted.ensureDeferred
async def test_200_connections_at_once(native: Any, eventually: Any, study: MadeStudy) -> None:
    """Each of many callers gets an association or is told that there are too many; afterwards all is as before."""
    running = await native(max_associations=10, max_associations_per_peer=10)

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
    assert accepted == 10 and accepted + limits == CONNECTIONS
    await eventually(lambda: not running.sessions)
    assert await running.in_thread(storescu, running.port, study.files[0]) == 0


@pytest_twisted.ensureDeferred
async def test_silent_connections_make_room(
    native: Any, monkeypatch: pytest.MonkeyPatch, study: MadeStudy
) -> None:
    """However many are connected and say nothing, who asks for an association gets it."""
    monkeypatch.setattr(listener, "MAX_PENDING", 20)
    running = await native()

    def send() -> int:
        silent = [RawScu(running.port) for _ in range(50)]
        try:
            return storescu(running.port, study.files[0])
        finally:
            for caller in silent:
                caller.sock.close()

    assert await running.in_thread(send) == 0
    assert len(running.spool.arrivals) == 1


@pytest.mark.deadline(120)
@pytest_twisted.ensureDeferred
async def test_10000_half_open_connections(native: Any, eventually: Any, study: MadeStudy) -> None:
    """Ten thousand connections that say nothing cost 256 descriptors at most, and in the end none."""
    running = await native()

    def open_many() -> list[socket.socket]:
        kept: list[socket.socket] = []
        for number in range(10_000):
            sock = socket.create_connection(("127.0.0.1", running.port), 30)
            kept.append(sock)
            if len(kept) > 400:
                kept.pop(0).close()
            if number % 2500 == 0:
                assert storescu(running.port, study.files[0]) == 0
        return kept

    kept = await running.in_thread(open_many)
    ours = [what for what in running.new_descriptors() if what.startswith("socket:")]
    assert len(ours) <= listener.MAX_PENDING + len(kept) + 50
    for sock in kept:
        sock.close()
    await eventually(lambda: not running.listener._pending)


@contextmanager
def few_descriptors(more: int) -> Iterator[None]:
    """This process may have so many more than it has."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest_twisted.ensureDeferred
async def test_no_descriptors_left(native: Any, monkeypatch: pytest.MonkeyPatch, study: MadeStudy) -> None:
    """When there are no descriptors any more nothing is accepted for a while, and then it goes on."""
    monkeypatch.setattr(listener, "_PAUSE_SECS", 0.1)
    paused: list[int] = []
    pause = listener.AssociationListener._pause
    monkeypatch.setattr(
        listener.AssociationListener, "_pause", lambda self, error: (paused.append(error.errno), pause(self, error))
    )
    running = await native()
    waiting: list[socket.socket] = []

    def fill() -> None:
        with suppress(OSError):
            while len(waiting) < 1000:
                waiting.append(socket.socket())

    with few_descriptors(40):
        first = RawScu(running.port)
        fill()
        waiting.pop().close()
        extra = socket.socket()
        extra.connect(("127.0.0.1", running.port))
        fill()
        sleeping: Deferred[None] = Deferred()
        running.reactor.callLater(0.5, sleeping.callback, None)
        await sleeping
        for sock in [*waiting, extra, first.sock]:
            sock.close()
    assert paused and len(paused) < 10
    assert await running.in_thread(storescu, running.port, study.files[0]) == 0


@pytest.mark.parametrize("how", ["abort", "close", "reset"])
@pytest_twisted.ensureDeferred
async def test_ended_in_the_middle(native: Any, eventually: Any, study: MadeStudy, how: str) -> None:
    """Objects before the cut one are there; of the cut one nothing is left, and nobody was told that it arrived."""
    running = await native()
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
    await eventually(lambda: not running.sessions)
    assert running.spool.uids == [study.sop_uids[0]] and not running.spool.damages
    assert not list(running.incoming.iterdir())


@pytest_twisted.ensureDeferred
async def test_released_but_not_closed(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who releases and keeps its connection is closed when its time is over, and counts for no limit meanwhile."""
    monkeypatch.setattr(connection, "ARTIM_SECS", 0.5)
    running = await native(max_associations=1)

    def send() -> int:
        with RawScu(running.port) as scu:
            for _ in range(3):
                with RawScu(running.port) as other:
                    assert other.associate()[0] == ASSOCIATE_AC
                    assert other.release() == RELEASE_RP
            assert scu.associate()[0] == ASSOCIATE_AC
            assert scu.release() == RELEASE_RP
            assert not scu.rest()
            for _ in range(100):
                try:
                    scu.sock.settimeout(0.05)
                    scu.send(b"x")
                    scu.sock.recv(1)
                except ConnectionError:
                    return 1
                except TimeoutError:
                    continue
                time.sleep(0.02)
        return 0

    assert await running.in_thread(send) == 1


@pytest_twisted.ensureDeferred
async def test_ten_thousand_tiny_fragments(native: Any, study: MadeStudy) -> None:
    """An object in fragments of seven bytes arrives as it was."""
    running = await native()
    content = data_set_of(study.files[0])
    pieces = [content[at : at + 7] for at in range(0, len(content), 7)]

    def send() -> int:
        with RawScu(running.port) as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            scu.send(
                store_rq(study.sop_uids[0].encode())
                + b"".join(p_data(piece, 0) for piece in pieces)
                + p_data(b"", 2)
            )
            return scu.receive()[0]

    assert await running.in_thread(send) == P_DATA
    assert data_set_of(running.spool.arrivals[0].instance.path) == content


def mutated(stream: bytes, random: Random) -> bytes:
    """The same with some bytes changed, left out, doubled, or the rest cut off."""
    data = bytearray(stream)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(data) or 1)
        length = random.choice((1, 1, 2, 4, 6, 100))
        match random.randrange(4):
            case 0:
                data[at : at + length] = random.randbytes(length)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case _:
                data[at : at + 4] = random.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"))
    return bytes(data[: random.randrange(len(data) + 1)]) if random.random() < 0.2 else bytes(data)


@pytest.mark.parametrize("seed", range(4))
@pytest_twisted.ensureDeferred
async def test_mutated_streams(native: Any, eventually: Any, study: MadeStudy, seed: int) -> None:
    """Whatever becomes of the bytes of a C-STORE, nothing fails inside, and what is taken is whole."""
    random = Random(seed)
    running = await native()
    content = data_set_of(study.files[0])
    head, command = associate_rq(), store_rq(study.sop_uids[0].encode())
    rest = p_data(content[:1000], 0) + p_data(content[1000:], 2) + pdu(5, bytes(4))

    def send() -> None:
        for number in range(60):
            first = mutated(head, random) if number % 3 == 0 else head
            stream = first + (command + rest if number % 3 == 0 else mutated(command + rest, random))
            with RawScu(running.port) as scu, suppress(OSError):
                scu.send(stream)
                scu.sock.shutdown(socket.SHUT_WR)
                scu.rest()

    await running.in_thread(send)
    await eventually(lambda: not running.sessions)
    assert not list(running.incoming.iterdir())
    for arrival in running.spool.arrivals:
        check_complete(arrival.instance.path)
