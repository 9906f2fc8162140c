"""What a finished DCMTK program's log and exit mean: an error of ours, or the final response.

Measured with DCMTK 3.6.7: findscu exits 0 after a failure status, an abort, a dropped connection and a DIMSE timeout;
getscu exits 0 after any C-GET status; movescu exits 0 after an abort. So a success is a final response with status
Success and nothing else; exit codes only help to name what went wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict

from harmonyd.dimse import status as dimse_status
from harmonyd.dimse.dcmtk.log import Response, ToolLog
from harmonyd.dimse.engine import Outcome, RemoteNode, SubOperations
from harmonyd.dimse.errors import (
    AssociationAborted,
    AssociationRejected,
    DimseError,
    DimseFailure,
    DimseTimeout,
    EngineFailed,
    NonsenseAnswer,
    NoPresentationContext,
    RemoteUnreachable,
)
from harmonyd.errors import HarmonydError
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
    category = dimse_status.category(response.status)
    # C-ECHO has no warning status (PS3.7 section 9.1.5.1.4).
    is_warning = category is dimse_status.StatusCategory.WARNING and operation != "echo"
    if category is not dimse_status.StatusCategory.SUCCESS and not is_warning:
        raise failure_status(operation, response, remote)
    outcome = Outcome(
        status=response.status,
        status_text=dimse_status.text(operation, response.status),
        comment=response.comment,
        suboperations=response.suboperations if response.suboperations != SubOperations() else None,
    )
    if is_warning and operation == "find":
        # Nothing says what the warning is about: matches may be missing.
        outcome.incomplete(ended_with(outcome))
    return outcome


def ended_with(outcome: Outcome) -> str:
    """The final status of an operation in words, for ``incomplete_reason``."""
    said = f"; it says: {outcome.comment}" if outcome.comment else ""
    return f"the PACS ended with status 0x{outcome.status or 0:04X} ({outcome.status_text}{said})"


def failure_status(operation: str, response: Response, remote: RemoteNode) -> DimseFailure:
    """The error for a failure or cancel status in a response."""
    status = response.status or 0
    error = DimseFailure.from_status(
        f"C-{operation.upper()} at {_node(remote)}", status, dimse_status.text(operation, status), response.comment
    )
    error.hint = _status_hint(operation, status)
    if response.suboperations != SubOperations():
        error.extra["suboperations"] = asdict(response.suboperations)
    return error


_RESOURCES_HINT = "The PACS is out of resources: ask for less at once, or its operator for the reason."
_KEYS_HINT = "The PACS does not accept this combination of keys and level; try another query_model or fewer keys."
_STATUS_HINTS = {
    ("move", 0xA801): "The PACS does not know the move destination: add our move_destination_aet with this host and "
    "incoming_store_port to its host table.",
    ("move", 0xA702): "The PACS could not deliver: check that its host table entry for our move_destination_aet has "
    "this host and incoming_store_port, and that no firewall is in between.",
    ("get", 0xA702): "The PACS could not deliver over this association: its log says why. Instances that it stores "
    "compressed need a move: a get takes them uncompressed only.",
    ("find", 0xA700): "The PACS is out of resources: narrow the query, or ask its operator for the reason.",
}
_GENERAL_HINTS = {
    0xA700: _RESOURCES_HINT,
    0xA701: _RESOURCES_HINT,
    0xA900: _KEYS_HINT,
    0x0122: "The PACS does not offer this service to us; enable it there.",
    0x0124: "The PACS does not let us do this: grant it to our AE title there.",
    dimse_status.CANCEL: "The PACS cancelled the operation, though we did not ask it to; its log says why.",
}


def _status_hint(operation: str, status: int) -> str:
    specific = _STATUS_HINTS.get((operation, status)) or _GENERAL_HINTS.get(status)
    return specific or "The PACS answered, but could not do it: its log says why."


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


def _node(remote: RemoteNode) -> str:
    return f"{remote.aet}@{remote.host}:{remote.port}"


def _rejected(complaints: Sequence[str], remote: RemoteNode) -> HarmonydError | None:
    said = next((found for line in complaints if (found := _REJECTED.search(line))), None)
    if said is None:
        return None
    reason = next((found[1].strip() for line in complaints if (found := _REASON.search(line))), "no reason given")
    hints = {
        # dcmqrscp says so of a caller that is not in its table, too.
        "Called AE Title Not Recognized": f"Change the backend's aet (now {remote.aet}) to the AE title of the PACS; "
        f"if it is right, add our AE title {remote.local_aet} to the nodes the PACS accepts.",
        "Calling AE Title Not Recognized": f"Add our AE title {remote.local_aet} to the nodes the PACS accepts.",
    }
    return AssociationRejected(
        f"{_node(remote)} rejected the association: {reason} ({said[1].strip()}, {said[2].strip()})",
        hint=hints.get(reason) or _rejected_hint(said[1]),
        reject_result=said[1].strip(),
        reject_source=said[2].strip(),
        reject_reason=reason,
    )


def _rejected_hint(result: str) -> str:
    if "Transient" in result:
        return "The PACS is busy, or at one of its limits: try again later, or lower max_associations."
    return "The PACS does not want this association at all: its log says why."


def _no_context(complaints: Sequence[str], remote: RemoteNode) -> HarmonydError | None:
    if not any(_NO_CONTEXT.search(line) for line in complaints):
        return None
    return NoPresentationContext(
        f"{_node(remote)} accepts no presentation context for this operation",
        hint="The PACS does not offer this service (or query model) to us; enable it there, or use another operation.",
    )


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
        return DimseError(f"The association with {_node(remote)} failed: {text} (0006:{code})")
    return None


def _unreachable(code: str, text: str, remote: RemoteNode, accepted: bool) -> HarmonydError | None:
    if code == _UNKNOWN_HOST or (code == _TCP_INIT and "nknown host" in text):
        return RemoteUnreachable(f"The host name {remote.host} is unknown", hint="Correct the backend's host, or DNS.")
    if code != _TCP_INIT or accepted:
        return None
    if "imeout" in text or "timed out" in text:
        return DimseTimeout(
            f"No TCP connection to {_node(remote)} within {remote.connect_timeout_secs:g} s",
            hint="Check host, port, routing and firewall between here and the PACS.",
            timeout="connect",
        )
    why = text.rsplit(":", 1)[-1].strip()
    return RemoteUnreachable(
        f"Cannot connect to {_node(remote)}: {why}",
        hint="Check that the PACS runs and that the backend's host and port are its own.",
    )


def _timed_out(code: str, text: str, remote: RemoteNode, accepted: bool) -> HarmonydError | None:
    if code not in _SILENCE:
        return None
    phase = "dimse" if accepted else "association"
    waited = "its next DIMSE message" if accepted else "its answer to the association request"
    return DimseTimeout(
        f"{_node(remote)} was silent for {remote.association_timeout_secs:g} s; {waited} did not come",
        hint="The PACS is up but does not answer; look at its load and its log, or raise association_timeout_ms.",
        timeout=phase,
    )


def _nonsense(code: str, text: str, remote: RemoteNode, accepted: bool) -> HarmonydError | None:
    if code not in _PROTOCOL:
        return None
    not_dicom = "Check that host and port are those of the PACS's DICOM listener (not HTTP, not TLS)."
    return NonsenseAnswer(
        f"What answers at {_node(remote)} does not speak DICOM correctly: {text}",
        hint="The PACS broke the protocol: its log, and its vendor, say why." if accepted else not_dicom,
    )


def _aborted(code: str, text: str, remote: RemoteNode, accepted: bool) -> HarmonydError | None:
    if code not in _GONE:
        return None
    when = "during the operation" if accepted else "before it was established"
    return AssociationAborted(
        f"{_node(remote)} aborted the association, or dropped the connection, {when}",
        hint="The PACS ended it: its log says why.",
    )


def _tool_failure(operation: str, log: ToolLog, record: ExitRecord) -> HarmonydError:
    if record.signal is not None:
        how = f"was ended by signal {record.signal}"
    else:
        how = f"exited with {record.exit_code} and no final response"
    said = " / ".join((log.complaints or log.other)[-3:])
    return EngineFailed(
        f"The DCMTK program for C-{operation.upper()} {how}" + (f": {said}" if said else ""),
        exit_code=record.exit_code,
        signal=record.signal,
    )
