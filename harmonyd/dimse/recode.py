"""A data set of a message from Explicit to Implicit VR Little Endian, or back, the bytes of its values as they are.

So text stays in whatever character set it is in, whether or not anybody here knows it. For identifiers: what a file of
a study may have beside (encapsulated pixel data) is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from struct import error as StructError  # noqa: N812

from pydicom.datadict import dictionary_VR

from harmonyd.dimse.elements import MAX_DEPTH, MalformedDataset

__all__ = ["EXPLICIT_VR_LE", "IMPLICIT_VR_LE", "MalformedDataset", "recoded"]

IMPLICIT_VR_LE, EXPLICIT_VR_LE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""With a length of 32 bit (PS3.5 section 7.1.2)."""
_TAG = Struct("<HH")
_IMPLICIT_HEAD = Struct("<HHI")
_SHORT_HEAD = Struct("<HH2sH")
_LONG_HEAD = Struct("<HH2sxxI")
_U16, _U32 = Struct("<H"), Struct("<I")


def recoded(data: bytes, from_uid: str, to_uid: str) -> bytes:
    """The data set in another transfer syntax of these two. Raises ``MalformedDataset``.

    Elements without a known VR become UN; group lengths, which would not be right any more, are left out.
    """
    if from_uid == to_uid:
        return data
    if {from_uid, to_uid} != {IMPLICIT_VR_LE, EXPLICIT_VR_LE}:
        raise MalformedDataset(f"a data set cannot be converted from {from_uid} to {to_uid}")
    try:
        return b"".join(_Recoder(data, to_explicit=to_uid == EXPLICIT_VR_LE).all())
    except StructError:
        raise MalformedDataset("the data set ends in the middle of an element") from None


class _Recoder:
    def __init__(self, data: bytes, *, to_explicit: bool) -> None:
        self._data = data
        self._to_explicit = to_explicit
        self._at = 0

    def all(self) -> Iterator[bytes]:
        """Pieces of the result."""
        return self._elements(len(self._data), 0, explicit=not self._to_explicit)

    def _elements(self, end: int, depth: int, *, explicit: bool) -> Iterator[bytes]:
        """Up to ``end``, or an item delimiter."""
        if depth > MAX_DEPTH:
            raise MalformedDataset(f"sequences are more than {MAX_DEPTH} deep")
        while self._at < end:
            group, element = _TAG.unpack_from(self._data, self._at)
            tag = group << 16 | element
            if tag == _ITEM_END:
                self._at += 8
                return
            vr, length = self._explicit_head() if explicit else self._implicit_head(tag)
            if vr == b"SQ" or length == _UNDEFINED:
                if vr not in (b"SQ", b"UN"):
                    raise MalformedDataset("encapsulated data do not belong here")
                yield self._head(tag, b"SQ", _UNDEFINED)
                yield from self._items(length, depth + 1, explicit=explicit and vr == b"SQ")
                continue
            value = self._value(length)
            if element:
                yield self._head(tag, vr, length)
                yield value

    def _explicit_head(self) -> tuple[bytes, int]:
        vr = self._data[self._at + 4 : self._at + 6]
        if vr in _LONG_VRS:
            (length,) = _U32.unpack_from(self._data, self._at + 8)
            self._at += 12
        else:
            (length,) = _U16.unpack_from(self._data, self._at + 6)
            self._at += 8
        return vr, length

    def _implicit_head(self, tag: int) -> tuple[bytes, int]:
        (length,) = _U32.unpack_from(self._data, self._at + 4)
        self._at += 8
        return _vr_of(tag), length

    def _value(self, length: int) -> bytes:
        value = self._data[self._at : self._at + length]
        if len(value) < length:
            raise MalformedDataset("the data set ends in the middle of a value")
        self._at += length
        return value

    def _head(self, tag: int, vr: bytes, length: int) -> bytes:
        group, element = tag >> 16, tag & 0xFFFF
        if not self._to_explicit:
            return _IMPLICIT_HEAD.pack(group, element, length)
        if vr in _LONG_VRS:
            return _LONG_HEAD.pack(group, element, vr, length)
        if length > 0xFFFF:
            return _LONG_HEAD.pack(group, element, b"UN", length)
        return _SHORT_HEAD.pack(group, element, vr, length)

    def _items(self, length: int, depth: int, *, explicit: bool) -> Iterator[bytes]:
        end = len(self._data) if length == _UNDEFINED else self._at + length
        while self._at < end:
            group, element, size = _IMPLICIT_HEAD.unpack_from(self._data, self._at)
            self._at += 8
            if group << 16 | element == _SEQUENCE_END:
                break
            if group << 16 | element != _ITEM:
                raise MalformedDataset("there is something else than items in a sequence")
            yield _IMPLICIT_HEAD.pack(0xFFFE, 0xE000, _UNDEFINED)
            yield from self._elements(end if size == _UNDEFINED else self._at + size, depth, explicit=explicit)
            yield _IMPLICIT_HEAD.pack(0xFFFE, 0xE00D, 0)
        yield _IMPLICIT_HEAD.pack(0xFFFE, 0xE0DD, 0)


def _vr_of(tag: int) -> bytes:
    """Of the dictionary: the first where it allows several, but for "OB or OW" (PS3.5 section A.1)."""
    if tag >> 16 & 1:
        return b"LO" if 0x10 <= tag & 0xFFFF <= 0xFF else b"UN"
    try:
        vr = dictionary_VR(tag)
    except KeyError:
        return b"UN"
    return b"OW" if vr == "OB or OW" else vr[:2].encode()
