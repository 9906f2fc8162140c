"""Which DIMSE status a caller gets for what went wrong behind us (PS3.4 sections C.4.1.1.4, C.4.2.1.5 and C.4.3.1.4).

A status that a remote node answered with goes on as it is, with its comment.
"""

from __future__ import annotations

from collections.abc import Mapping

from harmonyd.dimse.elements import MalformedDataset
from harmonyd.dimse.errors import DimseFailure, NoPresentationContext
from harmonyd.dimse.serving import COMMIT, FIND, STEPS, NotServed
from harmonyd.dimse.status import (
    CANNOT_PERFORM,
    DOES_NOT_MATCH,
    INVALID_ATTRIBUTE_VALUE,
    NOT_AUTHORIZED,
    OUT_OF_RESOURCES,
    PROCESSING_FAILURE,
    RESOURCE_LIMITATION,
    SOP_CLASS_NOT_SUPPORTED,
    UNABLE_TO_PROCESS,
)
from harmonyd.errors import (
    BadRequest,
    DeadlinePassed,
    Fault,
    Forbidden,
    HarmonydError,
    StorageFull,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)

_BUSY = -1
"""Out of resources, of which C-FIND and the retrieves have one each."""
_BY_CLASS: Mapping[type[BaseException], int] = {
    MalformedDataset: UNABLE_TO_PROCESS,
    NoPresentationContext: SOP_CLASS_NOT_SUPPORTED,
    BadRequest: DOES_NOT_MATCH,
    Forbidden: NOT_AUTHORIZED,
    Unauthorized: NOT_AUTHORIZED,
    TooManyRequests: _BUSY,
    Unavailable: _BUSY,
    StorageFull: _BUSY,
    DeadlinePassed: UNABLE_TO_PROCESS,
}
"""The nearest class of an error decides; one that is not here is ``UNABLE_TO_PROCESS``."""
_BY_HTTP_STATUS: Mapping[int, int] = {
    400: DOES_NOT_MATCH,
    401: NOT_AUTHORIZED,
    403: NOT_AUTHORIZED,
    404: DOES_NOT_MATCH,
    422: DOES_NOT_MATCH,
    429: _BUSY,
    502: UNABLE_TO_PROCESS,
    503: _BUSY,
    507: _BUSY,
}
_NORMALIZED = (COMMIT, STEPS)
_NORMALIZED_STATUS: Mapping[int, int] = {
    _BUSY: RESOURCE_LIMITATION,
    UNABLE_TO_PROCESS: PROCESSING_FAILURE,
    DOES_NOT_MATCH: INVALID_ATTRIBUTE_VALUE,
}
"""DIMSE-N has other codes (PS3.7 Annex C)."""
OUR_FAULT = "our fault; the log says more"


def not_served(operation: str, error: HarmonydError) -> NotServed:
    """What a caller is told of an error."""
    said = error.extra.get("dimse_status")
    if isinstance(error, DimseFailure) and said:
        comment = error.extra.get("dimse_comment") or error.extra.get("dimse_status_text") or ""
        return NotServed(int(said, 16), comment, failed=_failed(error), is_quoted=True)
    status = next((_BY_CLASS[kind] for kind in type(error).__mro__ if kind in _BY_CLASS), UNABLE_TO_PROCESS)
    comment = error.detail if error.fault is not Fault.OURS or status == _BUSY else OUR_FAULT
    return NotServed(_of(operation, status), comment, failed=_failed(error))


def failed_here(operation: str) -> NotServed:
    """What a caller is told of what went wrong by our fault."""
    return NotServed(_of(operation, UNABLE_TO_PROCESS), OUR_FAULT)


def _failed(error: HarmonydError) -> int:
    """Sub-operations that a node says have failed."""
    counts = error.extra.get("suboperations")
    return (isinstance(counts, dict) and counts.get("failed")) or 0


def not_answered(operation: str, status: int) -> NotServed:
    """What a caller is told of an answer with an HTTP status that is no success."""
    code = _BY_HTTP_STATUS.get(status, UNABLE_TO_PROCESS)
    return NotServed(_of(operation, code), f"the answer of the pipeline has status {status}")


def _of(operation: str, status: int) -> int:
    if operation in _NORMALIZED:
        return _NORMALIZED_STATUS.get(status, status)
    if status != _BUSY:
        return status
    return OUT_OF_RESOURCES if operation == FIND else CANNOT_PERFORM
