"""From taking a file to the moment its backend has it, and everything that may go wrong in between."""

from __future__ import annotations

import pytest
from pytest_twisted import ensureDeferred
from spool_kit import BACKEND, CONFIG, ENDPOINT, Pacs, away, object_files, received, refuse, take, uid_of
from twisted.internet.defer import Deferred

from harmonyd.spool.api import Delivered, EntryState, Failed, Held

UIDS = ["1.1", "1.2", "1.3"]


@ensureDeferred
async def test_an_object_reaches_its_backend_and_leaves(make_spool, incoming, storage):
    """What is taken is delivered byte for byte; then neither file nor row is left."""
    spool, pacs = make_spool(), Pacs()
    await spool.start()
    spool.attach(ENDPOINT, pacs, in_order=False)
    await take(spool, incoming, *UIDS)
    assert list(incoming.iterdir()) == []
    await spool.emptied(ENDPOINT)
    assert sorted(pacs.uids()) == UIDS
    assert all(content == uid.encode().ljust(2000, b".") for _, uid, content in pacs.got)
    await spool.stop()
    assert object_files(storage) == []
    summary = None
    again = make_spool()
    await again.start()
    summary = await again.summary()
    assert (summary.entries, summary.bytes, summary.backends) == (0, 0, ())


@ensureDeferred
async def test_each_backend_gets_it_and_a_slow_one_holds_up_no_other(make_spool, incoming, storage, until):
    """An object stays until each backend has it; one that does not answer delays only its own deliveries."""
    spool, pacs, never = make_spool(), Pacs(backends=["fast", "slow"]), Deferred()
    pacs.answer = lambda backend, entry: never if backend == "slow" else Delivered()
    await spool.start()
    spool.attach(ENDPOINT, pacs, in_order=False)
    await take(spool, incoming, *UIDS, backends=["fast", "slow"])
    await until(lambda: len(pacs.uids("fast")) == 3)
    assert len(object_files(storage)) == 3
    never.callback(Delivered())
    pacs.answer = lambda backend, entry: Delivered()
    await spool.emptied(ENDPOINT)
    assert sorted(pacs.uids("slow")) == UIDS


async def only_one(spool, attempts):
    """The entry that waits, when it is the only one and was tried so often."""
    while True:
        waiting = await spool.entries(state=EntryState.WAITING)
        if len(waiting) == 1 and waiting[0].deliveries[0].attempts == attempts:
            return waiting[0]


@ensureDeferred
async def test_a_refused_object_is_tried_again_and_then_given_up(make_spool, incoming, clock, until):
    """One that a backend refuses waits longer each time, holds up no other, and ends in quarantine with the reason."""
    spool, pacs = make_spool(CONFIG.__class__(min_free_bytes=0, ballast_bytes=0, max_attempts=3)), Pacs()
    pacs.answer = refuse("1.2")
    await spool.start()
    spool.attach(ENDPOINT, pacs, in_order=False)
    await take(spool, incoming, *UIDS)
    await until(lambda: len(pacs.got) == 2)
    for secs, attempts in ((1, 1), (5, 2)):
        info = await only_one(spool, attempts)
        assert info.deliveries[0].next_attempt_at == clock.seconds() + secs
        clock.advance(secs)
    await spool.emptied(ENDPOINT)
    (info,) = await spool.entries(state=EntryState.QUARANTINED)
    assert (uid_of(info.entry), info.deliveries[0].attempts, info.deliveries[0].reason) == ("1.2", 3, "not wanted")
    pacs.answer = refuse()
    assert await spool.retry([info.entry.id]) == 1
    await spool.emptied(ENDPOINT)
    assert pacs.uids().count("1.2") == 1


@ensureDeferred
async def test_a_backend_that_is_away_is_probed_with_one_object(make_spool, incoming, clock, until):
    """While it is away attempts do not count, one object at a time is tried, later and later; then all goes at once."""
    spool, pacs = make_spool(), Pacs(batch=2)
    pacs.answer = away
    await spool.start()
    spool.attach(ENDPOINT, pacs, in_order=False)
    await take(spool, incoming, *UIDS)
    await until(lambda: len(pacs.offered) == 1)
    for number, secs in enumerate((1, 5, 15, 60, 120), 2):
        looks = int(secs == 1)  # at the disk, each second
        await until(lambda secs=secs, looks=looks: clock.waits().count(secs) == 1 + looks)
        clock.advance(secs)
        await until(lambda number=number: len(pacs.offered) == number)
        assert len(pacs.offered[-1][1]) == 1
    assert len({uids[0] for _, uids in pacs.offered}) > 1, "it is not always the same object"
    infos = await spool.entries()
    assert [info.deliveries[0].attempts for info in infos] == [0, 0, 0]
    assert infos[0].deliveries[0].reason == "connection refused"
    pacs.answer = refuse()
    assert await spool.retry() == 3
    await spool.emptied(ENDPOINT)
    assert sorted(pacs.uids()) == UIDS
    assert (await spool.summary()).backends == ()


@ensureDeferred
async def test_a_backend_that_says_when_is_asked_then(make_spool, incoming, clock, until):
    """Not before, but within the hour; by hand at any time. It is no attempt."""
    spool, pacs = make_spool(), Pacs()
    hours = [Failed("not at this time of the day", is_away=True, again_secs=secs) for secs in (900, 7200, 60)]
    pacs.answer = lambda backend, entry: hours.pop(0) if hours else Delivered()
    await spool.start()
    spool.attach(ENDPOINT, pacs, in_order=False)
    await take(spool, incoming, "1.1")
    await until(lambda: 900 in clock.waits())
    clock.advance(900)
    await until(lambda: 3600 in clock.waits())
    assert (await spool.entries())[0].deliveries[0].attempts == 0
    assert await spool.retry() == 1
    await until(lambda: 60 in clock.waits())
    clock.advance(60)
    await spool.emptied(ENDPOINT)
    assert pacs.uids()[-1] == "1.1"


@ensureDeferred
async def test_a_backend_that_is_back_is_tried_at_once(make_spool, incoming, clock, until):
    """Whoever knows it says so; others are left alone."""
    spool, pacs = make_spool(), Pacs()
    pacs.answer = away
    await spool.start()
    spool.attach(ENDPOINT, pacs, in_order=False)
    await take(spool, incoming, *UIDS)
    await until(lambda: clock.waits().count(1) == 2)  # one of them looks at the disk
    spool.returned("another")
    pacs.answer = lambda backend, entry: Delivered()
    spool.returned(BACKEND)
    await spool.emptied(ENDPOINT)
    assert sorted(pacs.uids())[-3:] == UIDS


@ensureDeferred
async def test_what_is_too_old_is_given_up(make_spool, incoming, clock):
    """An object is given up when its time is over, though its backend has only been away."""
    spool, pacs = make_spool(), Pacs()
    pacs.answer = away
    await spool.start()
    spool.attach(ENDPOINT, pacs, in_order=False)
    await take(spool, incoming, *UIDS)
    while not any(backend.away_reason for backend in (await spool.summary()).backends):
        pass
    clock.advance(CONFIG.give_up_after_secs + 1)
    spool.attach("other", Pacs(), in_order=False)
    await spool.emptied(ENDPOINT)
    (backend,) = (await spool.summary()).backends
    assert (backend.waiting, backend.quarantined) == (0, 3)
    (info, *_) = await spool.entries(state=EntryState.QUARANTINED)
    assert info.deliveries[0].reason.startswith("not delivered within 168 h")


@ensureDeferred
async def test_an_error_is_blamed_on_the_object_that_causes_it(make_spool, incoming, until, logged_failures):
    """When delivering several raises, each is tried alone: only the one that raises again has failed."""

    def answer(backend, entry):
        if uid_of(entry) == "1.2":
            raise ZeroDivisionError
        return Delivered()

    spool, pacs = make_spool(), Pacs()
    pacs.answer = answer
    await take_before_attach(spool, incoming)
    spool.attach(ENDPOINT, pacs, in_order=False)
    await until(lambda: len(pacs.offered) >= 4)
    infos = []
    while [info.deliveries[0].reason for info in infos] != ["ZeroDivisionError"]:
        infos = await spool.entries()
    assert uid_of(infos[0].entry) == "1.2"
    assert set(pacs.uids()) == {"1.1", "1.3"}
    assert logged_failures.flush(ZeroDivisionError)


async def take_before_attach(spool, incoming):
    await spool.start()
    await take(spool, incoming, *UIDS)


@ensureDeferred
async def test_a_study_stays_in_order_and_holds_up_no_other(make_spool, incoming, clock, until):
    """In order, an object waits for an earlier one of its study; other studies go on."""
    spool, pacs = make_spool(), Pacs()
    pacs.answer = refuse("1.1")
    await spool.start()
    spool.attach(ENDPOINT, pacs, in_order=True)
    await take(spool, incoming, "1.1", "1.2", study="A")
    await take(spool, incoming, "2.1", "2.2", "2.3", study="B")
    await take(spool, incoming, "1.3", study="A")
    await until(lambda: len(pacs.got) == 3)
    assert pacs.uids() == ["2.1", "2.2", "2.3"]
    pacs.answer = refuse()
    await spool.retry()
    await spool.emptied(ENDPOINT)
    assert pacs.uids()[3:] == ["1.1", "1.2", "1.3"]


@ensureDeferred
async def test_the_next_of_a_study_goes_when_the_first_is_given_up(make_spool, incoming):
    """What is in quarantine or was discarded is not waited for."""
    spool, pacs = make_spool(CONFIG.__class__(min_free_bytes=0, ballast_bytes=0, max_attempts=1)), Pacs()
    pacs.answer = refuse("1.1", "1.2")
    await spool.start()
    spool.attach(ENDPOINT, pacs, in_order=True)
    await take(spool, incoming, *UIDS, study="A")
    await spool.emptied(ENDPOINT)
    assert pacs.uids() == ["1.3"]


@ensureDeferred
async def test_discarding_during_delivery(make_spool, incoming, storage, until):
    """What is discarded while it is delivered is gone, whatever comes of that delivery, and nothing else suffers."""
    spool, pacs, pending = make_spool(), Pacs(batch=1), Deferred()
    pacs.answer = lambda backend, entry: pending if uid_of(entry) == "1.1" else Delivered()
    await spool.start()
    spool.attach(ENDPOINT, pacs, in_order=False)
    await take(spool, incoming, *UIDS)
    await until(lambda: pacs.offered)
    (first, *_) = await spool.entries()
    assert await spool.discard([first.entry.id, 999]) == 1
    await until(lambda: not first.entry.path.exists())
    pending.callback(Failed("too late"))
    await spool.emptied(ENDPOINT)
    assert pacs.uids() == ["1.2", "1.3"]
    assert (await spool.summary()).entries == 0


@ensureDeferred
async def test_a_vanished_file_is_an_alarm_and_harms_no_other(make_spool, incoming, until, logged_failures):
    """An object whose file is gone is DAMAGED; the others of its batch are delivered."""
    spool, pacs = make_spool(), Pacs()
    await take_before_attach(spool, incoming)
    (first, *_) = await spool.entries()
    first.entry.path.unlink()
    spool.attach(ENDPOINT, pacs, in_order=False)
    await spool.emptied(ENDPOINT)
    assert set(pacs.uids()) == {"1.2", "1.3"}
    (info,) = await spool.entries(state=EntryState.DAMAGED)
    assert (info.entry.id, info.deliveries[0].reason) == (first.entry.id, "the file is gone")
    assert (await spool.summary()).damaged == 1


@ensureDeferred
async def test_a_damaged_object_is_put_aside(make_spool, incoming):
    """A file that failed its check is kept, shown and delivered nowhere."""
    spool, pacs = make_spool(), Pacs()
    await spool.start()
    spool.attach(ENDPOINT, pacs, in_order=False)
    await spool.put_aside(ENDPOINT, received(incoming, "1.9"), "cut off in element (7FE0,0010)")
    (info,) = await spool.entries()
    (delivery,) = info.deliveries
    assert (delivery.backend, delivery.state, delivery.reason[:7]) == ("", EntryState.DAMAGED, "cut off")
    assert info.entry.path.exists()
    assert await spool.retry() == 0
    assert pacs.offered == []
    summary = await spool.summary()
    assert (summary.entries, summary.damaged, summary.backends) == (1, 1, ())


@ensureDeferred
async def test_a_backend_that_leaves_the_pipeline(make_spool, incoming, clock, until):
    """What waits for it says so, is delivered when it comes back, and is given up when it does not."""
    spool, pacs = make_spool(), Pacs()
    await spool.start()
    pacs.sizes = {}
    spool.attach(ENDPOINT, pacs, in_order=False)
    await take(spool, incoming, *UIDS)
    infos = []
    while not infos or not infos[0].deliveries[0].reason:
        clock.advance(5)
        infos = await spool.entries()
    assert infos[0].deliveries[0].reason == f"backend {BACKEND} is not in the pipeline any more"
    pacs.sizes = {BACKEND: 10}
    while await spool.entries():
        clock.advance(5)
    assert sorted(pacs.uids()) == UIDS
    pacs.sizes = {}
    await take(spool, incoming, "1.4")
    clock.advance(CONFIG.give_up_after_secs + 10)
    while not await spool.entries(state=EntryState.QUARANTINED):
        clock.advance(5)


@ensureDeferred
async def test_detaching_cancels_and_delivers_again_later(make_spool, incoming, until):
    """A delivery that is cancelled is made again when the endpoint is attached again."""
    spool, pacs, cancelled = make_spool(), Pacs(), []
    pacs.answer = lambda backend, entry: Deferred(cancelled.append)
    await spool.start()
    spool.attach(ENDPOINT, pacs, in_order=False)
    with pytest.raises(ValueError):
        spool.attach(ENDPOINT, pacs, in_order=False)
    await take(spool, incoming, *UIDS)
    await until(lambda: pacs.offered)
    await spool.detach(ENDPOINT)
    assert len(cancelled) == 1
    pacs.answer = refuse()
    spool.attach(ENDPOINT, pacs, in_order=False)
    await spool.emptied(ENDPOINT)
    assert sorted(pacs.uids()) == UIDS


@ensureDeferred
async def test_what_is_held_stays_and_costs_no_attempt(make_spool, incoming, storage, until, clock):
    """Its backend has it, and the entry waits until it is looked at again; then it may go."""
    spool, pacs = make_spool(), Pacs()
    pacs.answer = lambda backend, entry: Held("waits for its commitment", 100.0)
    await spool.start()
    spool.attach(ENDPOINT, pacs, in_order=False)
    await take(spool, incoming, "1.1")
    await until(lambda: pacs.offered)
    (info,) = await spool.entries()
    await until(lambda: clock.waits() and max(clock.waits()) >= 100.0)
    (info,) = await spool.entries()
    (delivery,) = info.deliveries
    assert (delivery.state, delivery.attempts, delivery.reason) == (EntryState.WAITING, 0, "waits for its commitment")
    assert await spool.outstanding(ENDPOINT, [BACKEND], ["1.2"]) == {"1.1"}
    assert await spool.outstanding(ENDPOINT, ["another"], ["1.2"]) == frozenset()
    pacs.answer = lambda backend, entry: Delivered()
    assert await spool.retry([info.entry.id]) == 1
    await spool.emptied(ENDPOINT)
    assert len(pacs.offered) == 2
    assert await spool.outstanding(ENDPOINT, [BACKEND], ["1.2"]) == frozenset()
