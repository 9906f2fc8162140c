"""The backend half: what a dicom backend does with a PACS, with a DICOMweb archive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThreadPool

from harmonyd.cache.cache import SeriesCache
from harmonyd.config.archive_model import DicomwebBackendOptions
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import HarmonydError
from harmonyd.services.archive.engine import ArchiveEngine
from harmonyd.services.dicom.auditing import Witness
from harmonyd.services.dicom.backend import DicomBackend
from harmonyd.services.dicom.metering import UNMETERED, Meter
from harmonyd.services.dicom.node import remote_node

_OF_A_MOVE = ("move_destination_aet", "incoming_store_port")


class DicomwebBackend(DicomBackend):
    """One archive, with all that stands before a PACS: queue, breaker, permitted hours, cache, metrics."""

    def __init__(
        self,
        name: str,
        options: DicomwebBackendOptions,
        reactor: Any,
        storage: Path,
        *,
        cache: SeriesCache | None = None,
        meter: Meter = UNMETERED,
        witness: Witness = Witness(),  # noqa: B008 - it is frozen
        returned: Callable[[str], None] = lambda name: None,
    ) -> None:
        async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
            return await deferToThreadPool(reactor, reactor.getThreadPool(), function, *args)

        node = options.node
        self.url = options.url
        self._archive = ArchiveEngine(reactor, remote_node(name, node), options, storage, in_thread)
        super().__init__(
            name,
            node,
            self._archive,
            reactor,
            storage,
            has_retrievers=False,
            cache=cache,
            meter=meter,
            witness=witness,
            returned=returned,
        )

    async def send(self, request: RequestEnvelope) -> ResponseEnvelope:
        """See ``DicomBackend``; a move is a get."""
        try:
            return await super().send(request)
        except HarmonydError as error:
            for member in _OF_A_MOVE:
                error.extra.pop(member, None)
            raise

    async def stop(self) -> None:
        """End what runs by itself; close what is idle."""
        await super().stop()
        await self._archive.close()
