"""All that callers can ask a dicom endpoint for: implements ``dimse.serving.Handler``."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from harmonyd.config.model import DicomEndpointOptions
from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.normalized import ACTION, EVENT, NormalizedAnswer, NormalizedAsked
from harmonyd.dimse.serving import STEPS, Asked, NotServed, Pending, Retrieval
from harmonyd.dimse.status import UNKNOWN_DESTINATION, UNRECOGNIZED_OPERATION
from harmonyd.services.base import Ask
from harmonyd.services.dicom.auditing import Witness
from harmonyd.services.dicom.commitments import Commitments
from harmonyd.services.dicom.committing import Committing
from harmonyd.services.dicom.node import peer_node
from harmonyd.services.dicom.querying import InThread, Querying
from harmonyd.services.dicom.retrieving import Retrieving
from harmonyd.services.dicom.stepping import Stepping


class Questions:
    """``ask`` passes an envelope through the pipeline that the endpoint has at the moment."""

    def __init__(
        self,
        ask: Ask,
        in_thread: InThread,
        options: DicomEndpointOptions,
        witness: Witness = Witness(),  # noqa: B008 - it is frozen
        committing: Committing | None = None,
        commitments: Commitments | None = None,
    ) -> None:
        """``committing`` answers who asks us for storage commitment, ``commitments`` hears whom we have asked."""
        self.options = options
        """What counts for the next question."""
        self._querying = Querying(ask, in_thread)
        self._retrieving = Retrieving(ask, in_thread)
        self._stepping = Stepping(ask, in_thread)
        self._committing = committing
        self._commitments = commitments
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
        return peer_node(aet, known, asked.association.called_aet)

    async def normalized(self, asked: NormalizedAsked) -> NormalizedAnswer:
        """See ``Handler``."""
        if asked.service == STEPS:
            return await self._stepping.perform(asked)
        if asked.request.operation == EVENT and self._commitments is not None:
            return await self._commitments.heard(asked.request, asked.association.calling_aet)
        if asked.request.operation == ACTION and self._committing is not None:
            return await self._committing.requested(asked)
        raise NotServed(UNRECOGNIZED_OPERATION, f"{asked.name} is not offered")

