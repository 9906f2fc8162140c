"""What Storage Commitment has under way, in one SQLite file beside the spool's journal.

Synchronous, for one thread at a time: see ``books``. What somebody was told is on the disk (fsync'd) before; where
objects belong (``places``) is only written, and may be lost with the power: it then has to be searched for.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from harmonyd.commitment.api import Demand, Forwarded, ForwardState, Place, Reference
from harmonyd.errors import HarmonydError

VERSION = 1
MAX_DEMANDS = 10_000
"""Of one endpoint, not reported yet; more are refused."""
MAX_PLACES = 1_000_000
_TABLES = """
CREATE TABLE demands (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    endpoint TEXT NOT NULL,
    aet TEXT NOT NULL,
    called_aet TEXT NOT NULL,
    uid TEXT NOT NULL,
    received_at REAL NOT NULL,
    refs TEXT NOT NULL,
    sought TEXT NOT NULL,
    backends TEXT NOT NULL,
    reasons TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    done_at REAL,
    UNIQUE (endpoint, aet, uid)
);
CREATE INDEX demands_open ON demands (endpoint, id) WHERE done_at IS NULL;
CREATE INDEX demands_done ON demands (done_at) WHERE done_at IS NOT NULL;
CREATE TABLE places (
    endpoint TEXT NOT NULL,
    uid TEXT NOT NULL,
    class TEXT NOT NULL,
    study TEXT NOT NULL,
    series TEXT NOT NULL,
    at REAL NOT NULL,
    PRIMARY KEY (endpoint, uid)
) WITHOUT ROWID;
CREATE INDEX places_at ON places (at);
CREATE TABLE forwarded (
    endpoint TEXT NOT NULL,
    backend TEXT NOT NULL,
    entry INTEGER NOT NULL,
    class TEXT NOT NULL,
    uid TEXT NOT NULL,
    state TEXT NOT NULL,
    transaction_uid TEXT NOT NULL DEFAULT '',
    tries INTEGER NOT NULL DEFAULT 0,
    since REAL NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    released INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (endpoint, backend, entry)
) WITHOUT ROWID;
CREATE INDEX forwarded_state ON forwarded (endpoint, backend, state, since);
"""
_DEMAND = "id, endpoint, aet, called_aet, uid, received_at, refs, sought, backends, reasons, attempts"
_FORWARDED = "entry, class, uid, state, transaction_uid, tries, since, reason, released"


class LedgerUnusable(HarmonydError):
    """The file cannot be read."""

    title = "Storage commitment ledger unusable"


class Full(Exception):
    """No more demands are taken."""


class Conflict(Exception):
    """Another transaction has this UID."""


class Ledger:
    """An open ledger. Raises ``sqlite3.Error``."""

    def __init__(self, path: Path) -> None:
        """Raises ``LedgerUnusable``."""
        try:
            self.db = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(path)
            except BaseException:
                self.db.close()
                raise
        except sqlite3.Error as error:
            raise LedgerUnusable(f"{path} cannot be used: {error}") from error

    def _prepare(self, path: Path) -> None:
        self.db.execute("PRAGMA journal_mode = WAL")
        (version,) = self.db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise LedgerUnusable(f"{path} was made by a newer harmonyd (version {version}, known here: {VERSION})")
        if version == 0:
            with self._transaction(durable=True):
                for statement in _TABLES.split(";\n"):
                    self.db.execute(statement)
                self.db.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        self.db.close()

    @contextmanager
    def _transaction(self, *, durable: bool) -> Iterator[None]:
        """All or nothing; ``durable``: on the disk when it returns."""
        self.db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise

    # --- what is asked of us

    def demand(self, new: Demand) -> Demand:
        """Take it; the same one again is the same, to be reported (again).

        Raises ``Full``, and ``Conflict`` when another one of the same node has its UID.
        """
        key = (new.endpoint, new.aet, new.transaction_uid)
        with self._transaction(durable=True):
            row = self.db.execute(
                f"SELECT {_DEMAND}, done_at FROM demands WHERE endpoint = ? AND aet = ? AND uid = ?", key
            ).fetchone()
            if row is not None:
                known = _demand(row[:-1])
                if set(known.references) != set(new.references):
                    raise Conflict
                if row[-1] is None:
                    return known
                self.db.execute("DELETE FROM demands WHERE id = ?", (known.id,))
            sql = "SELECT count(*) FROM demands WHERE endpoint = ? AND done_at IS NULL"
            if self.db.execute(sql, (new.endpoint,)).fetchone()[0] >= MAX_DEMANDS:
                raise Full
            cursor = self.db.execute(
                "INSERT INTO demands (endpoint, aet, called_aet, uid, received_at, refs, sought, backends)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(new.endpoint, new.aet, new.called_aet, new.transaction_uid, new.received_at),
                    *(_pairs(new.references), _pairs(new.sought), json.dumps(new.backends)),
                ),
            )
        row = self.db.execute(f"SELECT {_DEMAND} FROM demands WHERE id = ?", (cursor.lastrowid,)).fetchone()
        return _demand(row)

    def demands(self, endpoint: str) -> list[Demand]:
        """Those of an endpoint that are not reported."""
        sql = f"SELECT {_DEMAND} FROM demands WHERE endpoint = ? AND done_at IS NULL ORDER BY id"
        return [_demand(row) for row in self.db.execute(sql, (endpoint,))]

    def decided(self, id_: int, reasons: Mapping[str, int]) -> None:
        """What is to be reported."""
        with self._transaction(durable=True):
            self.db.execute("UPDATE demands SET reasons = ? WHERE id = ?", (json.dumps(dict(reasons)), id_))

    def tried(self, id_: int) -> None:
        """One more attempt to report has failed."""
        with self._transaction(durable=False):
            self.db.execute("UPDATE demands SET attempts = attempts + 1 WHERE id = ?", (id_,))

    def reported(self, id_: int, now: float, forget_before: float) -> None:
        """It is done with. Older ones that are, are forgotten."""
        with self._transaction(durable=False):
            self.db.execute("UPDATE demands SET done_at = ? WHERE id = ?", (now, id_))
            self.db.execute("DELETE FROM demands WHERE done_at < ?", (forget_before,))

    # --- where objects belong

    def place(self, endpoint: str, found: Mapping[str, Place], now: float) -> None:
        """By SOP Instance UID, objects that came."""
        rows = [
            (endpoint, uid, at.sop_class_uid, at.study_instance_uid, at.series_instance_uid, now)
            for uid, at in found.items()
        ]
        with self._transaction(durable=False):
            self.db.executemany("INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?, ?, ?)", rows)

    def trim_places(self, before: float) -> None:
        """Forget the oldest."""
        with self._transaction(durable=False):
            self.db.execute("DELETE FROM places WHERE at < ?", (before,))
            (count,) = self.db.execute("SELECT count(*) FROM places").fetchone()
            if count > MAX_PLACES:
                sql = "SELECT at FROM places ORDER BY at LIMIT 1 OFFSET ?"
                (oldest,) = self.db.execute(sql, (count - MAX_PLACES,)).fetchone()
                self.db.execute("DELETE FROM places WHERE at < ?", (oldest,))

    def places(self, endpoint: str, uids: Iterable[str]) -> dict[str, Place]:
        """Of those of these that are known."""
        sql = "SELECT class, study, series FROM places WHERE endpoint = ? AND uid = ?"
        rows = {uid: self.db.execute(sql, (endpoint, uid)).fetchone() for uid in uids}
        return {uid: Place(*row) for uid, row in rows.items() if row is not None}

    # --- what we ask about

    def stored(self, endpoint: str, backend: str, items: Iterable[Forwarded]) -> None:
        """A node has taken these."""
        rows = [
            (
                *(endpoint, backend, item.entry, item.reference.sop_class_uid, item.reference.sop_instance_uid),
                *(item.state, item.since, int(item.released)),
            )
            for item in items
        ]
        sql = (
            "INSERT OR REPLACE INTO forwarded (endpoint, backend, entry, class, uid, state, since, released)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        )
        with self._transaction(durable=True):
            self.db.executemany(sql, rows)

    def forwarded(self, endpoint: str, backend: str, entries: Sequence[int]) -> dict[int, Forwarded]:
        """By entry, those of these that are known."""
        sql = f"SELECT {_FORWARDED} FROM forwarded WHERE endpoint = ? AND backend = ? AND entry = ?"
        rows = [self.db.execute(sql, (endpoint, backend, entry)).fetchone() for entry in entries]
        return {row[0]: _forwarded(row) for row in rows if row is not None}

    def in_state(
        self, endpoint: str, backend: str, state: ForwardState, limit: int, until: float = float("inf")
    ) -> list[Forwarded]:
        """The oldest of them, and none that is younger than ``until``."""
        sql = (
            f"SELECT {_FORWARDED} FROM forwarded WHERE endpoint = ? AND backend = ? AND state = ? AND since <= ?"
            " ORDER BY since, entry LIMIT ?"
        )
        return [_forwarded(row) for row in self.db.execute(sql, (endpoint, backend, str(state), until, limit))]

    def backends_of(self, endpoint: str) -> list[str]:
        """Those that something was forwarded to."""
        sql = "SELECT DISTINCT backend FROM forwarded WHERE endpoint = ?"
        return [row[0] for row in self.db.execute(sql, (endpoint,))]

    def change(self, endpoint: str, backend: str, items: Iterable[Forwarded]) -> None:
        """These are as they say from now on."""
        rows = [
            (
                *(str(item.state), item.transaction_uid, item.tries, item.since, item.reason),
                *(endpoint, backend, item.entry),
            )
            for item in items
        ]
        sql = (
            "UPDATE forwarded SET state = ?, transaction_uid = ?, tries = ?, since = ?, reason = ?"
            " WHERE endpoint = ? AND backend = ? AND entry = ?"
        )
        with self._transaction(durable=True):
            self.db.executemany(sql, rows)

    def forget(self, endpoint: str, backend: str, entries: Iterable[int]) -> None:
        """They are done with."""
        rows = [(endpoint, backend, entry) for entry in entries]
        with self._transaction(durable=False):
            self.db.executemany("DELETE FROM forwarded WHERE endpoint = ? AND backend = ? AND entry = ?", rows)

    def forget_old(self, endpoint: str, before: float) -> None:
        """Those whose spool entries are gone, in whatever way."""
        with self._transaction(durable=False):
            self.db.execute("DELETE FROM forwarded WHERE endpoint = ? AND since < ?", (endpoint, before))


def _pairs(references: Iterable[Reference]) -> str:
    return json.dumps([[item.sop_class_uid, item.sop_instance_uid] for item in references])


def _references(text: str) -> tuple[Reference, ...]:
    return tuple(Reference(*pair) for pair in json.loads(text))


def _demand(row: Sequence[object]) -> Demand:
    id_, endpoint, aet, called, uid, received_at, refs, sought, backends, reasons, attempts = row
    return Demand(
        *(id_, endpoint, aet, called, uid, received_at),  # type: ignore[arg-type]
        _references(str(refs)),
        _references(str(sought)),
        tuple(json.loads(str(backends))),
        None if reasons is None else json.loads(str(reasons)),
        attempts,  # type: ignore[arg-type]
    )


def _forwarded(row: Sequence[object]) -> Forwarded:
    entry, sop_class, uid, state, transaction, tries, since, reason, released = row
    reference = Reference(str(sop_class), str(uid))
    return Forwarded(
        entry, reference, ForwardState(str(state)), str(transaction), tries, since, str(reason), bool(released)  # type: ignore[arg-type]
    )
