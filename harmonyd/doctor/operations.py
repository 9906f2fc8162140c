"""Operations that change nothing: C-ECHO, a C-FIND for one row, a C-MOVE of nothing."""

from __future__ import annotations

import secrets
import time
import uuid
from dataclasses import replace
from datetime import date

from pydicom.dataset import Dataset

from harmonyd.dimse import failures
from harmonyd.dimse import status as dimse_status
from harmonyd.dimse.engine import Query, QueryLevel, QueryModel, SubOperations
from harmonyd.dimse.errors import AssociationAborted
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.blocking import BlockingAssociation
from harmonyd.dimse.query_file import identifier
from harmonyd.dimse.status import StatusCategory
from harmonyd.doctor.case import Case
from harmonyd.doctor.receiver import NOBODY_ASKS
from harmonyd.doctor.remedies import lines_for
from harmonyd.doctor.report import Result, Side, Step, failed
from harmonyd.errors import HarmonydError

_UNKNOWN_DESTINATION, _NOT_DELIVERED = 0xA801, 0xA702
"""PS3.4 table C.4-2."""
_MAX_ROWS_AFTER_CANCEL = 500
"""That were under way when the PACS read our C-CANCEL; one that sends more ignores it."""


def echo(case: Case) -> Step:
    """C-ECHO (PS3.7 section 9.1.5), with its latency."""
    try:
        association = case.open()
        if association.accepted.contexts.find(names.VERIFICATION) is None:
            return Step("echo", Result.SKIPPED, "the PACS does not accept C-ECHO")
        began_at = time.monotonic()
        association.echo()
    except HarmonydError as error:
        return failed("echo", error)
    latency = round((time.monotonic() - began_at) * 1000, 1)
    return Step("echo", Result.OK, f"answered in {latency:g} ms", details={"latency_ms": latency})


def _broken_off(step: str, case: Case, error: HarmonydError) -> Step:
    found = failed(step, error)
    if not isinstance(error, AssociationAborted):
        return found
    us = case.remote.local_aet
    hint = f"{found.hint} Orthanc, for one, does so with a caller whom it does not know: enter {us} there, as below."
    return replace(found, hint=hint, lines=lines_for(us, case.our_address, case.options.incoming_store_port))


# --- C-FIND


def find(case: Case) -> Step:
    """One row at study level: of today, or, where that is refused, of a patient who does not exist."""
    keys = {"StudyDate": date.today().strftime("%Y%m%d"), "PatientID": f"HARMONYD{secrets.token_hex(12).upper()}"}
    if case.model is QueryModel.PATIENT_ROOT:
        del keys["StudyDate"]  # at study level PatientID is required there (PS3.4 section C.6.1.1.2)
    refusal: HarmonydError | None = None
    for key, value in keys.items():
        try:
            association = case.open()
            if association.accepted.contexts.find(names.FIND[case.model]) is None:
                return Step("find", Result.SKIPPED, f"the PACS does not accept C-FIND ({case.model.value} root)")
            status, rows = _rows(association, case, key, value)
            if not rows:
                failures.outcome_of("find", status, None, SubOperations(), case.remote)
        except HarmonydError as error:
            refusal = refusal or error
            if "dimse_status" not in error.extra:
                return _broken_off("find", case, error)
            continue
        return _found(case, key, status, rows, refusal)
    assert refusal is not None
    return failed("find", refusal, key=key)


def _found(case: Case, key: str, status: int, rows: int, refusal: HarmonydError | None) -> Step:
    details = {"key": key, "model": case.model.value, "rows": min(rows, 1), "status": f"0x{status:04X}"}
    what = "for studies of today" if key == "StudyDate" else "for a patient who does not exist"
    text = f"query {what} answered: " + ("one row read, the rest cancelled" if rows else "no row")
    if rows > _MAX_ROWS_AFTER_CANCEL:
        hint = "The PACS ignores C-CANCEL: a client that leaves does not end a query there. Its vendor can say why."
        return Step("find", Result.WARNING, text, hint, Side.PACS, details=details)
    if refusal is not None:
        text = f"{text}; for studies of today refused: {refusal.detail}"
        return Step("find", Result.WARNING, text, refusal.hint, Side.PACS, details=details)
    return Step("find", Result.OK, text, details=details)


def _rows(association: BlockingAssociation, case: Case, key: str, value: str) -> tuple[int, int]:
    """Final status, and how many rows came; what is in them is not looked at. Cancelled after the first one."""
    context = association.context(names.FIND[case.model])
    message_id = association.next_message_id()
    keys = _identifier(case, context, **{key: value, "StudyInstanceUID": ""})
    association.request(context, core.c_find_rq(message_id, context.abstract_syntax), keys)
    rows = 0
    while True:
        command, _ = association.response()
        status = command.status or 0
        if dimse_status.category(status) is not StatusCategory.PENDING:
            return status, rows
        rows += 1
        if rows == 1:
            association.request(context, core.c_cancel_rq(message_id))
        elif rows > _MAX_ROWS_AFTER_CANCEL:
            association.close()
            return status, rows


def _identifier(case: Case, context: core.Context, **keys: str) -> bytes:
    ds = Dataset()
    ds.QueryRetrieveLevel = QueryLevel.STUDY.value
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    query = Query(QueryLevel.STUDY, case.model, ds)
    return identifier(query, implicit=context.transfer_syntax == names.IMPLICIT_VR_LE)


# --- C-MOVE


def move(case: Case) -> Step:
    """Does the PACS know our destination? It is asked to move a study that does not exist.

    Many look at the destination only when there is something to move. So the same is asked for a destination that does
    not exist: only different answers prove anything.
    """
    destination = case.options.move_destination_aet
    control = None
    if not case.is_asked:
        return Step("move", Result.SKIPPED, NOBODY_ASKS)
    try:
        association = case.open()
        if association.accepted.contexts.find(names.MOVE[case.model]) is None:
            return Step("move", Result.SKIPPED, f"the PACS does not accept C-MOVE ({case.model.value} root)")
        status = _moved_nothing(association, case, destination)
        if status != _UNKNOWN_DESTINATION:
            control = _moved_nothing(case.open(), case, f"NOBODY{secrets.token_hex(4).upper()}")
    except HarmonydError as error:
        return _broken_off("move", case, error)
    return _judged(case, status, control)


def _judged(case: Case, status: int, control: int | None) -> Step:
    destination, port = case.options.move_destination_aet, case.options.incoming_store_port
    lines = lines_for(destination, case.our_address, port)
    details = {
        "destination": destination,
        "host": case.our_address,
        "port": port,
        "status": f"0x{status:04X}",
        "control_status": None if control is None else f"0x{control:04X}",
        "known": False if control is None else None,
    }
    secured = " with TLS" if case.options.incoming_store_tls is not None else ""
    if status == _UNKNOWN_DESTINATION:
        result, hint = Result.ERROR, f"Enter it in the host table of the PACS{secured}, as below."
        if not case.moves:
            result, hint = Result.WARNING, f"{hint} Only C-MOVE needs it; retrieves of this backend use C-GET."
        text = f"the PACS does not know the move destination {destination} (0xA801)"
        return Step("move", result, text, hint, Side.PACS, lines, details)
    failure = failures.failure_status("move", status, None, SubOperations(), case.remote)
    if status == _NOT_DELIVERED and control != status:
        result = Result.ERROR if case.moves else Result.WARNING
        return Step("move", result, failure.detail, failure.hint, Side.PACS, lines, {**details, "known": True})
    if control == _UNKNOWN_DESTINATION:
        text = f"the PACS knows {destination}; it has to have it at {case.our_address} port {port}{secured}"
        text += ", which only the move of a real study shows"
        return Step("move", Result.OK, text, details={**details, "known": True})
    said = f"0x{status:04X} ({dimse_status.text('move', status)})"
    text = f"not known: the PACS answers {said} for {destination}"
    text += ", and for a destination that does not exist, too" if status == control else ""
    if not case.moves:
        return Step("move", Result.SKIPPED, f"{text}; retrieves of this backend use C-GET", details=details)
    hint = f"See that it has this entry{secured}. Many look at the destination only when there is something to move: "
    hint += "the move of a small study shows it."
    return Step("move", Result.WARNING, text, hint, Side.PACS, lines, details)


def _moved_nothing(association: BlockingAssociation, case: Case, destination: str) -> int:
    """The final status. A PACS that begins to move anything is stopped at once."""
    context = association.context(names.MOVE[case.model])
    message_id = association.next_message_id()
    keys = {"StudyInstanceUID": f"2.25.{uuid.uuid4().int}"}
    if case.model is QueryModel.PATIENT_ROOT:
        keys["PatientID"] = f"HARMONYD{secrets.token_hex(12).upper()}"
    data = _identifier(case, context, **keys)
    association.request(context, core.c_move_rq(message_id, context.abstract_syntax, destination), data)
    while True:
        command, _ = association.response()
        if dimse_status.category(command.status or 0) is not StatusCategory.PENDING:
            return command.status or 0
        if command.remaining or command.completed or command.failed or command.warning:
            association.close()
            raise failures.nonsense(case.remote, "it moves what was not asked for; it was aborted", accepted=True)
