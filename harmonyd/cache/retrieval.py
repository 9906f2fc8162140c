"""One retrieve that any number of requests read from, each at its own pace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout

from harmonyd.cache.entry import Entry
from harmonyd.cache.store import CacheStore
from harmonyd.dimse.engine import Instance
from harmonyd.envelope import Results
from harmonyd.errors import Unavailable
from harmonyd.progress import SharedProgress
from harmonyd.waiters import Waiters


@runtime_checkable
class HasInstance(Protocol):
    """A record of a retrieve."""

    instance: Instance


class Retrieval:
    """Fills an entry. It runs by itself: who reads may leave, and come later."""

    def __init__(self, entry: Entry, store: CacheStore) -> None:
        self.entry = entry
        self.readers = 0
        self.has_ended = False
        self.error: Exception | None = None
        """Why it ended."""
        self.progress = SharedProgress()
        """For the readers that are watched."""
        self._summary: Mapping[str, Any] = {"success": False, "complete": False}
        self._store = store
        self._grew: Callable[[Retrieval], None] = lambda _: None
        self._arrived: list[Instance] = []
        self._news: Waiters[None] = Waiters()
        self._running: Deferred[None] | None = None
        self.is_given_up = False
        self._is_busy = False
        """Others are called just now, and nothing is waited for that could be cancelled; or it is at its end."""

    def begin(
        self,
        start: Callable[[], Awaitable[Results]],
        ended: Callable[[Retrieval], None],
        grew: Callable[[Retrieval], None],
    ) -> None:
        """Ask the PACS with ``start``. ``grew`` is called with each instance, ``ended`` at the end."""
        self._store.hold(self.entry)
        self._grew = grew
        running: Deferred[None] = Deferred.fromCoroutine(self._run(start, ended))
        if not running.called:
            self._running = running

    def cancel(self) -> None:
        """End it: nobody wants it."""
        self.is_given_up = True
        if not self._is_busy:
            running, self._running = self._running, None
            if running is not None:
                running.cancel()

    async def first(self) -> None:
        """Wait for the first instance, or the end. Raises what the operation raised before."""
        while not self._arrived and not self.has_ended:
            await self._news.wait()
        if not self._arrived and self.error is not None:
            raise self.error

    async def whole(self) -> list[Instance] | None:
        """Wait for the end, and return all instances; None where some are missing. Raises what the operation raised."""
        while not self.has_ended:
            await self._news.wait()
        if self.error is not None:
            raise self.error
        return list(self._arrived) if self._summary["complete"] else None

    async def end(self) -> None:
        """Cancel it, and return when it has ended."""
        self.cancel()
        while not self.has_ended:
            await self._news.wait()

    async def news(self) -> None:
        """Wait for one more instance, or the end."""
        await self._news.wait()

    async def news_within(self, secs: float, clock: Any) -> bool:
        """Wait as ``news`` does; False: there was none in ``secs``."""
        try:
            await self._news.wait().addTimeout(secs, clock)
        except DeferredTimeout:
            return False
        return True

    def summary(self) -> Mapping[str, Any]:
        """What the operation says of itself, after its end."""
        return self._summary

    async def _run(self, start: Callable[[], Awaitable[Results]], ended: Callable[[Retrieval], None]) -> None:
        try:
            await self._fill(await start())
        except CancelledError:
            self.error = Unavailable("The retrieve was ended before it was complete.")
        except Exception as error:  # noqa: BLE001 - it is raised where the instances are read
            self.error = error
        if self.error is None and self._summary["complete"]:
            self._store.keep(self.entry)
        else:
            self._store.drop(self.entry)
            if self.error is not None:
                self._store.failed_to_write(self.error)
        self.has_ended = True
        ended(self)
        self._news.fire(None)
        self._store.release(self.entry)

    async def _fill(self, results: Results) -> None:
        try:
            async for record in results:
                assert isinstance(record, HasInstance), "a dicom backend retrieves instances"
                instance = record.instance
                self._arrived.append(instance)
                self.entry.instances[instance.sop_instance_uid] = instance
                self._tell(instance)
                if self.is_given_up:
                    raise CancelledError
            self._summary = results.summary()
        finally:
            self._is_busy = True
            await results.aclose()

    def _tell(self, instance: Instance) -> None:
        self._is_busy = True
        self._store.grew(self.entry, instance.size_bytes)
        self._grew(self)
        self._news.fire(None)
        self._is_busy = False

    async def instances(self) -> AsyncIterator[Instance]:
        """Yield what has arrived, and what arrives, to the end. Raises what the operation raised."""
        at = 0
        while True:
            while at < len(self._arrived):
                yield self._arrived[at]
                at += 1
            if self.has_ended:
                break
            await self._news.wait()
        if self.error is not None:
            raise self.error
