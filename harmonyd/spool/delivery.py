"""Delivering one endpoint's entries to one backend, until each is there or given up.

One ``Dispatcher`` per endpoint and backend, so that a slow backend holds up no other. It holds no more than the batch
that is under way; what is to be done next is asked of the journal.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from harmonyd.config.daemon import SpoolConfig
from harmonyd.errors import HarmonydError
from harmonyd.privacy import said
from harmonyd.spool.api import Delivered, Deliverer, Entry, Failed, Held, Result, Untried
from harmonyd.spool.backoff import wait_secs
from harmonyd.spool.journal import Due, Journal
from harmonyd.spool.recovery import GONE, say_damaged
from harmonyd.spool.release import Release
from harmonyd.spool.threads import in_thread
from harmonyd.spool.writer import Do

T = TypeVar("T")
JOURNAL_RETRY_SECS = 1.0
"""Wait before the journal is asked again after it could not answer (disk full, held by another process)."""
PAUSE_SECS = 60.0
"""Wait after an error that should not be."""
LONGEST_PAUSE_SECS = 3600.0
"""Longest wait for a backend that says itself when it may be used again: its configuration may change."""
MOST_GIVEN_UP_AT_ONCE = 500
REFUSED_FACTOR = 12
"""An object that is refused waits longer than a backend that is away, which costs one attempt for all."""


@dataclass(slots=True)
class Means:
    """What all dispatchers of a spool share."""

    reactor: Any
    do: Do
    release: Release
    random: Callable[[], float]
    config: SpoolConfig
    changed: Callable[[], None]
    """Called when something stopped waiting."""

    def wait_secs(self, failures: int) -> float:
        """For a backend that is away."""
        return wait_secs(failures, self.config.retry_max_secs, self.random())

    def refused_wait_secs(self, attempts: int) -> float:
        """For one object that a backend refuses: whatever ails the backend may take it a day to mend."""
        return wait_secs(attempts, REFUSED_FACTOR * self.config.retry_max_secs, self.random())


@dataclass(slots=True)
class _Record:
    """What a batch came to, once it is in the journal."""

    done: list[tuple[int, str]] = field(default_factory=list)
    delivered: list[Due] = field(default_factory=list)
    put_off: list[tuple[Due, str, float]] = field(default_factory=list)
    """With the reason, and seconds until the next attempt."""
    given_up: list[tuple[Due, str]] = field(default_factory=list)
    damaged: list[Due] = field(default_factory=list)


class Dispatcher:
    """Runs from ``start`` to ``stop``. ``queue``: the journal's id of this endpoint and backend."""

    _log = Logger()

    def __init__(self, means: Means, queue: int, endpoint: str, backend: str, deliverer: Deliverer) -> None:
        self._means = means
        self._queue = queue
        self._endpoint = endpoint
        self._backend = backend
        self._deliverer = deliverer
        self._away_failures = 0
        """In a row; 0: the backend is there."""
        self._away_until = 0.0
        self._woken = False
        self._sleeper: Deferred[None] | None = None
        self._stopping = False
        self._worker: Deferred[None] | None = None
        self._under_way: Deferred[Sequence[Result]] | None = None

    @property
    def is_away(self) -> bool:
        return self._away_failures > 0

    def start(self) -> None:
        self._worker = Deferred.fromCoroutine(self._run())
        self._worker.addErrback(self._ended)

    async def stop(self) -> None:
        """Cancel what is being delivered: it is delivered again later. What was delivered is still noted.

        Returns when that has ended.
        """
        self._stopping = True
        self.wake()
        if self._under_way is not None:
            self._under_way.cancel()
        if self._worker is not None:
            await self._worker

    def wake(self, *, probe: bool = False) -> None:
        """Something may be due. ``probe``: try the backend now, even if it is away."""
        if probe:
            self._away_until = 0.0
        self._woken = True
        if self._sleeper is not None and not self._sleeper.called:
            self._sleeper.callback(None)

    def _ended(self, failure: Any) -> None:
        if not (self._stopping and failure.check(CancelledError)):
            self._log.failure("delivery to {backend} has ended, by our fault", failure, backend=self._backend)

    async def _run(self) -> None:
        await self._journal(lambda journal: journal.set_away(self._queue, ""))
        while not self._stopping:
            self._woken = False
            try:
                until = await self._round()
            except Exception:
                if self._stopping:
                    raise
                self._log.failure("deliveries to {backend} pause, by our fault", backend=self._backend)
                until = self._means.reactor.seconds() + PAUSE_SECS
            await self._sleep(until)

    async def _sleep(self, until: float | None) -> None:
        """Until woken, or until then; None: only until woken."""
        now = self._means.reactor.seconds()
        if self._woken or self._stopping or (until is not None and until <= now):
            return
        self._sleeper = Deferred()
        timer = None if until is None else self._means.reactor.callLater(until - now, self.wake)
        try:
            await self._sleeper
        finally:
            if timer is not None and timer.active():
                timer.cancel()

    async def _journal(self, work: Callable[[Journal], T]) -> T:
        """Until it works: what was delivered must be noted before anything else is."""
        while True:
            try:
                return await self._means.do(work)
            except (HarmonydError, sqlite3.Error) as error:
                self._log.error("deliveries to {backend} wait: {why}", backend=self._backend, why=reason_of(error))
                if self._stopping:
                    raise
            self._woken = False
            await self._sleep(self._means.reactor.seconds() + JOURNAL_RETRY_SECS)

    # --- a round ---

    async def _round(self) -> float | None:
        """Deliver one batch, if one is due; returns until when there is nothing to do, as ``_sleep`` takes it."""
        now = self._means.reactor.seconds()
        if now < self._away_until:
            return self._away_until
        batch_size = self._deliverer.backends().get(self._backend)
        if batch_size is None:
            return None
        limit = 1 if self.is_away else max(1, batch_size)
        batch, next_due, given_up = await self._journal(lambda journal: self._fetch(journal, now, limit))
        if given_up:
            self._log.warn(
                "{count} objects for {backend} are put in quarantine: not delivered in the time allowed",
                count=given_up, backend=self._backend, endpoint=self._endpoint,
            )  # fmt: skip
            self._means.changed()
        if batch and not self._stopping:
            await self._deliver(batch)
            return 0
        return 0 if given_up else next_due

    def _fetch(self, journal: Journal, now: float, limit: int) -> tuple[list[Due], float | None, int]:
        given_up = give_up_old(journal, self._queue, self._means.config, now)
        return journal.due(self._queue, now, limit), journal.next_due(self._queue, now), given_up

    async def _deliver(self, batch: Sequence[Due]) -> None:
        results = await self._try([due.entry for due in batch])
        failed = [due for due, result in zip(batch, results, strict=True) if isinstance(result, Failed)]
        gone = frozenset(await in_thread(self._means.reactor, _gone, failed)) if failed else frozenset()
        missing = next((result for result in results if isinstance(result, Failed) and result.is_away), None)
        away = missing.reason if missing is not None else ""
        waits = [self._means.refused_wait_secs(due.attempts + 1) for due in batch]
        now = self._means.reactor.seconds()
        outcome = list(zip(batch, results, waits, strict=True))
        record = await self._journal(lambda journal: self._record(journal, outcome, gone, away, now))
        self._means.release.begin(record.done)
        self._say(record, now)
        self._note_away(away, now, missing.again_secs if missing is not None else None)
        self._means.changed()

    async def _try(self, entries: Sequence[Entry]) -> list[Result]:
        """One result for each. After an error for many they are tried one by one: whose fault it is, shows then."""
        try:
            self._under_way = Deferred.fromCoroutine(self._deliverer.deliver(self._backend, entries))
            results = list(await self._under_way)
            if len(results) != len(entries):
                raise RuntimeError(f"{len(results)} results for {len(entries)} entries")
            if all(isinstance(result, Untried) for result in results):
                raise RuntimeError("nothing was tried, and nothing said why")
        except Exception as error:
            # Whatever is wrong with an object, or its backend, it stays ours.
            if self._stopping:
                raise
            if len(entries) > 1:
                return [(await self._try([entry]))[0] for entry in entries]
            if not isinstance(error, HarmonydError | OSError):
                self._log.failure("an object could not be delivered, by our fault", backend=self._backend)
            return [Failed(reason_of(error))]
        return results

    # --- what came of it ---

    def _record(
        self,
        journal: Journal,
        outcome: Sequence[tuple[Due, Result, float]],
        gone: frozenset[int],
        away: str,
        now: float,
    ) -> _Record:
        """In the journal's thread."""
        record = _Record()
        probed = False
        for due, result, wait in outcome:
            entry = due.entry.id
            if isinstance(result, Delivered):
                record.delivered.append(due)
                name = journal.delivered(self._queue, entry, now)
                if name is not None:
                    record.done.append((entry, name))
            elif isinstance(result, Untried):
                continue
            elif isinstance(result, Held):
                journal.put_off(self._queue, entry, now + result.again_secs, result.reason, due.attempts)
            elif entry in gone:
                if journal.damage(entry, GONE, now):
                    record.damaged.append(due)
            elif not result.is_away:
                self._refused(journal, record, due, result.reason, wait, now)
            elif not probed:
                # Behind the others that are due: should this object be what sends the backend away, they get through.
                probed = True
                journal.put_off(self._queue, entry, now, result.reason, due.attempts)
        journal.set_away(self._queue, away)
        return record

    def _refused(self, journal: Journal, record: _Record, due: Due, reason: str, wait: float, now: float) -> None:
        attempts = due.attempts + 1
        if attempts >= self._means.config.max_attempts:
            if journal.give_up(self._queue, due.entry.id, reason, now, attempts):
                record.given_up.append((due, reason))
        elif journal.put_off(self._queue, due.entry.id, now + wait, reason, attempts):
            record.put_off.append((due, reason, wait))

    def _note_away(self, reason: str, now: float, again_secs: float | None) -> None:
        if not reason:
            if self.is_away:
                self._log.info("{backend} takes objects again", backend=self._backend, endpoint=self._endpoint)
            self._away_failures, self._away_until = 0, 0.0
            return
        self._away_failures += 1
        wait = self._means.wait_secs(self._away_failures)
        if again_secs is not None:
            wait = min(again_secs, LONGEST_PAUSE_SECS)
        self._away_until = now + wait
        self._log.warn(
            "{backend} is away: {reason}; again in {wait:.0f} s",
            backend=self._backend, endpoint=self._endpoint, reason=reason, wait=wait,
        )  # fmt: skip

    def _say(self, record: _Record, now: float) -> None:
        for due in record.delivered:
            ms = round((now - due.entry.received_at) * 1000)
            self._log.info(
                "delivered {sop_instance_uid} from {endpoint} to {backend}, {ms} ms after it came",
                **self._fields(due), attempts=due.attempts + 1, ms=ms,
            )  # fmt: skip
        for due, reason, wait in record.put_off:
            self._log.warn(
                "{sop_instance_uid} from {endpoint} was not taken by {backend}: {reason}; again in {wait:.0f} s",
                **self._fields(due), attempts=due.attempts + 1, reason=reason, wait=wait,
            )  # fmt: skip
        for due, reason in record.given_up:
            self._log.error(
                "{sop_instance_uid} from {endpoint} is put in quarantine, {backend} does not take it: {reason}",
                **self._fields(due), attempts=due.attempts + 1, reason=reason,
            )  # fmt: skip
        for due in record.damaged:
            say_damaged(due.entry.metadata.get("sop_instance_uid", ""), due.entry.id, GONE)

    def _fields(self, due: Due) -> dict[str, Any]:
        uid = due.entry.metadata.get("sop_instance_uid", "")
        return {
            "request": due.entry.request_id,
            "endpoint": self._endpoint,
            "backend": self._backend,
            "sop_instance_uid": uid or f"entry {due.entry.id}",
        }


def give_up_old(journal: Journal, queue: int, config: SpoolConfig, now: float) -> int:
    """Put in quarantine what has been tried for too long; returns how many, at most ``MOST_GIVEN_UP_AT_ONCE``."""
    reason = f"not delivered within {config.give_up_after_secs / 3600:g} h"
    return journal.give_up_old(queue, now - config.give_up_after_secs, reason, now, MOST_GIVEN_UP_AT_ONCE)


def reason_of(error: Exception) -> str:
    """For people; without what the error may quote of a patient."""
    if isinstance(error, HarmonydError):
        return said(error)
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


def _gone(batch: Sequence[Due]) -> list[int]:
    return [due.entry.id for due in batch if not due.entry.path.exists()]
