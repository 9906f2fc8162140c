"""Whether anything more is accepted: room on the disk, kept in reserve too, and the length of the backlog."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from harmonyd.config.daemon import SpoolConfig
from harmonyd.spool.journal import Totals
from harmonyd.spool.layout import Layout, free_bytes
from harmonyd.spool.threads import in_thread

CHECK_SECS = 1.0
_MARGIN = 1.1
"""What was refused is accepted again only when it is better than its limit by this much."""
_MB = 1000**2


class SpoolAdmission:
    """Says ``refusal``, and tells subscribers when that changes. Also keeps the ballast.

    What is kept (waiting, in quarantine, damaged) counts for the backlog: all of it takes room.
    """

    _log = Logger()

    def __init__(self, reactor: Any, layout: Layout, config: SpoolConfig) -> None:
        self._reactor = reactor
        self._layout = layout
        self._config = config
        self._ballast = Ballast(layout)
        self._free_bytes = 0
        self._kept = Totals(0, 0)
        self._refused: dict[str, str] = {}
        """The limits that are passed, and what to say of each."""
        self._must_end = False
        self._subscribers: list[Callable[[], None]] = []
        self._loop = LoopingCall(lambda: Deferred.fromCoroutine(self.check()))
        self._loop.clock = reactor
        self._running: Deferred[Any] | None = None

    # --- what others ask ---

    def refusal(self) -> str | None:
        """Why nothing more is accepted now; None when it is."""
        return "; ".join(self._refused.values()) or None

    def must_end(self) -> bool:
        """Whether so little room is left that what is being received has to end; the ballast is for the rest of it."""
        return self._free_bytes < self._config.ballast_bytes // 2

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Have this called whenever ``refusal`` or ``must_end`` changes; returns how to end that."""
        self._subscribers.append(changed)
        return lambda: self._subscribers.remove(changed) if changed in self._subscribers else None

    # --- what the spool says ---

    def configure(self, config: SpoolConfig) -> None:
        """Other limits from now on."""
        self._config = config
        self._judge()

    async def start(self) -> None:
        """Look once, then every second."""
        await self.check()
        self._running = running = self._loop.start(CHECK_SECS, now=False)
        running.addErrback(lambda failure: self._log.failure("the spool's room is not checked", failure))

    async def stop(self) -> None:
        """Look no more; returns when no check runs."""
        if self._loop.running:
            self._loop.stop()
        if self._running is not None:
            await self._running

    async def check(self) -> None:
        """Look at the disk, in a thread, and at the ballast."""
        try:
            self._free_bytes = await in_thread(self._reactor, self._ballast.keep, self._config)
        except OSError as error:
            self._free_bytes = 0
            self._log.error("the spool's folder cannot be looked at: {error}", error=error)
        self._judge()

    def note_free(self, free: int) -> None:
        """What was seen on the way."""
        self._free_bytes = free
        self._judge()

    def note_kept(self, totals: Totals) -> None:
        """How much is in the spool now."""
        self._kept = totals
        self._judge()

    async def met_full_disk(self) -> bool:
        """Something found no room: nothing is accepted until the next check, and the ballast goes. True if it did."""
        self.note_free(0)
        gone = await in_thread(self._reactor, self._ballast.give_up)
        if gone:
            self._log.warn("the spool's disk is full: its ballast is given up")
        return gone

    # --- the limits ---

    def _judge(self) -> None:
        before = self.refusal(), self._must_end
        config, kept = self._config, self._kept
        floor = f"less than {config.min_free_bytes / _MB:g} MB are free where the spool is"
        self._limit("room", floor, max(config.min_free_bytes, 1), self._free_bytes + 1)
        many = f"{config.max_waiting} objects or more are in the spool"
        self._limit("objects", many, kept.entries, config.max_waiting)
        if config.max_waiting_bytes:
            much = f"{config.max_waiting_bytes / _MB:g} MB or more are in the spool"
            self._limit("bytes", much, kept.bytes, config.max_waiting_bytes)
        else:
            self._refused.pop("bytes", None)
        self._must_end = self.must_end()
        if before != (self.refusal(), self._must_end):
            self._changed()

    def _limit(self, name: str, text: str, value: float, most: float) -> None:
        """Refused from ``most`` on, until it is a tenth less."""
        if value * (_MARGIN if name in self._refused else 1) >= most:
            self._refused[name] = text
        else:
            self._refused.pop(name, None)

    def _changed(self) -> None:
        refusal = self.refusal()
        if refusal:
            ends = ", and what is being received is ended" if self._must_end else ""
            self._log.error("nothing more is received{ends}: {reason}", reason=refusal, ends=ends)
        else:
            self._log.info("objects are received again")
        for changed in list(self._subscribers):
            changed()


class Ballast:
    """A file that only takes room, given up when what is under way needs it. Its methods block."""

    _log = Logger()

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._unable = False

    def keep(self, config: SpoolConfig) -> int:
        """Make the ballast when there is room for it, give it up when there is little; returns what is free then.

        Raises OSError when the folder cannot be looked at.
        """
        free, size, wanted = free_bytes(self._layout.folder), self._size(), config.ballast_bytes
        if size and (size != wanted or free < wanted // 2):
            if size == wanted:
                self._log.warn("little room is left on the spool's disk: its ballast is given up")
            self.give_up()
        elif not size and wanted and free - wanted > max(wanted, round(config.min_free_bytes * _MARGIN)):
            self._make(wanted)
        else:
            return free
        return free_bytes(self._layout.folder)

    def give_up(self) -> bool:
        """False when there is none."""
        try:
            self._layout.ballast.unlink()
        except FileNotFoundError:
            return False
        return True

    def _size(self) -> int:
        try:
            return self._layout.ballast.stat().st_size
        except FileNotFoundError:
            return 0

    def _make(self, size_bytes: int) -> None:
        if self._unable:
            return
        try:
            number = os.open(self._layout.ballast, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(number, 0, size_bytes)
            finally:
                os.close(number)
        except OSError as error:
            self.give_up()
            self._unable = True
            self._log.warn("the spool keeps no ballast, its file system cannot reserve room: {error}", error=error)
