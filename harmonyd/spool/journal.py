"""The journal: what is in the spool and where it goes, in one SQLite file.

Synchronous, for one thread. Every method that changes something belongs inside ``transaction`` (or ``savepoint``
within one). Several processes may have it open; each waits for the other's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harmonyd.spool.api import Entry
from harmonyd.spool.layout import Layout
from harmonyd.spool.schema import connect, no_room_said

ENTRY = "e.id, e.endpoint, e.name, e.size_bytes, e.received_at, e.metadata, e.request_id"


@dataclass(frozen=True, slots=True)
class NewRow:
    """An object on its way into the journal. ``source`` is where its file lies until it is at its place."""

    name: str
    source: Path
    size_bytes: int
    metadata: Mapping[str, str]
    request_id: str


@dataclass(frozen=True, slots=True)
class Due:
    """A delivery that is to be tried now."""

    entry: Entry
    attempts: int
    """Those that failed so far."""
    since: float
    """Since when it is tried; seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Queue:
    """An endpoint's entries for one backend, counted."""

    id: int
    endpoint: str
    backend: str
    away: str
    waiting: int
    quarantined: int
    damaged: int


@dataclass(frozen=True, slots=True)
class Totals:
    """What is kept, in whatever state."""

    entries: int
    bytes: int


class Journal:
    """An open journal. Raises StorageFull wherever the disk is full, and ``sqlite3.Error``."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.db = connect(layout.journal)

    def close(self) -> None:
        self.db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, on the disk when it returns."""
        with no_room_said():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """All or nothing within a transaction, the rest of which goes on."""
        self.db.execute("SAVEPOINT part")
        try:
            with no_room_said():
                yield
        except BaseException:
            # A full disk may have ended the whole transaction.
            if self.db.in_transaction:
                self.db.execute("ROLLBACK TO part")
                self.db.execute("RELEASE part")
            raise
        self.db.execute("RELEASE part")

    # --- coming in ---

    def add(self, endpoint: str, rows: Iterable[NewRow], backends: Sequence[str], now: float) -> list[int]:
        """Queue new entries for each backend; returns their ids, in order."""
        queues = [self.queue(endpoint, backend) for backend in backends]
        ids = []
        for row in rows:
            entry = self._add_entry(endpoint, row, now)
            study = row.metadata.get("study_instance_uid", "")
            for queue, in_order in queues:
                held = in_order and study and self._head(queue, study) is not None
                self.db.execute(
                    "INSERT INTO deliveries (entry, queue, state, due, since, study) VALUES (?, ?, 'WAITING', ?, ?, ?)",
                    (entry, queue, None if held else now, now, study),
                )
            ids.append(entry)
        return ids

    def add_damaged(self, endpoint: str, row: NewRow, reason: str, now: float) -> int:
        """A file that is to be delivered nowhere: it stands in the queue of no backend (""). Returns its id."""
        entry = self._add_entry(endpoint, row, now)
        queue, _ = self.queue(endpoint, "")
        study = row.metadata.get("study_instance_uid", "")
        self.db.execute(
            "INSERT INTO deliveries (entry, queue, state, since, study, reason) VALUES (?, ?, 'DAMAGED', ?, ?, ?)",
            (entry, queue, now, study, reason),
        )
        return entry

    def _add_entry(self, endpoint: str, row: NewRow, now: float) -> int:
        cursor = self.db.execute(
            "INSERT INTO entries (endpoint, name, source, size_bytes, received_at, metadata, request_id)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (endpoint, row.name, str(row.source), row.size_bytes, now, json.dumps(dict(row.metadata)), row.request_id),
        )
        return cursor.lastrowid or 0

    def forget_names(self, names: Iterable[str]) -> None:
        """Take back entries of these names, as if they had never come."""
        rows = [self.db.execute("SELECT id FROM entries WHERE name = ?", (name,)).fetchone() for name in names]
        self.forget([row[0] for row in rows if row])

    # --- queues ---

    def queue(self, endpoint: str, backend: str) -> tuple[int, bool]:
        """The id of this queue, made when it is new, and whether it keeps the order within a study."""
        sql = "SELECT id, in_order FROM queues WHERE endpoint = ? AND backend = ?"
        row = self.db.execute(sql, (endpoint, backend)).fetchone()
        if row is None:
            self.db.execute(
                "INSERT INTO queues (endpoint, backend, in_order)"
                " VALUES (?, ?, coalesce((SELECT max(in_order) FROM queues WHERE endpoint = ?), 0))",
                (endpoint, backend, endpoint),
            )
            row = self.db.execute(sql, (endpoint, backend)).fetchone()
        return int(row[0]), bool(row[1])

    def queues(self) -> list[Queue]:
        """All of them, with their counts."""
        sql = "SELECT id, endpoint, backend, away, waiting, quarantined, damaged FROM queues ORDER BY endpoint, backend"
        return [Queue(*row) for row in self.db.execute(sql)]

    def set_order(self, endpoint: str, backends: Iterable[str], in_order: bool, now: float) -> None:
        """Make the endpoint's queues, and keep (or give up) the order within a study from now on."""
        for backend in backends:
            self.queue(endpoint, backend)
        sql = "SELECT id FROM queues WHERE endpoint = ? AND in_order <> ?"
        for (queue,) in self.db.execute(sql, (endpoint, int(in_order))).fetchall():
            self.db.execute("UPDATE queues SET in_order = ? WHERE id = ?", (int(in_order), queue))
            self.hold(queue, now)

    def hold(self, queue: int, now: float) -> None:
        """Make due again what is held in a queue; then hold what has to wait for an earlier object of its study."""
        self.db.execute(
            "UPDATE deliveries SET due = ? WHERE queue = ? AND state = 'WAITING' AND due IS NULL", (now, queue)
        )
        self.db.execute(
            "UPDATE deliveries SET due = NULL WHERE queue = ? AND state = 'WAITING' AND study <> ''"
            " AND (SELECT in_order FROM queues WHERE id = deliveries.queue)"
            " AND EXISTS (SELECT 1 FROM deliveries f INDEXED BY deliveries_study WHERE f.queue = deliveries.queue"
            " AND f.study = deliveries.study AND f.state = 'WAITING' AND f.entry < deliveries.entry)",
            (queue,),
        )

    def set_away(self, queue: int, reason: str) -> None:
        """Say why a queue's backend is not tried now; "" when it is."""
        self.db.execute("UPDATE queues SET away = ? WHERE id = ? AND away <> ?", (reason, queue, reason))

    def waiting(self, endpoint: str) -> int:
        """How many deliveries of an endpoint are still to be made."""
        sql = "SELECT coalesce(sum(waiting), 0) FROM queues WHERE endpoint = ?"
        return int(self.db.execute(sql, (endpoint,)).fetchone()[0])

    def totals(self) -> Totals:
        return Totals(*self.db.execute("SELECT entries, bytes FROM totals").fetchone())

    def data_version(self) -> int:
        """A number that changes when another connection has changed something."""
        return int(self.db.execute("PRAGMA data_version").fetchone()[0])

    # --- going out ---

    DUE = (
        f"SELECT {ENTRY}, d.attempts, d.since FROM deliveries d INDEXED BY deliveries_due"
        " CROSS JOIN entries e ON e.id = d.entry"
        " WHERE d.queue = ? AND d.state = 'WAITING' AND d.due <= ? ORDER BY d.due, d.entry LIMIT ?"
    )
    NEXT = "SELECT min(due) FROM deliveries INDEXED BY deliveries_due WHERE queue = ? AND state = 'WAITING' AND due > ?"
    OLD = (
        "SELECT entry FROM deliveries INDEXED BY deliveries_since WHERE queue = ? AND state = 'WAITING'"
        " AND since < ? ORDER BY since LIMIT ?"
    )
    HEAD = (
        "SELECT min(entry) FROM deliveries INDEXED BY deliveries_study"
        " WHERE queue = ? AND study = ? AND state = 'WAITING'"
    )

    def due(self, queue: int, now: float, limit: int) -> list[Due]:
        """What is to be delivered now, the longest due first."""
        rows = self.db.execute(self.DUE, (queue, now, limit))
        return [Due(self.entry(row[:-2]), row[-2], row[-1]) for row in rows]

    def next_due(self, queue: int, now: float) -> float | None:
        """When something is due that is not yet; None when nothing is."""
        found: float | None = self.db.execute(self.NEXT, (queue, now)).fetchone()[0]
        return found

    def cap_due(self, queue: int, latest: float) -> None:
        """Bring forward what is due later than anything can be: the clock was set back."""
        self.db.execute(
            "UPDATE deliveries INDEXED BY deliveries_due SET due = ? WHERE queue = ? AND state = 'WAITING' AND due > ?",
            (latest, queue, latest),
        )

    def delivered(self, queue: int, entry: int, now: float) -> str | None:
        """A backend has it. Returns the name of the object when that was the last: it is done, its file may go."""
        self._leave(queue, entry, now)
        self.db.execute("DELETE FROM deliveries WHERE queue = ? AND entry = ?", (queue, entry))
        if self.db.execute("SELECT 1 FROM deliveries WHERE entry = ?", (entry,)).fetchone():
            return None
        row = self.db.execute("SELECT name FROM entries WHERE id = ?", (entry,)).fetchone()
        self.db.execute("UPDATE entries SET done = 1 WHERE id = ?", (entry,))
        return row[0] if row else None

    def put_off(self, queue: int, entry: int, due: float, reason: str, attempts: int) -> bool:
        """It did not arrive: try again at ``due``. False when somebody has discarded it meanwhile."""
        cursor = self.db.execute(
            "UPDATE deliveries SET due = ?, reason = ?, attempts = ? WHERE queue = ? AND entry = ?",
            (due, reason, attempts, queue, entry),
        )
        return cursor.rowcount > 0

    def give_up(self, queue: int, entry: int, reason: str, now: float, attempts: int | None = None) -> bool:
        """It is not tried any more. ``attempts`` None: as many as before. False when somebody has discarded it."""
        self._leave(queue, entry, now)
        cursor = self.db.execute(
            "UPDATE deliveries SET state = 'QUARANTINED', due = NULL, reason = ?, attempts = coalesce(?, attempts)"
            " WHERE queue = ? AND entry = ?",
            (reason, attempts, queue, entry),
        )
        return cursor.rowcount > 0

    def give_up_old(self, queue: int, before: float, reason: str, now: float, limit: int) -> int:
        """Give up what has been tried since earlier than ``before``; returns how many, at most ``limit``."""
        old = self.db.execute(self.OLD, (queue, before, limit)).fetchall()
        for (entry,) in old:
            row = self.db.execute("SELECT reason FROM deliveries WHERE queue = ? AND entry = ?", (queue, entry))
            last = row.fetchone()[0]
            self.give_up(queue, entry, f"{reason}: {last}" if last else reason, now)
        return len(old)

    def damage(self, entry: int, reason: str, now: float) -> bool:
        """There is nothing to deliver any more. False when somebody has discarded it."""
        queues = self.db.execute("SELECT queue FROM deliveries WHERE entry = ?", (entry,)).fetchall()
        for (queue,) in queues:
            self._leave(queue, entry, now)
        self.db.execute(
            "UPDATE deliveries SET state = 'DAMAGED', due = NULL, reason = ? WHERE entry = ?", (reason, entry)
        )
        return bool(queues)

    def _leave(self, queue: int, entry: int, now: float) -> None:
        """Before a delivery stops waiting: the next of its study need not be held any longer."""
        row = self.db.execute(
            "SELECT study FROM deliveries WHERE queue = ? AND entry = ? AND state = 'WAITING'", (queue, entry)
        ).fetchone()
        if row is None or not row[0]:
            return
        following = self.db.execute(
            "SELECT min(entry) FROM deliveries INDEXED BY deliveries_study"
            " WHERE queue = ? AND study = ? AND state = 'WAITING' AND entry > ?",
            (queue, row[0], entry),
        ).fetchone()[0]
        if self._head(queue, row[0]) == entry and following is not None:
            self.db.execute(
                "UPDATE deliveries SET due = ? WHERE queue = ? AND entry = ? AND due IS NULL", (now, queue, following)
            )

    def _head(self, queue: int, study: str) -> int | None:
        head: int | None = self.db.execute(self.HEAD, (queue, study)).fetchone()[0]
        return head

    # --- going away ---

    def done(self, limit: int) -> list[tuple[int, str]]:
        """Id and name of entries that every backend has, whose file may still be there."""
        sql = "SELECT id, name FROM entries INDEXED BY entries_done WHERE done = 1 ORDER BY id LIMIT ?"
        return self.db.execute(sql, (limit,)).fetchall()

    def forget(self, ids: Iterable[int]) -> None:
        """Delete these entries, whatever their state."""
        for entry in ids:
            self.db.execute("DELETE FROM deliveries WHERE entry = ?", (entry,))
            self.db.execute("DELETE FROM entries WHERE id = ?", (entry,))

    def entry(self, row: Sequence[object]) -> Entry:
        """From the columns ``ENTRY``."""
        id_, endpoint, name, size_bytes, received_at, metadata, request_id = row
        path = self.layout.object(str(name))
        return Entry(id_, endpoint, path, size_bytes, received_at, json.loads(str(metadata)), request_id)  # type: ignore[arg-type]
