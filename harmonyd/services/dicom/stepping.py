"""The endpoint half of MPPS: N-CREATE and N-SET go through the pipeline to its backend, and its status comes back.

Nothing is kept here: while the backend is away a modality is told so, and sends again, as it does to a RIS.
"""

from __future__ import annotations

import uuid

from twisted.logger import Logger

from harmonyd.dimse.normalized import NormalizedAnswer, NormalizedAsked
from harmonyd.services.base import Ask
from harmonyd.services.dicom.managed import envelope_for, text_of
from harmonyd.services.dicom.managing import STATUS
from harmonyd.services.dicom.querying import InThread, answered, told_as_status

_HERE_BYTES = 16 * 1024
"""A longer data set is decoded in a thread."""
_log = Logger()


class Stepping:
    """Answers N-CREATE and N-SET requests. ``ask`` is the endpoint's pipeline of the moment."""

    def __init__(self, ask: Ask, in_thread: InThread) -> None:
        self._ask = ask
        self._in_thread = in_thread

    async def perform(self, asked: NormalizedAsked) -> NormalizedAnswer:
        """See ``dimse.serving.Handler``."""
        request_id = uuid.uuid4().hex
        async with told_as_status(asked, request_id):
            is_short = len(asked.request.data) <= _HERE_BYTES
            text = text_of(asked.request) if is_short else await self._in_thread(text_of, asked.request)
            response = await answered(self._ask, asked, envelope_for(asked, text, request_id))
            told = dict(response.metadata)
            await response.close()
        known = asked.association
        _log.info(
            "{op} of {calling} ({peer}) is passed on",
            op=asked.name, calling=known.calling_aet, peer=known.peer, association_id=known.id, request=request_id,
            endpoint=known.called_aet,
        )  # fmt: skip
        return NormalizedAnswer(int(told.get(STATUS, "0"), 16), sop_instance_uid=told.get("sop_instance_uid", ""))
