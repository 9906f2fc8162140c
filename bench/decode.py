"""How long one C-FIND answer takes from bytes to DICOM JSON text: our decoder and pydicom.

Usage, from the repository's root: python -m bench.decode [RECORDS]

The records are 200 different studies of 18 elements each, in Explicit or Implicit VR Little Endian: as bare data sets,
which is how they are in a C-FIND response, and as files, which is how findscu -X writes them. No call sees the record
of the call before. Prints microseconds a record: the best and the median of nine rounds over the records (RECORDS of
them in a round, 2000 when not given), and pydicom's best from the same bytes with ``read_dataset`` and
``Dataset.to_json``.
"""

from __future__ import annotations

import io
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import UID

from harmonyd.dimse.dataset_json import dataset_to_json, part10_to_json

EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
STUDIES = 200
ROUNDS = 9
NAMES = {
    "ISO_IR 100": ("Smith^John", "Müller^Jürgen^^Dr.", "García^María", "Brown^Alice^Mary"),
    "ISO_IR 192": ("Müller^Jürgen", "Иванов^Пётр", "García^María", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "ISO 2022 IR 6\\ISO 2022 IR 87": ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Suzuki^Hanako=鈴木^花子=すずき^はなこ"),
}


def record(charset: str, number: int) -> Dataset:
    """One study as a PACS answers it."""
    ds = Dataset()
    ds.SpecificCharacterSet = charset.split("\\")
    ds.StudyDate = f"2024{number % 12 + 1:02}{number % 28 + 1:02}"
    ds.StudyTime = f"{number % 24:02}1530.{number:06}"
    ds.AccessionNumber = f"A2024{number:07}"
    ds.QueryRetrieveLevel = "STUDY"
    ds.RetrieveAETitle = "PACS"
    ds.InstanceAvailability = "ONLINE"
    ds.ModalitiesInStudy = ["CT", "SR"] if number % 2 else "MR"
    ds.ReferringPhysicianName = "Doe^Jane"
    ds.StudyDescription = f"Abdomen {number} with contrast"
    ds.PatientName = NAMES[charset][number % len(NAMES[charset])]
    ds.PatientID = f"PAT{number:07}"
    ds.PatientBirthDate = f"19{number % 100:02}0101"
    ds.PatientSex = ["F", "M", "O", ""][number % 4]
    ds.StudyInstanceUID = f"1.2.826.0.1.3680043.8.498.123456789012345678901234567890.{number}"
    ds.StudyID = str(number)
    ds.NumberOfStudyRelatedSeries = number % 9 + 1
    ds.NumberOfStudyRelatedInstances = number * 17 % 1000
    return ds


def encoded(ds: Dataset, syntax: str) -> bytes:
    """The bare data set."""
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = syntax == IMPLICIT
    write_dataset(buffer, ds)
    return buffer.getvalue()


def part10(dataset: bytes, syntax: str) -> bytes:
    """The same as a file, with the file meta information that DCMTK writes."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = UID("1.2.276.0.7230010.3.1.0.1")
    meta.MediaStorageSOPInstanceUID = UID("1.2.276.0.7230010.3.1.4.8323329.1.1")
    meta.TransferSyntaxUID = UID(syntax)
    meta.ImplementationClassUID = UID("1.2.276.0.7230010.3.0.3.6.7")
    meta.ImplementationVersionName = "OFFIS_DCMTK_367"
    buffer = DicomBytesIO()
    buffer.write(bytes(128) + b"DICM")
    write_file_meta_info(buffer, meta)
    return buffer.getvalue() + dataset


def microseconds(function: Callable[[bytes], object], records: list[bytes], count: int) -> tuple[float, float]:
    """Best and median time of one call; every round takes the records in turn."""
    rounds = []
    for _ in range(ROUNDS):
        turn = list(itertools.islice(itertools.cycle(records), count))
        began = time.perf_counter()
        for data in turn:
            function(data)
        rounds.append((time.perf_counter() - began) / count * 1e6)
    return min(rounds), statistics.median(rounds)


def compare(name: str, charset: str, syntax: str, count: int) -> None:
    """Check that the two agree, then print one line."""
    datasets = [encoded(record(charset, number), syntax) for number in range(STUDIES)]
    files = [part10(data, syntax) for data in datasets]

    def ours(data: bytes) -> bytes:
        return dataset_to_json(data, syntax)

    def theirs(data: bytes) -> str:
        return read_dataset(io.BytesIO(data), syntax == IMPLICIT, True).to_json()

    for data, file in zip(datasets, files, strict=True):
        if not json.loads(ours(data)) == json.loads(part10_to_json(file)) == json.loads(theirs(data)):
            sys.exit(f"{name}: the decoders differ")
    best, median = microseconds(ours, datasets, count)
    file_best, file_median = microseconds(part10_to_json, files, count)
    pydicom_best, _ = microseconds(theirs, datasets, max(STUDIES, count // 10))
    size = statistics.mean(map(len, datasets))
    print(f"{name:20} {size:6.0f} {best:8.1f} {median:8.1f} {file_best:8.1f} {file_median:8.1f} {pydicom_best:9.1f}"
          f" {pydicom_best / best:6.1f}")


def main() -> None:
    """Print one line a kind of record."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print(f"{'':27} {'data set, µs':>17} {'file, µs':>17}")
    print(f"{'record':20} {'bytes':>6} {'best':>8} {'median':>8} {'best':>8} {'median':>8} {'pydicom':>9} {'ratio':>6}")
    compare("explicit, Latin-1", "ISO_IR 100", EXPLICIT, count)
    compare("implicit, Latin-1", "ISO_IR 100", IMPLICIT, count)
    compare("explicit, UTF-8", "ISO_IR 192", EXPLICIT, count)
    compare("implicit, UTF-8", "ISO_IR 192", IMPLICIT, count)
    compare("explicit, ISO 2022", "ISO 2022 IR 6\\ISO 2022 IR 87", EXPLICIT, count)
    compare("implicit, ISO 2022", "ISO 2022 IR 6\\ISO 2022 IR 87", IMPLICIT, count)


if __name__ == "__main__":
    main()
