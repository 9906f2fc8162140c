"""What people see of the spool, and do to it by hand: as statements on an open journal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harmonyd.spool.api import BackendSummary, DeliveryInfo, EntryInfo, EntryState, Summary
from harmonyd.spool.journal import ENTRY, Journal

MAX_LISTED = 1000


def summary(journal: Journal, refusal: str | None) -> Summary:
    """Counts and ages, of the journal alone. Costs the same however much waits."""
    queues = journal.queues()
    totals = journal.totals()
    backends = tuple(
        BackendSummary(q.endpoint, q.backend, q.waiting, q.quarantined, _oldest(journal, q.id), q.away)
        for q in queues
        if q.backend and (q.waiting or q.quarantined)
    )
    sql = "SELECT count(DISTINCT entry) FROM deliveries WHERE state = 'DAMAGED' AND state <> 'WAITING'"
    (damaged,) = journal.db.execute(sql).fetchone()
    return Summary(totals.entries, totals.bytes, damaged, backends, refusal)


OLDEST = "SELECT min(entry) FROM deliveries INDEXED BY deliveries_waiting WHERE queue = ? AND state = 'WAITING'"


def _oldest(journal: Journal, queue: int) -> float | None:
    """When the oldest one that waits was received."""
    sql = f"SELECT received_at FROM entries WHERE id = ({OLDEST})"
    row = journal.db.execute(sql, (queue,)).fetchone()
    return None if row is None else float(row[0])


def entries(
    journal: Journal, *, state: EntryState | None, endpoint: str | None, after: int, limit: int
) -> list[EntryInfo]:
    """In the order of their arrival, at most ``MAX_LISTED``."""
    where, values = "e.id > ? AND e.done = 0", [after]
    if endpoint is not None:
        where, values = where + " AND e.endpoint = ?", [*values, endpoint]  # type: ignore[list-item]
    if state is EntryState.WAITING:
        where += " AND EXISTS (SELECT 1 FROM deliveries d WHERE d.entry = e.id AND d.state = 'WAITING')"
    elif state is not None:
        where += f" AND e.id IN (SELECT entry FROM deliveries WHERE state = '{state}' AND state <> 'WAITING')"
    sql = f"SELECT {ENTRY} FROM entries e WHERE {where} ORDER BY e.id LIMIT ?"
    rows = journal.db.execute(sql, (*values, min(limit, MAX_LISTED))).fetchall()
    return [EntryInfo(journal.entry(row), _deliveries(journal, row[0])) for row in rows]


def entry(journal: Journal, id_: int) -> EntryInfo | None:
    """One entry; None when there is none of this id."""
    found = entries(journal, state=None, endpoint=None, after=id_ - 1, limit=1)
    return found[0] if found and found[0].entry.id == id_ else None


def _deliveries(journal: Journal, id_: int) -> tuple[DeliveryInfo, ...]:
    rows = journal.db.execute(
        "SELECT q.backend, d.state, d.attempts, d.due, d.reason, q.away FROM deliveries d"
        " JOIN queues q ON q.id = d.queue WHERE d.entry = ? ORDER BY q.backend",
        (id_,),
    )
    return tuple(
        DeliveryInfo(backend, EntryState(state), attempts, due, (state == "WAITING" and away) or reason)
        for backend, state, attempts, due, reason, away in rows
    )


def outstanding(
    journal: Journal, endpoint: str, backends: Sequence[str], studies: Iterable[str]
) -> frozenset[str]:
    """SOP Instance UIDs of these studies that wait for one of these backends, or were given up."""
    queues = [queue.id for queue in journal.queues() if queue.endpoint == endpoint and queue.backend in backends]
    found: set[str] = set()
    for queue in queues:
        for study in studies:
            for sql in (_WAITING, _ASIDE):
                found.update(row[0] for row in journal.db.execute(sql, (queue, study)))
    return frozenset(found)


_OUTSTANDING = (
    "SELECT json_extract(e.metadata, '$.sop_instance_uid') FROM deliveries d INDEXED BY {}"
    " CROSS JOIN entries e ON e.id = d.entry WHERE d.queue = ? AND d.study = ? AND {}"
)
_WAITING = _OUTSTANDING.format("deliveries_study", "d.state = 'WAITING'")
_ASIDE = _OUTSTANDING.format("deliveries_aside", "d.state = 'QUARANTINED' AND d.state <> 'WAITING'")


def retry(journal: Journal, ids: Sequence[int] | None, now: float, due: float | None = None) -> int:
    """Make these due now, with all attempts and all time before them; None: all that wait or were given up.

    ``due``: when, if not ``now``. Returns how many deliveries that concerns.
    """
    due = now if due is None else due
    which = _retry_all(journal, now, due) if ids is None else _retry_some(journal, ids, now, due)
    for queue in {queue for queue, _ in which}:
        journal.set_away(queue, "")
        if ids is None or _keeps_order(journal, queue):
            journal.hold(queue, due)
    return sum(count for _, count in which)


def _retry_some(journal: Journal, ids: Sequence[int], now: float, due: float) -> list[tuple[int, int]]:
    concerned = []
    for id_ in ids:
        sql = "SELECT queue FROM deliveries WHERE entry = ? AND state IN ('WAITING', 'QUARANTINED')"
        for (queue,) in journal.db.execute(sql, (id_,)).fetchall():
            journal.db.execute(
                "UPDATE deliveries SET attempts = CASE state WHEN 'WAITING' THEN attempts ELSE 0 END, since = ?,"
                " due = ?, state = 'WAITING' WHERE queue = ? AND entry = ?",
                (now, due, queue, id_),
            )
            concerned.append((queue, 1))
    return concerned


def _retry_all(journal: Journal, now: float, due: float) -> list[tuple[int, int]]:
    counts = [(queue.id, queue.waiting + queue.quarantined) for queue in journal.queues() if queue.backend]
    journal.db.execute(
        "UPDATE deliveries SET attempts = 0, since = ?, due = ?, state = 'WAITING'"
        " WHERE state = 'QUARANTINED' AND state <> 'WAITING'",
        (now, due),
    )
    for queue, _ in counts:
        journal.cap_due(queue, due)
    return [(queue, count) for queue, count in counts if count]


def _keeps_order(journal: Journal, queue: int) -> bool:
    return bool(journal.db.execute("SELECT in_order FROM queues WHERE id = ?", (queue,)).fetchone()[0])


def discard(journal: Journal, ids: Iterable[int], now: float) -> list[tuple[int, str]]:
    """Mark these as done, for good. Returns id and name of each that was there; their files may go."""
    gone = []
    for id_ in ids:
        row = journal.db.execute("SELECT name FROM entries WHERE id = ? AND done = 0", (id_,)).fetchone()
        if row is None:
            continue
        for (queue,) in journal.db.execute("SELECT queue FROM deliveries WHERE entry = ?", (id_,)).fetchall():
            journal.delivered(queue, id_, now)
        journal.db.execute("UPDATE entries SET done = 1 WHERE id = ?", (id_,))
        gone.append((id_, row[0]))
    return gone
