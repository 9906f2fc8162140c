"""How long one C-FIND answer takes from Part 10 bytes to DICOM JSON text: our decoder and pydicom.

Usage, from the repository's root: python -m bench.decoder [REPEATS]

The records are like those that findscu -X writes: file meta information as DCMTK's, and 15 elements in Explicit VR
Little Endian (plain, and Japanese) or Implicit VR Little Endian. Prints milliseconds a record, best of five runs.
"""

from __future__ import annotations

import io
import json
import sys
import timeit
from collections.abc import Callable

from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID

from harmonyd.dimse.dataset_json import part10_to_json

EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"


def record(charset: str | list[str], name: str) -> Dataset:
    """One study as a PACS answers it."""
    ds = Dataset()
    ds.SpecificCharacterSet = charset
    ds.StudyDate = "20240131"
    ds.StudyTime = "101530"
    ds.AccessionNumber = "A20240131007"
    ds.QueryRetrieveLevel = "STUDY"
    ds.RetrieveAETitle = "PACS"
    ds.ModalitiesInStudy = ["CT", "SR"]
    ds.StudyDescription = "Abdomen"
    ds.PatientName = name
    ds.PatientID = "PAT0012345"
    ds.PatientBirthDate = "19700101"
    ds.PatientSex = ""
    ds.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.12345678901234567890123456789012345"
    ds.NumberOfStudyRelatedSeries = 4
    ds.NumberOfStudyRelatedInstances = 412
    return ds


def part10(ds: Dataset, syntax: str) -> bytes:
    """The record as a file."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = UID("1.2.276.0.7230010.3.1.0.1")
    ds.file_meta.MediaStorageSOPInstanceUID = UID("1.2.276.0.7230010.3.1.4.8323329.1.1")
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.file_meta.ImplementationClassUID = UID("1.2.276.0.7230010.3.0.3.6.7")
    ds.file_meta.ImplementationVersionName = "OFFIS_DCMTK_367"
    buffer = io.BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def with_pydicom(data: bytes) -> bytes:
    """The same through pydicom's generic path."""
    return json.dumps(dcmread(io.BytesIO(data)).to_json_dict()).encode()


def ms_per_call(function: Callable[[bytes], bytes], data: bytes, number: int) -> float:
    """Best of five runs of ``number`` calls."""
    return min(timeit.repeat(lambda: function(data), number=number, repeat=5)) / number * 1000


def main() -> None:
    """Print one line a kind of record."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    japanese = record(["ISO 2022 IR 6", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう")
    cases = {
        "explicit, UTF-8": part10(record("ISO_IR 192", "Müller^Jürgen"), EXPLICIT),
        "implicit, UTF-8": part10(record("ISO_IR 192", "Müller^Jürgen"), IMPLICIT),
        "explicit, ISO 2022": part10(japanese, EXPLICIT),
    }
    print(f"{'record':20} {'bytes':>6} {'harmonyd ms':>12} {'pydicom ms':>11} {'ratio':>6}")
    for name, data in cases.items():
        if json.loads(part10_to_json(data)) != json.loads(with_pydicom(data)):
            sys.exit(f"{name}: the two decoders differ")
        ours, theirs = ms_per_call(part10_to_json, data, number), ms_per_call(with_pydicom, data, max(1, number // 10))
        print(f"{name:20} {len(data):6} {ours:12.4f} {theirs:11.4f} {theirs / ours:6.1f}")


if __name__ == "__main__":
    main()
