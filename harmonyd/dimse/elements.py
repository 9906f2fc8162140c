"""The bytes around data element values: encodings, windows on a file, item headers, file meta information.

What the decoder (``dataset_json``) and the file check (``part10``) have in common. Everything reads through a
``Cursor``, which holds one window of the input, so memory does not depend on the size of a file or of a length in it.
"""

from __future__ import annotations

import os
import zlib
from enum import Enum
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from harmonyd.dimse.errors import DimseError

UNDEFINED = 0xFFFFFFFF
"""Undefined length: the end is a delimitation item (PS3.5 section 7.1.1)."""
UNKNOWN_END = 1 << 62
"""Stands for the end of an input whose length is not known beforehand (a deflated data set)."""
MAX_DEPTH = 64
"""Deepest nesting of sequences that is followed."""
MAX_INFLATED_BYTES = 1 << 30
"""Most that a deflated data set may inflate to."""

ITEM = 0xFFFEE000
ITEM_DELIMITER = 0xFFFEE00D
SEQUENCE_DELIMITER = 0xFFFEE0DD
PIXEL_DATA = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
"""Float, Double Float and plain Pixel Data."""

LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""VRs with a 32 bit length in explicit encodings (PS3.5 table 7.1-1)."""
SHORT_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split(),
)
"""VRs with a 16 bit length (PS3.5 table 7.1-2)."""

WINDOW_BYTES = 65536
JUMP_BYTES = 4096
"""Read after a jump over a value: the next header is near, what follows it may be another big value."""

_MAX_TRAILER_BYTES = 9

_META_TAGS = {
    b"\x02\x00\x02\x00": "sop_class_uid",
    b"\x02\x00\x03\x00": "sop_instance_uid",
    b"\x02\x00\x10\x00": "transfer_syntax_uid",
    b"\x02\x00\x16\x00": "source_aet",
}
_u16 = Struct("<H").unpack_from
_u32 = Struct("<L").unpack_from


class MalformedDataset(DimseError):
    """The bytes are no data set in their transfer syntax; the detail says what is wrong and at which byte."""

    title = "The remote node sent a malformed data set"


class Encoding(Enum):
    """How data elements are written (PS3.5 section 7.1 and Annex A)."""

    IMPLICIT = "Implicit VR Little Endian"
    EXPLICIT = "Explicit VR Little Endian"
    EXPLICIT_BIG = "Explicit VR Big Endian"


_ITEM_HEADERS = {Encoding.IMPLICIT: Struct("<HHL"), Encoding.EXPLICIT: Struct("<HHL"),
                 Encoding.EXPLICIT_BIG: Struct(">HHL")}
_SYNTAXES = {
    "1.2.840.10008.1.2": Encoding.IMPLICIT,
    "1.2.840.113619.5.2": Encoding.IMPLICIT,  # GE private: only its pixel data are big endian
    "1.2.840.10008.1.2.2": Encoding.EXPLICIT_BIG,
}
_DEFLATED = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})


def encoding_of(transfer_syntax_uid: str) -> Encoding:
    """The encoding of a transfer syntax: Explicit VR Little Endian for all but three (PS3.5 Annex A)."""
    return _SYNTAXES.get(transfer_syntax_uid, Encoding.EXPLICIT)


def is_deflated(transfer_syntax_uid: str) -> bool:
    """Whether the data set is one raw deflate stream (PS3.5 sections A.5 and A.7)."""
    return transfer_syntax_uid in _DEFLATED


def looks_explicit(vr: bytes) -> bool:
    """Whether two bytes can be the VR of an explicit element: capital letters."""
    return vr.isalpha() and vr.isupper() and len(vr) == 2


def tag_name(tag: int) -> str:
    """``(GGGG,EEEE)``, as people write a tag."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


class Source(Protocol):
    """Random or forward access to the bytes behind a cursor."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``, fewer only at the end; raises ``MalformedDataset`` past the end."""
        ...


class FileSource:
    """A file, read with ``pread``. A context manager; opening and reading raise ``OSError``."""

    __slots__ = ("_fd", "size")

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size

    def read_at(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._fd)


class MemorySource:
    """Bytes in memory behind the ``Source`` interface; what a deflated data set in memory is inflated from."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_at(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


class InflatedSource:
    """A deflated data set, inflated forward in bounded pieces.

    ``read_at`` raises ``MalformedDataset`` when the stream is damaged, ends early, inflates to more than
    ``MAX_INFLATED_BYTES``, or is followed by more than padding and a gzip trailer, which some writers append.
    """

    __slots__ = ("_at", "_inflated", "_inflater", "_input", "_input_at", "_window")

    def __init__(self, compressed: Source, offset: int) -> None:
        self._input = compressed
        self._input_at = offset
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._inflated = 0
        self._window = b""
        self._at = 0

    def read_at(self, offset: int, size: int) -> bytes:
        while offset > self._at + len(self._window):
            self._at += len(self._window)
            self._window = self._inflate(WINDOW_BYTES)
            if not self._window:
                raise MalformedDataset(f"the deflated data set ends at byte {self._at}, inside of a value")
        pieces = [self._window[offset - self._at :]]
        have = len(pieces[0])
        while have < size and (piece := self._inflate(size - have)):
            pieces.append(piece)
            have += len(piece)
        self._window = b"".join(pieces)
        self._at = offset
        return self._window[:size]

    def _inflate(self, size: int) -> bytes:
        """The next piece, at most ``size`` bytes; empty at the end of a stream that ends as it should."""
        try:
            while not self._inflater.eof:
                data = self._inflater.unconsumed_tail or self._read_input()
                if piece := self._inflater.decompress(data, size):
                    self._inflated += len(piece)
                    if self._inflated > MAX_INFLATED_BYTES:
                        raise MalformedDataset(f"the data set inflates to more than {MAX_INFLATED_BYTES} bytes")
                    return piece
                if not data:
                    raise MalformedDataset(f"the deflate stream ends early, at byte {self._input_at}")
        except zlib.error as error:
            raise MalformedDataset(f"the deflate stream is damaged near byte {self._input_at}: {error}") from None
        behind = len(self._inflater.unused_data) + len(self._input.read_at(self._input_at, _MAX_TRAILER_BYTES))
        if behind > _MAX_TRAILER_BYTES:
            raise MalformedDataset("bytes follow the end of the deflate stream")
        return b""

    def _read_input(self) -> bytes:
        data = self._input.read_at(self._input_at, WINDOW_BYTES)
        self._input_at += len(data)
        return data


class Cursor:
    """A position in one window of the input.

    ``buf[pos]`` is byte ``base + pos`` of the input. Without a source ``buf`` is the whole input. ``budget`` bounds how
    many bytes may be read into windows; values that are skipped do not count.
    """

    __slots__ = ("_ended", "base", "budget", "buf", "pos", "source")

    def __init__(self, buf: bytes, source: Source | None = None, *, budget: int = UNKNOWN_END) -> None:
        self.buf = buf
        self.base = 0
        self.pos = 0
        self.source = source
        self.budget = budget
        self._ended = source is None

    def more(self, need: int) -> int:
        """Bytes in the window from ``pos`` on, after reading on if they are fewer than ``need`` and there are more."""
        have = len(self.buf) - self.pos
        if have >= need or (self._ended and have >= 0) or self.source is None:
            return have
        size = max(need, WINDOW_BYTES if have >= 0 else JUMP_BYTES)
        self.base += self.pos
        self.buf = self.source.read_at(self.base, size)
        self.pos = 0
        self._ended = len(self.buf) < size
        self.budget -= len(self.buf)
        if self.budget < 0:
            raise self.wrong("the elements without bulk data are larger than the limit")
        return len(self.buf)

    def take(self, length: int) -> bytes:
        """The next ``length`` bytes; the caller bounds ``length``."""
        if self.more(length) < length:
            raise self.wrong(f"a value of {length} bytes goes beyond the end")
        start = self.pos
        self.pos += length
        return self.buf[start : self.pos]

    def item(self, end: int, encoding: Encoding) -> tuple[int, int]:
        """Read the header of an item or of the sequence delimiter: tag and length (PS3.5 section 7.5)."""
        if self.more(8) < 8 or self.base + self.pos + 8 > end:
            raise self.wrong("the end where an item or a sequence delimiter should be")
        group, element, length = _ITEM_HEADERS[encoding].unpack_from(self.buf, self.pos)
        self.pos += 8
        tag = group << 16 | element
        if tag not in (ITEM, SEQUENCE_DELIMITER):
            raise self.wrong(f"{tag_name(tag)} where an item or a sequence delimiter should be")
        if length != UNDEFINED and self.base + self.pos + length > end:
            raise self.wrong(f"an item of {length} bytes goes beyond the end")
        return tag, length

    def skip_fragments(self, end: int, encoding: Encoding) -> None:
        """Go behind the sequence delimiter of an encapsulated value (PS3.5 section A.4)."""
        while (header := self.item(end, encoding))[0] == ITEM:
            if header[1] == UNDEFINED:
                raise self.wrong("a fragment of undefined length")
            self.pos += header[1]

    def wrong(self, what: str) -> MalformedDataset:
        """The error that says ``what`` is wrong here."""
        return MalformedDataset(f"{what} (at byte {self.base + self.pos})")


class FileMeta(NamedTuple):
    """The file meta information (PS3.10 section 7.1) as far as we need it; empty where absent."""

    transfer_syntax_uid: str = ""
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    source_aet: str = ""


def read_file_meta(cursor: Cursor) -> FileMeta:
    """Read preamble and group 0002; leaves the cursor at the data set.

    The group's own length is not trusted. A missing Transfer Syntax UID is refused: nothing else says how to read on.
    """
    cursor.more(1024)
    if cursor.buf[128:132] != b"DICM":
        raise MalformedDataset("no DICOM Part 10 file: the prefix DICM is not at byte 128")
    cursor.pos = 132
    found: dict[str, str] = {}
    while cursor.more(12) >= 8 and cursor.buf.startswith(b"\x02\x00", cursor.pos):
        name = _META_TAGS.get(cursor.buf[cursor.pos : cursor.pos + 4])
        length = _meta_length(cursor)
        if name is not None and length <= 128:
            found[name] = cursor.take(length).decode("latin-1").strip("\0 ")
        else:
            cursor.pos += length
    if not found.get("transfer_syntax_uid"):
        raise cursor.wrong("the file meta information has no Transfer Syntax UID (0002,0010)")
    return FileMeta(**found)


def _meta_length(cursor: Cursor) -> int:
    """Go behind the header of a group 0002 element and return the length of its value."""
    vr = cursor.buf[cursor.pos + 4 : cursor.pos + 6]
    wide = vr in LONG_VRS
    if wide and cursor.more(12) < 12:
        raise cursor.wrong("the file ends in the file meta information")
    explicit = wide or vr in SHORT_VRS  # some writers left the VR out here too
    length: int = (_u16(cursor.buf, cursor.pos + 6) if explicit and not wide
                   else _u32(cursor.buf, cursor.pos + (8 if wide else 4)))[0]
    cursor.pos += 12 if wide else 8
    return length
