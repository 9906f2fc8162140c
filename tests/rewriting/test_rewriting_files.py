"""Files: what is not changed stays, in every encoding; pixels are copied, and their regions made black."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from rewriting_kit import PATIENT_ID, fixed, image, read, rule, rules, written

from harmonyd.rewriting import files
from harmonyd.rewriting.blanking import BlankRule, Region
from harmonyd.rewriting.changes import Affix
from harmonyd.rewriting.errors import BadObject, Compressed
from harmonyd.rewriting.files import rewrite_file
from harmonyd.rewriting.objects import Objects
from harmonyd.testing.data import demo_files, report_files, shipped_folder

PADDING = 0xFFFCFFFC
OTHERS = (
    *("JPEG2000.dcm", "MR_small_RLE.dcm", "ExplVR_BigEnd.dcm", "image_dfl.dcm", "UN_sequence.dcm"),
    *("SC_rgb_jpeg_gdcm.dcm", "MR_small_implicit.dcm", "parametric_map_float.dcm", "nested_priv_SQ.dcm"),
)
MORE = (path for path in shipped_folder().glob("*.dcm") if path.name in OTHERS)
FILES = sorted({*demo_files(), *report_files(), *MORE})


def without_group_lengths(ds: Dataset) -> Dataset:
    """They are retired (PS3.5 section 7.2), and not written."""
    for tag in [tag for tag in ds.keys() if tag.element == 0]:  # noqa: SIM118 - iterating would decode
        del ds[tag]
    return ds


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_not_changed_stays(tmp_path: Path, path: Path) -> None:
    """Element by element, in the same transfer syntax."""
    target = tmp_path / "x.dcm"
    rewrite_file(path, target, lambda ds: None)
    assert without_group_lengths(read(target)) == without_group_lengths(read(path))
    assert read(target).file_meta.TransferSyntaxUID == read(path).file_meta.TransferSyntaxUID


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_there_and_back(tmp_path: Path, path: Path) -> None:
    """An object whose rules have a way back is the same after it."""
    objects = Objects(rules(rule(Affix("A-"), PATIENT_ID), rule(Affix("B"), 0x00080060)))
    there = objects.rewrite(path, tmp_path / "there", forward=True)
    objects.rewrite(there.path, tmp_path / "back", forward=False)
    before = without_group_lengths(read(path))
    assert without_group_lengths(read(tmp_path / "back")) == before
    if before.get("PatientID"):
        assert read(tmp_path / "there").PatientID == f"A-{before.PatientID}"
        assert there.done.told()["affix"]["00100020"] == 1


def test_uids_in_the_file_meta_information(tmp_path: Path) -> None:
    """They are those of the data set."""
    source = written(tmp_path / "a", image())
    rewrite_file(source, tmp_path / "b", lambda ds: setattr(ds, "PatientID", "9"))
    renamed = Objects(rules(fixed(("1.9",), 0x00080018))).rewrite(source, tmp_path / "c", forward=True)
    assert read(tmp_path / "c").file_meta.MediaStorageSOPInstanceUID == renamed.sop_instance_uid == "1.9"
    assert renamed.uids["study_instance_uid"] == "1.2.3"


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_what_stands_behind_the_pixels(tmp_path: Path, syntax: str) -> None:
    """Rules reach it, and what they leave stays there; a fixed value stands where it belongs, once."""
    ds = image(syntax)
    ds.add_new(PADDING, "OB", b"\0" * 8)
    ds.add_new(0x7FE10010, "LO", "SECRET")
    source = written(tmp_path / "a", ds)
    removing = Objects(rules(fixed(None, 0x7FE10010), fixed(("X",), 0x00080080)))
    removing.rewrite(source, tmp_path / "b", forward=True)
    after = read(tmp_path / "b")
    assert after.InstitutionName == "X" and after[PADDING].value == b"\0" * 8
    assert b"SECRET" not in (tmp_path / "b").read_bytes()
    assert after.PixelData == ds.PixelData


def test_memory_does_not_grow_with_the_pixels(tmp_path: Path) -> None:
    """They go from file to file, and are blanked in place."""
    big = image(Rows=2000, Columns=2000, NumberOfFrames=10, PixelData=bytes(40_000_000))
    source = written(tmp_path / "a", big)
    del big
    objects = Objects(rules(fixed(None, PATIENT_ID)), [BlankRule({}, (Region(0, 0, 2000, 100),))])
    tracemalloc.start()
    objects.rewrite(source, tmp_path / "b", forward=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("name", ["MR_truncated.dcm", "no_meta.dcm", "meta_missing_tsyntax.dcm"])
def test_what_cannot_be_read(tmp_path: Path, name: str) -> None:
    """Nothing is written, and the reason has no values."""
    path = get_testdata_file(name, download=False)
    with pytest.raises(BadObject):
        rewrite_file(Path(str(path)), tmp_path / "x", lambda ds: None)
    assert list(tmp_path.iterdir()) == []


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is in memory: the data set beside the pixels, what is behind them, and what was deflated."""
    monkeypatch.setattr(files, "MAX_HEADER_BYTES", 5000)
    long = {"PatientComments": "x" * 6000}
    behind = image()
    behind.add_new(PADDING, "OB", bytes(6000))
    deflated = written(tmp_path / "deflated", image(DeflatedExplicitVRLittleEndian, **long))
    for source in (written(tmp_path / "a", image(**long)), written(tmp_path / "b", behind), deflated):
        with pytest.raises(BadObject, match="5000"):
            rewrite_file(source, tmp_path / "x", lambda ds: None)


# --- regions


def blanked(tmp_path: Path, ds: Dataset, *regions: Region, compressed: str = "decode") -> Dataset:
    source = written(tmp_path / "a", ds)
    rule_ = BlankRule({0x00080060: ("U*",)}, regions, compressed)
    Objects(rules(), [rule_]).rewrite(source, tmp_path / "b", forward=True)
    after = read(tmp_path / "b")
    (tmp_path / "b").unlink()
    return after


COLOURS = {"SamplesPerPixel": 3, "PlanarConfiguration": 0}
REGION = Region(1, 1, 2, 9)
"""Below the image it ends where the image ends."""


def expected(before: np.ndarray, black: object) -> np.ndarray:
    after = before.copy()
    after[..., 1:, 1:3, :] = black
    return after


@pytest.mark.parametrize(
    ("elements", "dtype", "black"),
    [
        ({}, "u1", 0),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "u1", 255),
        ({"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}, "<u2", 0),
        ({"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1}, "<i2", -2048),
        ({"NumberOfFrames": 3}, "u1", 0),
        ({**COLOURS, "PhotometricInterpretation": "RGB"}, "u1", 0),
        ({**COLOURS, "PhotometricInterpretation": "YBR_FULL"}, "u1", [0, 128, 128]),
    ],
)  # fmt: skip
def test_regions_are_black(tmp_path: Path, elements: dict, dtype: str, black: object) -> None:
    """And nothing else is, in each frame and form of pixels."""
    ds = image(**elements)
    shape = (int(ds.get("NumberOfFrames") or 1), 4, 6, ds.SamplesPerPixel)
    before = np.random.default_rng(1).integers(1, 100, shape).astype(dtype)
    ds.PixelData = before.tobytes()
    after = blanked(tmp_path, ds, REGION)
    assert (np.frombuffer(after.PixelData, dtype).reshape(shape) == expected(before, black)).all()
    assert after.BurnedInAnnotation == "NO"


def test_planes(tmp_path: Path) -> None:
    """One plane of each colour."""
    before = np.random.default_rng(1).integers(1, 99, (2, 3, 4, 6)).astype("u1")
    ds = image(SamplesPerPixel=3, PlanarConfiguration=1, PhotometricInterpretation="RGB", NumberOfFrames=2)
    ds.PixelData = before.tobytes()
    after = np.frombuffer(blanked(tmp_path, ds, REGION).PixelData, "u1").reshape(before.shape)
    wanted = before.copy()
    wanted[:, :, 1:, 1:3] = 0
    assert (after == wanted).all()


def test_pairs_of_pixels(tmp_path: Path) -> None:
    """In YBR_FULL_422 a region grows to whole pairs."""
    ds = image(SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation="YBR_FULL_422")
    ds.PixelData = bytes(range(1, 49))
    after = blanked(tmp_path, ds, Region(1, 0, 2, 1)).PixelData
    assert after == bytes((0, 0, 128, 128)) * 2 + ds.PixelData[8:]


def test_big_endian(tmp_path: Path) -> None:
    """The value of black is in the order of the file."""
    ds = image(
        ExplicitVRBigEndian, BitsAllocated=16, BitsStored=16, HighBit=15, PhotometricInterpretation="MONOCHROME1"
    )
    ds.BitsStored, ds.HighBit = 12, 11
    ds.PixelData = bytes(48)
    after = np.frombuffer(blanked(tmp_path, ds, Region(0, 0, 1, 1)).PixelData, ">u2")
    assert (after[0], after[1]) == (4095, 0)


def test_what_is_not_meant_stays(tmp_path: Path) -> None:
    """No rule, or one without regions."""
    ds = image(Modality="CT")
    assert blanked(tmp_path, ds, REGION).PixelData == ds.PixelData
    assert "BurnedInAnnotation" not in blanked(tmp_path, image())


def test_forms_that_cannot_be_blanked(tmp_path: Path) -> None:
    """They are refused, not passed on."""
    bits = image(BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=bytes(4))
    fewer = image(PixelData=bytes(10))
    for ds in (bits, fewer, image(DeflatedExplicitVRLittleEndian)):
        with pytest.raises(BadObject):
            blanked(tmp_path, ds, REGION)
        assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("compressed", "error"), [("decode", Compressed), ("refuse", BadObject), ("pass", None)])
def test_compressed_pixels(tmp_path: Path, compressed: str, error: type[Exception] | None) -> None:
    """They are decoded by whoever can, refused, or passed on and not said to be clean."""
    source = shipped_folder() / "MR_small_RLE.dcm"
    objects = Objects(rules(), [BlankRule({}, (REGION,), compressed)])
    if error is not None:
        with pytest.raises(error):
            objects.rewrite(source, tmp_path / "b", forward=True)
        assert not (tmp_path / "b").exists()
        return
    objects.rewrite(source, tmp_path / "b", forward=True)
    assert "BurnedInAnnotation" not in read(tmp_path / "b")
