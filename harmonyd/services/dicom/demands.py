"""What an N-ACTION of Storage Commitment asks for, and what its N-EVENT-REPORT says (PS3.4 section J.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harmonyd.commitment.api import CLASS_CONFLICT, NO_SUCH_INSTANCE, PROCESSING_FAILURE, Demand, Reference
from harmonyd.dimse import commitment
from harmonyd.dimse.normalized import ACTION, PUSH_MODEL_INSTANCE, NormalizedRequest
from harmonyd.dimse.serving import NotServed
from harmonyd.dimse.status import NO_SUCH_ACTION
from harmonyd.dimse.status import NO_SUCH_INSTANCE as NO_SUCH_SOP_INSTANCE


def check(request: NormalizedRequest) -> None:
    """Raise ``NotServed`` unless it asks for the commitment of objects."""
    if request.operation != ACTION or request.type_id != commitment.REQUEST:
        raise NotServed(NO_SUCH_ACTION, "Storage Commitment has action type 1 alone")
    if request.sop_instance_uid != PUSH_MODEL_INSTANCE:
        raise NotServed(NO_SUCH_SOP_INSTANCE, "not the well-known SOP instance of the push model")


def references(document: Any) -> tuple[Reference, ...]:
    """What a data set (DICOM JSON) refers to."""
    return tuple(Reference(*pair) for pair in commitment.referenced(document))


def reason(sought: Reference, found: Sequence[Mapping[str, str] | None]) -> int:
    """Of an object at all backends; 0: committed."""
    worst = 0 if found else PROCESSING_FAILURE
    for each in found:
        if each is None:
            worst = worst or PROCESSING_FAILURE
        elif sought.sop_instance_uid not in each:
            return NO_SUCH_INSTANCE
        elif each[sought.sop_instance_uid] not in ("", sought.sop_class_uid):
            worst = CLASS_CONFLICT
    return worst


def event(demand: Demand) -> NormalizedRequest:
    """The report on what was decided."""
    reasons = demand.reasons or {}
    committed, failed = [], {}
    for each in demand.references:
        pair = (each.sop_class_uid, each.sop_instance_uid)
        if each.sop_instance_uid in reasons:
            failed[pair] = reasons[each.sop_instance_uid]
        else:
            committed.append(pair)
    return commitment.event(demand.transaction_uid, committed, failed)
