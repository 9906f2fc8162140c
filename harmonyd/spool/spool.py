"""The durable queue between receivers and backends: files in a folder, and a journal that says where they go."""

from __future__ import annotations

import random as _random
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredList, DeferredLock
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from harmonyd.config.daemon import SpoolConfig
from harmonyd.errors import HarmonydError, StorageFull
from harmonyd.spool import people
from harmonyd.spool.admission import SpoolAdmission
from harmonyd.spool.api import Deliverer, EntryInfo, EntryState, NewEntry, Summary
from harmonyd.spool.delivery import Dispatcher, Means, give_up_old, reason_of
from harmonyd.spool.intake import Intake
from harmonyd.spool.journal import Journal, Queue
from harmonyd.spool.layout import Layout
from harmonyd.spool.recovery import set_right
from harmonyd.spool.release import Release
from harmonyd.spool.strays import Untaken, set_aside
from harmonyd.spool.threads import in_thread
from harmonyd.spool.writer import Writer

T = TypeVar("T")
LOOK_SECS = 5.0
"""How soon something is noticed that another process did to the journal."""


@dataclass(slots=True)
class _Desk:
    """An attached endpoint."""

    deliverer: Deliverer
    in_order: bool
    dispatchers: dict[str, Dispatcher] = field(default_factory=dict)


class DurableSpool:
    """``api.Spool``, below ``<storage>/spool``. ``random`` returns 0 to 1; ``reactor.seconds()`` is the time of day."""

    _log = Logger()

    def __init__(
        self, reactor: Any, storage: Path, config: SpoolConfig, random: Callable[[], float] = _random.random
    ) -> None:
        self._reactor = reactor
        self._layout = Layout(storage)
        self._writer = Writer(reactor, self._open)
        self.admission = SpoolAdmission(reactor, self._layout, config)
        self._intake = Intake(reactor, self._layout, self._do, self.admission.note_free)
        self._release = Release(reactor, self._layout, self._do)
        self._means = Means(reactor, self._do, self._release, random, config, self._something_changed)
        self._desks: dict[str, _Desk] = {}
        self.untaken = Untaken(reactor, self._layout, lambda: self._desks)
        self._arranging = DeferredLock()
        self._emptied: list[Deferred[None]] = []
        self._tasks: set[Deferred[None]] = set()
        self._version = 0
        self._look = LoopingCall(lambda: Deferred.fromCoroutine(self._look_around()))
        self._look.clock = reactor
        self._looking: Deferred[Any] | None = None
        self._started = False

    @property
    def exists(self) -> bool:
        """Whether an earlier run left a journal."""
        return self._layout.journal.exists()

    # --- life ---

    async def start(self) -> None:
        """Open the journal and set right what a crash left; then deliver. Raises OSError, JournalUnusable, StorageFull.

        Before any receiver looks through its folders: what was journalled and not moved yet is taken from there. A
        spool that is started already stays as it is.
        """
        if self._started:
            return
        await in_thread(self._reactor, self._layout.make)
        await self._writer.start()
        now = self._reactor.seconds()
        latest = now + 2 * self._means.config.retry_max_secs
        try:
            await self.admission.start()
            await self._do(lambda journal: set_right(journal, now, latest))
            self.admission.note_kept(await self._do(Journal.totals))
        except BaseException:
            await self.admission.stop()
            await self._writer.stop()
            raise
        self._started = True
        for endpoint in self._desks:
            await self._arrange(endpoint)
        self._looking = looking = self._look.start(LOOK_SECS, now=False)  # endpoints are attached by then
        looking.addErrback(lambda failure: self._log.failure("the spool is not looked after", failure))

    async def stop(self) -> None:
        """End deliveries; what is not done stays on disk."""
        if not self._started:
            return
        self._started = False
        if self._look.running:
            self._look.stop()
        for endpoint in list(self._desks):
            await self.detach(endpoint)
        if self._looking is not None:
            await self._looking
        await DeferredList(list(self._tasks))
        await self._release.finish()
        await self.admission.stop()
        await self._writer.stop()

    def configure(self, config: SpoolConfig) -> None:
        """Other limits from now on."""
        self._means.config = config
        self.admission.configure(config)

    def _open(self) -> Journal:
        return Journal(self._layout)

    # --- receivers ---

    async def take(self, endpoint: str, entries: Sequence[NewEntry], backends: Sequence[str]) -> None:
        """Make these durable and queue them for each backend (one at least).

        When it raises (OSError, StorageFull, Unavailable), none is taken and each file is where it was.
        """
        self.admission.note_kept(await self._intake.take(endpoint, entries, backends))
        desk = self._desks.get(endpoint)
        if desk is None:
            return
        for backend in backends:
            if backend in desk.dispatchers:
                desk.dispatchers[backend].wake()
            elif backend in desk.deliverer.backends():
                self._begin(self._arrange(endpoint))

    async def put_aside(self, endpoint: str, entry: NewEntry, reason: str) -> None:
        """Take over a damaged file: DAMAGED (at the backend ""), visible, delivered nowhere. Raises as ``take``."""
        self.admission.note_kept(await self._intake.put_aside(endpoint, entry, reason))

    async def _do(self, work: Callable[[Journal], T], after: Callable[[Journal, T], None] | None = None) -> T:
        """``Writer.do``; on a full disk once more when that had ballast."""
        try:
            return await self._writer.do(work, after)
        except StorageFull:
            if not await self.admission.met_full_disk():
                raise
        return await self._writer.do(work, after)

    # --- backends ---

    def attach(self, endpoint: str, deliverer: Deliverer, *, in_order: bool) -> None:
        """Deliver the endpoint's entries with this from now on. ``in_order``: a study's objects as they came.

        An endpoint that is attached already has to be detached first.
        """
        if endpoint in self._desks:
            raise ValueError(f"{endpoint} is attached already")
        self._desks[endpoint] = _Desk(deliverer, in_order)
        if self._started:
            self._begin(self._arrange(endpoint))

    async def rearrange(self, endpoint: str, *, in_order: bool) -> None:
        """The backends of an attached endpoint, or the order for it, may have changed."""
        desk = self._desks[endpoint]
        if desk.in_order != in_order:
            await self.detach(endpoint)
            self.attach(endpoint, desk.deliverer, in_order=in_order)
        for dispatcher in desk.dispatchers.values():
            dispatcher.wake(probe=True)  # its backend may be another one under the same name
        await self._arrange(endpoint)

    async def detach(self, endpoint: str) -> None:
        """Deliver nothing of this endpoint any more: what is under way is cancelled. Returns when that has ended."""
        desk = self._desks.pop(endpoint, None)
        if desk is not None:
            await self._arranging.run(lambda: Deferred.fromCoroutine(_stop_all(desk)))

    async def _arrange(self, endpoint: str) -> None:
        """One dispatcher for each backend that the pipeline has now, none for others."""
        await self._arranging.run(lambda: Deferred.fromCoroutine(self._arrange_alone(endpoint)))

    async def _arrange_alone(self, endpoint: str) -> None:
        desk = self._desks.get(endpoint)
        if desk is None:
            return
        backends = list(desk.deliverer.backends())
        for backend in [name for name in desk.dispatchers if name not in backends]:
            await desk.dispatchers.pop(backend).stop()
        now = self._reactor.seconds()
        missing = [name for name in backends if name not in desk.dispatchers]
        if not missing:
            return

        def queues(journal: Journal) -> Mapping[str, int]:
            journal.set_order(endpoint, missing, desk.in_order, now)
            return {backend: journal.queue(endpoint, backend)[0] for backend in missing}

        for backend, queue in (await self._do(queues)).items():
            dispatcher = Dispatcher(self._means, queue, endpoint, backend, desk.deliverer)
            desk.dispatchers[backend] = dispatcher
            dispatcher.start()

    def returned(self, backend: str) -> None:
        """See ``Spool``."""
        for desk in self._desks.values():
            if backend in desk.dispatchers:
                desk.dispatchers[backend].wake(probe=True)

    async def outstanding(self, endpoint: str, backends: Iterable[str], studies: Iterable[str]) -> frozenset[str]:
        """See ``Spool``."""
        wanted, which = tuple(backends), tuple(studies)
        return await self._do(lambda journal: people.outstanding(journal, endpoint, wanted, which))

    async def emptied(self, endpoint: str) -> None:
        """Return when nothing of this endpoint waits (what is in quarantine does not count)."""
        while True:
            changed: Deferred[None] = Deferred(self._emptied.remove)
            self._emptied.append(changed)
            try:
                if not await self._do(lambda journal: journal.waiting(endpoint)):
                    return
                await changed
            finally:
                if changed in self._emptied:
                    self._emptied.remove(changed)

    def _something_changed(self) -> None:
        changed, self._emptied = self._emptied, []
        for waiter in changed:
            waiter.callback(None)

    # --- people ---

    @property
    def _is_none(self) -> bool:
        """Nothing was ever received, and nothing is: there is no dicom endpoint."""
        return not self._started and not self.exists

    async def summary(self) -> Summary:
        """Counts and ages."""
        refusal = self.admission.refusal()
        if self._is_none:
            found = Summary(0, 0, 0, (), refusal)
        else:
            found = await self._do(lambda journal: people.summary(journal, refusal))
        aside = await in_thread(self._reactor, set_aside, self._layout)
        return replace(found, set_aside=aside, untaken=await self.untaken.now())

    async def entries(
        self, *, state: EntryState | None = None, endpoint: str | None = None, after: int = 0, limit: int = 100
    ) -> list[EntryInfo]:
        """In the order of their arrival, at most 1000; ``after``: the last id already seen."""
        if self._is_none:
            return []
        return await self._do(
            lambda journal: people.entries(journal, state=state, endpoint=endpoint, after=after, limit=limit)
        )

    async def retry(self, ids: Sequence[int] | None = None) -> int:
        """Try these now (None: all that wait or are in quarantine); returns how many deliveries that concerns."""
        if self._is_none:
            return 0
        now = self._reactor.seconds()
        count = await self._do(lambda journal: people.retry(journal, ids, now))
        await self._look_closely()
        return count

    async def discard(self, ids: Sequence[int]) -> int:
        """Remove these for good; returns how many there were. One that is being delivered may arrive all the same."""
        if self._is_none:
            return 0
        now = self._reactor.seconds()
        gone = await self._do(lambda journal: people.discard(journal, ids, now))
        self._release.begin(gone)
        await self._look_closely()
        return len(gone)

    # --- looking around ---

    async def _look_around(self) -> None:
        """Every few seconds: what did another process change, and who waits for a backend that is not there?"""
        try:
            for endpoint in list(self._desks):
                await self._arrange(endpoint)
            version = await self._do(Journal.data_version)
            if version != self._version:
                self._version = version
                await self._look_closely()
            await self._look_after_orphans()
            if self.untaken.found:
                await self.untaken.look()
            await self._release.again()
        except (HarmonydError, OSError, sqlite3.Error) as error:
            self._log.error("the spool cannot be looked after: {why}", why=reason_of(error))

    async def _look_closely(self) -> None:
        totals, queues = await self._do(lambda journal: (journal.totals(), journal.queues()))
        self.admission.note_kept(totals)
        for queue in queues:
            dispatcher = self._dispatcher(queue)
            if dispatcher is not None:
                dispatcher.wake(probe=dispatcher.is_away and not queue.away)
        self._something_changed()

    async def _look_after_orphans(self) -> None:
        """What waits for a backend that no pipeline has: say so, and give it up in the end like anything else."""
        queues = await self._do(Journal.queues)
        orphans = {queue: self._why_orphaned(queue) for queue in queues if self._is_orphaned(queue)}
        if not orphans:
            return
        now = self._reactor.seconds()

        def note(journal: Journal) -> int:
            for queue, why in orphans.items():
                journal.set_away(queue.id, why)
            return sum(give_up_old(journal, queue.id, self._means.config, now) for queue in orphans)

        given_up = await self._do(note)
        if given_up:
            self._log.warn("{count} objects whose backend is gone are put in quarantine", count=given_up)
            self._something_changed()
        for queue, why in orphans.items():
            if queue.away != why:
                self._log.warn("{count} objects wait in vain: {why}", count=queue.waiting, why=why)

    def _is_orphaned(self, queue: Queue) -> bool:
        return queue.waiting > 0 and self._dispatcher(queue) is None

    def _why_orphaned(self, queue: Queue) -> str:
        if queue.endpoint not in self._desks:
            return f"nothing delivers what came to {queue.endpoint} any more"
        return f"backend {queue.backend} is not in the pipeline any more"

    def _dispatcher(self, queue: Queue) -> Dispatcher | None:
        desk = self._desks.get(queue.endpoint)
        return desk.dispatchers.get(queue.backend) if desk else None

    def _begin(self, work: Any) -> None:
        """Run this beside everything else."""
        task = Deferred.fromCoroutine(work)
        self._tasks.add(task)
        task.addErrback(lambda failure: self._log.failure("the spool failed at something", failure))
        task.addBoth(lambda _: self._tasks.discard(task))


async def _stop_all(desk: _Desk) -> None:
    for dispatcher in desk.dispatchers.values():
        await dispatcher.stop()
    desk.dispatchers.clear()
