"""``POST {prefix}/commit``: which objects a client asks about, and what it is answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harmonyd.commitment.api import Reference, Report
from harmonyd.dimse.engine import Query
from harmonyd.dimse.errors import IdentifierError
from harmonyd.dimse.identifier import parse_query
from harmonyd.dimse.uid import is_uid
from harmonyd.errors import BadRequest, NotFound, RemoteError
from harmonyd.services.dicom.commitments import MAX_REFERENCES

DEFAULT_WAIT_SECS, MAX_WAIT_SECS = 60.0, 7 * 24 * 3600.0
_UIDS = {
    "study_instance_uid": "StudyInstanceUID",
    "series_instance_uid": "SeriesInstanceUID",
    "sop_instance_uid": "SOPInstanceUID",
}
_CLASS = "sop_class_uid", "SOPClassUID", "ReferencedSOPClassUID"
_INSTANCE = "sop_instance_uid", "SOPInstanceUID", "ReferencedSOPInstanceUID"
_SHAPE = (
    'Send {"references": [{"sop_class_uid": "…", "sop_instance_uid": "…"}]}, or the StudyInstanceUID (and'
    " SeriesInstanceUID) of objects that the PACS has."
)
Find = Callable[[Query], Awaitable[list[dict[str, Any]]]]
"""Asks the node; matches in DICOM JSON."""


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """Either ``references``, or the keys of what is to be looked up."""

    references: tuple[Reference, ...]
    keys: Mapping[str, str]
    wait_secs: float

    async def resolved(self, find: Find) -> tuple[Reference, ...]:
        """The objects. Raises ``NotFound``, ``BadRequest`` for too many, ``RemoteError``, and what ``find`` raises."""
        if self.references:
            return self.references
        found: dict[str, Reference] = {}
        for series in await self._series(find):
            for item in await find(_image_query({**self.keys, "SeriesInstanceUID": series})):
                uid = _value(item, "00080018")
                found[uid] = Reference(_value(item, "00080016"), uid)
        references = tuple(found.values())
        if not references:
            raise NotFound("The PACS has no such objects")
        if not all(each.sop_class_uid and each.sop_instance_uid for each in references):
            raise RemoteError(
                "The PACS does not tell the SOP classes of its objects", hint="Name the objects in references."
            )
        if len(references) > MAX_REFERENCES:
            raise _too_many(len(references))
        return references

    async def _series(self, find: Find) -> list[str]:
        if "SeriesInstanceUID" in self.keys:
            return [self.keys["SeriesInstanceUID"]]
        query = {"QueryRetrieveLevel": "SERIES", **self.keys, "SeriesInstanceUID": None, "return": "requested"}
        matches = await find(parse_query(query, operation="find"))
        return list(dict.fromkeys(uid for item in matches if (uid := _value(item, "0020000E"))))


def parse_commit(document: Any) -> CommitRequest:
    """What ``document`` (decoded JSON) asks for. Raises ``BadRequest``."""
    if not isinstance(document, dict):
        raise BadRequest("Nothing says which objects are to be committed", hint=_SHAPE)
    members = {name: value for name, value in document.items() if name != "operation"}
    wait_secs = _wait_secs(members.pop("wait_secs", None))
    given = members.pop("references", None)
    if given is not None:
        if members:
            raise BadRequest("references leave nothing else to be said", hint=_SHAPE)
        return CommitRequest(_references(given), {}, wait_secs)
    keys = {_UIDS.get(name, name): value for name, value in members.items()}
    unknown = [name for name in keys if name not in _UIDS.values()]
    if unknown or not keys.get("StudyInstanceUID"):
        raise BadRequest("Nothing says which objects are to be committed", hint=_SHAPE)
    for name, value in keys.items():
        if not isinstance(value, str) or not is_uid(value):
            raise IdentifierError(f"{name} is not a UID", key=name)
    if "SOPInstanceUID" in keys and "SeriesInstanceUID" not in keys:
        raise IdentifierError("SOPInstanceUID needs SeriesInstanceUID", key="SOPInstanceUID")
    return CommitRequest((), keys, wait_secs)


def _image_query(keys: Mapping[str, str]) -> Query:
    asked = {"QueryRetrieveLevel": "IMAGE", "SOPInstanceUID": None, "SOPClassUID": None, "return": "requested", **keys}
    return parse_query(asked, operation="find")


def _wait_secs(value: Any) -> float:
    if value is None:
        return DEFAULT_WAIT_SECS
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_WAIT_SECS:
        raise BadRequest(f"wait_secs is not a number above 0, up to {MAX_WAIT_SECS:g}")
    return float(value)


def _references(given: Any) -> tuple[Reference, ...]:
    if not isinstance(given, list) or not given:
        raise BadRequest("references is not a list of objects", hint=_SHAPE)
    if len(given) > MAX_REFERENCES:
        raise _too_many(len(given))
    found = {}
    for number, item in enumerate(given):
        reference = Reference(_uid(item, _CLASS, number), _uid(item, _INSTANCE, number))
        found[reference.sop_instance_uid] = reference
    return tuple(found.values())


def _uid(item: Any, names: Sequence[str], number: int) -> str:
    values = [item[name] for name in names if name in item] if isinstance(item, dict) else []
    if len(values) != 1 or not isinstance(values[0], str) or not is_uid(values[0]):
        raise BadRequest(f"references[{number}]: {names[0]} is missing, or no UID", hint=_SHAPE)
    return values[0]


def _too_many(count: int) -> BadRequest:
    what = f"{count} objects in one transaction; {MAX_REFERENCES} are allowed"
    return BadRequest(what, hint="Send several requests.")


def _value(item: Mapping[str, Any], tag: str) -> str:
    values = item.get(tag, {}).get("Value") or [""]
    return str(values[0] or "")


def summary_of(references: Sequence[Reference], report: Report) -> dict[str, Any]:
    """Members of the answer. ``success``: all are committed."""
    committed, failed = [], []
    for each in references:
        reason = report.reason(each)
        told = {"sop_class_uid": each.sop_class_uid, "sop_instance_uid": each.sop_instance_uid}
        if reason:
            failed.append({**told, "failure_reason": reason})
        else:
            committed.append(told)
    return {
        "success": not failed,
        "complete": True,
        "transaction_uid": report.transaction_uid,
        "committed": committed,
        "failed": failed,
    }
