"""A port of our own with the dcmtk engine: its limits, and what is offered when; see also ``test_store_scp``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from raw_scu import ASSOCIATE_AC, RELEASE_RP, RawScu
from sender_kit import refused, storescu
from twisted.internet.defer import Deferred

from harmonyd.dimse.dcmtk import per_association
from harmonyd.testing.data import MadeStudy


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
async def test_all_addresses(inbound: Any) -> None:
    """Who listens on both protocols' every address still knows an IPv4 peer by its IPv4 address."""
    running = await inbound(bind_addr="::", max_associations_per_peer=1)
    with RawScu(running.port) as scu:
        assert (await running.in_thread(scu.associate))[0] == ASSOCIATE_AC
        (child,) = running.supervisor.once_children()
        assert child.spec.name.startswith("storescp:")


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
