"""What the decoder knows about an element from its tag and VR: name, converter, limits, and whether it is special.

The data dictionaries are pydicom's. An entry is made when a tag is first met, and kept, so that the decoder's loop is
one look-up an element.
"""

from __future__ import annotations

from enum import Enum, auto
from functools import lru_cache
from typing import NamedTuple

from pydicom.datadict import dictionary_VR, private_dictionary_VR

from harmonyd.dimse import json_values as values
from harmonyd.dimse.elements import (
    ITEM,
    ITEM_DELIMITER,
    LONG_VRS,
    PIXEL_DATA,
    SEQUENCE_DELIMITER,
    SHORT_VRS,
    Encoding,
    looks_explicit,
)
from harmonyd.dimse.json_values import Converter

MAX_BINARY_BYTES = 1024
"""A longer value of a binary VR is bulk data and left out."""
MAX_INLINE_BYTES = 65536
"""A longer value of any other VR is left out too."""

BINARY_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_KEPT = 16384
"""Most entries kept an encoding: hostile input has no end of private tags."""

SHORT, LONG, BARE = 0, 1, 2
"""Header forms: VR and 16 bit length; VR and 32 bit length; no VR and 32 bit length (PS3.5 section 7.1)."""


class Action(Enum):
    """What the decoder does with an element beside converting it."""

    CONVERT = auto()
    SEQUENCE = auto()
    LEAVE_OUT = auto()
    PIXEL_DATA = auto()
    DELIMITER = auto()
    CHARSET = auto()
    PIXEL_REPRESENTATION = auto()
    LUT_DESCRIPTOR = auto()
    PRIVATE_CREATOR = auto()
    UNKNOWN_PRIVATE = auto()
    """The VR has to be looked up with the private creator."""
    UNKNOWN_PUBLIC = auto()
    """Written as UN, but in the dictionary."""
    US_OR_SS = auto()
    """Depends on Pixel Representation."""
    LUT_DATA = auto()
    """US or OW, depends on the LUT Descriptor."""


class Entry(NamedTuple):
    """One kind of element."""

    tag: int
    prefix: str
    """JSON text up to and with the VR."""
    convert: Converter
    header: int
    limit: int
    """Longest value, in bytes, that is converted without further ado; -1 for everything that is special."""
    vr: str
    action: Action


_ACTIONS = {
    0x00080005: Action.CHARSET,
    0x00280103: Action.PIXEL_REPRESENTATION,
    0x00283002: Action.LUT_DESCRIPTOR,
    **dict.fromkeys((ITEM, ITEM_DELIMITER, SEQUENCE_DELIMITER), Action.DELIMITER),
    **dict.fromkeys(PIXEL_DATA, Action.PIXEL_DATA),
}
_LUT_DESCRIPTORS = frozenset({0x00281101, 0x00281102, 0x00281103, 0x00283002})
_TEXT: dict[str, Converter] = {
    **dict.fromkeys(("LO", "SH", "UC"), values.text),
    **dict.fromkeys(("LT", "ST", "UT"), values.long_text),
    **dict.fromkeys(("AE", "AS", "CS", "DA", "DT", "TM", "UI"), values.code),
    **dict.fromkeys(BINARY_VRS, values.binary),
    "DS": values.decimal_string,
    "IS": values.integer_string,
    "PN": values.person_name,
    "UR": values.uri,
    "SQ": values.binary,  # never called: a sequence is not converted from its bytes
}


def _numbers(order: str) -> dict[str, Converter]:
    units = {"SL": "l", "SS": "h", "SV": "q", "UL": "L", "US": "H", "UV": "Q"}
    return {
        **{vr: values.integers(order + unit) for vr, unit in units.items()},
        "FL": values.floats(order + "f"),
        "FD": values.floats(order + "d"),
        "AT": values.tags(order + "H"),
    }


_CONVERTERS = {"<": _TEXT | _numbers("<"), ">": _TEXT | _numbers(">")}
_AMBIGUOUS = {"US or SS": Action.US_OR_SS, "US or OW": Action.LUT_DATA}


def public_vr(tag: int) -> str | None:
    """The dictionary's VR of a public tag (PS3.6), with repeating groups; None when it is not there."""
    try:
        return dictionary_VR(tag)
    except KeyError:
        return None


def entry(tag: int, vr: str, header: int, order: str, action: Action | None = None) -> Entry:
    """The entry for an element whose VR is settled; ``order`` is ``<`` or ``>``."""
    convert = _CONVERTERS[order][vr]
    if tag in _LUT_DESCRIPTORS and vr == "SS":
        convert = values.lut_descriptor(order + "h")
    action = action or _ACTIONS.get(tag) or _action(tag, vr)
    limit = (MAX_BINARY_BYTES if vr in BINARY_VRS else MAX_INLINE_BYTES) if action is Action.CONVERT else -1
    return Entry(tag, f'"{tag:08X}":{{"vr":"{vr}"', convert, header, limit, vr, action)


def _is_creator(tag: int) -> bool:
    return bool(tag >> 16 & 1) and 0x10 <= tag & 0xFFFF <= 0xFF  # PS3.5 section 7.8.1


def _action(tag: int, vr: str) -> Action:
    group, element = tag >> 16, tag & 0xFFFF
    if element == 0 or group in (0, 2):  # group lengths are not in the model (PS3.18 F.2.2), commands and meta not ours
        return Action.LEAVE_OUT
    if _is_creator(tag):
        return Action.PRIVATE_CREATOR
    if vr == "SQ":
        return Action.SEQUENCE
    if vr == "UN" and group & 1 and element > 0xFF:
        return Action.UNKNOWN_PRIVATE
    return Action.CONVERT


def _implicit_entry(tag: int) -> Entry:
    """The entry for an element that is written without VR (PS3.5 section A.1)."""
    vr = "LO" if _is_creator(tag) else public_vr(tag)
    if vr in _AMBIGUOUS:
        return entry(tag, "US", BARE, "<", _AMBIGUOUS[vr])
    if vr is not None and " or " in vr:
        vr = "OW"  # PS3.5 section A.1
    return entry(tag, vr if vr in _CONVERTERS["<"] else "UN", BARE, "<")


def _explicit_entry(tag: int, vr: bytes, order: str) -> Entry:
    """The entry for an element written with a VR."""
    header = SHORT if vr in SHORT_VRS else LONG  # a VR of a later edition has a 32 bit length (PS3.5 section 6.2)
    name = vr.decode("ascii") if vr in SHORT_VRS or vr in LONG_VRS else "UN"
    if name == "UN" and _is_creator(tag):
        name = "LO"
    known = name == "UN" and order == "<" and _action(tag, name) is Action.CONVERT and public_vr(tag) is not None
    return entry(tag, name, header, order, Action.UNKNOWN_PUBLIC if known else None)


@lru_cache(maxsize=_KEPT)
def private_entry(tag: int, creator: str, order: str) -> Entry | None:
    """The entry for a private tag in the block of ``creator``; None when pydicom's private dictionary has it not."""
    try:
        vr = private_dictionary_VR(tag, creator)
    except KeyError:
        return None
    return entry(tag, vr, BARE, order) if vr in _CONVERTERS[order] else None


class Entries(dict[bytes, Entry]):
    """Entries of one encoding by the first bytes of the element: tag and, where explicit, VR."""

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self.encoding = encoding
        self.order = ">" if encoding is Encoding.EXPLICIT_BIG else "<"
        self.key_bytes = 4 if encoding is Encoding.IMPLICIT else 6

    def __missing__(self, head: bytes) -> Entry:
        order = "little" if self.order == "<" else "big"
        group, element = (int.from_bytes(head[at : at + 2], order) for at in (0, 2))  # type: ignore[arg-type]
        tag = group << 16 | element
        if self.key_bytes == 4:
            made = _implicit_entry(tag)
        elif self.order == "<" and not looks_explicit(head[4:6]):
            return IMPLICIT[head[:4]]  # a delimiter; or some writer put an element without VR into an explicit data set
        elif group == 0xFFFE:
            return _implicit_entry(tag)
        else:
            made = _explicit_entry(tag, head[4:6], self.order)
        if len(self) < _KEPT:
            self[head] = made
        return made


IMPLICIT = Entries(Encoding.IMPLICIT)
ENTRIES = {
    Encoding.IMPLICIT: IMPLICIT,
    Encoding.EXPLICIT: Entries(Encoding.EXPLICIT),
    Encoding.EXPLICIT_BIG: Entries(Encoding.EXPLICIT_BIG),
}
