"""A port of our own: who is let in, who is refused and how, and what is known of the objects that come."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from raw_scu import ABORT, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RP, RawScu, data_set_of
from twisted.internet.defer import Deferred

from harmonyd.dimse.dcmtk import per_association
from harmonyd.dimse.dcmtk.engine import DcmtkEngine
from harmonyd.errors import Unavailable
from harmonyd.testing.data import MadeStudy
from harmonyd.testing.processes import dcmtk, port_is_free

ENV = {"PATH": "/usr/bin:/bin", "TCP_NODELAY": "1"}


def storescu(port: int, *files: Path, calling: str = "SENDER", called: str = "SCP", host: str = "127.0.0.1") -> int:
    """Send files; returns the exit code. Blocking."""
    command = [dcmtk("storescu"), "-aet", calling, "-aec", called, host, str(port), *map(str, files)]
    return subprocess.run(command, env=ENV, check=False, capture_output=True).returncode


def refused(port: int, **options: Any) -> tuple[int, bytes, bool]:
    """Ask for an association: kind and content of the answer, and whether the peer then closed in order. Blocking."""
    with RawScu(port) as scu:
        kind, content = scu.associate(**options)
        return kind, content, not scu.rest()


@pytest_twisted.ensureDeferred
async def test_objects_arrive_as_they_were_sent(inbound: Any, eventually: Any, study: MadeStudy) -> None:
    """Every data set arrives byte for byte, with the association's AE titles and the peer's address."""
    running = await inbound()
    assert await running.in_thread(storescu, running.port, *study.files) == 0
    await eventually(lambda: sorted(running.spool.uids) == sorted(study.sop_uids))
    sent = sorted(data_set_of(path) for path in study.files)
    assert sorted(data_set_of(arrival.instance.path) for arrival in running.spool.arrivals) == sent
    associations = {arrival.association for arrival in running.spool.arrivals}
    (association,) = associations
    assert (association.called_aet, association.calling_aet, association.peer) == ("SCP", "SENDER", "127.0.0.1")
    assert {arrival.instance.study_instance_uid for arrival in running.spool.arrivals} == {study.study_uid}


@pytest_twisted.ensureDeferred
async def test_move_originator(inbound: Any, eventually: Any, study: MadeStudy) -> None:
    """An object carries the Move Originator of its own request, and none where the request has none."""
    running = await inbound()
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
async def test_refused(inbound: Any, options: dict[str, Any], answer: tuple[int, ...]) -> None:
    """Each reason to refuse has its result, source and reason (PS3.8 table 9-21), and no process is started."""
    running = await inbound(allowed_calling_aets=("RAW",))
    kind, content, in_order = await running.in_thread(lambda: refused(running.port, **options))
    assert (kind, tuple(content[1:])) == (ASSOCIATE_RJ, answer)
    assert in_order and not running.children


@pytest_twisted.ensureDeferred
async def test_not_while_there_is_no_room(inbound: Any) -> None:
    """While the spool takes nothing, callers are told of congestion; afterwards they are let in again."""
    running = await inbound()
    running.spool.set_full("the disk is full")
    _, content, _ = await running.in_thread(refused, running.port)
    assert tuple(content[1:]) == (2, 3, 1)
    running.spool.set_full(None)
    with RawScu(running.port) as scu:
        assert (await running.in_thread(scu.associate))[0] == ASSOCIATE_AC


@pytest.mark.parametrize("limit", ["max_associations", "max_associations_per_peer"])
@pytest_twisted.ensureDeferred
async def test_limits(inbound: Any, eventually: Any, limit: str) -> None:
    """An association too many is refused for now; when one has ended the next is accepted."""
    running = await inbound(**{limit: 1})
    with RawScu(running.port) as scu:
        assert (await running.in_thread(scu.associate))[0] == ASSOCIATE_AC
        _, content, _ = await running.in_thread(refused, running.port)
        assert tuple(content[1:]) == (2, 3, 2)
        assert await running.in_thread(scu.release) == RELEASE_RP
    await eventually(lambda: not running.engine.association_count())
    with RawScu(running.port) as scu:
        assert (await running.in_thread(scu.associate))[0] == ASSOCIATE_AC


@pytest_twisted.ensureDeferred
async def test_ipv6(inbound: Any, eventually: Any, study: MadeStudy) -> None:
    """Objects arrive over IPv6, too."""
    running = await inbound(bind_addr="::1")

    def send() -> None:
        with RawScu(running.port, "::1") as scu:
            assert scu.associate()[0] == ASSOCIATE_AC
            assert scu.store(study.sop_uids[0].encode(), [data_set_of(study.files[0])]) == P_DATA
            assert scu.release() == RELEASE_RP

    await running.in_thread(send)
    await eventually(lambda: running.spool.arrivals)
    assert running.spool.arrivals[0].association.peer == "::1"


@pytest_twisted.ensureDeferred
async def test_all_addresses(inbound: Any) -> None:
    """Who listens on both protocols' every address still knows an IPv4 peer by its IPv4 address."""
    running = await inbound(bind_addr="::", max_associations_per_peer=1)
    with RawScu(running.port) as scu:
        assert (await running.in_thread(scu.associate))[0] == ASSOCIATE_AC
        (child,) = running.supervisor.once_children()
        assert child.spec.name.startswith("storescp:")


@pytest_twisted.ensureDeferred
async def test_taken_port_is_explained(inbound: Any, tmp_path: Path) -> None:
    """A port that somebody else holds is named, together with the holder."""
    running = await inbound()
    engine = running.engine
    await running.scp.pause()
    held = pytest.raises(Unavailable, match=f"port {running.port} is held by pid")
    with socket.create_server(("127.0.0.1", running.port)), held:
        await running.scp.resume(running.config)
    assert isinstance(engine, DcmtkEngine)
    await running.scp.resume(running.config)


@pytest_twisted.ensureDeferred
async def test_pause_frees_the_port(inbound: Any, study: MadeStudy) -> None:
    """After a pause nobody listens and no association runs; after it is resumed objects arrive again."""
    running = await inbound()
    with RawScu(running.port) as scu:
        assert (await running.in_thread(scu.associate))[0] == ASSOCIATE_AC
        await running.scp.pause()
        assert await running.in_thread(scu.rest) in ([], [ABORT])
    assert port_is_free(running.port) and not running.children
    await running.scp.resume(running.config)
    assert await running.in_thread(storescu, running.port, study.files[0]) == 0
    await running.scp.taken()


@pytest_twisted.ensureDeferred
async def test_what_an_earlier_run_left(inbound: Any, eventually: Any, study: MadeStudy) -> None:
    """Objects in folders of an earlier run are offered; empty folders go; a cut one is told as probably never ours."""
    running = await inbound()
    await running.scp.stop()
    folder = running.incoming / ("a" * 32)
    folder.mkdir()
    (running.incoming / ("b" * 32)).mkdir()
    assert await running.in_thread(storescu_into, folder, running, study.files[0])
    whole = next(folder.iterdir())
    cut = folder / "later"
    cut.write_bytes(whole.read_bytes()[:-10])
    second = running.engine.store_scp(running.config, running.spool, running.spool)
    await second.start()
    await eventually(lambda: running.spool.damages and running.spool.arrivals and not list(running.incoming.iterdir()))
    await second.stop()
    (arrival,) = running.spool.arrivals
    assert (arrival.association.id, arrival.association.called_aet) == ("a" * 32, "SCP")
    assert "cut short" in running.spool.damages[0][2]


def storescu_into(folder: Path, running: Any, file: Path) -> bool:
    """Put a file there as storescp would."""
    shutil.copy(file, folder / "CT.X.1")
    return True


@pytest_twisted.ensureDeferred
async def test_refused_by_the_handler(inbound: Any, eventually: Any, study: MadeStudy) -> None:
    """What the handler does not take stays, and is offered again; nothing is handed over twice."""
    running = await inbound()
    running.spool.refused = {study.sop_uids[0]}
    assert await running.in_thread(storescu, running.port, study.files[0]) == 0
    await eventually(lambda: running.spool.attempts and not running.engine.association_count())
    await running.scp.taking.all_settled()
    assert not running.spool.arrivals and list(running.incoming.iterdir())
    running.spool.refused = set()
    await running.scp.stop()
    await running.scp.start()
    await running.scp.taken()
    assert running.spool.uids == [study.sop_uids[0]]


@pytest_twisted.ensureDeferred
async def test_taken_means_all(
    inbound: Any, eventually: Any, study: MadeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint that goes is asked whether all is taken: not while something lies there that could not be."""
    monkeypatch.setattr(per_association, "SWEEP_SECS", 0.05)
    running = await inbound()
    running.spool.refused = {study.sop_uids[0]}
    assert await running.in_thread(storescu, running.port, study.files[0]) == 0
    await eventually(lambda: running.spool.attempts)
    await running.scp.pause()
    taken = Deferred.fromCoroutine(running.scp.taken())
    before = running.spool.attempts
    await eventually(lambda: running.spool.attempts > before + 2)
    assert not taken.called
    running.spool.refused = set()
    await taken
    assert running.spool.uids == [study.sop_uids[0]]
