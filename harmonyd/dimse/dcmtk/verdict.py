"""What a finished DCMTK program's log and exit mean: an error of ours, or the final response.

Measured with DCMTK 3.6.7: findscu exits 0 after a failure status, an abort, a dropped connection and a DIMSE timeout;
getscu exits 0 after any C-GET status; movescu exits 0 after an abort. So a success is a final response with status
Success and nothing else; exit codes only help to name what went wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from harmonyd.dimse import failures
from harmonyd.dimse.dcmtk.log import ToolLog
from harmonyd.dimse.engine import Outcome, RemoteNode
from harmonyd.dimse.errors import DimseError, EngineFailed
from harmonyd.errors import HarmonydError
from harmonyd.privacy import complaint
from harmonyd.supervision.api import ExitRecord

_CONDITION = re.compile(r"\b([0-9a-f]{4}):([0-9a-f]{4}) (.*)")
_REJECTED = re.compile(r"Result: (.*?), Source: (.*)")
_REASON = re.compile(r"Reason: (.*)")
_NO_CONTEXT = re.compile(r"\bNo (?:acceptable |adequate |valid )?presentation context", re.IGNORECASE)

# Codes of dcmnet's conditions (dcmtk/dcmnet/cond.h), in hexadecimal.
_TCP_INIT, _UNKNOWN_HOST = "031c", "0320"
_SILENCE = frozenset({"0207", "031a"})
_PROTOCOL = frozenset(
    {
        *("0201", "0202", "0203", "020b", "020f", "0210", "0211", "0212"),  # a DIMSE message that cannot be right
        *("0302", "0303", "0307", "0308", "0309", "030a", "030c", "030f"),  # a PDU that cannot be right, or not now
        *("0318", "031f", "0321", "0322", "0323", "0327"),
    }
)
_GONE = frozenset({"020c", "020d", "020e", "0310", "0317", "0319", "031b", _TCP_INIT, "031d"})


def final_outcome(operation: str, kind: str, log: ToolLog, record: ExitRecord, remote: RemoteNode) -> Outcome:
    """The outcome of an operation that ended with a Success or Warning response of ``kind``.

    Raises what the log says went wrong otherwise: a ``DimseError``, ``DimseTimeout`` or ``EngineFailed``.
    """
    response = log.final(kind)
    if response is None or response.status is None:
        raise failure(operation, log, record, remote)
    return failures.outcome_of(operation, response.status, response.comment, response.suboperations, remote)


def failure(operation: str, log: ToolLog, record: ExitRecord, remote: RemoteNode) -> HarmonydError:
    """The error for a run that has no final response."""
    complaints = log.complaints
    if record.ended_because:
        return EngineFailed(f"The DCMTK program for C-{operation.upper()} was ended: {record.ended_because}")
    return (
        _rejected(complaints, remote)
        or _no_context(complaints, remote)
        or _condition(complaints, remote, accepted=log.accepted)
        or _tool_failure(operation, log, record)
    )


def _rejected(complaints: Sequence[str], remote: RemoteNode) -> HarmonydError | None:
    said = next((found for line in complaints if (found := _REJECTED.search(line))), None)
    if said is None:
        return None
    reason = next((found[1].strip() for line in complaints if (found := _REASON.search(line))), "no reason given")
    return failures.rejected(remote, said[1].strip(), said[2].strip(), reason)


def _no_context(complaints: Sequence[str], remote: RemoteNode) -> HarmonydError | None:
    return failures.no_context(remote) if any(_NO_CONTEXT.search(line) for line in complaints) else None


def _condition(complaints: Sequence[str], remote: RemoteNode, *, accepted: bool) -> HarmonydError | None:
    """The most telling OFCondition among the complaints (module 0006 is dcmnet); a cause stands inside its effect."""
    found = [(match[2], match[3]) for line in complaints for match in _CONDITION.finditer(line) if match[1] == "0006"]
    for look in (_unreachable, _timed_out, _nonsense, _aborted):
        for code, text in found:
            error = look(code, text, remote, accepted)
            if error is not None:
                return error
    if found:
        code, text = found[0]
        return DimseError(f"The association with {failures.node_text(remote)} failed: {text} (0006:{code})")
    return None


def _unreachable(code: str, text: str, remote: RemoteNode, accepted: bool) -> HarmonydError | None:
    if code == _UNKNOWN_HOST or (code == _TCP_INIT and "nknown host" in text):
        return failures.unknown_host(remote)
    if code != _TCP_INIT or accepted:
        return None
    if "imeout" in text or "timed out" in text:
        return failures.connect_timeout(remote)
    return failures.unreachable(remote, text.rsplit(":", 1)[-1].strip())


def _timed_out(code: str, _text: str, remote: RemoteNode, accepted: bool) -> HarmonydError | None:
    return failures.silence(remote, accepted=accepted) if code in _SILENCE else None


def _nonsense(code: str, text: str, remote: RemoteNode, accepted: bool) -> HarmonydError | None:
    return failures.nonsense(remote, text, accepted=accepted) if code in _PROTOCOL else None


def _aborted(code: str, _text: str, remote: RemoteNode, accepted: bool) -> HarmonydError | None:
    return failures.aborted(remote, accepted=accepted) if code in _GONE else None


def _tool_failure(operation: str, log: ToolLog, record: ExitRecord) -> HarmonydError:
    if record.signal is not None:
        how = f"was ended by signal {record.signal}"
    else:
        how = f"exited with {record.exit_code} and no final response"
    lines = (log.complaints or log.other)[-3:]
    said = " / ".join(complaint(line.encode()).decode("utf-8", "replace") for line in lines)
    return EngineFailed(
        f"The DCMTK program for C-{operation.upper()} {how}" + (f": {said}" if said else ""),
        exit_code=record.exit_code,
        signal=record.signal,
    )
