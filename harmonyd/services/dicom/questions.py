"""All that callers can ask a dicom endpoint for: implements ``dimse.serving.Handler``."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.serving import Asked, NotServed, Pending, Retrieval
from harmonyd.dimse.status import UNKNOWN_DESTINATION, UNRECOGNIZED_OPERATION
from harmonyd.services.base import Ask
from harmonyd.services.dicom.querying import InThread, Querying


class Questions:
    """``ask`` passes an envelope through the pipeline that the endpoint has at the moment."""

    def __init__(self, ask: Ask, in_thread: InThread) -> None:
        self._querying = Querying(ask, in_thread)

    def find(self, asked: Asked) -> AsyncGenerator[Pending, None]:
        """See ``Handler``."""
        return self._querying.find(asked)

    async def retrieve(self, asked: Asked) -> Retrieval:
        """See ``Handler``."""
        raise NotServed(UNRECOGNIZED_OPERATION)

    def destination(self, asked: Asked) -> RemoteNode:
        """See ``Handler``."""
        raise NotServed(UNKNOWN_DESTINATION)
