"""What the collector has not got yet: in SQLite, on disk before anything is sent, in the order in which it came."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NAME = "backlog.db"
BUSY_SECS = 5.0
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, body BLOB NOT NULL)"
)


@dataclass(frozen=True, slots=True)
class Waiting:
    """One message. ``at``: seconds since the epoch."""

    id: int
    body: bytes


class Backlog:
    """Used by two threads, one that adds and one that removes. Raises OSError and ``sqlite3.Error``.

    ``synchronous = FULL`` in WAL mode: what ``add`` has taken survives the loss of power, one flush for each call. What
    ``remove`` has removed may be there again after that, and is sent twice.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        """Of bodies; the file on disk is somewhat larger."""
        self.count = 0
        self.bytes = 0
        self.oldest_at: float | None = None
        self._path = folder / NAME
        self._delivered = 0
        """Up to this id; on a full disk some of these are still there."""
        self._db: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    @property
    def exists(self) -> bool:
        """Whether an earlier run left one."""
        return self._path.exists()

    def add(self, messages: Sequence[tuple[float, bytes]]) -> int:
        """Take these, from the first to where there is no more room; return how many were taken."""
        with self._lock:
            db = self._opened()
            room, taken = self.max_bytes - self.bytes, 0
            for _, body in messages:
                room -= len(body)
                if room < 0:
                    break
                taken += 1
            if taken:
                with db:
                    db.executemany("INSERT INTO messages (at, body) VALUES (?, ?)", messages[:taken])
                self.count += taken
                self.bytes += sum(len(body) for _, body in messages[:taken])
                if self.oldest_at is None:
                    self.oldest_at = messages[0][0]
            return taken

    def first(self, most: int) -> list[Waiting]:
        """Return the oldest."""
        with self._lock:
            if not self.count and self._db is not None:
                return []
            rows = self._opened().execute(
                "SELECT id, body FROM messages WHERE id > ? ORDER BY id LIMIT ?", (self._delivered, most)
            )
            return [Waiting(*row) for row in rows]

    def remove(self, messages: Sequence[Waiting]) -> None:
        """These, which are the oldest, have been delivered.

        They leave a full disk with a later call, or with ``close``; a restart without that sends them again.
        """
        with self._lock:
            db = self._opened()
            self._delivered = messages[-1].id
            with suppress(sqlite3.OperationalError), db:
                db.execute("DELETE FROM messages WHERE id <= ?", (self._delivered,))
            row = db.execute("SELECT at FROM messages WHERE id > ? ORDER BY id LIMIT 1", (self._delivered,)).fetchone()
            self.oldest_at = row[0] if row else None
            self.count -= len(messages)
            self.bytes -= sum(len(each.body) for each in messages)

    def open(self) -> None:
        """See what is there; ``add`` and ``first`` do so by themselves."""
        with self._lock:
            self._opened()

    def close(self) -> None:
        """It can be used again."""
        with self._lock:
            db, self._db = self._db, None
            if db is not None:
                with suppress(sqlite3.OperationalError), db:
                    db.execute("DELETE FROM messages WHERE id <= ?", (self._delivered,))
                db.close()

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            try:
                self._db = self._open()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                # It is damaged. What comes from now on matters more than that somebody looks at it first.
                self._delivered = 0
                self._path.rename(self._path.with_name(f"{NAME}.damaged-{time.time_ns()}"))
                for end in ("-wal", "-shm"):
                    with suppress(FileNotFoundError):
                        self._path.with_name(NAME + end).unlink()
                self._db = self._open()
        return self._db

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        db = sqlite3.connect(self._path, BUSY_SECS, check_same_thread=False)
        try:
            self._path.chmod(0o640)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute(_SCHEMA)
            count, size, oldest = db.execute(
                "SELECT count(*), coalesce(sum(length(body)), 0), min(at) FROM messages WHERE id > ?",
                (self._delivered,),
            ).fetchone()
        except BaseException:
            db.close()
            raise
        self.count, self.bytes, self.oldest_at = count, size, oldest
        return db
