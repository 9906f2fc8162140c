"""What a request asks a dicom backend to do: which operation, and with which identifier."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from harmonyd.config.model import DicomBackendOptions
from harmonyd.dimse.engine import Query, QueryModel
from harmonyd.dimse.identifier import decode_json, parse_query, requested_operation
from harmonyd.dimse.wire import changed_query, require_key
from harmonyd.dimse.worklist import parse_worklist
from harmonyd.envelope import RequestEnvelope
from harmonyd.errors import BadRequest, MethodNotAllowed, NotFound, UnsupportedMediaType
from harmonyd.services.dicom.asked import IDENTIFIER_PREFIX, IdentifierBody
from harmonyd.services.dicom.managed import ManagedBody
from harmonyd.services.dicom.selectivity import check_selective

OPERATIONS = ("echo", "find", "worklist", "get", "move", "store", "commit")
WORKLIST, COMMIT, STEPS = "worklist", "commit", "mpps"
"""The last is what only a caller of a dicom endpoint can ask for."""
RETRIEVE = "retrieve"
"""Set by an endpoint that leaves the choice between get and move to the backend's ``dimse_retrieve_mode``."""
JSON_LIMIT_BYTES = 100_000_000
"""A last bound; the front end has applied ``max_json_bytes`` already."""


def operation_in_path(request: RequestEnvelope) -> str | None:
    """The operation set by middleware, else the last segment of the path; None when the path is the prefix itself.

    Raises ``NotFound`` for a segment that names no operation, ``MethodNotAllowed`` for anything but POST.
    """
    chosen = request.metadata.get("dimse_op")
    if chosen is not None:
        return chosen
    last = request.path.rstrip("/").rpartition("/")[2]
    if last and last not in OPERATIONS:
        raise NotFound("There is no such operation here", hint=f"Operations: {', '.join(OPERATIONS)}.")
    if request.protocol == "http" and request.method != "POST":
        raise MethodNotAllowed("DIMSE operations are asked for with POST", allow=["POST"])
    return last or None


async def read_document(request: RequestEnvelope) -> Any:
    """The request body as decoded JSON, None when it is empty.

    Raises ``UnsupportedMediaType``, ``PayloadTooLarge`` or ``BadRequest``.
    """
    if isinstance(request.body, IdentifierBody | ManagedBody):
        return request.body.document(request)
    if request.body.length == 0:
        return None
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise UnsupportedMediaType(
            f"This operation reads JSON, not {kind[:100]}",
            hint="Send 'Content-Type: application/json'; curl does so with --json, but not with -d alone.",
        )
    data = await request.body.read(JSON_LIMIT_BYTES)
    return decode_json(data) if data.strip() else None


def settle_operation(in_path: str | None, document: Any, *, fixed: bool) -> str:
    """The operation of path and body together; ``fixed``: middleware set it, and the body cannot contradict.

    Raises ``BadRequest`` when they differ, or when neither names one.
    """
    in_body = requested_operation(document)
    if in_path is not None and in_body is not None and in_path != in_body:
        if fixed:
            return in_path
        raise BadRequest(f"The path asks for {in_path}, the body for {in_body}", hint="Make them agree.")
    operation = in_path or in_body
    if operation is None:
        raise BadRequest(
            "The request names no operation",
            hint=f'POST to {{prefix}}/OPERATION ({", ".join(OPERATIONS)}), or put "operation" into the body.',
        )
    return operation


def build_query(
    request: RequestEnvelope,
    document: Any,
    operation: str,
    options: DicomBackendOptions,
    more: Mapping[str, str] | None = None,
) -> Query:
    """The validated identifier, with ``more`` keys and those that middleware forces.

    Raises ``IdentifierError``, ``TooBroad``.
    """
    if isinstance(request.body, IdentifierBody):
        return _callers_query(request.body, request, operation, options, more or {})
    forced = dict(more or {}) | {
        key.removeprefix(IDENTIFIER_PREFIX): value
        for key, value in request.metadata.items()
        if key.startswith(IDENTIFIER_PREFIX)
    }
    if operation == WORKLIST:
        return parse_worklist(document, forced)
    model = QueryModel(options.query_model) if options.query_model else None
    destination = options.move_destination_aet if operation == "move" else None
    query = parse_query(document, operation=operation, model=model, forced=forced, destination=destination)
    if operation == "find" and options.selectivity is not None:
        check_selective(query, options.selectivity, datetime.date.today())
    return query


def _callers_query(
    body: IdentifierBody,
    request: RequestEnvelope,
    operation: str,
    options: DicomBackendOptions,
    more: Mapping[str, str],
) -> Query:
    query = body.query(request, more)
    if operation != "find":
        require_key(query)
    elif options.selectivity is not None and query.model is not QueryModel.WORKLIST:
        all_keys = query if query.received is None else changed_query(body.document(request), query.model)
        check_selective(all_keys, options.selectivity, datetime.date.today())
    return query
