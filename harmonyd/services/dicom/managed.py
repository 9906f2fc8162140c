"""A DIMSE-N request of a caller as an envelope for its endpoint's pipeline.

Middleware sees the data set as DICOM JSON in ``normalized``, and may change it there. A backend that gets it unchanged
sends the caller's own bytes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from harmonyd.bodies import BytesBody
from harmonyd.dimse import wire
from harmonyd.dimse.elements import MalformedDataset
from harmonyd.dimse.engine import Received
from harmonyd.dimse.normalized import NormalizedAsked, NormalizedRequest
from harmonyd.dimse.recode import EXPLICIT_VR_LE
from harmonyd.envelope import RequestEnvelope
from harmonyd.services.dicom.asked import DICOM_JSON
from harmonyd.subject import Caller


class ManagedBody(BytesBody):
    """The data set: as DICOM JSON for whoever reads a body, and as it came. Read any number of times."""

    def __init__(self, text: bytes, request: NormalizedRequest) -> None:
        super().__init__(text)
        self._text = text
        self._request = request

    def document(self, request: RequestEnvelope) -> Any:
        """The data set as middleware left it."""
        return json.loads(self._text) if request.normalized is None else request.normalized

    def outgoing(self, request: RequestEnvelope) -> NormalizedRequest:
        """What a backend is to send on. Raises ``MalformedDataset``."""
        document = self.document(request)
        if document == json.loads(self._text):
            return self._request
        if not isinstance(document, dict):
            raise MalformedDataset("what middleware made of the data set is none")
        wanted = wire.character_sets(json.loads(self._text))
        data = wire.encoded(json.dumps(document).encode(), EXPLICIT_VR_LE, wanted)
        return replace(self._request, data=data, transfer_syntax_uid=EXPLICIT_VR_LE)


def text_of(request: NormalizedRequest) -> bytes:
    """The data set as DICOM JSON. Raises ``MalformedDataset``."""
    return wire.json_of(Received(request.data, request.transfer_syntax_uid)) if request.data else b"{}"


def envelope_for(asked: NormalizedAsked, text: bytes, request_id: str, **metadata: str) -> RequestEnvelope:
    """The envelope; ``text`` is the data set as DICOM JSON."""
    association, request = asked.association, asked.request
    return RequestEnvelope(
        protocol="dicom",
        method=request.operation,
        uri=f"dicom://{association.called_aet}/{asked.service}/{request.sop_instance_uid}",
        path="/",
        body=ManagedBody(text, request),
        headers={"content-type": DICOM_JSON},
        metadata={
            "dimse_op": asked.service,
            "called_aet": association.called_aet,
            "calling_aet": association.calling_aet,
            "peer_address": association.peer,
            "association_id": association.id,
            "sop_class_uid": request.sop_class_uid,
            "sop_instance_uid": request.sop_instance_uid,
            **metadata,
        },
        normalized=json.loads(text),
        id=request_id,
        caller=Caller(association.peer, association.certificate, association.calling_aet),
    )
