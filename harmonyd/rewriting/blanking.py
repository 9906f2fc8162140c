"""Regions of pixels made black, in a file: row by row in place, so that memory does not grow with the image."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from pydicom import Dataset
from pydicom.uid import ExplicitVRBigEndian

from harmonyd.rewriting.errors import BadObject
from harmonyd.rewriting.files import Pixels
from harmonyd.rewriting.tree import DatasetTree

_NUMBERS_BYTES = (1, 2, 4, 8)
_ENOUGH_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle in pixels, from the upper left corner; what of it is outside of the image is not there."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class BlankRule:
    """All of ``when`` have to match: by tag, patterns (``*``, ``?``), one of which has to."""

    when: Mapping[int, tuple[str, ...]]
    regions: tuple[Region, ...]
    """Empty: objects that match stay as they are."""
    compressed: str = "decode"
    """"decode", "refuse", or "pass": what is compressed stays as it is, and is not said to be clean."""

    def holds(self, ds: Dataset) -> bool:
        tree = DatasetTree(ds)
        return all(
            any(_pattern(each).match(text) for text in tree.texts(tag) or [""] for each in patterns)
            for tag, patterns in self.when.items()
        )


def rule_for(rules: Sequence[BlankRule], ds: Dataset) -> BlankRule | None:
    """Return the first rule that is for a data set."""
    return next((rule for rule in rules if rule.holds(ds)), None)


def blank(ds: Dataset, out: BinaryIO, pixels: Pixels, regions: Sequence[Region]) -> None:
    """Make regions black in all frames. Blocking. ``ds`` describes the pixels, which are not encapsulated.

    Raises ``BadObject`` for pixels of a form in which that is not possible.
    """
    layout = _Layout.of(ds)
    if layout.frame_bytes * layout.frames > pixels.value_bytes:
        raise BadObject("The object has fewer pixels than it says.")
    for frame in range(layout.frames):
        at = pixels.value_at + frame * layout.frame_bytes
        for region in regions:
            for offset, data in layout.rows(region):
                out.seek(at + offset)
                out.write(data)


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a frame lies in the file (PS3.3 section C.7.6.3.1)."""

    rows_: int
    columns: int
    cell: bytes
    """What is written for a black pixel, in one plane or interleaved."""
    planes: tuple[bytes, ...]
    """The same for each plane, where there are several."""
    frames: int
    pair: bool = False
    """Two pixels are in a cell (YBR_FULL_422)."""

    @property
    def frame_bytes(self) -> int:
        if self.planes:
            return self.rows_ * self.columns * sum(map(len, self.planes))
        return self.rows_ * self.columns * len(self.cell) // (2 if self.pair else 1)

    @classmethod
    def of(cls, ds: Dataset) -> _Layout:
        bits, samples = int(ds.get("BitsAllocated") or 0), int(ds.get("SamplesPerPixel") or 1)
        if bits % 8 or bits // 8 not in _NUMBERS_BYTES or samples not in (1, 3):
            raise BadObject(f"Regions of pixels of {bits} bits in {samples} samples cannot be blanked.")
        black = _black(ds, bits, samples)
        frames = max(1, int(ds.get("NumberOfFrames") or 1))
        photometric = str(ds.get("PhotometricInterpretation", ""))
        pair = photometric == "YBR_FULL_422"
        planar = samples == 3 and not pair and int(ds.get("PlanarConfiguration") or 0) == 1
        if pair and (bits != 8 or int(ds.Columns) % 2):
            raise BadObject("Regions of pixels in YBR_FULL_422 of an odd width cannot be blanked.")
        cell = bytes((0, 0, 128, 128)) if pair else b"".join(black)
        return cls(int(ds.Rows), int(ds.Columns), cell, black if planar else (), frames, pair)

    def rows(self, region: Region) -> Iterator[tuple[int, bytes]]:
        """Offset in the frame, and bytes, for each row of a region."""
        left, right = min(region.x, self.columns), min(region.x + region.width, self.columns)
        top, bottom = min(region.y, self.rows_), min(region.y + region.height, self.rows_)
        if self.pair:
            left, right = left - left % 2, right + right % 2
        if right <= left:
            return
        begin = 0
        for cell in self.planes or (self.cell,):
            step = len(cell)
            share = 2 if self.pair else 1
            data = cell * ((right - left) // share)
            for row in range(top, bottom):
                yield begin + (row * self.columns + left) * step // share, data
            begin += self.rows_ * self.columns * step


def _black(ds: Dataset, bits: int, samples: int) -> tuple[bytes, ...]:
    """A sample of each kind. Of MONOCHROME1 the highest value is black, of signed ones the lowest."""
    photometric = str(ds.get("PhotometricInterpretation", ""))
    stored = min(int(ds.get("BitsStored") or bits), bits)
    is_signed = int(ds.get("PixelRepresentation") or 0) == 1
    is_big = getattr(ds, "file_meta", None) is not None and ds.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    low, high = (-(1 << stored - 1), (1 << stored - 1) - 1) if is_signed else (0, (1 << stored) - 1)
    values = [high if photometric == "MONOCHROME1" else low] * samples
    if photometric == "YBR_FULL" and samples == 3:
        values[1:] = [1 << stored - 1] * 2
    if bits in (32, 64) and "BitsStored" not in ds:
        values = [0] * samples  # Float Pixel Data
    return tuple(value.to_bytes(bits // 8, "big" if is_big else "little", signed=value < 0) for value in values)


def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))
