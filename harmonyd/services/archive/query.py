"""From an identifier to QIDO-RS and back: paths and parameters, and matches in the form that C-FIND gives them.

PS3.18 sections 8.3.4 (matching), 10.6 (search). Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pydicom import Dataset

from harmonyd.dimse.engine import Query, QueryLevel
from harmonyd.dimse.levels import UNIQUE_KEYS
from harmonyd.dimse.uid import is_uid

MAX_UIDS = 30
"""Of a list in one question; longer ones are asked in several, for the sake of servers with short URLs."""
_CHARACTER_SET, _LEVEL, _RETRIEVE_AET = 0x00080005, 0x00080052, 0x00080054
_OURS = frozenset({_CHARACTER_SET, _LEVEL, _RETRIEVE_AET})
_STUDY, _SERIES, _INSTANCE = 0x0020000D, 0x0020000E, 0x00080018
_COUNTS_OF_PATIENT = {0x00201200: "", 0x00201202: "00201206", 0x00201204: "00201208"}
"""There is no such resource in DICOMweb: they are summed up from these counts of its studies, and their number."""
_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_VR = re.compile(r"[A-Z]{2}")
_NUMBERS = {"IS": int, "DS": float}


@dataclass(frozen=True, slots=True)
class Search:
    """One search: ``path`` below the QIDO-RS prefix, and its parameters without limit and offset."""

    path: str
    parameters: tuple[tuple[str, str], ...]

    def url(self, limit: int, offset: int) -> str:
        """Path and query, encoded."""
        parameters = [*self.parameters, ("limit", str(limit))]
        if offset:
            parameters.append(("offset", str(offset)))
        return f"{self.path}?" + "&".join(f"{name}={quote(value, safe='*,')}" for name, value in parameters)


def searches(query: Query, *, fuzzy: bool = False) -> Iterator[Search]:
    """The searches that answer a C-FIND; several where a list of UIDs is long."""
    path, in_path = _resource(query)
    matching: list[tuple[str, str]] = []
    lists: tuple[str, list[str]] | None = None
    returned: list[str] = []
    for element in query.dataset:
        tag = int(element.tag)
        if tag in _OURS or (query.level is QueryLevel.PATIENT and tag in _COUNTS_OF_PATIENT):
            returned += [of_study] if (of_study := _COUNTS_OF_PATIENT.get(tag)) else []
            continue
        returned.append(f"{tag:08X}")
        values = _texts(element.value)
        if tag in in_path or element.VR == "SQ":
            matching += _items(f"{tag:08X}", element.value) if element.VR == "SQ" else ()
        elif element.VR == "UI" and len(values) > MAX_UIDS and lists is None:
            lists = f"{tag:08X}", values
        elif values and values != ["*"]:
            matching.append((f"{tag:08X}", ("," if element.VR == "UI" else "\\").join(values)))
    if query.level is QueryLevel.PATIENT:
        returned.append(f"{_STUDY:08X}")
    included = [("includefield", tag) for tag in dict.fromkeys(returned)]
    fuzzily = [("fuzzymatching", "true")] if fuzzy else []
    if lists is None:
        yield Search(path, (*matching, *included, *fuzzily))
        return
    name, uids = lists
    for first in range(0, len(uids), MAX_UIDS):
        some = (name, ",".join(uids[first : first + MAX_UIDS]))
        yield Search(path, (*matching, some, *included, *fuzzily))


def _resource(query: Query) -> tuple[str, frozenset[int]]:
    """Where to search, and the keys that are part of the path."""
    study, series = (_single(query.dataset, tag) for tag in (_STUDY, _SERIES))
    if query.level in (QueryLevel.PATIENT, QueryLevel.STUDY):
        return "/studies", frozenset()
    if query.level is QueryLevel.SERIES:
        return (f"/studies/{study}/series", frozenset({_STUDY})) if study else ("/series", frozenset())
    if study and series:
        return f"/studies/{study}/series/{series}/instances", frozenset({_STUDY, _SERIES})
    return (f"/studies/{study}/instances", frozenset({_STUDY})) if study else ("/instances", frozenset())


def _single(ds: Dataset, tag: int) -> str:
    values = _texts(ds[tag].value) if tag in ds else []
    return values[0] if len(values) == 1 and is_uid(values[0]) else ""


def _items(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Sequence matching: ``SequenceTag.AttributeTag=value``; also what is asked for inside."""
    for item in value or ():
        for element in item:
            inner = f"{name}.{int(element.tag):08X}"
            if element.VR == "SQ":
                yield from _items(inner, element.value)
            elif (texts := _texts(element.value)) and texts != ["*"]:
                yield inner, "\\".join(texts)


def _texts(value: Any) -> list[str]:
    if value is None or value == "":
        return []
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | Dataset):
        return [text for each in value if not isinstance(each, Dataset) for text in _texts(each)]
    return [str(value)]


def retrieve_uids(query: Query) -> dict[QueryLevel, list[str]]:
    """The unique keys of a retrieve."""
    found = {}
    for level, (tag, _) in UNIQUE_KEYS.items():
        if tag in query.dataset and (values := _texts(query.dataset[tag].value)):
            found[level] = values
    return found


class Answers:
    """What a C-FIND would have answered: the keys that were asked for, and no others."""

    def __init__(self, query: Query) -> None:
        self._level = query.level
        self._unique = f"{UNIQUE_KEYS[query.level][0]:08X}"
        self._asked = {f"{int(element.tag):08X}": element for element in query.dataset if int(element.tag) not in _OURS}
        self._in_path: dict[str, str] = {
            f"{tag:08X}": uid for tag in (_STUDY, _SERIES) if (uid := _single(query.dataset, tag))
        }

    def key(self, item: Mapping[str, Any]) -> str:
        """What tells a match from others; empty where the archive does not say."""
        return _first_text(item, self._unique)

    def match(self, item: Mapping[str, Any]) -> bytes:
        """A match in the DICOM JSON Model. Raises ``ValueError`` for what is none."""
        found = {}
        for tag in sorted((*self._asked, f"{_LEVEL:08X}")):
            if tag == f"{_LEVEL:08X}":
                found[tag] = {"vr": "CS", "Value": [self._level.value]}
                continue
            element = self._asked[tag]
            entry = _entry(item, tag)
            if not entry and tag in self._in_path:
                entry = {"vr": "UI", "Value": [self._in_path[tag]]}
            found[tag] = _settled(entry, element) if entry else {"vr": element.VR}
        return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class Patients:
    """The patients of studies: what C-FIND answers at the PATIENT level, which DICOMweb does not have.

    Whether they are ``counted`` decides when they are known: at the end, or each with its first study.
    """

    def __init__(self, query: Query) -> None:
        tags = {int(element.tag) for element in query.dataset}
        self._counts = {tag: of_study for tag, of_study in _COUNTS_OF_PATIENT.items() if tag in tags}
        self.counted = bool(self._counts)
        self._sums: dict[tuple[str, str], tuple[dict[str, Any], dict[int, int | None]]] = {}

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, study: Mapping[str, Any]) -> bool:
        """Tell whether its patient is new."""
        key = (_first_text(study, "00100020"), _first_text(study, "00100021"))
        is_new = key not in self._sums
        if is_new:
            self._sums[key] = (dict(study), dict.fromkeys(self._counts, 0))
        sums = self._sums[key][1]
        for tag, of_study in self._counts.items():
            text = _first_text(study, of_study) if of_study else "1"
            before = sums[tag]
            sums[tag] = before + int(text) if before is not None and text.isdecimal() else None
        return is_new

    def all(self) -> Iterator[dict[str, Any]]:
        """Each with its counts, where the archive told those of all its studies."""
        for item, sums in self._sums.values():
            known = {f"{tag:08X}": {"vr": "IS", "Value": [total]} for tag, total in sums.items() if total is not None}
            yield {**item, **known}


def study_key(item: Mapping[str, Any]) -> str:
    """What tells a study from others; empty where the archive does not say."""
    return _first_text(item, f"{_STUDY:08X}")


def _first_text(item: Mapping[str, Any], tag: str) -> str:
    values = _entry(item, tag).get("Value") or [""]
    return str(values[0]) if values[0] is not None else ""


def _entry(item: Mapping[str, Any], tag: str) -> dict[str, Any]:
    entry = item.get(tag, item.get(tag.lower()))
    return entry if isinstance(entry, dict) else {}


def _settled(entry: Mapping[str, Any], element: Any) -> dict[str, Any]:
    """An entry with its VR, and its values as the decoder of DIMSE writes them; items with what was asked for only."""
    vr = entry.get("vr")
    if not isinstance(vr, str) or not _VR.fullmatch(vr):
        vr = element.VR
    made: dict[str, Any] = {"vr": vr}
    if isinstance(inline := entry.get("InlineBinary"), str):
        return {**made, "InlineBinary": inline}
    values = entry.get("Value")
    if not isinstance(values, list):
        return made
    if vr == "SQ":
        wanted = list(element.value[0]) if element.VR == "SQ" and element.value else []
        made["Value"] = [_item(each, wanted) for each in values if isinstance(each, dict)]
    else:
        made["Value"] = [_value(each, vr) for each in values]
    while made["Value"] and made["Value"][-1] is None and len(made["Value"]) == 1:
        del made["Value"][-1]
    return made if made["Value"] else {"vr": vr}


def _item(item: Mapping[str, Any], wanted: Sequence[Any]) -> dict[str, Any]:
    if not wanted:
        return {tag.upper(): entry for tag, entry in item.items() if _TAG.fullmatch(tag) and isinstance(entry, dict)}
    made = {}
    for element in wanted:
        tag = f"{int(element.tag):08X}"
        entry = _entry(item, tag)
        made[tag] = _settled(entry, element) if entry else {"vr": element.VR}
    return made


def _value(value: Any, vr: str) -> Any:
    if value is None or isinstance(value, bool):
        return None
    if vr == "PN":
        name = {"Alphabetic": value} if isinstance(value, str) else value
        groups = {group: text for group, text in name.items() if text} if isinstance(name, dict) else {}
        return groups or None
    if vr in _NUMBERS and isinstance(value, str):
        try:
            return _NUMBERS[vr](value)
        except ValueError:
            return value
    return value
