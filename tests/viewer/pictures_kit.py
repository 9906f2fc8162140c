"""Studies for a viewer: every picture has a white and a grey block in a place that tells which image it is."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    UltrasoundMultiFrameImageStorage,
)

from harmonyd.testing.data import uid_for
from harmonyd.testing.processes import dcmtk

SIZE = 128
SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
)
COMPARED_ROWS = slice(17, 108)
"""Above and below, a viewer puts letters and buttons over the picture."""
RED_PAGE = b"1 0 0 rg 0 0 200 200 re f"


def _painted(number: int, white: int, grey: int) -> np.ndarray:
    """A white block above a grey one, half as wide, on black; their place tells which ``number`` it is, from 1."""
    pixels = np.zeros((SIZE, SIZE), np.uint16)
    top, left = 20 + 4 * number, 6 + 10 * number
    pixels[top : top + 24, left : left + 12] = white
    pixels[top + 24 : top + 48, left : left + 6] = grey
    return pixels


def _on_blue(number: int) -> np.ndarray:
    picture = np.stack([_painted(number, 255, 128)] * 3, -1)
    picture[..., 2][picture[..., 0] == 0] = 160
    return picture.astype(np.uint8)


def differing(seen: np.ndarray, number: int, *, colours: bool = False) -> int:
    """How many pixels of image ``number`` are not as they should be where it is shown as large as it fits, centred.

    Another ``number`` differs in several hundred.
    """
    wanted = _on_blue(number) if colours else np.stack([_painted(number, 255, 128)] * 3, -1)
    scale = min(seen.shape[:2]) / SIZE
    rows, columns = ((size / 2 + (np.arange(SIZE) + 0.5 - SIZE / 2) * scale).astype(int) for size in seen.shape[:2])
    sampled = seen[np.ix_(rows, columns)]
    unlike = (np.abs(sampled.astype(int) - wanted) > 40).any(-1)
    return int(unlike[COMPARED_ROWS].sum())


def make_ct(folder: Path, patient_id: str, name: str, syntaxes: Sequence[str]) -> list[Path]:
    """Write a series of CT images, one for each of ``syntaxes``. Grey is the centre of the window that they name."""
    return [_ct(folder, patient_id, name, number, syntax) for number, syntax in enumerate(syntaxes, 1)]


def _ct(folder: Path, patient_id: str, name: str, number: int, syntax: str) -> Path:
    ds = _common(patient_id, name, number)
    ds.SOPClassUID = CTImageStorage
    ds.Modality = "CT"
    ds.FrameOfReferenceUID = uid_for(f"{patient_id}/frame of reference")
    ds.ImagePositionPatient = [0, 0, number]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [1, 1]
    ds.SliceThickness = 1
    ds.RescaleIntercept = -1024
    ds.RescaleSlope = 1
    ds.WindowCenter = 40
    ds.WindowWidth = 400
    _describe_pixels(ds, bits=16, samples=1, colours="MONOCHROME2")
    ds.PixelData = _painted(number, 2000, 1024 + 40).tobytes()
    return _write(ds, folder / f"{patient_id}-{number}.dcm", syntax)


def make_colours(folder: Path, patient_id: str, name: str, frames: int) -> list[Path]:
    """Write one ultrasound object of several frames; the blocks are white and grey on blue, as JPEG in YCbCr."""
    ds = _common(patient_id, name, 1)
    ds.SOPClassUID = UltrasoundMultiFrameImageStorage
    ds.Modality = "US"
    ds.NumberOfFrames = frames
    ds.FrameTime = 40
    ds.FrameIncrementPointer = 0x00181063
    _describe_pixels(ds, bits=8, samples=3, colours="RGB")
    ds.PlanarConfiguration = 0
    ds.PixelData = np.stack([_on_blue(number) for number in range(1, frames + 1)]).tobytes()
    path = _write(ds, folder / f"{patient_id}.dcm", ExplicitVRLittleEndian)
    return [_as_jpeg(path, "+eb", "+q", "95")]


def make_pdf(folder: Path, patient_id: str, name: str) -> list[Path]:
    """Write a document of one page that is red; it is too large to stand in metadata."""
    ds = _common(patient_id, name, 1)
    ds.SOPClassUID = EncapsulatedPDFStorage
    ds.Modality = "DOC"
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    ds.EncapsulatedDocument = b"\n".join(
        (
            b"%PDF-1.4",
            b"1 0 obj <</Type /Catalog /Pages 2 0 R>> endobj",
            b"2 0 obj <</Type /Pages /Kids [3 0 R] /Count 1>> endobj",
            b"3 0 obj <</Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Contents 4 0 R>> endobj",
            b"4 0 obj <</Length %d>> stream" % len(RED_PAGE),
            RED_PAGE,
            b"endstream endobj",
            b"%" + bytes(500_000),
            b"trailer <</Root 1 0 R>>",
            b"%%EOF ",
        )
    )
    return [_write(ds, folder / f"{patient_id}.dcm", ExplicitVRLittleEndian)]


def _common(patient_id: str, name: str, number: int) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPInstanceUID = uid_for(f"{patient_id}/{number}")
    ds.StudyInstanceUID = uid_for(patient_id)
    ds.SeriesInstanceUID = uid_for(f"{patient_id}/series")
    ds.PatientID = patient_id
    ds.PatientName = name
    ds.PatientBirthDate = "19700101"
    ds.PatientSex = "O"
    ds.StudyDate = "20240229"
    ds.StudyTime = "101500"
    ds.StudyID = "1"
    ds.AccessionNumber = f"A-{patient_id}"
    ds.StudyDescription = f"Study of {patient_id}"
    ds.SeriesDescription = "Blocks"
    ds.SeriesNumber = 1
    ds.InstanceNumber = number
    return ds


def _describe_pixels(ds: Dataset, *, bits: int, samples: int, colours: str) -> None:
    ds.Rows = ds.Columns = SIZE
    ds.SamplesPerPixel = samples
    ds.PhotometricInterpretation = colours
    ds.BitsAllocated = bits
    ds.BitsStored = min(bits, 12)
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = 0


def _write(ds: Dataset, path: Path, syntax: str) -> Path:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        ds.compress(syntax, generate_instance_uid=False)
    elif syntax != JPEGLosslessSV1:
        ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True)
    return _as_jpeg(path, "+e1") if syntax == JPEGLosslessSV1 else path


def _as_jpeg(path: Path, *options: str) -> Path:
    argv = [dcmtk("dcmcjpeg"), *options, "+un", str(path), str(path)]
    subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return path
