"""Which queries narrow enough what a PACS has to look through."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from harmonyd.bodies import EmptyBody
from harmonyd.config.model import DicomBackendOptions
from harmonyd.config.sparing import SelectivityOptions
from harmonyd.envelope import RequestEnvelope
from harmonyd.services.dicom.request import build_query
from harmonyd.services.dicom.selectivity import TooBroad, check_selective

TODAY = datetime.date(2026, 11, 26)
OPEN = DicomBackendOptions("PACS", "pacs.example", 104)
CLOSED = DicomBackendOptions("PACS", "pacs.example", 104, selectivity=SelectivityOptions())


def query(document: Any, options: DicomBackendOptions = OPEN, **metadata: str) -> Any:
    request = RequestEnvelope("http", "POST", "/find", "/find", EmptyBody(), metadata=metadata)
    return build_query(request, document, "find", options)


@pytest.mark.parametrize(
    "document",
    [
        {"PatientID": "7"},
        {"patient_id": "123*"},
        {"00100020": {"vr": "LO", "Value": ["1-2-3?"]}},
        {"PatientName": "Doe*"},
        {"PatientName": "*DOE^J*"},
        {"PatientName": "Li"},
        {"PatientName": "山田*太"},
        {"AccessionNumber": "A1"},
        {"StudyInstanceUID": ["1.2.3", "1.2.4"], "level": "SERIES"},
        {"SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2"},
        {"StudyDate": "20261126"},
        {"StudyDate": "20261001-20261031"},
        {"StudyDate": "20261030-"},
        {"PatientName": "*", "StudyDate": "20261126"},
    ],
    ids=str,
)
def test_what_is_narrow_enough(document: Any) -> None:
    """One key that narrows it, in any spelling, whatever else is asked."""
    check_selective(query(document), SelectivityOptions(), TODAY)


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        {"PatientName": "*", "PatientID": ""},
        {"PatientName": "Do*"},
        {"PatientName": "??^*"},
        {"PatientID": "*12*"},
        {"PatientID": "?????"},
        {"StudyDate": "20260101-20261231"},
        {"StudyDate": "20260101-"},
        {"StudyDate": "-20261126"},
        {"StudyDate": "20261001-20261101"},
        {"Modality": "CT", "StudyTime": "1200"},
        {"StudyInstanceUID": "", "level": "STUDY"},
    ],
    ids=str,
)
def test_what_is_too_broad(document: Any) -> None:
    """The hint says what would do."""
    with pytest.raises(TooBroad) as raised:
        check_selective(query(document), SelectivityOptions(), TODAY)
    assert "PatientID" in str(raised.value.hint)
    assert "StudyDate of at most 31 days" in str(raised.value.hint)


def test_the_rules_are_the_configurations() -> None:
    """Other keys, fewer letters, no dates at all."""
    options = SelectivityOptions(("Modality", "StudyDate"), 1, 0)
    check_selective(query({"Modality": "C*"}), options, TODAY)
    for document in ({"StudyDate": "20261126"}, {"PatientID": "7"}):
        with pytest.raises(TooBroad) as raised:
            check_selective(query(document), options, TODAY)
        assert "StudyDate" not in str(raised.value.hint)


def test_it_is_the_backends_business() -> None:
    """Only where it has the option; keys that middleware forces count; a retrieve has its UIDs anyway."""
    query({"PatientName": "*"})
    with pytest.raises(TooBroad):
        query({"PatientName": "*"}, CLOSED)
    query({"PatientName": "*"}, CLOSED, **{"identifier.PatientID": "7"})
    with pytest.raises(TooBroad):
        query({"PatientID": "7"}, CLOSED, **{"identifier.PatientID": "*"})
    request = RequestEnvelope("http", "POST", "/get", "/get", EmptyBody())
    build_query(request, {"StudyInstanceUID": "1.2"}, "get", CLOSED)
