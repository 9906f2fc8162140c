"""Names of query keys: from any of the spellings a client may use to a tag and the VRs the data dictionary allows.

Spellings: DICOM keyword (``PatientID``), the same in snake case (``patient_id``; where the underscores stand does not
matter, so ``ctdi_vol`` and ``ctd_ivol`` both find CTDIvol), and tags (``00100020``, ``0010,0020``, ``(0010,0020)``).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from pydicom.datadict import get_entry, keyword_dict, keyword_for_tag

from harmonyd.dimse.errors import IdentifierError
from harmonyd.dimse.return_keys import COMMON_KEYWORDS

LEVEL_TAG = 0x00080052
CHARACTER_SET_TAG = 0x00080005

# PS3.5 section 7.8.1: no private element may have one of these groups.
_ILLEGAL_PRIVATE_GROUPS = frozenset({0x0001, 0x0003, 0x0005, 0x0007, 0xFFFF})
_FIRST_DATA_GROUP = 0x0008
_DELIMITER_GROUP = 0xFFFE
_LONGEST_NAME = 80

_TAG = re.compile(r"([0-9A-Fa-f]{4}),?([0-9A-Fa-f]{4})|\(([0-9A-Fa-f]{4}),([0-9A-Fa-f]{4})\)")
_SNAKE = re.compile(r"[a-z][a-z0-9_]*")
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_BY_LOWER_CASE = {keyword.lower(): keyword for keyword in keyword_dict if keyword}


@dataclass(frozen=True, slots=True)
class Key:
    """A data element that may stand in an identifier."""

    tag: int
    vrs: tuple[str, ...]
    """What the data dictionary allows; empty when only the client can say (private and unknown elements)."""
    keyword: str
    """Empty where there is none."""

    @property
    def is_private(self) -> bool:
        """Private data elements and private creators have an odd group (PS3.5 section 7.8)."""
        return bool(self.tag >> 16 & 1)

    @property
    def is_private_creator(self) -> bool:
        return self.is_private and 0x10 <= self.tag & 0xFFFF <= 0xFF

    def __str__(self) -> str:
        tag = f"({self.tag >> 16:04X},{self.tag & 0xFFFF:04X})"
        return f"{self.keyword} {tag}" if self.keyword else tag


def shown(text: str, limit: int = 64) -> str:
    """Make what a client wrote fit for a message: at most ``limit`` characters, nothing unprintable."""
    short = text if len(text) <= limit else text[:limit] + "…"
    if short.isprintable():
        return short
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in short)


def resolve(name: str, others: Iterable[str] = ()) -> Key:
    """Return the key that ``name`` means.

    Raises ``IdentifierError`` for an element that is no key, and for an unknown name; then the hint is the nearest
    keyword, or the nearest among ``others``, the names beside keywords that are allowed in the same place.
    """
    key = _find(name)
    if key is None:
        raise _unknown(name, others)
    return key


@lru_cache(maxsize=2048)
def _find(name: str) -> Key | None:
    if len(name) > _LONGEST_NAME:
        return None
    if (match := _TAG.fullmatch(name)) is not None:
        group, element = (int(part, 16) for part in match.groups() if part is not None)
        return _by_tag(name, group << 16 | element)
    keyword = name if name in keyword_dict else _snake_keyword(name)
    return _by_tag(name, keyword_dict[keyword]) if keyword else None


def _snake_keyword(name: str) -> str | None:
    return _BY_LOWER_CASE.get(name.replace("_", "")) if _SNAKE.fullmatch(name) else None


def _by_tag(name: str, tag: int) -> Key:
    group, element = tag >> 16, tag & 0xFFFF
    if reason := _not_a_key(group, element):
        raise IdentifierError(f"{shown(name)} cannot be a query key: {reason}", key=shown(name))
    if group & 1:
        return Key(tag, ("LO",) if element <= 0xFF else (), "")
    try:
        vrs = get_entry(tag)[0]
    except KeyError:
        return Key(tag, (), "")
    return Key(tag, tuple(vrs.split(" or ")), keyword_for_tag(tag))


def _not_a_key(group: int, element: int) -> str | None:
    """Why an element may not stand in an identifier (PS3.4 section C.4), or None if it may."""
    if group == _DELIMITER_GROUP or (group < _FIRST_DATA_GROUP and not group & 1):
        return f"group {group:04X} is not part of a data set"
    if group in _ILLEGAL_PRIVATE_GROUPS:
        return f"group {group:04X} is not allowed (PS3.5 section 7.8.1)"
    if element == 0:
        return "group lengths are not sent"
    if group & 1 and not (0x10 <= element <= 0xFF or element >= 0x1000):
        return "private elements are numbered from 1000, their creators 0010 to 00FF (PS3.5 section 7.8.1)"
    return None


def _unknown(name: str, others: Iterable[str]) -> IdentifierError:
    near = nearest(name, others)
    hint = f"did you mean {near}?" if near else "use DICOM keywords, the same in snake_case, or tags such as 00100020"
    return IdentifierError(f"{shown(name)} is not a known DICOM keyword, tag or member", key=shown(name), hint=hint)


def nearest(name: str, others: Iterable[str] = ()) -> str | None:
    """Return the known name nearest to ``name``, spelt as ``name`` is (snake case or keyword), or None."""
    wanted = _folded(name[:_LONGEST_NAME])
    pools = ({_folded(other): other for other in others}, _COMMON, _same_start(wanted))
    for pool in pools:
        if found := difflib.get_close_matches(wanted, pool, 1, 0.8):
            known = pool[found[0]]
            return snake(known) if name.islower() else known
    return None


def snake(keyword: str) -> str:
    """Return a DICOM keyword in snake case: SOPInstanceUID is sop_instance_uid."""
    return _WORD_START.sub("_", keyword).lower()


def _folded(name: str) -> str:
    return name.lower().replace("_", "")


def _same_start(wanted: str) -> dict[str, str]:
    """Keywords that begin like ``wanted``: comparing with all five thousand would block for a tenth of a second."""
    if len(wanted) < 2:
        return {}
    return dict(_starting(wanted[:2], len(wanted)))


def _starting(start: str, length: int) -> Iterator[tuple[str, str]]:
    for folded, keyword in _BY_LOWER_CASE.items():
        if folded.startswith(start) and abs(len(folded) - length) <= 8:
            yield folded, keyword


_COMMON = {keyword.lower(): keyword for keyword in COMMON_KEYWORDS}
