"""Storage Commitment after forwarding: a PACS is asked to commit to what it was sent, and the spool may wait for that.

Each object that a backend with ``commit = "after_forwarding"`` has taken is written down before the spool hears of it.
Objects are asked about together, a moment after the first of them was sent. With ``release = "committed"`` the spool
keeps them until the PACS has committed to them; what it does not commit to is sent again, like what it refuses.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.logger import Logger

from harmonyd.commitment.api import Forwarded, ForwardState, Reference, Report
from harmonyd.commitment.ledger import Ledger
from harmonyd.dimse.engine import OperationContext
from harmonyd.errors import HarmonydError
from harmonyd.services.dicom.backend import DicomBackend
from harmonyd.services.dicom.commitments import new_transaction_uid
from harmonyd.services.dicom.committing import CommitmentMeans
from harmonyd.services.dicom.keeping import new_id
from harmonyd.spool.api import Delivered, Entry, Failed, Held, Result
from harmonyd.spool.delivery import reason_of

QUIET_SECS = 1.0
"""After the first object that was sent, before it and what has followed are asked about."""
MAX_TOGETHER = 500
MAX_TRIES = 3
"""Transactions about an object that come to nothing before it is sent again."""
_AGAIN_SECS = 30.0
"""After one that came to nothing."""
_HELD_SECS = 3600.0
"""How soon the spool looks at an entry again of which it hears nothing."""
_AT_ONCE = 4
"""Transactions with one backend."""
_FORGET_SECS = 90 * 24 * 3600.0
_WAITS = "stored there; waits for its storage commitment"
_log = Logger()

Send = Callable[[Sequence[Entry]], Awaitable[Sequence[Result]]]
Backends = Callable[[], Any]


class Forwarding:
    """Of one endpoint. ``backends`` returns those it has now, by name; ``look_again`` makes spool entries due."""

    def __init__(
        self,
        endpoint: str,
        means: CommitmentMeans,
        backends: Backends,
        look_again: Callable[[Sequence[int]], Awaitable[Any]],
    ) -> None:
        self._endpoint = endpoint
        self._reactor = means.reactor
        self._books = means.books
        self._commitments = means.commitments
        self._backends = backends
        self._look_again = look_again
        self._turns: dict[str, DeferredSemaphore] = {}
        self._calls: dict[str, Any] = {}
        self._running: set[Deferred[None]] = set()
        self._handed_over: dict[str, list[int]] = {}
        """By backend, entries of which the spool was told last that they are committed."""
        self._stopping = False

    # --- life

    async def start(self) -> None:
        """Go on with what an earlier run has begun."""
        self._stopping = False
        if not self._books.exists:
            return
        before = self._reactor.seconds() - _FORGET_SECS
        await self._books.do(lambda ledger: ledger.forget_old(self._endpoint, before))
        for backend in await self._books.do(lambda ledger: ledger.backends_of(self._endpoint)):
            for items in (await self._asked(backend)).values():
                self._begin(self._late(backend, items))
            self._schedule(backend, 0.0)

    async def stop(self) -> None:
        """What is not done is done by the next run."""
        self._stopping = True
        for call in self._calls.values():
            if call.active():
                call.cancel()
        self._calls.clear()
        for task in list(self._running):
            task.cancel()
            with suppress(CancelledError):
                await task

    def watches(self, backend: str) -> bool:
        """Whether this backend is to be asked."""
        found = self._backends().get(backend)
        return isinstance(found, DicomBackend) and found.options.commit == "after_forwarding"

    # --- deliveries

    async def deliver(self, backend: str, entries: Sequence[Entry], send: Send) -> list[Result]:
        """One result for each, in order: of what is there already, how its commitment stands; the rest is sent."""
        if over := self._handed_over.pop(backend, None):  # the spool has noted that by now
            await self._books.do(lambda ledger: ledger.forget(self._endpoint, backend, over))
        ids = [entry.id for entry in entries]
        known = await self._books.do(lambda ledger: ledger.forwarded(self._endpoint, backend, ids))
        results = {entry: self._result(item) for entry, item in known.items()}
        failed = [entry for entry, item in known.items() if item.state is ForwardState.FAILED]
        if failed:
            await self._books.do(lambda ledger: ledger.forget(self._endpoint, backend, failed))
        if committed := [entry for entry, item in known.items() if item.state is ForwardState.COMMITTED]:
            self._handed_over[backend] = committed
        fresh = [entry for entry in entries if entry.id not in known]
        if fresh:
            sent = await send(fresh)
            results |= await self._note(backend, fresh, sent)
        return [results[entry.id] for entry in entries]

    async def _note(self, backend: str, entries: Sequence[Entry], sent: Sequence[Result]) -> dict[int, Result]:
        releases = self._releases_at_once(backend)
        now = self._reactor.seconds()
        results = {entry.id: result for entry, result in zip(entries, sent, strict=True)}
        stored = [
            Forwarded(entry.id, _reference(entry), since=now, released=releases)
            for entry in entries
            if isinstance(results[entry.id], Delivered) and all(_reference_uids(entry))
        ]
        if stored:
            await self._books.do(lambda ledger: ledger.stored(self._endpoint, backend, stored))
            self._schedule(backend, QUIET_SECS)
            if not releases:
                results |= {item.entry: Held(_WAITS, _HELD_SECS) for item in stored}
        return results

    def _releases_at_once(self, backend: str) -> bool:
        found = self._backends().get(backend)
        return not (isinstance(found, DicomBackend) and found.options.release == "committed")

    def _result(self, item: Forwarded) -> Result:
        if item.state is ForwardState.COMMITTED or item.released:
            return Delivered()
        if item.state is ForwardState.FAILED:
            return Failed(f"not committed: {item.reason}")
        return Held(_WAITS, _HELD_SECS)

    # --- asking

    def _schedule(self, backend: str, secs: float) -> None:
        """Ask then, at the latest."""
        call = self._calls.get(backend)
        if call is not None and call.active():
            if call.getTime() > self._reactor.seconds() + secs:
                call.reset(secs)
            return
        if not self._stopping:
            self._calls[backend] = self._reactor.callLater(secs, lambda: self._begin(self._ask_all(backend)))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = Deferred.fromCoroutine(work)
        self._running.add(task)
        task.addErrback(self._failed)
        task.addBoth(lambda _: self._running.discard(task))

    def _failed(self, failure: Any) -> None:
        if failure.check(CancelledError):
            return
        if failure.check(HarmonydError, OSError, sqlite3.Error):
            _log.error("commitments of what {endpoint} forwards wait: {why}", endpoint=self._endpoint,
                       why=reason_of(failure.value))  # fmt: skip
        else:
            _log.failure("a storage commitment failed, by our fault", failure, endpoint=self._endpoint)

    async def _ask_all(self, backend: str) -> None:
        """Take what was stored, and ask about it, so many at a time."""
        turns = self._turns.setdefault(backend, DeferredSemaphore(_AT_ONCE))
        while self.watches(backend):
            await turns.acquire()
            try:
                items = await self._take(backend)
            except BaseException:
                turns.release()
                raise
            if not items:
                turns.release()
                await self._later(backend)
                return
            self._begin(self._in_turn(backend, items, turns))

    async def _later(self, backend: str) -> None:
        """What came to nothing has its time."""
        state = ForwardState.STORED
        left = await self._books.do(lambda ledger: ledger.in_state(self._endpoint, backend, state, 1))
        if left:
            wait = left[0].since - self._reactor.seconds()
            self._schedule(backend, min(max(wait, QUIET_SECS), _AGAIN_SECS))

    async def _take(self, backend: str) -> list[Forwarded]:
        """Written down before it is asked, so that a report of any time finds its objects."""
        uid, now = new_transaction_uid(), self._reactor.seconds()

        def take(ledger: Ledger) -> list[Forwarded]:
            found = ledger.in_state(self._endpoint, backend, ForwardState.STORED, MAX_TOGETHER, now)
            asked = [replace(item, state=ForwardState.ASKED, transaction_uid=uid, since=now) for item in found]
            if asked:
                ledger.change(self._endpoint, backend, asked)
            return asked

        return await self._books.do(take)

    async def _in_turn(self, backend: str, items: Sequence[Forwarded], turns: DeferredSemaphore) -> None:
        try:
            await self._ask(backend, items)
        finally:
            turns.release()

    async def _ask(self, backend: str, items: Sequence[Forwarded]) -> None:
        node = self._backends()[backend]
        op = OperationContext(new_id(), new_id(), self._reactor.seconds() + node.options.commit_timeout_secs)
        try:
            report = await node.commit([item.reference for item in items], op, items[0].transaction_uid)
        except HarmonydError as error:
            await self._in_vain(backend, items, error.detail)
        else:
            await self._conclude(backend, items, report)

    async def _late(self, backend: str, items: Sequence[Forwarded]) -> None:
        """An earlier run has asked: the report may come yet, over an association of the node's."""
        node = self._backends().get(backend)
        if not isinstance(node, DicomBackend):
            return
        deadline = items[0].since + node.options.commit_timeout_secs
        try:
            report = await self._commitments.await_late(items[0].transaction_uid, node.remote.aet, deadline)
        except HarmonydError as error:
            await self._in_vain(backend, items, error.detail)
        else:
            await self._conclude(backend, items, report)

    async def _asked(self, backend: str) -> dict[str, list[Forwarded]]:
        """By transaction."""
        found: dict[str, list[Forwarded]] = {}
        state = ForwardState.ASKED
        limit = 1_000_000
        for item in await self._books.do(lambda ledger: ledger.in_state(self._endpoint, backend, state, limit)):
            found.setdefault(item.transaction_uid, []).append(item)
        return found

    # --- what comes of it

    async def _in_vain(self, backend: str, items: Sequence[Forwarded], why: str) -> None:
        now = self._reactor.seconds()
        _log.warn(
            "{backend} does not commit to {count} objects: {why}", backend=backend, count=len(items), why=why,
            endpoint=self._endpoint,
        )  # fmt: skip
        tried = [replace(item, tries=item.tries + 1, since=now, transaction_uid="") for item in items]
        given_up = [
            replace(item, state=ForwardState.FAILED, reason=why) for item in tried if item.tries >= MAX_TRIES
        ]
        later = now + _AGAIN_SECS
        again = [replace(item, state=ForwardState.STORED, since=later) for item in tried if item.tries < MAX_TRIES]
        await self._books.do(lambda ledger: ledger.change(self._endpoint, backend, [*given_up, *again]))
        if again:
            self._schedule(backend, _AGAIN_SECS)
        await self._settled(backend, given_up)

    async def _conclude(self, backend: str, items: Sequence[Forwarded], report: Report) -> None:
        settled = []
        for item in items:
            reason = report.reason(item.reference)
            state = ForwardState.FAILED if reason else ForwardState.COMMITTED
            settled.append(replace(item, state=state, reason=reason))
        await self._books.do(lambda ledger: ledger.change(self._endpoint, backend, settled))
        failed = sum(item.state is ForwardState.FAILED for item in settled)
        _log.info(
            "{backend} has committed to {count} objects, and not to {failed}", backend=backend,
            count=len(settled) - failed, failed=failed, endpoint=self._endpoint,
        )  # fmt: skip
        await self._settled(backend, settled)

    async def _settled(self, backend: str, items: Sequence[Forwarded]) -> None:
        """Have the spool look at what it keeps; of what it has let go already, say what went wrong."""
        released = [item for item in items if item.released]
        for item in released:
            if item.state is ForwardState.FAILED:
                _log.error(
                    "{backend} has taken {sop_instance_uid}, and does not commit to it: {why}; it is released already",
                    backend=backend, sop_instance_uid=item.reference.sop_instance_uid, why=item.reason,
                    endpoint=self._endpoint,
                )  # fmt: skip
        if released:
            entries = [item.entry for item in released]
            await self._books.do(lambda ledger: ledger.forget(self._endpoint, backend, entries))
        kept = [item.entry for item in items if not item.released]
        if kept:
            await self._look_again(kept)


def _reference_uids(entry: Entry) -> tuple[str, str]:
    return entry.metadata.get("sop_class_uid", ""), entry.metadata.get("sop_instance_uid", "")


def _reference(entry: Entry) -> Reference:
    return Reference(*_reference_uids(entry))
