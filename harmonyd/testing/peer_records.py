"""What the scripted peer answers with: query answers and instances, made from what was asked."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage

from harmonyd.testing.data import CHARSETS, make_ct, uid_for
from harmonyd.testing.peer import PeerOptions

STRANGER_STUDY_UID = uid_for("a study that nobody asked for")


def answers(asked: Dataset, options: PeerOptions) -> list[Dataset]:
    """``options.count`` answers (or ``options.records``) at the level that was asked for."""
    if options.records:
        return [Dataset.from_json(dict(record)) for record in options.records]
    return [_answer(asked, number, options) for number in range(options.count)]


def is_about_classes(asked: Dataset) -> bool:
    """Who asks for the SOP classes of a study is about to C-GET it; scripts are about the C-GET."""
    return "SOPClassesInStudy" in asked


def classes(asked: Dataset) -> Dataset:
    """The answer to that: what ``instances`` gives is CT."""
    answer = Dataset()
    answer.QueryRetrieveLevel = "STUDY"
    answer.StudyInstanceUID = asked.get("StudyInstanceUID") or study_uid(0)
    answer.SOPClassesInStudy = CTImageStorage
    return answer


def study_uid(number: int) -> str:
    """Study Instance UID of answer ``number``, counted from 0."""
    return uid_for(f"peer study {number}")


def _answer(asked: Dataset, number: int, options: PeerOptions) -> Dataset:
    charset = CHARSETS[_charset_name(options.charset, number)]
    answer = Dataset()
    if charset.defined_terms:
        answer.SpecificCharacterSet = charset.defined_terms.split("\\")
    answer.QueryRetrieveLevel = asked.get("QueryRetrieveLevel", "STUDY")
    answer.PatientID = f"PEER{number + 1:04d}"
    answer.PatientName = charset.person_name
    answer.StudyDescription = charset.description
    answer.StudyDate = "20240229"
    answer.StudyInstanceUID = asked.get("StudyInstanceUID") or study_uid(number)
    if answer.QueryRetrieveLevel in ("SERIES", "IMAGE"):
        answer.SeriesInstanceUID = asked.get("SeriesInstanceUID") or uid_for(f"peer series {number}")
    if answer.QueryRetrieveLevel == "IMAGE":
        answer.SOPInstanceUID = uid_for(f"peer instance {number}")
    return answer


def _charset_name(wanted: str, number: int) -> str:
    return list(CHARSETS)[number % len(CHARSETS)] if wanted == "mixed" else wanted


def instances(asked: Dataset, options: PeerOptions) -> list[Dataset]:
    """``options.count`` CT instances of the study (and series) that was asked for; their UIDs follow from its UID."""
    study = str(asked.get("StudyInstanceUID") or study_uid(0))
    series = str(asked.get("SeriesInstanceUID") or uid_for(f"{study}/series"))
    wanted = asked.get("SOPInstanceUID") if options.count == 1 else None
    return [_instance(study, series, number, options, wanted) for number in range(options.count)]


def strangers(options: PeerOptions) -> list[Dataset]:
    """``options.extra`` instances of ``STRANGER_STUDY_UID``."""
    series = uid_for(f"{STRANGER_STUDY_UID}/series")
    return [_instance(STRANGER_STUDY_UID, series, number, options) for number in range(options.extra)]


def _instance(study: str, series: str, number: int, options: PeerOptions, sop_uid: str | None = None) -> Dataset:
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        path = Path(folder, "instance.dcm")
        make_ct(
            path,
            study_uid=study,
            series_uid=series,
            instance_number=number + 1,
            patient_id="PEER0001",
            sop_uid=sop_uid,
            size=options.size,
            charset=_charset_name(options.charset, number),
        )
        return dcmread(path)
