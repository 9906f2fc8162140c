"""What the PACS accepts: services, storage classes, transfer syntaxes (PS3.8 section 9.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pydicom.uid import UID

from harmonyd.dimse.engine import QueryModel
from harmonyd.dimse.errors import NonsenseAnswer
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.blocking import BlockingAssociation, connected
from harmonyd.doctor.case import Case
from harmonyd.doctor.remedies import lines_for
from harmonyd.doctor.report import Result, Side, Step, failed
from harmonyd.errors import HarmonydError

_ROOTS = {QueryModel.STUDY_ROOT: "Study Root", QueryModel.PATIENT_ROOT: "Patient Root"}
_KINDS = {"FIND": names.FIND, "GET": names.GET, "MOVE": names.MOVE}
_SYNTAXES = {
    names.IMPLICIT_VR_LE: "Implicit VR LE",
    names.EXPLICIT_VR_LE: "Explicit VR LE",
    "1.2.840.10008.1.2.4.50": "JPEG Baseline",
    "1.2.840.10008.1.2.4.70": "JPEG Lossless",
    "1.2.840.10008.1.2.4.80": "JPEG-LS Lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 Lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.5": "RLE",
}
_CLASSES = {
    "CT": "2",
    "Enhanced CT": "2.1",
    "MR": "4",
    "Enhanced MR": "4.1",
    "CR": "1",
    "DX": "1.1",
    "MG": "1.2",
    "US": "6.1",
    "US multi-frame": "3.1",
    "XA": "12.1",
    "NM": "20",
    "PET": "128",
    "SC": "7",
    "SR": "88.11",
    "PDF": "104.1",
}
"""With 8 syntaxes, 120 presentation contexts, of which an association has at most 128."""
_STORAGE_ROOT = "1.2.840.10008.5.1.4.1.1."
_REASONS: dict[int, str] = {
    core.ContextResult.USER_REJECTION: "rejected by the user",
    core.ContextResult.NO_REASON: "no reason given",
    core.ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED: "abstract syntax not supported",
    core.ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED: "transfer syntaxes not supported",
}
"""Why a presentation context was not accepted (PS3.8 table 9-18)."""


def association(case: Case) -> Step:
    """The services, and who answers."""
    try:
        accepted = case.open().accepted
    except HarmonydError as error:
        return _not_associated(case, error)
    details = {"contexts": [_context(context) for context in accepted.contexts], **_peer(accepted)}
    offered = {context.abstract_syntax for context in accepted.contexts.accepted()}
    who = accepted.user_information.implementation_version_name or "a PACS without a name"
    size = f"max PDU {accepted.peer_max_pdu or 'unlimited'}"
    text = f"{_offer_text(offered)}; {who}, {size}"
    result, hint, side = _judged(case, offered)
    return Step("association", result, text, hint, side, details=details)


def _not_associated(case: Case, error: HarmonydError) -> Step:
    step = failed("association", error)
    if isinstance(error, NonsenseAnswer):
        return replace(step, side=Side.HARMONYD)  # most probably host and port are those of something else
    if "AE Title" not in str(error.extra.get("reject_reason", "")):
        return step
    return replace(step, lines=lines_for(case.remote.local_aet, case.our_address, case.options.incoming_store_port))


def _peer(accepted: core.Accepted) -> dict[str, Any]:
    info = accepted.user_information
    return {
        "max_pdu": accepted.peer_max_pdu,
        "implementation_class_uid": info.implementation_class_uid,
        "implementation_version_name": info.implementation_version_name,
    }


def _context(context: core.Context) -> dict[str, Any]:
    return {
        "name": UID(context.abstract_syntax).name,
        "abstract_syntax": context.abstract_syntax,
        "accepted": context.accepted,
        "transfer_syntax": context.transfer_syntax or None,
        "reason": None if context.accepted else _REASONS.get(context.result, f"result {context.result}"),
    }


def _offer_text(offered: set[str]) -> str:
    parts = ["C-ECHO"] if names.VERIFICATION in offered else []
    for model, root in _ROOTS.items():
        if kinds := [f"C-{kind}" for kind, uids in _KINDS.items() if uids[model] in offered]:
            parts.append(f"{root} {', '.join(kinds)}")
    return "accepts " + ("; ".join(parts) or "none of C-ECHO, C-FIND, C-GET and C-MOVE")


def _judged(case: Case, offered: set[str]) -> tuple[Result, str | None, Side | None]:
    missing = list(_missing(case, offered))
    if not missing:
        return Result.OK, None, None
    bad = case.is_asked and missing != ["C-ECHO"]
    hint = f"Enable {', '.join(missing)} for {case.remote.local_aet} at the PACS."
    mode, other = ("move", "get") if case.options.dimse_retrieve_mode == "move" else ("get", "move")
    if f"C-{mode.upper()}" in " ".join(missing) and _KINDS[other.upper()][case.model] in offered:
        hint += f' Or set dimse_retrieve_mode = "{other}", which it offers.'
    if not case.is_asked:
        hint += " It is only sent to here: that needs none of them."
    return Result.ERROR if bad else Result.WARNING, hint, Side.PACS


def _missing(case: Case, offered: set[str]) -> Iterator[str]:
    if names.VERIFICATION not in offered:
        yield "C-ECHO"
    for kind in ("FIND", case.options.dimse_retrieve_mode.upper()):
        if _KINDS[kind][case.model] not in offered:
            yield f"C-{kind} ({_ROOTS[case.model]})"


def storage(case: Case) -> Step:
    """What may be sent to it, and what it would send in a C-GET. In an association of its own: nothing is sent."""
    classes = {name: _STORAGE_ROOT + end for name, end in _CLASSES.items()}
    proposed = [(uid, (syntax,)) for uid in classes.values() for syntax in _SYNTAXES]
    roles = [core.RoleSelection(uid, True, True) for uid in classes.values()]
    case.release()
    try:
        with BlockingAssociation(connected(case.remote, case.address), case.remote, proposed, roles) as made:
            contexts = made.accepted.contexts
            made.release()
    except HarmonydError as error:
        return failed("storage", error)
    found = [_storage_class(name, uid, contexts) for name, uid in classes.items()]
    details = {"classes": found}
    taken = [one for one in found if one["store"]]
    returned = [one for one in found if one["get"]]
    if not taken and not returned:
        hint = "Enable storage for our AE title at the PACS, if objects are to be sent to it or come back in a C-GET."
        return Step("storage", Result.WARNING, "accepts no storage class", hint, Side.PACS, details=details)
    syntaxes = [name for uid, name in _SYNTAXES.items() if any(uid in one["store"] for one in taken)]
    text = f"takes {len(taken)} of {len(found)} common storage classes"
    text += f" in {', '.join(syntaxes)}" if syntaxes else ""
    text += f"; sends {len(returned)} of them in a C-GET"
    return Step("storage", Result.OK, text, details=details)


def _storage_class(name: str, uid: str, contexts: core.Contexts) -> dict[str, Any]:
    accepted = list(contexts.accepted(uid))
    return {
        "name": name,
        "sop_class_uid": uid,
        "store": [context.transfer_syntax for context in accepted if context.requestor_scu],
        "get": [context.transfer_syntax for context in accepted if context.requestor_scp],
    }
