"""An AE title on a port that an endpoint and the deliveries of C-MOVE share: as safe as if it were the endpoint's."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pydicom import Dataset
from raw_scu import ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RP, RawScu, data_set_of

from harmonyd.dimse.engine import MoveReceiver, OperationContext, Query, QueryLevel, QueryModel, RemoteNode
from harmonyd.testing.data import MadeStudy
from harmonyd.testing.processes import dcmtk

CONGESTION, LIMIT = (2, 3, 1), (2, 3, 2)


class Shared:
    """An endpoint, and moves that share its AE title and port."""

    def __init__(self, running: Any) -> None:
        self.running = running
        self.receiver = MoveReceiver("per-association", "SCP", running.port)
        self.quarantine = running.incoming.parents[3] / "quarantine"

    async def open(self) -> None:
        await self.running.engine.open_receiver(self.receiver)

    @asynccontextmanager
    async def move(self, study: MadeStudy) -> AsyncIterator[tuple[Any, list[str]]]:
        """While a move of a study from PACS runs: its delivery, and what it was offered."""
        ds = Dataset()
        ds.StudyInstanceUID = study.study_uid
        query = Query(QueryLevel.STUDY, QueryModel.STUDY_ROOT, ds)
        remote = RemoteNode("pacs", "PACS", "127.0.0.1", 104, "HARMONY_SCU")
        op = OperationContext("0" * 32, "request", self.running.reactor.seconds() + 60)
        offered: list[str] = []
        async with self.running.engine._receivers.turn(self.receiver, remote, query, op) as delivery:
            delivery.listen(offered.append)
            yield delivery, offered

    async def send(self, calling: str, *files: Path) -> int:
        """The exit code of storescu."""
        command = [dcmtk("storescu"), "-aet", calling, "-aec", "SCP", "127.0.0.1", str(self.running.port)]
        done = await self.running.in_thread(
            lambda: subprocess.run([*command, *map(str, files)], check=False, capture_output=True)
        )
        return int(done.returncode)

    async def refusal(self, calling: bytes = b"RAW") -> tuple[int, ...]:
        """How a caller is refused; () when it is not."""

        def call() -> tuple[int, ...]:
            with RawScu(self.running.port) as scu:
                kind, content = scu.associate(calling=calling)
                assert kind in (ASSOCIATE_AC, ASSOCIATE_RJ)
                return tuple(content[1:]) if kind == ASSOCIATE_RJ else ()

        return await self.running.in_thread(call)  # type: ignore[no-any-return]


def take(delivery: Any, offered: list[str]) -> None:
    """As a retrieve does with what it is offered."""
    for name in offered:
        Path(name).unlink()
    delivery.taken(offered)


@pytest.fixture
def shared(inbound: Any) -> Any:
    """``await shared(max_associations=2)``."""

    async def start(**options: Any) -> Shared:
        made = Shared(await inbound(bind_addr="0.0.0.0", **options))
        await made.open()
        return made

    return start


@pytest_twisted.ensureDeferred
async def test_nobody_asked(shared: Any, eventually: Any, study: MadeStudy) -> None:
    """Objects lie where the endpoint receives until they are taken, and are offered again when they are not."""
    both: Shared = await shared()
    spool, incoming = both.running.spool, both.running.incoming
    spool.refused = {study.sop_uids[0]}
    assert await both.send("MODALITY", study.files[0]) == 0
    await eventually(lambda: spool.attempts and not both.running.engine.association_count())
    assert len(list(incoming.glob("*/*"))) == 1
    spool.refused = set()
    await both.running.scp._sweep()
    await both.running.scp.taken()
    assert spool.uids == [study.sop_uids[0]]
    assert not both.quarantine.exists()


@pytest_twisted.ensureDeferred
async def test_left_by_an_earlier_run(shared: Any, study: MadeStudy) -> None:
    """What was not taken when harmonyd was ended, of a move or not, is the endpoint's at the next start."""
    both: Shared = await shared()
    running = both.running
    async with both.move(study) as (delivery, offered):
        assert await both.send("PACS", *study.files[:2]) == 0
        await delivery.sweep()
        assert len(offered) == 2
        assert all(Path(path).is_relative_to(running.incoming) for path in offered)
        successor = type(running.scp)(
            running.engine._box, running.config, running.spool, running.spool, running.incoming.parents[1],
            type(running.engine._listeners)(running.engine._box),
        )  # fmt: skip
        await successor._sweep()
        await successor.taking.all_settled()
        assert sorted(running.spool.uids) == sorted(study.sop_uids[:2])
        delivery.taken(offered)


@pytest_twisted.ensureDeferred
async def test_each_its_own(shared: Any, eventually: Any, study: MadeStudy) -> None:
    """What a move asked for is the move's, also when the endpoint looks around; what a modality adds is not."""
    both: Shared = await shared()
    running = both.running
    async with both.move(study) as (delivery, offered):
        assert await both.send("PACS", study.files[0]) == 0
        assert await both.send("MODALITY", study.files[1]) == 0
        await delivery.sweep()
        await eventually(lambda: running.spool.arrivals and not running.engine.association_count())
        await running.scp._sweep()
        await running.scp.taking.all_settled()
        assert len(offered) == 1
        assert running.spool.uids == [study.sop_uids[1]]
    await running.scp.taking.all_settled()
    assert running.spool.uids == [study.sop_uids[1], study.sop_uids[0]], "the move has not taken it"
    assert not both.quarantine.exists()


@pytest_twisted.ensureDeferred
async def test_taken_by_its_move(shared: Any, eventually: Any, study: MadeStudy) -> None:
    """It is no longer in the endpoint's folder, which is empty."""
    both: Shared = await shared()
    async with both.move(study) as (delivery, offered):
        assert await both.send("PACS", study.files[0]) == 0
        await delivery.sweep()
        take(delivery, offered)
    await eventually(lambda: not both.running.engine.association_count())
    await both.running.scp._sweep()
    assert not both.running.spool.attempts
    assert not list(both.running.incoming.iterdir())


@pytest.mark.parametrize("limit", ["max_associations", "max_associations_per_peer"])
@pytest_twisted.ensureDeferred
async def test_limits(shared: Any, study: MadeStudy, limit: str) -> None:
    """The endpoint's count for all who call, also while a move runs."""
    both: Shared = await shared(**{limit: 1}, max_pdu=16384, association_timeout_secs=77.0)
    with RawScu(both.running.port) as scu:
        assert (await both.running.in_thread(scu.associate))[0] == ASSOCIATE_AC
        (child,) = both.running.supervisor.once_children()
        assert {"16384", "77"} <= set(child.spec.argv)
        assert await both.refusal() == LIMIT
        async with both.move(study):
            assert await both.refusal(b"PACS") == LIMIT
        assert await both.running.in_thread(scu.release) == RELEASE_RP


@pytest_twisted.ensureDeferred
async def test_room_runs_out(shared: Any) -> None:
    """Nobody is let in, and when it has to be associations are ended."""
    both: Shared = await shared()
    spool = both.running.spool
    with RawScu(both.running.port) as scu:
        assert (await both.running.in_thread(scu.associate))[0] == ASSOCIATE_AC
        spool.set_full("the disk is full")
        assert await both.refusal() == CONGESTION
        spool.ends = True
        spool.set_full("the disk is full")
        await both.running.in_thread(scu.rest)
    assert not both.running.children


@pytest_twisted.ensureDeferred
async def test_a_pause(shared: Any, study: MadeStudy) -> None:
    """Callers are refused while the endpoint pauses, but for a PACS whose move runs; afterwards they are let in."""
    both: Shared = await shared()
    await both.running.scp.pause()
    assert await both.refusal() == CONGESTION
    async with both.move(study) as (delivery, offered):
        assert await both.refusal() == CONGESTION
        assert await both.send("PACS", study.files[0]) == 0
        await delivery.sweep()
        assert len(offered) == 1
        take(delivery, offered)
    await both.running.scp.resume(both.running.config)
    assert await both.refusal() == ()


@pytest_twisted.ensureDeferred
async def test_before_the_endpoint_starts(inbound: Any) -> None:
    """Moves may listen first: who sends to the endpoint then is told to come again."""
    running = await inbound(bind_addr="0.0.0.0")
    await running.scp.stop()
    assert await _refusal_by_a_new_one(running) == CONGESTION


async def _refusal_by_a_new_one(running: Any) -> tuple[int, ...]:
    running.scp = running.engine.store_scp(running.config, running.spool, running.spool)
    both = Shared(running)
    await both.open()
    return await both.refusal()


@pytest_twisted.ensureDeferred
async def test_without_the_endpoint(shared: Any) -> None:
    """When it has stopped for good the moves answer alone, and when they are closed nobody does."""
    both: Shared = await shared()
    await both.running.scp.stop()
    assert await both.refusal() == ()
    both.running.engine.keep_receivers([])
    assert await both.running.in_thread(lambda: _is_closed(both.running.port))


def _is_closed(port: int) -> bool:
    try:
        with RawScu(port) as scu:
            return not scu.receive()[0]
    except ConnectionRefusedError:
        return True


@pytest_twisted.ensureDeferred
async def test_a_guest(shared: Any, study: MadeStudy) -> None:
    """Whom the endpoint does not know is let in for its own move alone; what else it brings is in quarantine."""
    both: Shared = await shared(allowed_calling_aets=("MODALITY",))
    files = [data_set_of(path) for path in study.files[:2]]
    assert await both.refusal(b"PACS") == (1, 1, 3)
    async with both.move(study) as (delivery, offered):
        assert await both.refusal(b"STRANGER") == (1, 1, 3)
        with RawScu(both.running.port) as scu:
            assert (await both.running.in_thread(lambda: scu.associate(calling=b"PACS")))[0] == ASSOCIATE_AC
            for number, originator in enumerate((b"HARMONY_SCU", b"WORKSTATION")):
                uid = study.sop_uids[number].encode()
                stored = await both.running.in_thread(
                    lambda uid=uid, number=number, by=originator: scu.store(uid, [files[number]], originator=by)
                )
                assert stored == P_DATA
            assert await both.running.in_thread(scu.release) == RELEASE_RP
        assert await both.send("MODALITY", study.files[2]) == 0
        await delivery.sweep()
        assert len(offered) == 1
        take(delivery, offered)
    await both.running.scp.taken()
    assert both.running.spool.uids == [study.sop_uids[2]]
    assert len(list(both.quarantine.glob("*.dcm"))) == 1
