"""A C-FIND, C-GET or C-MOVE that a caller asks us for, as an envelope for its endpoint's pipeline.

Middleware sees the identifier as DICOM JSON in ``normalized``, and may change it there. A dicom backend that gets it
unchanged sends the caller's own bytes, in the same information model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from harmonyd.bodies import BytesBody
from harmonyd.dimse import wire
from harmonyd.dimse.engine import Query, QueryModel, Received
from harmonyd.dimse.keyset import KeyReader, Scope, build
from harmonyd.dimse.serving import Asked
from harmonyd.envelope import RequestEnvelope
from harmonyd.subject import Caller
from harmonyd.tracing import note, of_association

DICOM_JSON = "application/dicom+json"
IDENTIFIER_PREFIX = "identifier."
ONCE = "retrieve_once"
""""true" in the metadata of a retrieve: what it brings is passed on file by file, and kept for nobody."""


class IdentifierBody(BytesBody):
    """The identifier of a caller: as DICOM JSON for whoever reads a body, and as it came. Read any number of times."""

    def __init__(self, text: bytes, model: QueryModel, received: Received) -> None:
        super().__init__(text)
        self._text = text
        self._received = received
        self.model = model

    def document(self, request: RequestEnvelope) -> Any:
        """The identifier as middleware left it."""
        return json.loads(self._text) if request.normalized is None else request.normalized

    def query(self, request: RequestEnvelope, more: Mapping[str, str] = MappingProxyType({})) -> Query:
        """What a backend is to ask, with ``more`` keys and those that middleware forces. Raises ``IdentifierError``."""
        document = self.document(request)
        forced = dict(more) | {
            name.removeprefix(IDENTIFIER_PREFIX): value
            for name, value in request.metadata.items()
            if name.startswith(IDENTIFIER_PREFIX)
        }
        # Rules of access look at all keys, and add some: those are encoded anew.
        if not forced and request.permit is None and document == json.loads(self._text):
            return wire.query_of(document, self.model, self._received)
        query = wire.changed_query(document, self.model)
        if forced:
            scope: Scope = {}
            KeyReader().read(forced, scope)
            query.dataset.update(build(scope))
        return query


def request_for(asked: Asked, request_id: str, operation: str, **metadata: str) -> RequestEnvelope:
    """The envelope; ``operation`` is what a dicom backend is told to do. Raises ``MalformedDataset``."""
    received = Received(asked.identifier, asked.transfer_syntax_uid)
    text = wire.json_of(received)
    association = asked.association
    trace = of_association(association.id)
    if trace is not None:
        note(request_id, trace.trace_id)
    return RequestEnvelope(
        protocol="dicom",
        method=f"C-{asked.operation.upper()}",
        uri=f"dicom://{association.called_aet}/{asked.operation}",
        path="/",
        body=IdentifierBody(text, asked.model, received),
        headers={"content-type": DICOM_JSON},
        metadata={
            "dimse_op": operation,
            "called_aet": association.called_aet,
            "calling_aet": association.calling_aet,
            "peer_address": association.peer,
            "association_id": association.id,
            "query_model": asked.model.value,
            **metadata,
        },
        normalized=json.loads(text),
        id=request_id,
        caller=Caller(association.peer, association.certificate, association.calling_aet),
        trace=trace,
    )
