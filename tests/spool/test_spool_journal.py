"""The journal alone: what it remembers, what a query costs, and how its writer shares a transaction."""

from __future__ import annotations

import sqlite3
import time

import pytest
from pytest_twisted import ensureDeferred
from spool_kit import BACKEND, ENDPOINT, new_row, open_journal

from harmonyd.errors import NotFound, Unavailable
from harmonyd.spool import people
from harmonyd.spool.api import EntryState
from harmonyd.spool.folder import SpoolFolder
from harmonyd.spool.journal import Journal
from harmonyd.spool.layout import Layout
from harmonyd.spool.schema import JournalUnusable
from harmonyd.spool.writer import MAX_WAITING, Writer

MANY = 100_000


@pytest.fixture
def journal(storage):
    journal = open_journal(storage)
    yield journal
    journal.close()


@pytest.fixture
def writer(started_reactor, storage):
    """Its journal is made; the test starts and stops it."""
    open_journal(storage).close()
    return Writer(started_reactor, lambda: Journal(Layout(storage)))


def fill(journal, count, *, in_order=False):
    with journal.transaction():
        journal.set_order(ENDPOINT, [BACKEND], in_order, 0.0)
        journal.add(ENDPOINT, (new_row(f"1.{number}", f"2.{number % 10}") for number in range(count)), [BACKEND], 1.0)
    return journal.queue(ENDPOINT, BACKEND)[0]


def steps(journal, work):
    """How many thousand instructions SQLite's machine needs for this."""
    count = 0

    def progress():
        nonlocal count
        count += 1

    journal.db.set_progress_handler(progress, 100)
    try:
        with journal.transaction():
            work()
    finally:
        journal.db.set_progress_handler(None, 0)
    return count


@pytest.mark.deadline(180)
@pytest.mark.parametrize("in_order", [False, True])
def test_cost_is_flat_with_100_000_waiting(journal, in_order):
    """Neither taking, delivering, putting off, giving up nor counting becomes dearer when very much waits."""
    work = {
        "add": lambda: journal.add(ENDPOINT, [new_row("9.9", "2.1")], [BACKEND], 2.0),
        "due": lambda: journal.due(queue, 5.0, 10),
        "next due": lambda: journal.next_due(queue, 5.0),
        "put off": lambda: journal.put_off(queue, first + 1, 100.0, "no", 1),
        "delivered": lambda: journal.delivered(queue, first, 5.0),
        "give up": lambda: journal.give_up(queue, first + 2, "no", 5.0),
        "nothing old": lambda: journal.give_up_old(queue, 0.5, "old", 5.0, 500),
        "damage": lambda: journal.damage(first + 3, "gone", 5.0),
        "summary": lambda: people.summary(journal, None),
        "page": lambda: people.entries(journal, state=EntryState.WAITING, endpoint=ENDPOINT, after=first + 5, limit=5),
        "aside": lambda: people.entries(journal, state=EntryState.QUARANTINED, endpoint=None, after=0, limit=5),
        "retry": lambda: in_order or people.retry(journal, [first + 5], 6.0),
        "discard": lambda: people.discard(journal, [first + 6], 6.0),
        "done": lambda: journal.done(10),
    }
    costs = []
    for count in (50, MANY):
        queue = fill(journal, count, in_order=in_order)
        first = journal.db.execute("SELECT min(entry) FROM deliveries WHERE state = 'WAITING'").fetchone()[0]
        costs.append({name: steps(journal, do) for name, do in work.items()})
    dearer = {name: (few, costs[1][name]) for name, few in costs[0].items() if costs[1][name] > few + 20}
    assert dearer == {}


@pytest.mark.parametrize("sql", [Journal.DUE, Journal.NEXT, Journal.OLD, Journal.HEAD, people.OLDEST])
def test_query_plans(journal, sql):
    """What a dispatcher asks is answered by an index, without sorting."""
    plan = journal.db.execute(f"EXPLAIN QUERY PLAN {sql}", (1,) * sql.count("?")).fetchall()
    lines = [row[3] for row in plan]
    assert all(line.startswith("SEARCH") for line in lines), lines


def test_counts_follow_every_change(journal):
    """Totals and queue counts are those of the rows, after each kind of change."""
    queue = fill(journal, 10)
    with journal.transaction():
        journal.delivered(queue, 1, 2.0)
        journal.give_up(queue, 2, "no", 2.0)
        journal.damage(3, "gone", 2.0)
        journal.forget([4])
        people.discard(journal, [2, 5], 2.0)
    (counted,) = journal.queues()
    assert (counted.waiting, counted.quarantined, counted.damaged) == (5, 0, 1)
    assert journal.totals().entries == 6
    assert journal.totals().bytes == 6000
    assert [entry for entry, _ in journal.done(10)] == [1, 2, 5]


def test_order_can_be_asked_for_later_and_given_up(journal):
    """An endpoint that begins to want order holds what waits; when it stops, all is due."""
    queue = fill(journal, 30)
    assert len(journal.due(queue, 5.0, 100)) == 30
    with journal.transaction():
        journal.set_order(ENDPOINT, [BACKEND], True, 5.0)
    assert [due.entry.id for due in journal.due(queue, 5.0, 100)] == list(range(1, 11))
    with journal.transaction():
        journal.set_order(ENDPOINT, [BACKEND], False, 5.0)
    assert len(journal.due(queue, 5.0, 100)) == 30


def test_what_is_driven_again_comes_before_later_ones_of_its_study(journal):
    """An object that leaves quarantine is first again, and the later ones of its study are held."""
    queue = fill(journal, 20, in_order=True)
    with journal.transaction():
        journal.give_up(queue, 1, "no", 5.0)
    assert [due.entry.id for due in journal.due(queue, 5.0, 100)] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    with journal.transaction():
        assert people.retry(journal, [1], 6.0) == 1
    assert sorted(due.entry.id for due in journal.due(queue, 6.0, 100)) == list(range(1, 11))


def test_a_clock_that_was_set_back(journal):
    """What is due absurdly late is brought forward."""
    queue = fill(journal, 3)
    with journal.transaction():
        journal.put_off(queue, 2, 1e9, "no", 1)
        journal.cap_due(queue, 100.0)
    assert len(journal.due(queue, 100.0, 10)) == 3


def test_the_oldest_is_as_old_as_it_is(journal):
    """How long the oldest waits counts from when it came, and not from when it was last driven again."""
    queue = fill(journal, 3)
    with journal.transaction():
        journal.add(ENDPOINT, [new_row("1.77")], [BACKEND], 50.0)
        journal.give_up(queue, 1, "no", 60.0)
        people.retry(journal, [2], 60.0)
        people.retry(journal, None, 70.0)
    assert people.summary(journal, None).backends[0].oldest_received_at == 1.0
    with journal.transaction():
        for entry in (1, 2, 3):
            journal.delivered(queue, entry, 80.0)
    assert people.summary(journal, None).backends[0].oldest_received_at == 50.0


def test_an_older_journal_is_brought_up_to_date(storage):
    """One of version 1 gets what it lacks, once, and keeps what it holds."""
    journal = open_journal(storage)
    queue = fill(journal, 3)
    journal.db.execute("DROP INDEX deliveries_waiting")
    journal.db.execute("PRAGMA user_version = 1")
    journal.close()
    for _ in range(2):
        journal = open_journal(storage)
        assert people.summary(journal, None).backends[0].oldest_received_at == 1.0
        assert len(journal.due(queue, 5.0, 10)) == 3
        journal.close()


def test_a_newer_or_broken_journal_is_refused(storage):
    """A journal of a later version, or one that is none, is not touched, and it is said which file it is."""
    journal = open_journal(storage)
    journal.db.execute("PRAGMA user_version = 99")
    journal.close()
    with pytest.raises(JournalUnusable, match="newer"):
        open_journal(storage)
    Layout(storage).journal.write_bytes(b"this is no data base" * 100)
    with pytest.raises(JournalUnusable, match="cannot be used"):
        open_journal(storage)


def test_two_processes_on_one_journal(storage, tmp_path):
    """The command line sees, drives again, exports and discards; the other connection notices."""
    journal = open_journal(storage)
    queue = fill(journal, 3)
    with journal.transaction():
        journal.give_up(queue, 1, "no", 2.0)
    (info, *_) = people.entries(journal, state=None, endpoint=None, after=0, limit=10)
    info.entry.path.write_bytes(b"DICM")
    before = journal.data_version()
    with SpoolFolder(storage) as folder:
        assert folder.summary().entries == 3
        assert folder.entry(1).deliveries[0].state is EntryState.QUARANTINED
        assert folder.retry([1, 77]) == 1
        exported = folder.export(1, tmp_path / "out")
        assert exported.read_bytes() == b"DICM"
        assert "req-1.0" in exported.with_suffix(".json").read_text()
        assert folder.discard([1, 77]) == 1
        with pytest.raises(NotFound):
            folder.entry(1)
    assert not info.entry.path.exists()
    assert journal.data_version() != before
    assert journal.totals().entries == 2
    journal.close()
    with pytest.raises(NotFound):
        SpoolFolder(tmp_path)


@ensureDeferred
async def test_a_failing_operation_spoils_no_other_of_its_group(writer):
    """Operations that wait are committed together; one that raises is undone alone."""
    await writer.start()

    def broken(journal):
        journal.add("x", [new_row("1.9")], ["y"], 1.0)
        raise ZeroDivisionError

    hold = writer.do(lambda journal: time.sleep(0.05))
    good = [writer.do(lambda journal: journal.add(ENDPOINT, [new_row("1")], [BACKEND], 1.0)) for _ in range(3)]
    bad = writer.do(broken)
    sql = writer.do(lambda journal: journal.db.execute("SELECT nonsense"))
    good += [writer.do(lambda journal: journal.add(ENDPOINT, [new_row("2")], [BACKEND], 1.0)) for _ in range(3)]
    await hold
    assert [await result for result in good] == [[1], [2], [3], [4], [5], [6]]
    with pytest.raises(ZeroDivisionError):
        await bad
    with pytest.raises(sqlite3.OperationalError):
        await sql
    assert (await writer.do(Journal.totals)).entries == 6
    await writer.stop()


@ensureDeferred
async def test_a_group_that_cannot_be_committed_is_done_one_by_one(writer):
    """When an operation ends the whole transaction, as a full disk may, the others are done again without it."""
    await writer.start()
    hold = writer.do(lambda journal: time.sleep(0.05))
    good = [writer.do(lambda journal: journal.add(ENDPOINT, [new_row("1")], [BACKEND], 1.0))]

    def ruin(journal):
        journal.db.execute("ROLLBACK")
        raise ZeroDivisionError

    bad = writer.do(ruin)
    good += [writer.do(lambda journal: journal.add(ENDPOINT, [new_row("2")], [BACKEND], 1.0))]
    await hold
    assert [await result for result in good] == [[1], [2]]
    with pytest.raises(ZeroDivisionError):
        await bad
    assert (await writer.do(Journal.totals)).entries == 2
    await writer.stop()


@ensureDeferred
async def test_the_writer_has_a_bound_and_a_clean_end(writer):
    """Too much at once is refused, what was accepted is done before the end, and nothing after it."""
    await writer.start()
    hold = writer.do(lambda journal: time.sleep(0.05))
    accepted = [writer.do(lambda journal: 1) for _ in range(MAX_WAITING - 1)]
    with pytest.raises(Unavailable, match="too much"):
        await writer.do(lambda journal: 1)
    await writer.stop()
    assert hold.called
    assert all(result.called for result in accepted)
    with pytest.raises(Unavailable, match="stopped"):
        await writer.do(lambda journal: 1)


@ensureDeferred
async def test_a_spool_that_did_not_start_can_be_started(make_spool, storage):
    """What was in the way of the first start is mended, and the same spool works."""
    in_the_way = storage / "spool" / "journal.sqlite3"
    in_the_way.mkdir(parents=True)
    spool = make_spool()
    with pytest.raises(JournalUnusable):
        await spool.start()
    in_the_way.rmdir()
    await spool.start()
    assert (await spool.summary()).entries == 0
