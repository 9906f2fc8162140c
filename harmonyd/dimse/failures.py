"""What went wrong at a remote node, in the same words whichever engine noticed; and what its final status means."""

from __future__ import annotations

from dataclasses import asdict

from harmonyd.dimse import status as dimse_status
from harmonyd.dimse.engine import Outcome, RemoteNode, SubOperations
from harmonyd.dimse.errors import (
    AssociationAborted,
    AssociationRejected,
    DimseFailure,
    DimseTimeout,
    NonsenseAnswer,
    NoPresentationContext,
    RemoteUnreachable,
)


def node_text(remote: RemoteNode) -> str:
    """A node for people."""
    return f"{remote.aet}@{remote.host}:{remote.port}"


# --- a final response


def outcome_of(
    operation: str, status: int, comment: str | None, suboperations: SubOperations, remote: RemoteNode
) -> Outcome:
    """The outcome of an operation (echo, find, get, move, store) that ended with this final response.

    Raises ``DimseFailure`` for everything but Success and Warning.
    """
    category = dimse_status.category(status)
    # C-ECHO has no warning status (PS3.7 section 9.1.5.1.4).
    is_warning = category is dimse_status.StatusCategory.WARNING and operation != "echo"
    if category is not dimse_status.StatusCategory.SUCCESS and not is_warning:
        raise failure_status(operation, status, comment, suboperations, remote)
    outcome = Outcome(
        status=status,
        status_text=dimse_status.text(operation, status),
        comment=comment,
        suboperations=suboperations if suboperations != SubOperations() else None,
    )
    if is_warning and operation == "find":
        # Nothing says what the warning is about: matches may be missing.
        outcome.incomplete(ended_with(outcome))
    return outcome


def ended_with(outcome: Outcome) -> str:
    """The final status of an operation in words, for ``incomplete_reason``."""
    return f"the PACS ended with status 0x{outcome.status or 0:04X} ({outcome.status_text})"


def failure_status(
    operation: str, status: int, comment: str | None, suboperations: SubOperations, remote: RemoteNode
) -> DimseFailure:
    """The error for a failure or cancel status in a response."""
    error = DimseFailure.from_status(
        f"C-{operation.upper()} at {node_text(remote)}", status, dimse_status.text(operation, status), comment
    )
    error.hint = _status_hint(operation, status)
    if suboperations != SubOperations():
        error.extra["suboperations"] = asdict(suboperations)
    return error


_RESOURCES_HINT = "The PACS is out of resources: ask for less at once, or its operator for the reason."
_KEYS_HINT = "The PACS does not accept this combination of keys and level; try another query_model or fewer keys."
_STATUS_HINTS = {
    ("move", 0xA801): "The PACS does not know the move destination: add our move_destination_aet with this host and "
    "incoming_store_port to its host table.",
    ("move", 0xA702): "The PACS could not deliver: check that its host table entry for our move_destination_aet has "
    "this host and incoming_store_port, and that no firewall is in between.",
    ("get", 0xA702): "The PACS could not deliver over this association: its log says why. With the dcmtk engine, "
    "instances that it stores compressed need a move: its get takes them uncompressed only.",
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


# --- no final response


def unknown_host(remote: RemoteNode) -> RemoteUnreachable:
    """Its name has no address."""
    return RemoteUnreachable(f"The host name {remote.host} is unknown", hint="Correct the backend's host, or DNS.")


def unreachable(remote: RemoteNode, why: str) -> RemoteUnreachable:
    """No TCP connection."""
    return RemoteUnreachable(
        f"Cannot connect to {node_text(remote)}: {why}",
        hint="Check that the PACS runs and that the backend's host and port are its own.",
    )


def connect_timeout(remote: RemoteNode) -> DimseTimeout:
    """No TCP connection, and no word why."""
    return DimseTimeout(
        f"No TCP connection to {node_text(remote)} within {remote.connect_timeout_secs:g} s",
        hint="Check host, port, routing and firewall between here and the PACS.",
        timeout="connect",
    )


def rejected(remote: RemoteNode, result: str, source: str, reason: str) -> AssociationRejected:
    """An A-ASSOCIATE-RJ (PS3.8 table 9-21), in words that DCMTK uses too."""
    hints = {
        # dcmqrscp says so of a caller that is not in its table, too.
        "Called AE Title Not Recognized": f"Change the backend's aet (now {remote.aet}) to the AE title of the PACS; "
        f"if it is right, add our AE title {remote.local_aet} to the nodes the PACS accepts.",
        "Calling AE Title Not Recognized": f"Add our AE title {remote.local_aet} to the nodes the PACS accepts.",
    }
    return AssociationRejected(
        f"{node_text(remote)} rejected the association: {reason} ({result}, {source})",
        hint=hints.get(reason) or _rejected_hint(result),
        reject_result=result,
        reject_source=source,
        reject_reason=reason,
    )


def _rejected_hint(result: str) -> str:
    if "Transient" in result:
        return "The PACS is busy, or at one of its limits: try again later, or lower max_associations."
    return "The PACS does not want this association at all: its log says why."


def no_context(remote: RemoteNode) -> NoPresentationContext:
    """The association stands, and none of the presentation contexts that the operation needs."""
    return NoPresentationContext(
        f"{node_text(remote)} accepts no presentation context for this operation",
        hint="The PACS does not offer this service (or query model) to us; enable it there, or use another operation.",
    )


def silence(remote: RemoteNode, *, accepted: bool) -> DimseTimeout:
    """Nothing came for as long as is allowed; ``accepted``: the association stood."""
    waited = "its next DIMSE message" if accepted else "its answer to the association request"
    return DimseTimeout(
        f"{node_text(remote)} was silent for {remote.association_timeout_secs:g} s; {waited} did not come",
        hint="The PACS is up but does not answer; look at its load and its log, or raise association_timeout_ms.",
        timeout="dimse" if accepted else "association",
    )


def nonsense(remote: RemoteNode, text: str, *, accepted: bool) -> NonsenseAnswer:
    """What came cannot be, or not now."""
    not_dicom = "Check that host and port are those of the PACS's DICOM listener (not HTTP, not TLS)."
    error = NonsenseAnswer(
        f"What answers at {node_text(remote)} does not speak DICOM correctly: {text}",
        hint="The PACS broke the protocol: its log, and its vendor, say why." if accepted else not_dicom,
    )
    error.associated = accepted
    return error


def aborted(remote: RemoteNode, *, accepted: bool) -> AssociationAborted:
    """An A-ABORT, or a connection that dropped."""
    when = "during the operation" if accepted else "before it was established"
    perhaps = _MAY_WANT_TLS if remote.tls is None else _MAY_WANT_CERTIFICATE
    error = AssociationAborted(
        f"{node_text(remote)} aborted the association, or dropped the connection, {when}",
        hint="The PACS ended it: its log says why." + ("" if accepted else perhaps),
    )
    error.associated = accepted
    return error


_MAY_WANT_TLS = ' A port that needs TLS ends it like this, too: then use_tls = true is needed.'
_MAY_WANT_CERTIFICATE = " It may also want a certificate of ours, or another one, and not say so."
