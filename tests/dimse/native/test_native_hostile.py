"""What a hostile or broken peer does costs the native engine nothing lasting; see also ``test_store_scp_hostile``."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
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
from sender_kit import files_below, status_of, storescu
from twisted.internet.defer import Deferred

from harmonyd.dimse import accepting
from harmonyd.dimse.native import connection, listener
from harmonyd.dimse.part10 import check_complete
from harmonyd.testing.data import MadeStudy


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


@pytest.mark.deadline(240)
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
    monkeypatch.setattr(accepting, "PAUSE_SECS", 0.1)
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
    await eventually(lambda: not running.associations)
    assert not list(running.incoming.iterdir())
    for arrival in running.spool.arrivals:
        check_complete(arrival.instance.path)
