"""Identifiers and matches between their encoded form and JSON, for who stands between a caller and a node.

What nobody changes goes on byte for byte. What somebody does change is JSON, and is encoded anew: in the character set
that the caller has named where that is enough for the text, else in UTF-8.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydicom import Dataset
from pydicom.charset import python_encoding
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from harmonyd.dimse.dataset_json import MalformedDataset, dataset_to_json
from harmonyd.dimse.engine import Query, QueryLevel, QueryModel, Received
from harmonyd.dimse.errors import IdentifierError
from harmonyd.dimse.keyset import element
from harmonyd.dimse.levels import UNIQUE_KEYS, level_of, levels_down_to
from harmonyd.dimse.query_file import UTF_8
from harmonyd.dimse.recode import IMPLICIT_VR_LE, recoded

_CHARACTER_SET, _LEVEL = "00080005", "00080052"
Json = Mapping[str, Any]


def json_of(received: Received) -> bytes:
    """A data set as DICOM JSON. Raises ``MalformedDataset``."""
    return dataset_to_json(received.data, received.transfer_syntax_uid)


def query_of(document: Json, model: QueryModel, received: Received) -> Query:
    """The query that an identifier is; ``document`` is its JSON. Raises ``IdentifierError``."""
    level = _level(document, model)
    ds = Dataset()
    if model is not QueryModel.WORKLIST:
        ds.QueryRetrieveLevel = level.value
        for tag, keyword in (UNIQUE_KEYS[each] for each in levels_down_to(level, model)):
            values = values_of(document, f"{tag:08X}")
            if values:
                vr = "LO" if keyword == "PatientID" else "UI"
                ds.add(element(tag, vr, values if len(values) > 1 else values[0]))
    return Query(level, model, ds, received)


def require_key(query: Query) -> None:
    """Without its unique key a retrieve is for all that a node has, and nodes send that. Raises ``IdentifierError``."""
    keyword = UNIQUE_KEYS[query.level][1]
    value = query.dataset.get(keyword)
    if not value:
        raise IdentifierError(f"a retrieve at {query.level} level needs {keyword}", key=keyword)
    if any(sign in str(value) for sign in "*?"):
        raise IdentifierError(f"{keyword}: a retrieve takes no wildcards", key=keyword)


def changed_query(document: Any, model: QueryModel) -> Query:
    """The query that middleware has made of an identifier. Raises ``IdentifierError``."""
    if not isinstance(document, dict):
        raise IdentifierError("what middleware made of the identifier is no data set", key="identifier")
    level = _level(document, model)
    return Query(level, model, _dataset(document, character_sets(document)))


def encoded(text: bytes, transfer_syntax_uid: str, wanted: tuple[str, ...]) -> bytes:
    """A data set in DICOM JSON as bytes; ``wanted``: what the caller named as its Specific Character Set.

    Raises ``MalformedDataset``.
    """
    try:
        ds = _dataset(json.loads(text), wanted)
        return written(ds, transfer_syntax_uid)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise MalformedDataset(f"it cannot be written as a data set ({type(error).__name__})") from error


def written(ds: Dataset, transfer_syntax_uid: str) -> bytes:
    """A data set as bytes, in Explicit or Implicit VR Little Endian."""
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = transfer_syntax_uid == IMPLICIT_VR_LE
    write_dataset(buffer, ds)
    return buffer.getvalue()


def passed_on(received: Received, transfer_syntax_uid: str) -> bytes:
    """A data set in the transfer syntax of another association, its values as they are. Raises ``MalformedDataset``."""
    return recoded(received.data, received.transfer_syntax_uid, transfer_syntax_uid)


def character_sets(document: Json) -> tuple[str, ...]:
    """The values of Specific Character Set (0008,0005)."""
    return tuple(values_of(document, _CHARACTER_SET))


def values_of(document: Json, tag: str) -> list[str]:
    """The values of an element, as text; those that are empty left out."""
    element = document.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return [str(value).strip() for value in values if value not in (None, "")] if isinstance(values, list) else []


def _level(document: Json, model: QueryModel) -> QueryLevel:
    if model is QueryModel.WORKLIST:
        return QueryLevel.PATIENT
    given = values_of(document, _LEVEL)
    level = level_of(given[0]) if given else None
    if level is None:
        what = "the Query/Retrieve Level is none that there is" if given else "no Query/Retrieve Level"
        raise IdentifierError(what, key="QueryRetrieveLevel")
    if level is QueryLevel.PATIENT and model is QueryModel.STUDY_ROOT:
        raise IdentifierError("Study Root has no PATIENT level", key="QueryRetrieveLevel")
    return level


def _dataset(document: Mapping[str, Any], wanted: tuple[str, ...]) -> Dataset:
    ds = Dataset.from_json({tag: member for tag, member in document.items() if tag != _CHARACTER_SET})
    declared = _declared("".join(_texts(document)), wanted)
    if declared:
        ds.SpecificCharacterSet = declared
    return ds


def _declared(text: str, wanted: tuple[str, ...]) -> str:
    """What is said of how the text is encoded; empty where ASCII is enough."""
    if text.isascii():
        return ""
    codec = python_encoding.get(wanted[0]) if len(wanted) == 1 and wanted[0].startswith("ISO_IR") else None
    if codec is None:
        return UTF_8
    try:
        text.encode(codec)
    except UnicodeEncodeError:
        return UTF_8
    return wanted[0]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from _texts(member)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
