"""The frames of an image in a file: as they are stored, decoded, or as pixels. Everything here blocks.

pydicom reads only the frame that is wanted; the codecs are those of the optional dependencies (``harmonyd[dicomweb]``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, BinaryIO

from pydicom import Dataset, dcmread
from pydicom.encaps import get_frame, parse_basic_offsets, parse_fragments
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from harmonyd.dimse.elements import MalformedDataset
from harmonyd.errors import HarmonydError, NotAcceptable, NotFound
from harmonyd.privacy import said
from harmonyd.services.dicomweb.codecs import INSTALL
from harmonyd.services.dicomweb.transcoding import swapped

MAX_FRAME_BYTES = 1 << 29
"""Largest frame that is decoded: what an image says of its size decides how much memory that takes."""
_PIXEL_DATA = 0x7FE00010
_KINDS = ((_PIXEL_DATA, "PixelData"), (0x7FE00008, "FloatPixelData"), (0x7FE00009, "DoubleFloatPixelData"))
_EXTENT_BYTES = 150
"""What begin and end of a frame take in memory."""
_RLE = "image/dicom-rle"
STORED_TYPES: dict[str, tuple[str, ...]] = {
    "1.2.840.10008.1.2.5": (_RLE, "image/x-dicom-rle"),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70)), ("image/jpeg",)),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{n}" for n in (80, 81)), ("image/jls", "image/x-jls")),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{n}" for n in (90, 91)), ("image/jp2",)),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{n}" for n in (92, 93)), ("image/jpx",)),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{n}" for n in (201, 202, 203)), ("image/jphc",)),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{n}" for n in (100, 101)), ("video/mpeg",)),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{n}" for n in (102, 103, 104, 105, 106)), ("video/mp4",)),
}
"""Media types of a compressed frame by its transfer syntax (PS3.18 table 8.7.3-2)."""


@contextmanager
def judged() -> Iterator[None]:
    """What pydicom raises for an object that is not as it should be is said to be the fault of the object."""
    try:
        yield
    except (HarmonydError, OSError):
        raise
    except Exception as error:
        raise MalformedDataset(f"The object cannot be read: {said(error)[:300]}") from error


class PixelFile:
    """An image in a Part 10 file.

    Raises ``NotFound`` for an object without pixels and a frame that it does not have.
    """

    def __init__(self, path: Any) -> None:
        """``path``: or whatever else can be opened again and again, as a path can."""
        self.path = path
        with judged(), path.open("rb") as file:
            whole = dcmread(file, stop_before_pixels=True)
            self._at = file.tell()
            self.ds: Dataset = _about_pixels(whole)
        self.syntax = UID(whole.file_meta.TransferSyntaxUID)
        self._frames: list[tuple[int, int]] | None = None
        """Where stored frames begin and end, once that was looked for; empty where it cannot be told."""
        if "Rows" not in self.ds or "Columns" not in self.ds:
            raise NotFound("This instance has no pixels, so it has no frames.")

    @property
    def is_compressed(self) -> bool:
        """Whether frames are stored encapsulated (PS3.5 section A.4)."""
        return bool(self.syntax.is_encapsulated)

    @property
    def is_plain(self) -> bool:
        """Whether the pixels lie in the file in little endian, one after the other."""
        return not self.is_compressed and self.syntax not in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)

    def extent(self) -> tuple[int, int]:
        """Return where in the file the pixels begin, and how many bytes they are; for plain ones."""
        with self.path.open("rb") as file:
            length = self._seek(file)
            return file.tell(), min(length, self.path.stat().st_size - file.tell())

    @property
    def weight(self) -> int:
        """About so many bytes of memory, with where its frames are."""
        values = (self.ds.get_item(tag) for tag in self.ds.keys())  # noqa: SIM118 - iterating would decode them
        sizes = (len(each.value) if isinstance(getattr(each, "value", None), bytes) else 200 for each in values if each)
        return 4096 + sum(sizes) + (_EXTENT_BYTES * self.frame_count if self.is_compressed else 0)

    @property
    def frame_count(self) -> int:
        """Number of Frames (0028,0008), 1 where there is none."""
        with judged():
            return max(1, int(self.ds.get("NumberOfFrames") or 1))

    @property
    def stored_types(self) -> tuple[str, ...]:
        """Media types of a stored frame; empty when it is not compressed."""
        return STORED_TYPES.get(str(self.syntax), ()) if self.is_compressed else ()

    def require(self, frames: Sequence[int]) -> None:
        """Raise ``NotFound`` unless there are all these frames (the first is 1)."""
        if frames and max(frames) > self.frame_count:
            raise NotFound(f"There is no frame {max(frames)}; NumberOfFrames is {self.frame_count}.")

    def stored(self, frame: int) -> bytes:
        """Return a compressed frame as it is stored."""
        with judged(), self.path.open("rb") as file:
            self._seek(file)
            extended = self._extended_offsets()
            if self._frames is None:
                self._frames = frame_extents(file, self.frame_count) if extended is None else []
            if self._frames:
                start, end = self._frames[frame - 1]
                file.seek(start)
                return _joined(file.read(end - start))
            return get_frame(file, frame - 1, number_of_frames=self.frame_count, extended_offsets=extended)

    def octets(self, frame: int) -> bytes:
        """Return the pixels of a frame, uncompressed and in little endian; colours that were compressed are RGB.

        Raises ``NotAcceptable`` for what cannot be decoded.
        """
        if self.is_compressed:
            data: bytes = self.pixels(frame).tobytes()
            return data
        with judged():
            return self._uncompressed(frame)

    def _uncompressed(self, frame: int) -> bytes:
        bits = self._frame_bits()
        if bits > MAX_FRAME_BYTES * 8:
            raise _too_big()
        first = (frame - 1) * bits
        data = self._native(first // 8, (first + bits + 7) // 8)
        if bits % 8:
            data = _shifted(data, first % 8, bits)
        wide = int(self.ds.BitsAllocated) // 8
        return swapped(data, wide) if self.syntax == ExplicitVRBigEndian and wide in (2, 4, 8) else data

    def pixels(self, frame: int) -> Any:
        """Return a frame as an array of numpy, colours as RGB. Raises ``NotAcceptable``."""
        if find_spec("numpy") is None:
            raise NotAcceptable(
                "Pixels cannot be decoded here.", hint=f"Whoever runs harmonyd has to install the codecs: {INSTALL}"
            )
        if self._frame_bits() > MAX_FRAME_BYTES * 8:
            raise _too_big()
        if self.ds.get("BitsAllocated") == 1 and not self.is_compressed:
            return self._bits(frame)
        deflated = self.syntax == DeflatedExplicitVRLittleEndian
        failures = []
        for plugin in self._plugins():
            try:
                return self._decoded(frame - 1, plugin, inflate=deflated)
            except OSError:
                raise
            except Exception as error:  # noqa: BLE001 - codecs raise anything for data that they cannot take
                failures.append(said(error)[:200])
        raise NotAcceptable(
            f"The pixels, stored in {self.syntax}, cannot be decoded: {'; '.join(failures)}",
            hint=f"{INSTALL} for the codecs, or accept the frames as stored.",
        )

    def _bits(self, frame: int) -> Any:
        """Single bits, whose frames need not begin at a byte: that is more than pydicom can."""
        import numpy as np

        packed = np.frombuffer(self.octets(frame), dtype=np.uint8)
        rows, columns = int(self.ds.Rows), int(self.ds.Columns)
        return np.unpackbits(packed, count=rows * columns, bitorder="little").reshape(rows, columns)

    def _decoded(self, index: int, plugin: str, *, inflate: bool) -> Any:
        from pydicom.pixels.utils import pixel_array

        with self.path.open("rb") as file:
            source = dcmread(file) if inflate else file
            return pixel_array(source, index=index, decoding_plugin=plugin)

    def _plugins(self) -> list[str]:
        """GDCM can do all, but the others are more careful with data that is not right. "": there is no choice."""
        if not self.is_compressed:
            return [""]
        from pydicom.pixels.decoders.base import get_decoder

        return sorted(get_decoder(self.syntax).available_plugins, key=lambda name: name == "gdcm") or [""]

    def _frame_bits(self) -> int:
        ds = self.ds
        with judged():
            samples = int(ds.get("SamplesPerPixel") or 1)
            bits = int(ds.Rows) * int(ds.Columns) * samples * int(ds.get("BitsAllocated") or 8)
        is_halved = not self.is_compressed and ds.get("PhotometricInterpretation") == "YBR_FULL_422"
        return bits * 2 // 3 if is_halved else bits

    def _seek(self, file: BinaryIO) -> int:
        """Go to the value of Pixel Data, whatever kind; return its length."""
        file.seek(self._at)
        head = file.read(12)
        order = "big" if self.syntax == ExplicitVRBigEndian else "little"
        tag = int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)  # type: ignore[arg-type]
        if tag not in {tag for tag, _ in _KINDS}:
            raise NotFound("This instance has no pixels, so it has no frames.")
        if self.syntax.is_implicit_VR:
            file.seek(self._at + 8)
            return int.from_bytes(head[4:8], "little")
        return int.from_bytes(head[8:12], order)  # type: ignore[arg-type]

    def _native(self, start: int, end: int) -> bytes:
        if self.syntax == DeflatedExplicitVRLittleEndian:
            with self.path.open("rb") as file:
                whole = dcmread(file)
            data = next((bytes(whole[tag].value) for tag, _ in _KINDS if tag in whole), b"")[start:end]
        else:
            with self.path.open("rb") as file:
                length = self._seek(file)
                file.seek(start, 1)
                data = file.read(max(0, min(end, length) - start))
        if len(data) < end - start:
            raise NotFound("The instance has fewer pixels than it says.")
        return data

    def _extended_offsets(self) -> tuple[bytes, bytes] | None:
        offsets, lengths = self.ds.get("ExtendedOffsetTable"), self.ds.get("ExtendedOffsetTableLengths")
        return (offsets, lengths) if offsets and lengths else None


def _about_pixels(whole: Dataset) -> Dataset:
    """The elements that say what the pixels mean; the rest may be megabytes."""
    ds = whole[0x00280000:0x00290000]
    for tag in (0x7FE00001, 0x7FE00002):
        if tag in whole:
            ds[tag] = whole[tag]
    ds.file_meta = whole.file_meta
    return ds


def frame_extents(file: BinaryIO, count: int) -> list[tuple[int, int]]:
    """Return begin and end of each frame's fragments in ``file``, which is at the value of Pixel Data (PS3.5 A.4).

    Empty where neither the Basic Offset Table nor the number of fragments tells. The position stays.
    """
    begin = file.tell()
    offsets = parse_basic_offsets(file)
    first = file.tell()
    found, fragments = parse_fragments(file)
    file.seek(fragments[-1] if found else first)
    last = file.read(8)
    end = (fragments[-1] if found else first) + 8 + int.from_bytes(last[4:8], "little")
    file.seek(begin)
    if count == 1 and found:
        starts = [first]
    elif found == count:
        starts = list(fragments)
    elif len(offsets) == count:
        starts = [first + offset for offset in offsets]
    else:
        return []
    ends = [*starts[1:], end]
    is_sound = all(start < stop for start, stop in zip(starts, ends, strict=True))
    return list(zip(starts, ends, strict=True)) if is_sound else []


def _joined(fragments: bytes) -> bytes:
    """The items of a frame without their headers."""
    data, at = [], 0
    while at + 8 <= len(fragments):
        length = int.from_bytes(fragments[at + 4 : at + 8], "little")
        data.append(fragments[at + 8 : at + 8 + length])
        at += 8 + length
    return data[0] if len(data) == 1 else b"".join(data)


def _shifted(data: bytes, skip: int, bits: int) -> bytes:
    """A frame of single bits that does not begin at a byte (PS3.5 section 8.1.1), moved to the front."""
    value = int.from_bytes(data, "little") >> skip
    return (value & ((1 << bits) - 1)).to_bytes((bits + 7) // 8, "little")


def _too_big() -> NotAcceptable:
    return NotAcceptable(f"A frame is larger than {MAX_FRAME_BYTES} bytes, the most that is decoded.")
