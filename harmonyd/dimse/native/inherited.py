"""What a storescp received for an endpoint before that changed to this engine: acknowledged, so it must be offered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from harmonyd.dimse.engine import ObjectHandler
from harmonyd.dimse.leftovers import find_leftovers, folders_in
from harmonyd.dimse.taking import Taking
from harmonyd.dimse.threads import ReactorThreads

SWEEP_SECS = 10.0
"""How often what was not taken is offered again."""


class Inherited:
    """Offers it from ``start`` to ``stop``. ``folder``: where a storescp received for the endpoint ``name``."""

    _log = Logger()

    def __init__(self, reactor: Any, name: str, folder: Path, called_aet: str, handler: ObjectHandler) -> None:
        self._threads = ReactorThreads(reactor)
        self._taking = Taking(self._threads, handler, name)
        self._name = name
        self._folder = folder
        self._called_aet = called_aet
        self._handler = handler
        self._call: Any = None
        self._stopped = True

    async def start(self) -> None:
        """Look, and offer what is there. Raises OSError."""
        self._stopped = False
        if await self._offer():
            self._log.info("{name}: what a storescp has received before is taken", name=self._name)
            self._again_later()

    async def taken(self) -> None:
        """Return when what was offered is taken, or was not."""
        await self._taking.all_settled()

    async def stop(self) -> None:
        """Offer no more; what was not taken is offered by the next ``start``."""
        self._stopped = True
        if self._call is not None and self._call.active():
            self._call.cancel()
        await self.taken()

    async def _offer(self) -> bool:
        """Whether anything is there."""
        found = await self._threads.in_thread(self._find)
        for leftovers in found:
            for path in leftovers.paths:
                self._taking.add(leftovers, path)
        return any(leftovers.paths for leftovers in found)

    def _find(self) -> Any:
        if not self._folder.is_dir():
            return []
        return find_leftovers(self._folder, folders_in(self._folder), self._called_aet, self._handler)

    def _again_later(self) -> None:
        if not self._stopped:
            self._call = self._threads.reactor.callLater(SWEEP_SECS, self._again)

    def _again(self) -> None:
        looking = Deferred.fromCoroutine(self._offer())
        looking.addCallbacks(lambda there: self._again_later() if there else None, self._say_failed)

    def _say_failed(self, failure: Any) -> None:
        self._log.failure("{folder} cannot be looked through", failure, folder=str(self._folder))
        self._again_later()
