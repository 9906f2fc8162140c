"""Several AE titles on one port of the native engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted
from inbound_kit import FakeSpool
from raw_scu import ASSOCIATE_AC, ASSOCIATE_RJ, RawScu
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from harmonyd.dimse.accepting import Answered
from harmonyd.dimse.engine import StoreScpConfig
from harmonyd.dimse.native.listeners import Listeners
from harmonyd.dimse.native.scp import NativeStoreScp
from harmonyd.dimse.threads import in_thread
from harmonyd.testing.processes import free_port, port_is_free

UNKNOWN, FOR_NOW = (1, 1, 7), (2, 3, 1)
"""Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 section 9.3.4)."""


class Port:
    """One port, and its titles by name."""

    def __init__(self, folder: Path) -> None:
        self.number = free_port()
        self.listeners = Listeners(reactor)
        self.spool = FakeSpool(folder / "taken")
        self.titles: dict[str, NativeStoreScp] = {}
        self.stack = ExitStack()
        self._folder = folder

    def title(self, aet: str) -> NativeStoreScp:
        """One that is not started."""
        config = StoreScpConfig(aet, aet, "127.0.0.1", self.number)
        made = NativeStoreScp(reactor, config, self.spool, self.spool, self._folder, self.listeners)
        self.titles[aet] = made
        return made

    async def call(self, aet: str) -> tuple[int, ...]:
        """() when the association is accepted, and kept; else why not."""
        scu = self.stack.enter_context(RawScu(self.number))
        kind, content = await in_thread(reactor, lambda: scu.associate(called=aet.encode()))
        assert kind in (ASSOCIATE_AC, ASSOCIATE_RJ)
        return tuple(content[1:]) if kind == ASSOCIATE_RJ else ()


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    made = Port(tmp_path)
    yield made
    made.stack.close()
    for title in made.titles.values():
        pytest_twisted.blockon(Deferred.fromCoroutine(title.stop()))
    assert port_is_free(made.number)


@pytest_twisted.ensureDeferred
async def test_titles_come_and_go_one_by_one(port: Port) -> None:
    """One that does not receive yet, or for now, is refused for now; one that is gone is not known."""
    one, two = port.title("ONE"), port.title("TWO")
    await one.start()
    assert [await port.call(aet) for aet in ("ONE", "TWO", "THREE")] == [(), FOR_NOW, UNKNOWN]
    await two.start()
    assert await port.call("TWO") == ()
    port.stack.close()
    await two.pause()
    assert [await port.call(aet) for aet in ("ONE", "TWO")] == [(), FOR_NOW]
    await two.resume(replace(two._config, local_aet="THREE"))
    assert [await port.call(aet) for aet in ("TWO", "THREE")] == [UNKNOWN, ()]
    port.stack.close()
    await one.stop()
    assert [await port.call(aet) for aet in ("ONE", "THREE")] == [UNKNOWN, ()]
    late = port.title("LATE")
    assert await port.call("LATE") == FOR_NOW
    await late.stop()


@pytest_twisted.ensureDeferred
async def test_associations_are_counted_by_title(port: Port) -> None:
    """Who waits for those of one title does not wait for the others."""
    for aet in ("ONE", "TWO"):
        await port.title(aet).start()
    assert [await port.call(aet) for aet in ("ONE", "ONE", "TWO")] == [(), (), ()]
    count = port.listeners.association_count
    assert count() == 3
    assert [count({Answered(port.number, aet)}) for aet in ("ONE", "TWO", "THREE")] == [2, 1, 0]
    assert count({Answered(port.number + 1, "ONE")}) == 0


@pytest_twisted.ensureDeferred
async def test_the_port_closes_with_the_last_that_receives(port: Port) -> None:
    """And opens with the first that does again."""
    for aet in ("ONE", "TWO"):
        await port.title(aet).start()
    await port.titles["ONE"].pause()
    assert not port_is_free(port.number)
    await port.titles["TWO"].pause()
    assert port_is_free(port.number)
    await port.titles["ONE"].resume(port.titles["ONE"]._config)
    assert [await port.call(aet) for aet in ("ONE", "TWO")] == [(), FOR_NOW]
