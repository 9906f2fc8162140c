"""A Part 10 file, rewritten: its data set is edited, its pixels are copied from file to file. Everything here blocks.

The data set without pixels is in memory, up to ``MAX_HEADER_BYTES``. What stands behind the pixels (PS3.5 has Data Set
Trailing Padding and Digital Signatures there) is edited with the rest.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import Dataset, dcmread, dcmwrite
from pydicom.filebase import DicomFileLike
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from harmonyd.errors import HarmonydError
from harmonyd.rewriting.errors import BadObject

MAX_HEADER_BYTES = 64 * 1024 * 1024
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_COPY_BYTES = 1024 * 1024
_UNDEFINED = 0xFFFFFFFF
_PREAMBLE_BYTES = 128


@dataclass(frozen=True, slots=True)
class Pixels:
    """Where Pixel Data is in a file."""

    at: int
    """Its header."""
    value_at: int
    value_bytes: int
    """Of a value that is not encapsulated; 0 otherwise."""
    end: int
    encapsulated: bool


Edit = Callable[[Dataset], None]
"""Changes a data set, its ``file_meta`` and ``preamble`` with it."""
After = Callable[[Dataset, BinaryIO, Pixels], None]
"""Changes pixels in the new file, which is open for reading and writing; of the data set as it was before."""


def rewrite_file(source: Path, target: Path, edit: Edit, after: After | None = None) -> Dataset:
    """Write an edited copy of ``source``, and return its data set without pixels.

    Raises ``BadObject``, what ``edit`` and ``after`` raise, and ``OSError``; then ``target`` is not there.
    """
    try:
        return _rewrite(source, target, edit, after)
    except (HarmonydError, OSError):
        target.unlink(missing_ok=True)
        raise
    except Exception as error:
        target.unlink(missing_ok=True)
        # Whatever pydicom stumbles over is in the object. Its text may have values in it.
        raise BadObject(f"The object cannot be read well enough to be rewritten ({type(error).__name__}).") from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _rewrite(source: Path, target: Path, edit: Edit, after: After | None) -> Dataset:
    with source.open("rb") as file:
        _require_part10(file)
        meta: Any = dcmread(file, stop_before_pixels=True, specific_tags=[0x00080016])
        syntax = UID(meta.file_meta.TransferSyntaxUID)
        file.seek(0)
        if syntax == DeflatedExplicitVRLittleEndian:
            return _deflated(file, target, edit, after)
        ds = dcmread(file, stop_before_pixels=True, defer_size=_COPY_BYTES)
        at = file.tell()
        if at > MAX_HEADER_BYTES:
            raise BadObject(f"The object has more than {MAX_HEADER_BYTES} bytes beside its pixels, the most allowed.")
        file.seek(0)
        ds = dcmread(file, stop_before_pixels=True)
        pixels = _pixels(file, at, syntax)
        before = _about_pixels(ds) if pixels is not None else ds
        if pixels is not None:
            ds.update(_behind(file, pixels, syntax))
        edit(ds)
        _write(file, ds, pixels, target, syntax)
    if after is not None and pixels is not None:
        shift = _start(target) - pixels.at
        moved = Pixels(
            pixels.at + shift, pixels.value_at + shift, pixels.value_bytes, pixels.end + shift, pixels.encapsulated
        )
        with target.open("r+b") as out:
            after(before, out, moved)
    return ds


def _require_part10(file: BinaryIO) -> None:
    head = file.read(_PREAMBLE_BYTES + 4)
    if head[_PREAMBLE_BYTES:] != b"DICM":
        raise BadObject("The object is not a DICOM file of Part 10.")
    file.seek(0)


def _about_pixels(ds: Dataset) -> Dataset:
    """What rules for regions look at, before it is edited."""
    kept = Dataset()
    for tag in (0x00080016, 0x00080060, 0x00080070, 0x00081090):
        if tag in ds:
            kept[tag] = ds[tag]
    kept.update(ds[0x00280000:0x00290000])
    kept.file_meta = ds.file_meta
    return kept


def _pixels(file: BinaryIO, at: int, syntax: UID) -> Pixels | None:
    size = os.fstat(file.fileno()).st_size
    file.seek(at)
    head = file.read(12)
    if len(head) < 8:
        return None
    order: Any = "big" if syntax == ExplicitVRBigEndian else "little"
    tag = int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)
    if tag not in PIXELS:
        return None
    value_at = at + (8 if syntax.is_implicit_VR else 12)
    length = int.from_bytes(head[4:8] if syntax.is_implicit_VR else head[8:12], order)
    if length == _UNDEFINED:
        return Pixels(at, value_at, 0, _end_of_fragments(file, value_at, size), encapsulated=True)
    if value_at + length > size:
        raise BadObject("The object ends before its pixels do.")
    return Pixels(at, value_at, length, value_at + length, encapsulated=False)


def _end_of_fragments(file: BinaryIO, at: int, size: int) -> int:
    """Go from item to item to the delimiter of the sequence (PS3.5 section A.4)."""
    while at + 8 <= size:
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        at += 8
        if head[:4] == b"\xfe\xff\xdd\xe0":
            return at
        if head[:4] != b"\xfe\xff\x00\xe0":
            break
        at += length
    raise BadObject("The fragments of the pixels are not well formed.")


def _behind(file: BinaryIO, pixels: Pixels, syntax: UID) -> Dataset:
    left = os.fstat(file.fileno()).st_size - pixels.end
    if left > MAX_HEADER_BYTES:
        raise BadObject(f"The object has more than {MAX_HEADER_BYTES} bytes behind its pixels, the most there may be.")
    file.seek(pixels.end)
    return read_dataset(BytesIO(file.read(left)), bool(syntax.is_implicit_VR), bool(syntax.is_little_endian))


def _write(file: BinaryIO, ds: Dataset, pixels: Pixels | None, target: Path, syntax: UID) -> None:
    first = ds[: PIXELS[0]]
    behind = ds[PIXELS[-1] :]
    first.file_meta, first.preamble = ds.file_meta, getattr(ds, "preamble", None) or b"\0" * _PREAMBLE_BYTES
    first.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian, ds.original_character_set)
    with target.open("xb") as out:
        dcmwrite(out, first)
        if pixels is None:
            return
        file.seek(pixels.at)
        _copy(file, out, pixels.end - pixels.at)
        if len(behind):
            fp = DicomFileLike(out)
            fp.is_implicit_VR, fp.is_little_endian = bool(syntax.is_implicit_VR), bool(syntax.is_little_endian)
            write_dataset(fp, behind, ds.get("SpecificCharacterSet", "ISO_IR 6"))


def _copy(file: BinaryIO, out: BinaryIO, length: int) -> None:
    """Within the kernel, where it can (copy_file_range(2) shares blocks on file systems that do so)."""
    out.flush()
    at, left = file.tell(), length
    while left > 0:
        try:
            done = os.copy_file_range(file.fileno(), out.fileno(), left, at)
        except OSError:
            break
        if not done:
            break
        at, left = at + done, left - done
    out.seek(0, os.SEEK_END)
    file.seek(at)
    while left > 0 and (chunk := file.read(min(left, _COPY_BYTES))):
        out.write(chunk)
        left -= len(chunk)
    if left:
        raise BadObject("The object became shorter while it was copied.")


def _start(target: Path) -> int:
    with target.open("rb") as file:
        dcmread(file, stop_before_pixels=True, specific_tags=[0x00080016])
        return file.tell()


def _deflated(file: BinaryIO, target: Path, edit: Edit, after: After | None) -> Dataset:
    """Of a deflated data set there is no place to copy from: it is in memory as a whole."""
    if os.fstat(file.fileno()).st_size <= MAX_HEADER_BYTES:
        file.seek(0)
        is_small = _inflates_to_little(file.read())
    else:
        is_small = False
    if not is_small:
        raise BadObject(f"A deflated object may have {MAX_HEADER_BYTES} bytes at most.")
    file.seek(0)
    ds = dcmread(file)
    if after is not None and any(tag in ds for tag in PIXELS):
        raise BadObject("Regions of pixels that are deflated cannot be blanked.")
    edit(ds)
    with target.open("xb") as out:
        dcmwrite(out, ds)
    return ds


def _inflates_to_little(packed: bytes) -> bool:
    """Tell whether an object can be in memory, without unpacking more than that."""
    source = BytesIO(packed)
    source.seek(_PREAMBLE_BYTES + 4)
    head = source.read(12)
    begin = _PREAMBLE_BYTES + 4 + 12 + int.from_bytes(head[8:12], "little")
    data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed[begin:], MAX_HEADER_BYTES + 1)
    return len(data) <= MAX_HEADER_BYTES
