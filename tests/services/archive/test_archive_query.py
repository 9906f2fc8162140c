"""Identifiers as searches, and matches as C-FIND gives them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from archive_kit import question

from harmonyd.services.archive.query import MAX_UIDS, Answers, Patients, searches
from harmonyd.services.archive.stow import of_xml, verdicts


def urls(fuzzy: bool = False, **keys: Any) -> list[str]:
    return [search.url(10, 0) for search in searches(question(**keys), fuzzy=fuzzy)]


@pytest.mark.parametrize(
    ("keys", "url"),
    [
        (
            {"level": "STUDY", "PatientName": "Müller^J*", "StudyDescription": None},
            "/studies?00100010=M%C3%BCller%5EJ*&includefield=00081030&includefield=00100010&limit=10",
        ),
        (
            {"level": "STUDY", "StudyDate": "20240101-", "ModalitiesInStudy": ["CT", "MR"]},
            "/studies?00080020=20240101-&00080061=CT%5CMR&includefield=00080020&includefield=00080061&limit=10",
        ),
        (
            {"level": "SERIES", "StudyInstanceUID": "1.2", "Modality": "CT"},
            "/studies/1.2/series?00080060=CT&includefield=00080060&includefield=0020000D&limit=10",
        ),
        ({"level": "SERIES", "Modality": "CT"}, "/series?00080060=CT&includefield=00080060&limit=10"),
        (
            {"level": "IMAGE", "StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3"},
            "/studies/1.2/series/1.3/instances?includefield=0020000D&includefield=0020000E&limit=10",
        ),
        (
            {"level": "IMAGE", "StudyInstanceUID": "1.2", "SOPInstanceUID": ["1.4", "1.5"]},
            "/studies/1.2/instances?00080018=1.4,1.5&includefield=00080018&includefield=0020000D&limit=10",
        ),
        (
            {
                "level": "SERIES",
                "RequestAttributesSequence": {"RequestedProcedureID": "R 1&2", "ScheduledProcedureStepID": None},
            },
            "/series?00400275.00401001=R%201%262&includefield=00400275&limit=10",
        ),
        (
            {"level": "PATIENT", "PatientID": "*", "NumberOfPatientRelatedInstances": None},
            "/studies?includefield=00100020&includefield=00201208&includefield=0020000D&limit=10",
        ),
    ],
)
def test_an_identifier_as_a_search(keys: dict[str, Any], url: str) -> None:
    """Keys with values match, all are asked for; the path has what it can; nothing breaks out of its parameter."""
    assert urls(**keys) == [url]


def test_fuzzy_matching_and_pages() -> None:
    """Only where they are wanted."""
    assert urls(fuzzy=True, level="STUDY")[0].endswith("fuzzymatching=true&limit=10")
    assert next(iter(searches(question(level="STUDY")))).url(5, 10).endswith("limit=5&offset=10")


def test_a_long_list_of_uids_is_several_searches() -> None:
    """Each of a length that servers take; no UID is lost."""
    uids = [f"1.2.{number}" for number in range(2 * MAX_UIDS + 1)]
    found = urls(level="STUDY", StudyInstanceUID=uids)
    asked = [url.partition("0020000D=")[2].partition("&")[0].split(",") for url in found]
    assert [len(each) for each in asked] == [MAX_UIDS, MAX_UIDS, 1]
    assert [uid for each in asked for uid in each] == uids


def answered(item: dict[str, Any], **keys: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Answers(question(**keys)).match(item))
    return found


def test_a_match_has_what_was_asked_for_and_no_more() -> None:
    """The level; keys that the archive leaves out without a value; the UIDs of the path where they are not repeated."""
    item = {"00080060": {"vr": "CS", "Value": ["CT"]}, "00081190": {"vr": "UR", "Value": ["http://x"]}}
    assert answered(item, level="SERIES", StudyInstanceUID="1.2", Modality=None, SeriesDescription=None) == {
        "00080052": {"vr": "CS", "Value": ["SERIES"]},
        "00080060": {"vr": "CS", "Value": ["CT"]},
        "0008103E": {"vr": "LO"},
        "0020000D": {"vr": "UI", "Value": ["1.2"]},
    }


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"vr": "PN", "Value": ["A^B"]}, {"vr": "PN", "Value": [{"Alphabetic": "A^B"}]}),
        (
            {"vr": "PN", "Value": [{"Alphabetic": "", "Ideographic": "王"}]},
            {"vr": "PN", "Value": [{"Ideographic": "王"}]},
        ),
        ({"vr": "PN", "Value": [{}]}, {"vr": "PN"}),
        ({"vr": "PN", "Value": [None]}, {"vr": "PN"}),
        ({"vr": "PN", "Value": "A^B"}, {"vr": "PN"}),
        ({"Value": ["A^B"]}, {"vr": "PN", "Value": [{"Alphabetic": "A^B"}]}),
        ({"vr": 5, "Value": []}, {"vr": "PN"}),
        ("A^B", {"vr": "PN"}),
        (None, {"vr": "PN"}),
    ],
)
def test_values_as_the_decoder_writes_them(entry: Any, expected: dict[str, Any]) -> None:
    """Whatever an archive makes of the JSON Model."""
    assert answered({"00100010": entry}, level="STUDY", PatientName=None)["00100010"] == expected


def test_numbers_and_items() -> None:
    """IS and DS may come as text; of a sequence what was asked for."""
    assert answered({"00201208": {"vr": "IS", "Value": ["7"]}}, level="STUDY", NumberOfStudyRelatedInstances=None)[
        "00201208"
    ] == {"vr": "IS", "Value": [7]}
    item = {"00400009": {"vr": "SH", "Value": ["S"]}, "00400007": {"vr": "LO", "Value": ["D"]}}
    asked = {"RequestAttributesSequence": {"ScheduledProcedureStepID": None, "RequestedProcedureID": None}}
    found = answered({"00400275": {"vr": "SQ", "Value": [item, "no item"]}}, level="SERIES", **asked)
    assert found["00400275"]["Value"] == [{"00400009": {"vr": "SH", "Value": ["S"]}, "00401001": {"vr": "SH"}}]


def test_patients_of_studies() -> None:
    """Each once, by identifier and issuer; counts only where all studies tell them."""
    query = question(
        level="PATIENT",
        PatientID=None,
        **dict.fromkeys(("NumberOfPatientRelatedStudies", "NumberOfPatientRelatedInstances")),
    )
    patients = Patients(query)

    def study(patient: str, instances: int | None, issuer: str = "A") -> dict[str, Any]:
        count = {} if instances is None else {"00201208": {"vr": "IS", "Value": [instances]}}
        return {"00100020": {"vr": "LO", "Value": [patient]}, "00100021": {"vr": "LO", "Value": [issuer]}, **count}

    given = [study("1", 2), study("2", 1), study("1", 3), study("2", None), study("1", 4, "B")]
    assert [patients.add(each) for each in given] == [True, True, False, False, True]
    told = [
        (each["00100020"]["Value"], each["00201200"]["Value"], each.get("00201204", {}).get("Value"))
        for each in patients.all()
    ]
    assert told == [(["1"], [2], [5]), (["2"], [2], None), (["1"], [1], [4])]


def test_verdicts_of_a_store_whatever_they_lack() -> None:
    """No reason is a failure, a reason that is a success is none, an answer that is no data set is an error."""
    failed = {"Value": [{"00081155": {"Value": ["1"]}}, {"00081155": {"Value": ["2"]}, "00081197": {"Value": [0]}}]}
    assert {uid: status for uid, (status, _) in verdicts([{"00081198": failed}]).items()} == {"1": 0x0110, "2": 0x0110}
    assert verdicts({}) == {}
    for wrong in ("text", [1], None):
        with pytest.raises(ValueError, match="no data set"):
            verdicts(wrong)


def test_xml_that_declares_anything_is_not_read() -> None:
    """Entities, for one, that would grow without end."""
    with pytest.raises(ValueError, match="document type"):
        of_xml(b'<!DOCTYPE x [<!ENTITY a "b">]><NativeDicomModel/>')
