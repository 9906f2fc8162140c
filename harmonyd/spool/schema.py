"""The journal's tables, and opening it.

``entries`` holds the objects, ``queues`` the pairs of endpoint and backend, ``deliveries`` which entry a queue still
has to deliver: a delivery that was made has no row. An entry whose last delivery was made is ``done``: its file goes
next, its row last. A delivery that waits is due at some time, or never (NULL) while an earlier object of its study
waits and the endpoint wants them in order. Counts are kept by triggers, so that asking costs the same at any length.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harmonyd.errors import HarmonydError, StorageFull

VERSION = 2
BUSY_TIMEOUT_SECS = 30.0
LOG_PAGES = 256
"""The write-ahead log is used again after so much (1 MB): it has to fit the room that the ballast gives back."""

_TABLES = """
CREATE TABLE entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    endpoint TEXT NOT NULL,
    name TEXT NOT NULL UNIQUE,
    source TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    received_at REAL NOT NULL,
    metadata TEXT NOT NULL,
    request_id TEXT NOT NULL,
    done INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX entries_done ON entries (id) WHERE done = 1;

CREATE TABLE queues (
    id INTEGER PRIMARY KEY,
    endpoint TEXT NOT NULL,
    backend TEXT NOT NULL,
    in_order INTEGER NOT NULL DEFAULT 0,
    away TEXT NOT NULL DEFAULT '',
    waiting INTEGER NOT NULL DEFAULT 0,
    quarantined INTEGER NOT NULL DEFAULT 0,
    damaged INTEGER NOT NULL DEFAULT 0,
    UNIQUE (endpoint, backend)
);

CREATE TABLE deliveries (
    entry INTEGER NOT NULL,
    queue INTEGER NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due REAL,
    since REAL NOT NULL,
    study TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (entry, queue)
) WITHOUT ROWID;
CREATE INDEX deliveries_due ON deliveries (queue, due, entry) WHERE state = 'WAITING';
CREATE INDEX deliveries_since ON deliveries (queue, since) WHERE state = 'WAITING';
CREATE INDEX deliveries_study ON deliveries (queue, study, entry) WHERE state = 'WAITING';
CREATE INDEX deliveries_aside ON deliveries (state, entry) WHERE state <> 'WAITING';

CREATE TABLE totals (entries INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO totals VALUES (0, 0);

CREATE TRIGGER entry_came AFTER INSERT ON entries BEGIN
    UPDATE totals SET entries = entries + 1, bytes = bytes + NEW.size_bytes;
END;
CREATE TRIGGER entry_done AFTER UPDATE OF done ON entries WHEN NEW.done = 1 AND OLD.done = 0 BEGIN
    UPDATE totals SET entries = entries - 1, bytes = bytes - OLD.size_bytes;
END;
CREATE TRIGGER entry_gone AFTER DELETE ON entries WHEN OLD.done = 0 BEGIN
    UPDATE totals SET entries = entries - 1, bytes = bytes - OLD.size_bytes;
END;
CREATE TRIGGER delivery_came AFTER INSERT ON deliveries BEGIN
    UPDATE queues SET waiting = waiting + (NEW.state = 'WAITING'),
        quarantined = quarantined + (NEW.state = 'QUARANTINED'), damaged = damaged + (NEW.state = 'DAMAGED')
        WHERE id = NEW.queue;
END;
CREATE TRIGGER delivery_gone AFTER DELETE ON deliveries BEGIN
    UPDATE queues SET waiting = waiting - (OLD.state = 'WAITING'),
        quarantined = quarantined - (OLD.state = 'QUARANTINED'), damaged = damaged - (OLD.state = 'DAMAGED')
        WHERE id = OLD.queue;
END;
CREATE TRIGGER delivery_changed AFTER UPDATE OF state ON deliveries WHEN NEW.state <> OLD.state BEGIN
    UPDATE queues SET waiting = waiting + (NEW.state = 'WAITING') - (OLD.state = 'WAITING'),
        quarantined = quarantined + (NEW.state = 'QUARANTINED') - (OLD.state = 'QUARANTINED'),
        damaged = damaged + (NEW.state = 'DAMAGED') - (OLD.state = 'DAMAGED')
        WHERE id = NEW.queue;
END;
"""
_WAITING = "CREATE INDEX deliveries_waiting ON deliveries (queue, entry) WHERE state = 'WAITING'"
"""Since version 2."""
_NO_ROOM = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_WRITE")


class JournalUnusable(HarmonydError):
    """The spool's journal cannot be read."""

    title = "Spool journal unusable"


def connect(path: Path) -> sqlite3.Connection:
    """Open the journal for this thread, and make its tables when it is new. Raises JournalUnusable, StorageFull."""
    try:
        with no_room_said():
            db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECS, isolation_level=None)
            try:
                _prepare(db, path)
            except BaseException:
                db.close()
                raise
            return db
    except sqlite3.Error as error:
        raise JournalUnusable(f"{path} cannot be used: {error}") from error


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
    db.execute("BEGIN IMMEDIATE")
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise JournalUnusable(f"{path} was made by a newer harmonyd (version {version}, known here: {VERSION})")
        if version == 0:
            for statement in _statements(_TABLES):
                db.execute(statement)
        if version < VERSION:
            db.execute(_WAITING)
            db.execute(f"PRAGMA user_version = {VERSION}")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _statements(script: str) -> Iterator[str]:
    """``executescript`` would commit before it begins."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def no_room_said() -> Iterator[None]:
    """Turn SQLite's ways to say that the disk is full into StorageFull."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", None) in _NO_ROOM:
            raise StorageFull("the spool's journal has no room on the disk", hint="free space there") from error
        raise
