"""The return keys that a C-FIND gets when the client does not choose its own: what people look at, level by level.

Source: the keys of the Query/Retrieve information models (PS3.4 sections C.6.1.1 and C.6.2.1). Only the level's own
keys and the unique keys above it are asked for: hierarchical SCPs refuse others (PS3.4 section C.4.1.2.1).
"""

from __future__ import annotations

from pydicom.datadict import dictionary_VR, keyword_dict

from harmonyd.dimse.engine import ROOTS, QueryLevel, QueryModel

_PATIENT = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")
_PATIENT_COUNTS = ("NumberOfPatientRelatedStudies", "NumberOfPatientRelatedSeries", "NumberOfPatientRelatedInstances")
_STUDY = (
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "StudyID",
    "StudyDescription",
    "ReferringPhysicianName",
    "ModalitiesInStudy",
    "NumberOfStudyRelatedSeries",
    "NumberOfStudyRelatedInstances",
)
_SERIES = (
    "SeriesInstanceUID",
    "Modality",
    "SeriesNumber",
    "SeriesDescription",
    "SeriesDate",
    "SeriesTime",
    "BodyPartExamined",
    "ProtocolName",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "NumberOfSeriesRelatedInstances",
)
_IMAGE = (
    "SOPClassUID",
    "SOPInstanceUID",
    "InstanceNumber",
    "ContentDate",
    "ContentTime",
    "Rows",
    "Columns",
    "BitsAllocated",
    "NumberOfFrames",
)

_BELOW_PATIENT: dict[QueryLevel, tuple[str, ...]] = {
    QueryLevel.STUDY: _STUDY,
    QueryLevel.SERIES: ("StudyInstanceUID", *_SERIES),
    QueryLevel.IMAGE: ("StudyInstanceUID", "SeriesInstanceUID", *_IMAGE),
}

COMMON_KEYWORDS: tuple[str, ...] = tuple(
    dict.fromkeys(("QueryRetrieveLevel", *_PATIENT, *_PATIENT_COUNTS, *_STUDY, *_SERIES, *_IMAGE))
)
"""The keywords most queries are made of; a misspelt key is compared with these first."""


def _keywords(level: QueryLevel, model: QueryModel) -> tuple[str, ...]:
    if level is QueryLevel.PATIENT:
        return _PATIENT + _PATIENT_COUNTS
    if model is QueryModel.PATIENT_ROOT:
        return ("PatientID", *_BELOW_PATIENT[level])
    # In Study Root the patient's attributes belong to the STUDY level (PS3.4 section C.6.2.1.2).
    return (*_PATIENT, *_STUDY) if level is QueryLevel.STUDY else _BELOW_PATIENT[level]


def _elements(keywords: tuple[str, ...]) -> tuple[tuple[int, str], ...]:
    tags = (keyword_dict[keyword] for keyword in keywords)
    return tuple((tag, dictionary_VR(tag)) for tag in tags)


_TABLE = {(level, model): _elements(_keywords(level, model)) for level in QueryLevel for model in ROOTS}


def return_keys(level: QueryLevel, model: QueryModel) -> tuple[tuple[int, str], ...]:
    """Return tag and VR of the keys a C-FIND at ``level`` asks for by default."""
    return _TABLE[level, model]
