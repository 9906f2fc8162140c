"""The Native DICOM Model (PS3.19 section A.1): DICOM JSON as XML, for ``application/dicom+xml``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from pydicom.datadict import keyword_for_tag

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped."""
_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_NAME_PARTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")


def to_xml(dataset: Mapping[str, Any]) -> bytes:
    """Return a data set (DICOM JSON Model, PS3.18 Annex F) as an XML document in UTF-8."""
    text = "".join(_dataset(dataset))
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<NativeDicomModel xml:space="preserve" '
        f'xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">{text}</NativeDicomModel>\n'
    ).encode()


def _dataset(dataset: Mapping[str, Any]) -> Iterator[str]:
    for tag in sorted(dataset):
        yield from _attribute(tag, dataset[tag], dataset)


def _attribute(tag: str, element: Mapping[str, Any], dataset: Mapping[str, Any]) -> Iterator[str]:
    vr = element.get("vr", "UN")
    creator = _creator(tag, dataset)
    # Of a private tag the block number is left to the creator (PS3.19 table A.1.5-2).
    shown = f"{tag[:4]}00{tag[6:]}" if creator else tag
    keyword = keyword_for_tag(int(tag, 16))
    named = f" keyword={quoteattr(keyword)}" if keyword else ""
    private = f" privateCreator={quoteattr(_text(creator))}" if creator else ""
    yield f'<DicomAttribute tag="{shown}" vr="{vr}"{named}{private}>'
    if "BulkDataURI" in element:
        yield f"<BulkData uri={quoteattr(element['BulkDataURI'])}/>"
    if "InlineBinary" in element:
        yield f"<InlineBinary>{element['InlineBinary']}</InlineBinary>"
    for number, value in enumerate(element.get("Value", ()), 1):
        yield from _value(vr, number, value)
    yield "</DicomAttribute>"


def _creator(tag: str, dataset: Mapping[str, Any]) -> str:
    if not int(tag[:4], 16) & 1 or tag[4:6] == "00":
        return ""
    values = dataset.get(f"{tag[:4]}00{tag[4:6]}", {}).get("Value") or [""]
    return str(values[0])


def _value(vr: str, number: int, value: Any) -> Iterator[str]:
    if vr == "SQ":
        yield f'<Item number="{number}">{"".join(_dataset(value or {}))}</Item>'
    elif vr == "PN":
        yield f'<PersonName number="{number}">{"".join(_name(value or {}))}</PersonName>'
    elif value is not None:
        yield f'<Value number="{number}">{escape(_text(value))}</Value>'


def _name(value: Mapping[str, str]) -> Iterator[str]:
    for group in _NAME_GROUPS:
        if group in value:
            parts = zip(_NAME_PARTS, value[group].split("^"), strict=False)
            inside = "".join(f"<{name}>{escape(_text(part))}</{name}>" for name, part in parts if part)
            yield f"<{group}>{inside}</{group}>"


def _text(value: Any) -> str:
    return _NOT_XML.sub("\ufffd", str(value))
