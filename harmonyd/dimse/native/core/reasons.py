"""Rejections and aborts in words (PS3.8 tables 9-21 and 9-26); where DCMTK has words for them, in DCMTK's."""

from __future__ import annotations

from harmonyd.dimse.native.core.errors import AbortSource

RESULTS = {1: "Rejected Permanent", 2: "Rejected Transient"}
SOURCES = {
    1: "Service User",
    2: "Service Provider (ACSE Related)",
    3: "Service Provider (Presentation Related)",
}
REASONS = {
    (1, 1): "No Reason",
    (1, 2): "Application Context Name Not Supported",
    (1, 3): "Calling AE Title Not Recognized",
    (1, 7): "Called AE Title Not Recognized",
    (2, 1): "No Reason",
    (2, 2): "Protocol Version Not Supported",
    (3, 1): "Temporary Congestion",
    (3, 2): "Local Limit Exceeded",
}
"""By source and reason."""
ABORT_REASONS = {
    0: "reason not specified",
    1: "unrecognized PDU",
    2: "unexpected PDU",
    4: "unrecognized PDU parameter",
    5: "unexpected PDU parameter",
    6: "invalid PDU parameter value",
}


def rejection_text(result: int, source: int, reason: int) -> str:
    """For people."""
    parts = (
        RESULTS.get(result, f"Rejected ({result})"),
        SOURCES.get(source, f"Source {source}"),
        REASONS.get((source, reason), f"Reason {reason}"),
    )
    return ", ".join(parts)


def abort_text(source: int, reason: int) -> str:
    """For people: what a peer's A-ABORT says. The reason means something only when its service provider aborts."""
    if source == AbortSource.SERVICE_PROVIDER:
        return f"aborted by the peer's service provider: {ABORT_REASONS.get(reason, f'reason {reason}')}"
    return "aborted by the peer"
