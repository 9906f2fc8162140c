"""What a storescp of an earlier configuration has acknowledged, and nobody has taken yet: it is the endpoint's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from harmonyd.dimse.engine import ObjectHandler
from harmonyd.dimse.leftovers import LOOK_SECS, find_leftovers, folders_in, holds_files
from harmonyd.dimse.taking import Taking
from harmonyd.dimse.threads import Threads

SWEEP_SECS = 10.0
"""How often what could not be taken is offered again."""


class Inherited:
    """Offers what lies in ``folder`` until all of it is taken. Nobody writes there any more."""

    _log = Logger()

    def __init__(self, threads: Threads, folder: Path, handler: ObjectHandler, name: str) -> None:
        """``name``, of the endpoint, is for the log."""
        self._threads = threads
        self._folder = folder
        self._handler = handler
        self._taking = Taking(threads, handler, name)
        self._called_aet = ""
        self._sweep_call: Any = None
        self._stopped = False

    async def start(self, called_aet: str) -> None:
        """Begin; ``called_aet`` is who received it. Raises OSError."""
        self._called_aet, self._stopped = called_aet, False
        await self._sweep()

    async def taken(self) -> None:
        """Return when nothing is left."""
        await self._taking.all_settled()
        while await self._threads.in_thread(holds_files, self._folder):
            await deferLater(self._threads.reactor, LOOK_SECS)
            await self._taking.all_settled()

    async def stop(self) -> None:
        """Returns when nothing is under way; what was not taken is offered by the next ``start``."""
        self._stopped = True
        if self._sweep_call is not None and self._sweep_call.active():
            self._sweep_call.cancel()
        await self._taking.all_settled()

    async def _sweep(self) -> None:
        in_thread = self._threads.in_thread
        if not await in_thread(holds_files, self._folder):
            return
        folders = await in_thread(folders_in, self._folder)
        found = await in_thread(find_leftovers, self._folder, folders, self._called_aet, self._handler)
        if self._stopped:
            return
        for leftovers in found:
            for path in leftovers.paths:
                self._taking.add(leftovers, path)
        self._sweep_call = self._threads.reactor.callLater(SWEEP_SECS, self._sweep_again)

    def _sweep_again(self) -> None:
        Deferred.fromCoroutine(self._sweep()).addErrback(
            lambda failure: self._log.failure("{folder} cannot be looked through", failure, folder=str(self._folder))
        )
