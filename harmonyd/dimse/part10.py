"""Is a Part 10 file whole, and what is it? Checked by walking its elements, without reading their values.

``check_complete`` follows the lengths to the end of the file (PS3.5 section 7, PS3.10 section 7): a value, item or
fragment that goes beyond the end, a missing delimiter and bytes that are no element are all found. Sequences and items
with a length of their own are stepped over as a whole: that they fit is what counts here.

What cannot be seen this way: a file that was cut exactly between two elements of its data set is as whole as any other
(but for one without any element: that is damage).
Trailing zero bytes are no elements and therefore damage; Data Set Trailing Padding (FFFC,FFFC) is an element.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from harmonyd.dimse.charsets import charset_of
from harmonyd.dimse.elements import (
    ITEM,
    ITEM_DELIMITER,
    LONG_VRS,
    MAX_DEPTH,
    PIXEL_DATA,
    SHORT_VRS,
    UNDEFINED,
    UNKNOWN_END,
    Cursor,
    Encoding,
    FileMeta,
    FileSource,
    InflatedSource,
    MalformedDataset,
    encoding_of,
    is_deflated,
    looks_explicit,
    read_file_meta,
    tag_name,
)
from harmonyd.dimse.errors import DimseError

__all__ = ["DamagedFile", "InstanceHeader", "check_complete", "claimed_uid", "read_header"]

_CHARSET = 0x00080005
_SOP_CLASS = 0x00080016
_SOP_INSTANCE = 0x00080018
_PATIENT_ID = 0x00100020
_STUDY = 0x0020000D
_SERIES = 0x0020000E
_WANTED = frozenset({_CHARSET, _SOP_CLASS, _SOP_INSTANCE, _PATIENT_ID, _STUDY, _SERIES})
_MAX_WANTED_BYTES = 1024
_FIRST_TAG = 0x00030000
_LAST_TAG = 0xFFFDFFFF
"""Between these two are the elements of a data set; groups 0000, 0002 and FFFE are not."""
_FRAGMENTED_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW"})
_PADDING = "\0 "


class DamagedFile(DimseError):
    """The file is not a whole Part 10 file; the detail says what is wrong and at which byte."""

    title = "A damaged DICOM file"


@dataclass(frozen=True, slots=True)
class InstanceHeader:
    """Which instance a file holds. Identifiers that the data set does not have are empty."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    study_instance_uid: str
    series_instance_uid: str
    patient_id: str
    size_bytes: int
    source_aet: str = ""
    """Source Application Entity Title (0002,0016); storescp writes the calling AE title there."""
    data_set_at: int = 0
    """Where the data set begins, in bytes."""


def read_header(path: Path) -> InstanceHeader:
    """Read a file as far as its Series Instance UID. Blocks: call it in a thread.

    Raises ``DamagedFile``, and ``OSError`` when the file cannot be read.
    """
    return _read(path, last_tag=_SERIES)


def check_complete(path: Path) -> InstanceHeader:
    """Check a file to its last element; takes time for elements, not for their sizes. Blocks: call it in a thread.

    Raises ``DamagedFile``, and ``OSError`` when the file cannot be read.
    """
    return _read(path, last_tag=_LAST_TAG)


def claimed_uid(path: Path) -> str:
    """The SOP Instance UID that a damaged file has in its header; empty when there is none. Blocks.

    Raises ``OSError`` when the file cannot be read.
    """
    with FileSource(path) as source:
        try:
            return read_file_meta(Cursor(b"", source)).sop_instance_uid
        except MalformedDataset:
            return ""


def _read(path: Path, last_tag: int) -> InstanceHeader:
    with FileSource(path) as source:
        try:
            if not source.size:
                raise MalformedDataset("the file is empty")
            cursor = Cursor(b"", source)
            meta = read_file_meta(cursor)
            begin, end = cursor.base + cursor.pos, source.size
            if is_deflated(meta.transfer_syntax_uid):
                cursor, end = Cursor(b"", InflatedSource(source, begin)), UNKNOWN_END
            walker = _Walker(cursor, last_tag)
            if cursor.more(1) <= 0:
                raise cursor.wrong("there is no data set behind the file meta information")
            walker.dataset(_encoding_at(cursor, encoding_of(meta.transfer_syntax_uid), 0), end)
            return _header(meta, walker.found, source.size, begin)
        except MalformedDataset as error:
            raise DamagedFile(f"{path.name}: {error.detail}") from error


def _header(meta: FileMeta, found: dict[int, bytes], size: int, begin: int) -> InstanceHeader:
    def uid(tag: int) -> str:
        return found.get(tag, b"").decode("latin-1").strip(_PADDING)

    instance = uid(_SOP_INSTANCE) or meta.sop_instance_uid
    if not instance:
        raise MalformedDataset("neither the file meta information nor the data set has a SOP Instance UID")
    return InstanceHeader(
        sop_class_uid=uid(_SOP_CLASS) or meta.sop_class_uid,
        sop_instance_uid=instance,
        transfer_syntax_uid=meta.transfer_syntax_uid,
        study_instance_uid=uid(_STUDY),
        series_instance_uid=uid(_SERIES),
        patient_id=charset_of(found.get(_CHARSET, b"")).decode(found.get(_PATIENT_ID, b"")).strip(_PADDING),
        size_bytes=size,
        source_aet=meta.source_aet,
        data_set_at=begin,
    )


def _encoding_at(cursor: Cursor, encoding: Encoding, depth: int) -> Encoding:
    """The encoding of the data set that starts here: items in UN, and some writers, leave VRs out of explicit ones."""
    if cursor.more(12) < 8:
        return encoding
    head = cursor.buf[cursor.pos : cursor.pos + 6]
    explicit = looks_explicit(head[4:])
    if encoding is Encoding.EXPLICIT and not explicit and not head.startswith(b"\xfe\xff"):
        return Encoding.IMPLICIT
    return Encoding.EXPLICIT if encoding is Encoding.IMPLICIT and explicit and not depth else encoding


class _Walker:
    """Goes from element to element; keeps the wanted values of the top level."""

    __slots__ = ("_cursor", "_last_tag", "found")

    def __init__(self, cursor: Cursor, last_tag: int) -> None:
        self._cursor = cursor
        self._last_tag = last_tag
        self.found: dict[int, bytes] = {}

    def dataset(self, encoding: Encoding, end: int, depth: int = 0) -> None:
        """Walk the top level, to its end or behind the last tag wanted, or an item of undefined length.

        The inner loop runs for every element of every received file, so it is written out on local variables; what is
        not simply a value inside of the window is left to ``_special``.
        """
        cursor, layout = self._cursor, _LAYOUTS[encoding]
        header, u32, short, explicit = layout.header, layout.u32, layout.short, encoding is not Encoding.IMPLICIT
        last_tag, wanted = (_LAST_TAG, frozenset[int]()) if depth else (self._last_tag, _WANTED)
        while self._goes_on(end, depth):
            buf, pos = cursor.buf, cursor.pos
            stop = min(len(buf), end - cursor.base)
            last = min(len(buf) - 12, stop - 1)
            while pos <= last or pos == cursor.pos:
                group, element, vr, length = header(buf, pos)
                tag = group << 16 | element
                start = pos + 8
                if vr not in short:
                    if explicit and (vr in LONG_VRS or looks_explicit(vr)):
                        # VRs of later editions have 32 bit lengths (PS3.5 section 6.2)
                        if pos + 12 > len(buf):
                            raise cursor.wrong(f"the file ends in the length of {tag_name(tag)}")
                        start = pos + 12
                    length = u32(buf, start - 4)[0]
                pos = start + length
                if pos > stop or tag in wanted or not _FIRST_TAG <= tag <= last_tag:
                    cursor.pos = start
                    if not self._special(tag, vr, length, encoding, end, depth):
                        return
                    break
            else:
                cursor.pos = pos

    def _goes_on(self, end: int, depth: int) -> bool:
        """Whether another element follows; makes sure that its header is in the window."""
        cursor = self._cursor
        have = cursor.more(12)
        if have >= 8:
            return True
        if depth:
            raise cursor.wrong("the file ends in an item that has no delimiter")
        if cursor.base + cursor.pos != end and (have or end != UNKNOWN_END):
            raise cursor.wrong(f"{have} bytes at the end that are no element")
        return False

    def _special(self, tag: int, vr: bytes, length: int, encoding: Encoding, end: int, depth: int) -> bool:
        """Handle what is not simply a value inside of the window, from the value on; False ends the data set."""
        if tag == ITEM_DELIMITER and depth:
            return False
        if tag >> 16 in (0, 2, 0xFFFE):
            raise self._cursor.wrong(f"{tag_name(tag)} where an element of the data set should be")
        if tag > self._last_tag and not depth:
            return False
        if length == UNDEFINED:
            self._undefined(tag, vr, encoding, end, depth)
        elif self._cursor.base + self._cursor.pos + length > end:
            raise self._cursor.wrong(f"the value of {tag_name(tag)}, {length} bytes, goes beyond the end")
        elif tag in _WANTED and not depth and length <= _MAX_WANTED_BYTES:
            self.found[tag] = self._cursor.take(length)
        else:
            self._cursor.pos += length
        return True

    def _undefined(self, tag: int, vr: bytes, encoding: Encoding, end: int, depth: int) -> None:
        if vr in _FRAGMENTED_VRS or tag in PIXEL_DATA:
            self._cursor.skip_fragments(end, encoding)
        elif vr in (b"UC", b"UR", b"UT", b"SV", b"UV"):
            raise self._cursor.wrong(f"{tag_name(tag)} of VR {vr.decode()} has undefined length")
        else:
            self._sequence(encoding, end, depth + 1)

    def _sequence(self, encoding: Encoding, end: int, depth: int) -> None:
        """Walk a sequence of undefined length to its delimiter."""
        cursor = self._cursor
        if depth > MAX_DEPTH:
            raise cursor.wrong(f"sequences are nested deeper than {MAX_DEPTH}")
        while (header := cursor.item(end, encoding))[0] == ITEM:
            if header[1] == UNDEFINED:
                self.dataset(_encoding_at(cursor, encoding, depth), end, depth)
            else:
                cursor.pos += header[1]


class _Layout(NamedTuple):
    """How to read element headers in one encoding."""

    header: Callable[[bytes, int], tuple[int, int, bytes, int]]
    """Group, element, VR and 16 bit length; the last two mean nothing where there is no VR."""
    u32: Callable[[bytes, int], tuple[int]]
    short: frozenset[bytes]


_LAYOUTS = {
    Encoding.IMPLICIT: _Layout(Struct("<HH2sH").unpack_from, Struct("<L").unpack_from, frozenset()),
    Encoding.EXPLICIT: _Layout(Struct("<HH2sH").unpack_from, Struct("<L").unpack_from, SHORT_VRS),
    Encoding.EXPLICIT_BIG: _Layout(Struct(">HH2sH").unpack_from, Struct(">L").unpack_from, SHORT_VRS),
}
