"""DIMSE-N of the scripted peer: Storage Commitment in both roles, and MPPS as its performer."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid
from pynetdicom import AE, build_role, evt

from harmonyd.testing.peer import PeerOptions, Report

PUSH_MODEL, PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
PERFORMED_STEP = "1.2.840.10008.3.1.2.3.3"
CLASSES = (PUSH_MODEL, PERFORMED_STEP)


def handlers(options: PeerOptions, report: Report, number_of: Callable[[Any], int]) -> list[Any]:
    """For ``AE.start_server``."""
    turn, lock = count(), Lock()

    def action(event: Any) -> tuple[int, None]:
        with lock:
            what = options.commits[min(next(turn), len(options.commits) - 1)]
        asked = event.action_information
        uids = [str(item.ReferencedSOPInstanceUID) for item in asked.ReferencedSOPSequence]
        report(
            "n-action", id=number_of(event.assoc), transaction_uid=str(asked.TransactionUID), references=uids, what=what
        )
        if what == "refuse":
            return 0x0110, None
        if what != "never":
            calling = event.assoc.requestor.ae_title
            Thread(target=_report, args=(event.assoc, calling, asked, what, options, report), daemon=True).start()
        return 0x0000, None

    def event_report(event: Any) -> tuple[int, None]:
        told = event.event_information
        report(
            "n-event-report", id=number_of(event.assoc), type=event.event_type, report=told.to_json_dict(),
        )  # fmt: skip
        return options.report_status, None

    def create(event: Any) -> tuple[int, Dataset]:
        created = event.attribute_list
        uid = str(event.request.AffectedSOPInstanceUID or "")
        report("n-create", id=number_of(event.assoc), uid=uid, attributes=created.to_json_dict())
        answer = Dataset()
        answer.SOPClassUID, answer.SOPInstanceUID = PERFORMED_STEP, uid or generate_uid()
        return options.step_status, answer

    def change(event: Any) -> tuple[int, Dataset]:
        uid = str(event.request.RequestedSOPInstanceUID)
        report("n-set", id=number_of(event.assoc), uid=uid, attributes=event.modification_list.to_json_dict())
        return options.step_status, event.modification_list

    return [
        (evt.EVT_N_ACTION, action),
        (evt.EVT_N_EVENT_REPORT, event_report),
        (evt.EVT_N_CREATE, create),
        (evt.EVT_N_SET, change),
    ]


def _report(assoc: Any, calling: str, asked: Dataset, what: str, options: PeerOptions, report: Report) -> None:
    time.sleep(0.05)  # pynetdicom sends the answer when the handler has returned
    told, kind = _told(asked, what)
    while what == "late" and not Path(options.gate).exists():
        time.sleep(0.02)
    if what not in ("new", "late"):
        _send(assoc, told, kind, report)
        return
    node = AE(ae_title=options.aet)
    node.add_requested_context(PUSH_MODEL)
    role = build_role(PUSH_MODEL, scp_role=True)
    own = node.associate("127.0.0.1", options.destinations[calling], ae_title=calling, ext_neg=[role])
    if own.is_established:
        _send(own, told, kind, report)
        own.release()
    else:
        report("error", error="no association for a report")


def _told(asked: Dataset, what: str) -> tuple[Dataset, int]:
    told, items = Dataset(), list(asked.ReferencedSOPSequence)
    told.TransactionUID = generate_uid() if what == "unknown" else asked.TransactionUID
    if what == "fail":
        items[0].FailureReason = 0x0112
        told.FailedSOPSequence, items = Sequence(items[:1]), items[1:]
    if what == "garbage":
        told.TransactionUID = ""
    if what != "empty":
        told.ReferencedSOPSequence = Sequence(items)
    return told, 2 if what == "fail" else 1


def _send(assoc: Any, told: Dataset, kind: int, report: Report) -> None:
    try:
        status, _ = assoc.send_n_event_report(told, kind, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    except (RuntimeError, ValueError) as error:
        report("error", error=str(error))
    else:
        report("reported", status=status.get("Status"))
