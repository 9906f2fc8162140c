"""What the tests of rewriting share."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian

from harmonyd.rewriting.changes import Affix, Change, Hashed, Table
from harmonyd.rewriting.pseudonyms import PseudonymOptions, Pseudonyms
from harmonyd.rewriting.rules import Place, Rule, Rules
from harmonyd.rewriting.tree import vr_of

KEY = b"k" * 32
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
PATIENT_ID, PATIENT_NAME, STATION = 0x00100020, 0x00100010, 0x00081010


def pseudonyms(folder: Path, key: bytes = KEY, max_known: int = 1_000_000) -> Pseudonyms:
    return Pseudonyms(PseudonymOptions(key, max_known), folder / "names" / "x.sqlite")


def rule(change: Affix | Table, *path: int, anywhere: bool = False) -> Rule:
    return Rule(Place(path, anywhere), vr_of(path[-1]), change)


def fixed(value: tuple[str, ...] | None, *path: int, anywhere: bool = False) -> Rule:
    return Rule(Place(path, anywhere), vr_of(path[-1]), None, value)


def rules(*each: Rule, uids: Hashed | None = None) -> Rules:
    return Rules(each, uids)


def image(syntax: str = ExplicitVRLittleEndian, **elements: Any) -> Dataset:
    """A small image, with file meta information."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = SECONDARY_CAPTURE, "1.2.3.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.0"
    ds.PatientID, ds.PatientName, ds.Modality = "7", "Doe^Jane", "US"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = 4, 6, 1
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation, ds.PhotometricInterpretation = 7, 0, "MONOCHROME2"
    ds.PixelData = bytes(range(100, 124))
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    ds.file_meta = meta
    return ds


def written(path: Path, ds: Dataset) -> Path:
    ds.save_as(path, enforce_file_format=True)
    return path


def read(path: Path) -> Dataset:
    return dcmread(BytesIO(path.read_bytes()))


__all__ = ["Affix", "Change", "Hashed", "Table"]
