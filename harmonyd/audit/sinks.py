"""Where the messages go, each with its own patience: what cannot be written now waits in memory, within bounds."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from twisted.logger import Logger

MOST_WAITING = 10_000
"""Messages that one sink has waiting in memory."""
MOST_AT_ONCE = 500
RETRY_SECS = 1.0


@dataclass(frozen=True, slots=True)
class Line:
    """A message. ``at``: seconds since the epoch; ``severity``: of syslog."""

    at: float
    severity: int
    xml: bytes


class Sink:
    """One place. ``write`` takes some lines, and returns how many it took; less than all: there is no room.

    It may raise OSError and ``sqlite3.Error``, and has taken none then.
    """

    _log = Logger("harmonyd.audit")

    def __init__(self, name: str, write: Callable[[list[Line]], int]) -> None:
        self.name = name
        self.dropped = 0
        self.untold = 0
        """Of those, what no message has told of yet."""
        self.is_failing = False
        self._write = write
        self._lines: deque[Line] = deque()

    @property
    def waiting(self) -> int:
        """How many wait in memory."""
        return len(self._lines)

    def add(self, lines: list[Line]) -> None:
        """Queue these; those that there is no room for are dropped: what came first is kept."""
        room = MOST_WAITING - len(self._lines)
        self._lines.extend(lines[:room])
        self.drop(len(lines) - room)

    def flush(self) -> None:
        """Write all that waits, or note why that cannot be."""
        try:
            while self._lines:
                batch = [self._lines[number] for number in range(min(MOST_AT_ONCE, len(self._lines)))]
                taken = self._write(batch)
                for _ in batch:
                    self._lines.popleft()
                self.drop(len(batch) - taken)
        except (OSError, sqlite3.Error) as error:
            if not self.is_failing:
                why = getattr(error, "strerror", None) or str(error)
                said = "audit messages wait in memory, {sink} cannot be written: {why}"
                self._log.error(said, sink=self.name, why=why)
            self.is_failing = True
            return
        if self.is_failing:
            self._log.info("audit messages are written to {sink} again", sink=self.name)
        self.is_failing = False

    def drop(self, count: int) -> None:
        """So many are lost."""
        if count <= 0:
            return
        if not self.untold:
            self._log.critical("audit messages are dropped: there is no room in {sink}", sink=self.name)
        self.dropped += count
        self.untold += count
