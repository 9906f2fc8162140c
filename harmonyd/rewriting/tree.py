"""Data sets as rules see them: one interface over data sets of pydicom and over the DICOM JSON Model (PS3.18 Annex F).

Values are text: numbers as they are written, a person name with its component groups joined by ``=``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from pydicom import DataElement, Dataset
from pydicom.config import IGNORE, settings
from pydicom.datadict import dictionary_has_tag, dictionary_VR

settings.reading_validation_mode = IGNORE
"""Warnings would have values of patients in them."""
_INTEGERS = frozenset({"US", "SS", "UL", "SL", "UV", "SV", "AT"})
_FLOATS = frozenset({"FL", "FD"})
BINARY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_NAME_PARTS = ("Alphabetic", "Ideographic", "Phonetic")


class Tree(Protocol):
    """A data set, or an item of a sequence."""

    takes_new: bool
    """Whether elements may be added: not to a match, which has what was asked for."""

    def tags(self) -> list[int]:
        """Those that are there."""
        ...

    def vr(self, tag: int) -> str: ...

    def texts(self, tag: int) -> list[str]:
        """The values of an element; none for one that is empty, missing, binary, or a sequence."""
        ...

    def put(self, tag: int, vr: str, texts: Sequence[str]) -> None:
        """Set an element. Raises ``ValueError`` for text that its VR cannot have."""
        ...

    def remove(self, tag: int) -> None: ...

    def items(self, tag: int) -> Sequence[Tree]:
        """Those of a sequence; none where there is none."""
        ...

    def make_item(self, tag: int) -> Tree:
        """Replace a sequence by one of a single item, which is empty."""
        ...


def vr_of(tag: int) -> str:
    """Return the VR of the data dictionary (the first, where there are several), UN for what is not in it."""
    return dictionary_VR(tag)[:2] if dictionary_has_tag(tag) else "UN"


def everywhere(tree: Tree) -> Iterator[Tree]:
    """Yield the data set and all items in it, whatever becomes of those that were yielded."""
    yield tree
    for tag in tree.tags():
        for item in tree.items(tag):
            yield from everywhere(item)


class DatasetTree:
    """Of pydicom."""

    takes_new = True

    def __init__(self, ds: Dataset) -> None:
        self.ds = ds

    def tags(self) -> list[int]:
        return [int(tag) for tag in self.ds.keys()]  # noqa: SIM118 - iterating would decode the elements

    def vr(self, tag: int) -> str:
        if tag not in self.ds:
            return vr_of(tag)
        raw = self.ds.get_item(tag)
        if raw is None or (raw.VR is None and not dictionary_has_tag(tag)):
            return "UN"  # pydicom would find no other, and warn
        vr = raw.VR or self.ds[tag].VR
        if vr == "UN" and dictionary_has_tag(tag):
            vr = self.ds[tag].VR
        return str(vr)[:2]

    def texts(self, tag: int) -> list[str]:
        if tag not in self.ds or self.vr(tag) in BINARY or self.vr(tag) == "SQ":
            return []
        element = self.ds[tag]
        if element.value is None or element.value == "" or (element.VM == 0 and not element.value):
            return []
        values = [element.value] if isinstance(element.value, str) or element.VM == 1 else list(element.value)
        return [str(value) for value in values]

    def put(self, tag: int, vr: str, texts: Sequence[str]) -> None:
        if vr == "SQ":
            self.ds[tag] = DataElement(tag, vr, [])
            return
        values: list[Any] = list(texts)
        if vr in _INTEGERS:
            values = [int(text) for text in texts]
        elif vr in _FLOATS:
            values = [float(text) for text in texts]
        elif vr in BINARY:
            values = [text.encode("ascii") for text in texts]
        empty: Any = b"" if vr in BINARY else None
        self.ds[tag] = DataElement(tag, vr, values[0] if len(values) == 1 else values or empty, validation_mode=IGNORE)

    def remove(self, tag: int) -> None:
        if tag in self.ds:
            del self.ds[tag]

    def items(self, tag: int) -> list[Tree]:
        if tag not in self.ds or self.vr(tag) != "SQ":
            return []
        value = self.ds[tag].value
        return [] if value is None or isinstance(value, bytes) else [DatasetTree(item) for item in value]

    def make_item(self, tag: int) -> Tree:
        item = Dataset()
        self.ds[tag] = DataElement(tag, "SQ", [item])
        return DatasetTree(self.ds[tag].value[0])


class JsonTree:
    """Of decoded JSON, which is changed in place."""

    def __init__(self, members: dict[str, Any], *, takes_new: bool = True) -> None:
        self.members = members
        self.takes_new = takes_new

    def tags(self) -> list[int]:
        return [int(key, 16) for key in self.members if len(key) == 8 and _is_hex(key)]

    def _element(self, tag: int) -> dict[str, Any]:
        element = self.members.get(f"{tag:08X}")
        return element if isinstance(element, dict) else {}

    def vr(self, tag: int) -> str:
        return str(self._element(tag).get("vr") or vr_of(tag))

    def texts(self, tag: int) -> list[str]:
        values = self._element(tag).get("Value")
        if not isinstance(values, list) or self.vr(tag) == "SQ":
            return []
        return [_text(value) for value in values]

    def put(self, tag: int, vr: str, texts: Sequence[str]) -> None:
        if vr in BINARY:
            self.members[f"{tag:08X}"] = {"vr": vr}
            return
        values = [_value(vr, text) for text in texts]
        self.members[f"{tag:08X}"] = {"vr": vr, "Value": values} if values else {"vr": vr}

    def remove(self, tag: int) -> None:
        self.members.pop(f"{tag:08X}", None)

    def items(self, tag: int) -> list[Tree]:
        values = self._element(tag).get("Value")
        if self.vr(tag) != "SQ" or not isinstance(values, list):
            return []
        return [JsonTree(value, takes_new=self.takes_new) for value in values if isinstance(value, dict)]

    def make_item(self, tag: int) -> Tree:
        item: dict[str, Any] = {}
        self.members[f"{tag:08X}"] = {"vr": "SQ", "Value": [item]}
        return JsonTree(item)


def _is_hex(key: str) -> bool:
    return all(char in "0123456789ABCDEFabcdef" for char in key)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "=".join(str(value.get(part) or "") for part in _NAME_PARTS).rstrip("=")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)


def _value(vr: str, text: str) -> Any:
    if vr == "PN":
        return {part: group for part, group in zip(_NAME_PARTS, text.split("="), strict=False) if group}
    if vr in _INTEGERS and vr != "AT":
        return int(text)
    if vr in _FLOATS:
        return float(text)
    if vr in ("IS", "DS"):
        try:
            return int(text) if vr == "IS" else float(text)
        except ValueError:
            return text
    return text
