"""What follows when an entry is done: its file goes, then its row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from harmonyd.errors import HarmonydError
from harmonyd.spool.layout import Layout
from harmonyd.spool.threads import in_thread
from harmonyd.spool.writer import Do

MOST_AT_ONCE = 500

Done = Sequence[tuple[int, str]]
"""Id and name of each entry that is done."""


class Release:
    """Removes files and rows of what is done. What fails is done again later, at the latest with the next start."""

    _log = Logger()

    def __init__(self, reactor: Any, layout: Layout, do: Do) -> None:
        self._reactor = reactor
        self._layout = layout
        self._do = do
        self._running: set[Deferred[None]] = set()

    def begin(self, done: Done) -> None:
        """Release these; does not wait for it."""
        if done:
            running = Deferred.fromCoroutine(self.release(done))
            self._running.add(running)
            running.addErrback(self._failed)
            running.addBoth(lambda _: self._running.discard(running))

    async def release(self, done: Done) -> None:
        """Remove files, then rows. Raises OSError, StorageFull."""
        await in_thread(self._reactor, self._unlink, [name for _, name in done])
        await self._do(lambda journal: journal.forget([entry for entry, _ in done]))

    async def again(self) -> None:
        """Release what could not be released before. Raises as ``release``."""
        if not self._running:
            done = await self._do(lambda journal: journal.done(MOST_AT_ONCE))
            if done:
                await self.release(done)

    async def finish(self) -> None:
        """Return when nothing is being released."""
        await DeferredList(list(self._running))

    def _unlink(self, names: Iterable[str]) -> None:
        for name in names:
            self._layout.object(name).unlink(missing_ok=True)

    def _failed(self, failure: Any) -> None:
        error = failure.value
        why = error.detail if isinstance(error, HarmonydError) else str(error)
        self._log.warn("the spool cannot remove what was delivered: {why}; again later", why=why)
