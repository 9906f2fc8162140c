"""Several nodes asked as if they were one: queries go to all of them, retrieves to those that have it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from harmonyd.bodies import BytesBody
from harmonyd.dimse.engine import QueryModel
from harmonyd.dimse.levels import UNIQUE_KEYS
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import RemoteError
from harmonyd.permit import acting
from harmonyd.progress import without_records
from harmonyd.services.dicom import request as dicom_request
from harmonyd.services.dicom.asked import IdentifierBody
from harmonyd.services.dicom.backend import DicomBackend
from harmonyd.services.dicom.locating import Locator, Places
from harmonyd.services.dicom.merging import MergedResults, Source
from harmonyd.services.dicom.selectivity import TooBroad
from harmonyd.services.http.media import negotiate

LEFT_OUT = "fan_out_left_out"
"""Metadata: names of backends (with commas) that failed a question of the same request before."""


class FanOut:
    """Implements ``pipeline.Together`` for dicom backends. ``timeout_secs``: for each to answer a query."""

    def __init__(self, reactor: Any, timeout_secs: float) -> None:
        self._reactor = reactor
        self._timeout_secs = timeout_secs
        self._places = Places(reactor.seconds)

    async def send(self, request: RequestEnvelope, backends: Mapping[str, Any]) -> ResponseEnvelope:
        """A find is asked of all, a retrieve goes where the study is, and all else to the first.

        Raises what is wrong with the request, ``NoBackendAnswered``, and what a retrieve raises.
        """
        nodes = cast(Mapping[str, DicomBackend], backends)
        fixed = "dimse_op" in request.metadata
        in_path = dicom_request.operation_in_path(request)
        if in_path in ("store", "echo"):
            return await _first(_allowed(nodes, request, in_path)).send(request)
        document = await dicom_request.read_document(request)
        if not isinstance(request.body, IdentifierBody):
            request.body = BytesBody(b"" if document is None else json.dumps(document).encode())  # for each to read
        operation = dicom_request.settle_operation(in_path, document, fixed=fixed)
        nodes = _allowed(nodes, request, operation)
        if operation == "find":
            return await self._find(request, document, nodes)
        if operation in ("get", "move", dicom_request.RETRIEVE):
            asked = "get" if operation == dicom_request.RETRIEVE else operation
            query = dicom_request.build_query(request, document, asked, _first(nodes).options)
            return await Locator(self, request, operation, nodes, self._places).retrieve(query)
        return await _first(nodes).send(request)

    async def _find(
        self, request: RequestEnvelope, document: Any, nodes: Mapping[str, DicomBackend]
    ) -> ResponseEnvelope:
        media_type = negotiate("find", request.headers.get("accept"))
        try:
            query = dicom_request.build_query(request, document, "find", _first(nodes).options)
        except TooBroad as error:
            _first(nodes).too_broad(request, error)
            raise
        has_levels = query.model is not QueryModel.WORKLIST
        unique = f"{UNIQUE_KEYS[query.level][0]:08X}" if has_levels else None
        results = self.ask(request, nodes, media_type, unique)
        request.metadata["dimse_op"] = "find"
        try:
            await results.begin()
        except BaseException:
            await results.aclose()
            raise
        return ResponseEnvelope(results=results)

    def find(
        self, request: RequestEnvelope, nodes: Mapping[str, DicomBackend], document: Mapping[str, Any]
    ) -> MergedResults:
        """Ask these nodes a question of our own on behalf of ``request``; what several have comes several times."""
        body, headers = BytesBody(json.dumps(document).encode()), {"content-type": "application/json"}
        metadata = {name: value for name, value in request.metadata.items() if not name.startswith("identifier.")}
        metadata["dimse_op"] = "find"
        progress = without_records(request.progress)  # what is found here is not what was asked for
        permit = acting(request.permit, "retrieve")  # whoever may retrieve it may have it looked for
        asked = request.part(body=body, headers=headers, metadata=metadata, progress=progress, permit=permit)
        return self.ask(asked, nodes, "application/json", None)

    def ask(
        self, request: RequestEnvelope, nodes: Mapping[str, DicomBackend], media_type: str, unique: str | None
    ) -> MergedResults:
        """Begin to ask all nodes, but for those that failed before. The body of ``request`` is one in memory."""
        left_out = request.metadata.get(LEFT_OUT, "").split(",")
        sources = [self._source(request, name, node, left_out=name in left_out) for name, node in nodes.items()]
        return MergedResults(sources, media_type, unique)

    def _source(self, request: RequestEnvelope, name: str, node: DicomBackend, *, left_out: bool) -> Source:
        async def ask() -> ResponseEnvelope:
            if left_out:
                raise RemoteError("It failed a question of this request before.", backend=name)
            deadline = self._reactor.seconds() + self._timeout_secs
            if request.deadline is not None:
                deadline = min(deadline, request.deadline)
            return await node.send(request.part(deadline=deadline))

        return Source(name, node.options.aet, ask)


def _allowed(nodes: Mapping[str, DicomBackend], request: RequestEnvelope, operation: str) -> Mapping[str, DicomBackend]:
    """Those where the request may do this. Raises ``Forbidden`` or ``Unauthorized`` when it is none of them."""
    permit = request.permit
    if permit is None:
        return nodes
    allowed = {name: node for name, node in nodes.items() if permit.allows(operation, name)}
    if not allowed:
        permit.limits(operation, next(iter(nodes)))
    return allowed


def _first(nodes: Mapping[str, DicomBackend]) -> DicomBackend:
    return next(iter(nodes.values()))
