"""All that callers can ask a dicom endpoint for: implements ``dimse.serving.Handler``."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from harmonyd.config.asking import MoveDestination
from harmonyd.config.model import DicomEndpointOptions
from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.serving import Asked, NotServed, Pending, Retrieval
from harmonyd.dimse.status import UNKNOWN_DESTINATION
from harmonyd.services.base import Ask
from harmonyd.services.dicom.auditing import Witness
from harmonyd.services.dicom.querying import InThread, Querying
from harmonyd.services.dicom.retrieving import Retrieving

_IDLE_SECS = 0.5
"""Between two C-MOVEs. Some receivers serve one association at a time: others wait for as long as ours is open."""
_MAX_PDU = 131072


class Questions:
    """``ask`` passes an envelope through the pipeline that the endpoint has at the moment."""

    def __init__(
        self, ask: Ask, in_thread: InThread, options: DicomEndpointOptions, witness: Witness = Witness(),  # noqa: B008 - it is frozen
    ) -> None:
        self.options = options
        """What counts for the next question."""
        self._querying = Querying(ask, in_thread)
        self._retrieving = Retrieving(ask, in_thread)
        self._witness = witness

    def find(self, asked: Asked) -> AsyncGenerator[Pending, None]:
        """See ``Handler``."""
        return self._querying.find(asked)

    async def retrieve(self, asked: Asked) -> Retrieval:
        """See ``Handler``."""
        brought = await self._retrieving.retrieve(asked)
        if asked.destination_aet in self.options.move_destinations:
            to = self.destination(asked)
            brought.passed_on = self._witness.passed_on(asked.association, to, brought.request_id)
        return brought

    def destination(self, asked: Asked) -> RemoteNode:
        """See ``Handler``."""
        aet = asked.destination_aet
        known = self.options.move_destinations.get(aet)
        if known is None:
            self._witness.unknown_destination(asked.association, aet)
            raise NotServed(UNKNOWN_DESTINATION, f"{aet or 'no AE title'} is no move destination here")
        return _node(aet, known, asked.association.called_aet)


def _node(aet: str, known: MoveDestination, our_aet: str) -> RemoteNode:
    return RemoteNode(
        f"move destination {aet}",
        aet,
        known.host,
        known.port,
        our_aet,
        known.connect_timeout_secs,
        known.association_timeout_secs,
        _MAX_PDU,
        known.max_associations,
        _IDLE_SECS,
        known.tls,
    )
