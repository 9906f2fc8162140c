"""Other names for UIDs and identifiers, by keyed hash, and the way back for those that were given out.

HMAC-SHA-256 makes the name, so that each object gets the same everywhere and always, and nobody without the key can
make or check one. A hash has no way back: names that were given out are kept in a table (SQLite), the newest
``max_known`` of them. One that is not there is unknown.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sqlite3
import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

UID, ID = "uid", "id"
_WELL_KNOWN = "1.2.840.10008."
"""Of the standard itself (PS3.6 Annex A): these name no instance."""
_REMEMBERED = 100_000
"""Rows that are known to be in the table."""
_TRIM_EVERY = 10_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS given (
    number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, made TEXT NOT NULL, original TEXT NOT NULL,
    UNIQUE (kind, made)
)
"""


@dataclass(frozen=True, slots=True)
class PseudonymOptions:
    """``key``: at least 32 bytes."""

    key: bytes = field(repr=False)
    max_known: int = 5_000_000


def is_well_known(uid: str) -> bool:
    """Tell whether the standard itself gave out a UID."""
    return uid.startswith(_WELL_KNOWN)


class Pseudonyms:
    """Used from threads; everything here blocks. ``path``: the file of the table, made where it is missing."""

    def __init__(self, options: PseudonymOptions, path: Path) -> None:
        self._options = options
        self._path = path
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._written: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._pending: dict[tuple[str, str], str] = {}
        self._since_trim = 0

    def _digest(self, kind: str, value: str) -> bytes:
        return hmac.new(self._options.key, f"{kind}\0{value}".encode(), hashlib.sha256).digest()

    def uid(self, uid: str, *, gives: bool = True) -> str:
        """Return ``2.25.`` and 128 bits (PS3.5 section B.2); a UID of the standard itself as it is.

        ``gives``: it is given out, and so has a way back from now on.
        """
        if not uid or is_well_known(uid):
            return uid
        made = f"2.25.{int.from_bytes(self._digest(UID, uid)[:16], 'big')}"
        return self._give(UID, made, uid) if gives else made

    def identifier(self, value: str, *, gives: bool = True) -> str:
        """Return ``P`` and 60 bits in hexadecimal digits, which fits any VR of text."""
        if not value:
            return value
        made = "P" + self._digest(ID, value).hex()[:15].upper()
        return self._give(ID, made, value) if gives else made

    def days(self, patient: str) -> int:
        """By how many days the dates of a patient are earlier: 1 to 3,650."""
        return int.from_bytes(self._digest("days", patient)[:8], "big") % 3650 + 1

    def _give(self, kind: str, made: str, original: str) -> str:
        with self._lock:
            if (kind, made) in self._written:
                self._written.move_to_end((kind, made))
            else:
                self._pending[kind, made] = original
        return made

    def original(self, kind: str, made: str) -> str | None:
        """Return what a name was given to; None where that is not known."""
        with self._lock:
            if (found := self._pending.get((kind, made))) is not None:
                return found
            row = self._opened().execute("SELECT original FROM given WHERE kind=? AND made=?", (kind, made)).fetchone()
        return None if row is None else str(row[0])

    def keep(self) -> None:
        """Write down what was given out. Raises ``sqlite3.Error`` and ``OSError``."""
        with self._lock:
            if not self._pending:
                return
            database = self._opened()
            rows = [(kind, made, original) for (kind, made), original in self._pending.items()]
            with database:
                database.executemany("INSERT OR IGNORE INTO given (kind, made, original) VALUES (?, ?, ?)", rows)
                self._trim(database, len(rows))
            self._written.update(dict.fromkeys(self._pending))
            self._pending.clear()
            while len(self._written) > _REMEMBERED:
                self._written.popitem(last=False)

    def _trim(self, database: sqlite3.Connection, added: int) -> None:
        self._since_trim += added
        if self._since_trim < min(_TRIM_EVERY, self._options.max_known):
            return
        self._since_trim = 0
        row = database.execute("SELECT max(number) FROM given").fetchone()
        cursor = database.execute("DELETE FROM given WHERE number <= ?", ((row[0] or 0) - self._options.max_known,))
        if cursor.rowcount:
            self._written.clear()

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileExistsError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            database = sqlite3.connect(self._path, timeout=30, check_same_thread=False)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            with database:
                database.execute(_SCHEMA)
            self._database = database
        return self._database

    def close(self) -> None:
        """Close the table. Safe to call twice; the next use opens it again."""
        with self._lock:
            database, self._database = self._database, None
        if database is not None:
            database.close()
