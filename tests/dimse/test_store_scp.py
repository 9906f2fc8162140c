"""A store SCP of either engine: who is let in, who is refused and how, and what is known of the objects that come."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import pytest_twisted
from raw_scu import ABORT, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RP, RawScu, data_set_of
from sender_kit import refused, storescu
from twisted.internet.defer import Deferred

from harmonyd.errors import Unavailable
from harmonyd.testing.data import MadeStudy
from harmonyd.testing.processes import port_is_free


@pytest_twisted.ensureDeferred
async def test_objects_arrive_as_they_were_sent(store_scp: Any, eventually: Any, study: MadeStudy) -> None:
    """Every data set arrives byte for byte, with the association's AE titles and the peer's address."""
    running = await store_scp()
    assert await running.in_thread(storescu, running.port, *study.files) == 0
    await eventually(lambda: sorted(running.spool.uids) == sorted(study.sop_uids))
    sent = sorted(data_set_of(path) for path in study.files)
    assert sorted(data_set_of(arrival.instance.path) for arrival in running.spool.arrivals) == sent
    associations = {arrival.association for arrival in running.spool.arrivals}
    (association,) = associations
    assert (association.called_aet, association.calling_aet, association.peer) == ("SCP", "SENDER", "127.0.0.1")
    assert {arrival.instance.study_instance_uid for arrival in running.spool.arrivals} == {study.study_uid}


@pytest_twisted.ensureDeferred
async def test_move_originator(store_scp: Any, eventually: Any, study: MadeStudy) -> None:
    """An object carries the Move Originator of its own request, and none where the request has none."""
    running = await store_scp()
    one, two = (data_set_of(path) for path in study.files[:2])
    first, second = (uid.encode() for uid in study.sop_uids[:2])

    def send() -> None:
        with RawScu(running.port) as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            assert scu.store(first, [one], originator=b"MOVER") == P_DATA
            assert scu.store(second, [two[:1000], two[1000:]]) == P_DATA
            assert scu.release() == RELEASE_RP

    await running.in_thread(send)
    await eventually(lambda: len(running.spool.arrivals) == 2)
    found = {arrival.instance.sop_instance_uid: arrival.move_originator_aet for arrival in running.spool.arrivals}
    assert found == {study.sop_uids[0]: "MOVER", study.sop_uids[1]: ""}


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"version": 2}, (1, 2, 2)),
        ({"application_context": b"1.2.3"}, (1, 1, 2)),
        ({"called": b"OTHER"}, (1, 1, 7)),
        ({"called": b""}, (1, 1, 7)),
        ({"calling": b"STRANGER"}, (1, 1, 3)),
        ({"calling": b""}, (1, 1, 3)),
        ({"calling": b"A\nB"}, (1, 1, 3)),
    ],
)
@pytest_twisted.ensureDeferred
async def test_refused(store_scp: Any, options: dict[str, Any], answer: tuple[int, ...]) -> None:
    """Each reason to refuse has its result, source and reason (PS3.8 table 9-21), and nothing is started."""
    running = await store_scp(allowed_calling_aets=("RAW",))
    kind, content, in_order = await running.in_thread(lambda: refused(running.port, **options))
    assert (kind, tuple(content[1:])) == (ASSOCIATE_RJ, answer)
    assert in_order and running.is_untouched


@pytest_twisted.ensureDeferred
async def test_not_while_there_is_no_room(store_scp: Any) -> None:
    """While the spool takes nothing, callers are told of congestion; afterwards they are let in again."""
    running = await store_scp()
    running.spool.set_full("the disk is full")
    _, content, _ = await running.in_thread(refused, running.port)
    assert tuple(content[1:]) == (2, 3, 1)
    running.spool.set_full(None)
    with RawScu(running.port) as scu:
        assert (await running.in_thread(scu.associate))[0] == ASSOCIATE_AC


@pytest_twisted.ensureDeferred
async def test_ipv6(store_scp: Any, eventually: Any, study: MadeStudy) -> None:
    """Objects arrive over IPv6, too."""
    running = await store_scp(bind_addr="::1")

    def send() -> None:
        with RawScu(running.port, "::1") as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            assert scu.store(study.sop_uids[0].encode(), [data_set_of(study.files[0])]) == P_DATA
            assert scu.release() == RELEASE_RP

    await running.in_thread(send)
    await eventually(lambda: running.spool.arrivals)
    assert running.spool.arrivals[0].association.peer == "::1"


@pytest_twisted.ensureDeferred
async def test_taken_port_is_explained(store_scp: Any) -> None:
    """A port that somebody else holds is named; by the dcmtk engine together with the holder."""
    running = await store_scp()
    await running.scp.pause()
    why = {"dcmtk": "is held by pid", "native": "cannot be used"}[running.engine_name]
    held = pytest.raises(Unavailable, match=f"port {running.port} {why}")
    with socket.create_server(("127.0.0.1", running.port)), held:
        await running.scp.resume(running.on_its_port())
    await running.scp.resume(running.on_its_port())


@pytest_twisted.ensureDeferred
async def test_pause_frees_the_port(store_scp: Any, study: MadeStudy) -> None:
    """After a pause nobody listens and no association runs; after it is resumed objects arrive again."""
    running = await store_scp()

    def rest(scu: RawScu) -> list[int]:
        kinds = scu.rest()
        scu.sock.close()
        return kinds

    with RawScu(running.port) as scu:
        assert (await running.in_thread(scu.associate))[0] == ASSOCIATE_AC
        ending = Deferred.fromCoroutine(running.in_thread(rest, scu))
        await running.scp.pause()
        kinds = await ending
        assert kinds == [ABORT] or (not kinds and running.engine_name == "dcmtk")
    assert port_is_free(running.port) and not running.associations
    await running.scp.resume(running.on_its_port())
    assert await running.in_thread(storescu, running.port, study.files[0]) == 0
    await running.scp.taken()
