"""Which level an attribute belongs to, and what a search returns for each (PS3.18 section 10.6.3.3, PS3.4 C.6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydicom.datadict import dictionary_VR, keyword_dict

LEVELS = ("STUDY", "SERIES", "IMAGE")
UNIQUE = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}

_STUDY_MORE = (
    *("IssuerOfPatientID", "OtherPatientIDs", "PatientBirthTime", "PatientAge", "PatientSize", "PatientWeight"),
    *("EthnicGroup", "Occupation", "PatientComments", "AdditionalPatientHistory", "AdmittingDiagnosesDescription"),
    *("StudyDescription", "NameOfPhysiciansReadingStudy", "SOPClassesInStudy", "ProcedureCodeSequence"),
)
_SERIES_MORE = (
    *("SeriesDate", "SeriesTime", "BodyPartExamined", "Laterality", "ProtocolName", "OperatorsName", "StationName"),
    *("PerformingPhysicianName", "InstitutionName", "Manufacturer", "ManufacturerModelName"),
    *("PerformedProcedureStepDescription", "PerformedProcedureStepID"),
)
_IMAGE_MORE = (
    *("ContentDate", "ContentTime", "AcquisitionNumber", "AcquisitionDate", "AcquisitionTime", "ImageType"),
    *("SamplesPerPixel", "PhotometricInterpretation", "BitsStored", "PixelSpacing", "ImagePositionPatient"),
    *("ImageOrientationPatient", "SliceLocation", "SliceThickness", "WindowCenter", "WindowWidth"),
)
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "STUDY": (
        *("StudyDate", "StudyTime", "AccessionNumber", "InstanceAvailability", "ModalitiesInStudy"),
        *("ReferringPhysicianName", "PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
        *("StudyInstanceUID", "StudyID", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
    ),
    "SERIES": (
        *("Modality", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "NumberOfSeriesRelatedInstances"),
        *("PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "RequestAttributesSequence"),
    ),
    "IMAGE": (
        *("SOPClassUID", "SOPInstanceUID", "InstanceAvailability", "InstanceNumber"),
        *("Rows", "Columns", "BitsAllocated", "NumberOfFrames"),
    ),
}
"""Tables 10.6.3-3 to 10.6.3-5: what is in every result, with its value where the PACS knows it."""
EVERYTHING: Mapping[str, tuple[str, ...]] = {"STUDY": _STUDY_MORE, "SERIES": _SERIES_MORE, "IMAGE": _IMAGE_MORE}
"""What ``includefield=all`` asks for beside that: a C-FIND has no word for all."""
_ONLY_WHERE_KNOWN = frozenset({"NumberOfFrames", "RequestAttributesSequence", "Rows", "Columns", "BitsAllocated"})
"""Left out rather than empty: an empty number of rows means nothing."""

_OF_STUDY = frozenset(tag for name in (*REQUIRED["STUDY"], *_STUDY_MORE) if (tag := keyword_dict.get(name))) - {
    0x00080056
}
_OF_SERIES = frozenset(tag for name in (*REQUIRED["SERIES"], *_SERIES_MORE) if (tag := keyword_dict.get(name)))


def level_of(tag: int, asked: str) -> str:
    """Return the level at which ``tag`` is asked for in a search at level ``asked``, which is the lowest there is."""
    if tag in _OF_STUDY:
        return "STUDY"
    if tag in _OF_SERIES and asked != "STUDY":
        return "SERIES"
    return asked


def keys_to_return(level: str, include_all: bool) -> dict[str, Any]:
    """Return the keys, without values, for what a result of a level must have."""
    names = REQUIRED[level] + (EVERYTHING[level] if include_all else ())
    return dict.fromkeys(names)


def json_key(keyword: str) -> str:
    """Return the tag of a keyword as DICOM JSON spells it."""
    return f"{keyword_dict[keyword]:08X}"


def fill(record: dict[str, Any], level: str) -> None:
    """Add what a result must have and the PACS left out, without a value."""
    for keyword in REQUIRED[level]:
        if keyword not in _ONLY_WHERE_KNOWN:
            record.setdefault(json_key(keyword), {"vr": dictionary_VR(keyword_dict[keyword])})


def first_value(record: Mapping[str, Any], keyword: str) -> Any:
    """Return the first value of an attribute of a result, None where it has none."""
    values = record.get(json_key(keyword), {}).get("Value")
    return values[0] if values else None
