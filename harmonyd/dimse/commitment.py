"""The data sets of Storage Commitment: N-ACTION and N-EVENT-REPORT (PS3.4 tables J.3-1 and J.3-2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydicom import Dataset
from pydicom.sequence import Sequence as DicomSequence

from harmonyd.dimse import wire
from harmonyd.dimse.elements import MalformedDataset
from harmonyd.dimse.normalized import ACTION, EVENT, PUSH_MODEL, PUSH_MODEL_INSTANCE, NormalizedRequest
from harmonyd.dimse.recode import EXPLICIT_VR_LE

REQUEST, ALL_COMMITTED, SOME_FAILED = 1, 1, 2
"""Action Type ID, and Event Type IDs."""
_TRANSACTION, _REFERENCED, _FAILED = "00081195", "00081199", "00081198"
_CLASS, _INSTANCE, _REASON = "00081150", "00081155", "00081197"
Pair = tuple[str, str]
"""SOP class and SOP instance."""


def action(transaction_uid: str, references: Iterable[Pair]) -> NormalizedRequest:
    """Ask for the commitment of these."""
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    ds.ReferencedSOPSequence = DicomSequence([_item(pair) for pair in references])
    data = wire.written(ds, EXPLICIT_VR_LE)
    return NormalizedRequest(ACTION, PUSH_MODEL, PUSH_MODEL_INSTANCE, data, EXPLICIT_VR_LE, REQUEST)


def event(transaction_uid: str, committed: Sequence[Pair], failed: Mapping[Pair, int]) -> NormalizedRequest:
    """Report on a transaction; ``failed``: with the Failure Reason of each."""
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    if committed:
        ds.ReferencedSOPSequence = DicomSequence([_item(pair) for pair in committed])
    if failed:
        ds.FailedSOPSequence = DicomSequence([_item(pair, reason) for pair, reason in failed.items()])
    kind = SOME_FAILED if failed else ALL_COMMITTED
    data = wire.written(ds, EXPLICIT_VR_LE)
    return NormalizedRequest(EVENT, PUSH_MODEL, PUSH_MODEL_INSTANCE, data, EXPLICIT_VR_LE, kind)


def _item(pair: Pair, reason: int | None = None) -> Dataset:
    ds = Dataset()
    ds.ReferencedSOPClassUID, ds.ReferencedSOPInstanceUID = pair
    if reason is not None:
        ds.FailureReason = reason
    return ds


def transaction_of(document: Any) -> str:
    """The Transaction UID of a data set in DICOM JSON; empty without one."""
    return _text(document, _TRANSACTION) if isinstance(document, dict) else ""


def referenced(document: Any) -> list[Pair]:
    """Its Referenced SOP Sequence. Raises ``MalformedDataset`` for an item without both UIDs."""
    return [_pair(item) for item in _items(document, _REFERENCED)]


def failures(document: Any) -> dict[Pair, int]:
    """Its Failed SOP Sequence, with the Failure Reasons; 0 where there is none. Raises as ``referenced``."""
    return {_pair(item): _number(item) for item in _items(document, _FAILED)}


def _items(document: Any, tag: str) -> list[Any]:
    member = document.get(tag) if isinstance(document, dict) else None
    items = member.get("Value") if isinstance(member, dict) else None
    return items if isinstance(items, list) else []


def _pair(item: Any) -> Pair:
    pair = (_text(item, _CLASS), _text(item, _INSTANCE)) if isinstance(item, dict) else ("", "")
    if not all(pair):
        raise MalformedDataset("a reference has no SOP class or no SOP instance")
    return pair


def _text(document: Mapping[str, Any], tag: str) -> str:
    values = wire.values_of(document, tag)
    return values[0] if values else ""


def _number(item: Mapping[str, Any]) -> int:
    text = _text(item, _REASON)
    return int(text) if text.isdigit() else 0
