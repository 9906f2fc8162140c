"""The identifier parser: spellings, values, levels and models, retrieves."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataset import Dataset

from harmonyd.dimse.engine import Query, QueryLevel, QueryModel
from harmonyd.dimse.errors import IdentifierError
from harmonyd.dimse.identifier import parse_query, requested_operation

STUDY = "1.2.840.113619.2.1"
SERIES = "1.2.840.113619.2.1.1"


def find(document: Any, **options: Any) -> Query:
    return parse_query(document, operation="find", **options)


def keys(document: dict[str, Any], **options: Any) -> Dataset:
    """The data set of a find that adds no return keys."""
    return find({**document, "return": "requested"}, **options).dataset


def refused(document: Any, operation: str = "find", **options: Any) -> IdentifierError:
    with pytest.raises(IdentifierError) as caught:
        parse_query(document, operation=operation, **options)
    return caught.value


def everything(error: IdentifierError) -> str:
    return f"{error.detail} [{error.extra.get('key')}] {error.hint}"


# --- spellings ---

SPELLINGS = [
    {"patient_id": "12345", "query_level": "STUDY", "study_instance_uid": "", "sop_classes_in_study": None},
    {"PatientID": "12345", "QueryRetrieveLevel": "STUDY", "StudyInstanceUID": None, "SOPClassesInStudy": []},
    {
        "00100020": {"vr": "LO", "Value": ["12345"]},
        "00080052": {"vr": "CS", "Value": ["STUDY"]},
        "0020000D": {"vr": "UI", "Value": []},
        "00080062": {"vr": "UI"},
    },
    {"(0010,0020)": "12345", "0008,0052": "study", "0020000d": "", "00080062": [""]},
    {"operation": "C-FIND", "level": "STUDY", "query": {"PatientID": "12345"}}
    | {"study_instance_uid": "", "identifier": {"00080062": None}},
    {
        "command": {"message_id": 1, "sop_class_uid": "1.2.840.10008.5.1.4.1.2.2.1", "priority": "MEDIUM"},
        "identifier": {
            "00100020": {"vr": "LO", "Value": ["12345"]},
            "0020000D": {"vr": "UI", "Value": []},
            "00080062": {"vr": "UI", "Value": []},
        },
        "query_metadata": {"00100020": {"match_type": "EXACT"}, "level": "STUDY", "request_id": "r-1"},
    },
]


@pytest.mark.parametrize("document", SPELLINGS)
def test_all_spellings_give_the_same_query(document: dict[str, Any]) -> None:
    """Snake case, keywords, tags, DICOM JSON and the wrappers mean the same."""
    query = find({**document, "return": "requested"})
    assert (query.level, query.model) == (QueryLevel.STUDY, QueryModel.STUDY_ROOT)
    assert query.dataset.to_json_dict() == keys(SPELLINGS[0]).to_json_dict()


def test_spellings_mix_in_one_document() -> None:
    """Each key may be spelt its own way."""
    ds = keys({"patient_id": "1", "StudyDate": "20240101-20250101", "00080050": "A"})
    assert (ds.PatientID, ds.StudyDate, ds.AccessionNumber) == ("1", "20240101-20250101", "A")


def test_the_same_key_twice_with_one_value_is_one_key() -> None:
    """Saying the same in two spellings is no contradiction."""
    assert keys({"patient_id": "1", "PatientID": "1", "00100020": ["1"]}).PatientID == "1"


def test_the_same_key_twice_with_two_values_is_refused() -> None:
    """Nobody can know which was meant."""
    said = everything(refused({"patient_id": "1", "identifier": {"00100020": "2"}}))
    assert "patient_id and 00100020" in said
    assert "PatientID (0010,0020)" in said


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("patients_name", "patient_name"),
        ("PatientsName", "PatientName"),
        ("patientID", "PatientID"),
        ("StudyInstanceUid", "StudyInstanceUID"),
        ("acquisition_dat", "acquisition_date"),
        ("operatin", "operation"),
        ("quary_level", "query_level"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, near: str) -> None:
    """The hint is spelt like the name."""
    error = refused({name: "1"})
    assert error.extra["key"] == name
    assert error.hint == f"did you mean {near}?"


@pytest.mark.parametrize(
    "name", ["", " ", "é", "\ud800", "x" * 10_000, "0010002", "patient-id", "00100020 ", "(00100020"]
)
def test_nonsense_names_are_refused_in_words_that_can_be_sent(name: str) -> None:
    """What a client wrote is shortened and escaped before it is repeated."""
    error = refused({name: "1"})
    everything(error).encode()
    assert len(everything(error)) < 500
    assert everything(error).isprintable()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("00000100", "group 0000"),
        ("MoveDestination", "group 0000"),
        ("message_id", "group 0000"),
        ("TransferSyntaxUID", "group 0002"),
        ("FFFEE000", "group FFFE"),
        ("00100000", "group length"),
        ("00070010", "7.8.1"),
        ("00090001", "7.8.1"),
    ],
)
def test_elements_that_are_no_keys_are_refused(name: str, reason: str) -> None:
    """Command and file meta elements, delimiters and group lengths have no place in an identifier."""
    assert reason in refused({name: ""}).detail


def test_nothing_is_not_a_query_of_something_else() -> None:
    """An empty body, {} and null list everything at the top level."""
    for document in (None, {}, {"identifier": None}):
        assert find(document).level is QueryLevel.PATIENT


@pytest.mark.parametrize("document", [[], "x", 1, True, [{"PatientID": "1"}]])
def test_a_document_is_an_object(document: Any) -> None:
    """Other JSON is refused."""
    assert "JSON object" in refused(document).detail


# --- wrapper and control members ---


@pytest.mark.parametrize(
    ("document", "operation"),
    [
        (None, None),
        ([], None),
        ({}, None),
        ({"operation": None}, None),
        ({"operation": "C-FIND"}, "find"),
        ({"operation": "c_get"}, "get"),
        ({"operation": "Move"}, "move"),
        ({"operation": "CSTORE"}, "store"),
        ({"command": {"operation": "C-ECHO"}}, "echo"),
    ],
)
def test_requested_operation(document: Any, operation: str | None) -> None:
    """The operation in the body is read in any common form."""
    assert requested_operation(document) == operation


@pytest.mark.parametrize("value", ["C-DELETE", 1, ["find"], {"a": 1}])
def test_an_unknown_operation_is_refused(value: Any) -> None:
    """It is never guessed."""
    with pytest.raises(IdentifierError, match="operation"):
        requested_operation({"operation": value})
    assert "operation" in refused({"operation": value}).detail


@pytest.mark.parametrize(
    "members",
    [
        {"command": {"priority": "HIGH"}},
        {"command": {"sop_class_uid": "1.2.840.10008.5.1.4.1.2.2.2"}},
        {"command": {"sop_class_uid": "1.2.840.10008.5.1.4.1.2.2.1"}, "model": "patient"},
        {"command": {"direction": "RESPONSE"}},
        {"command": {"prioritty": "MEDIUM"}},
        {"command": []},
        {"query": "PatientID"},
        {"query_metadata": {"00100020": {"match_type": "FUZZY"}}},
        {"query_metadata": {"00100020": {"match_type": ["EXACT"]}}},
        {"query_metadata": {"00100020": {"match_type": "EXACT"}}},
        {"query_metadata": {"00100010": {"match_type": "RETURN_KEY"}}, "PatientName": "Doe"},
        {"query_metadata": {"00100010": {"match_type": "EXACT"}}, "PatientName": "Doe*"},
        {"model": "worklist"},
        {"model": 1},
        {"return": "all"},
        {"return": ["default"]},
        {"destination": "ELSEWHERE"},
        {"operation": "find", "command": {"operation": "get"}},
        {"level": "STUDY", "query_level": "SERIES"},
        {"level": "FRAME"},
        {"level": ["STUDY", "SERIES"]},
        {"level": 1},
        {"query": {"return": "requested"}},
        {"max_results": 3},
    ],
)
def test_what_would_be_ignored_is_refused(members: dict[str, Any]) -> None:
    """A member that says something other than what will be done is an error."""
    assert refused(members).extra["key"]


def test_harmonys_metadata_is_accepted_where_it_is_true() -> None:
    """Its match types describe the keys."""
    query = find(
        {
            "identifier": {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "DOE*"}]}, "00080050": {"vr": "SH"}},
            "queryMetadata": {"00100010": {"matchType": "WILDCARD"}, "00080050": {"match_type": "RETURN_KEY"}},
        }
    )
    assert query.dataset.PatientName == "DOE*"


def test_the_destination_of_a_move_may_be_repeated_but_not_chosen() -> None:
    """Objects go where the backend is configured to receive them."""
    body = {"operation": "C-MOVE", "destination": "HARMONY_SCU", "query": {"StudyInstanceUID": STUDY}}
    assert parse_query(body, operation="move", destination="HARMONY_SCU").level is QueryLevel.STUDY
    assert "move_destination_aet" in refused(body, "move", destination="OTHER").detail
    assert "move_destination_aet" in refused(body, "move").detail
    assert "belongs to a move" in refused(body, "get", destination="HARMONY_SCU").detail


# --- values ---


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("PatientID", "a=b@c -k", "a=b@c -k"),
        ("PatientID", "  12 ", "12"),
        ("PatientID", "*" * 10 + "x" * 64, "*" * 10 + "x" * 64),
        ("PatientID", "🫀" * 64, "🫀" * 64),
        ("PatientID", ["a", "b"], ["a", "b"]),
        ("PatientName", "Doe^J*", "Doe^J*"),
        ("PatientName", {"Alphabetic": "A^B", "Phonetic": "ア"}, "A^B==ア"),
        ("PatientName", [{"Alphabetic": "A"}, "B"], ["A", "B"]),
        ("Modality", "C?", "C?"),
        ("RetrieveAETitle", "A*", "A*"),
        ("StudyDate", "20240229", "20240229"),
        ("StudyDate", "-20241231", "-20241231"),
        ("StudyDate", "20240101-", "20240101-"),
        ("StudyTime", "0800-1200", "0800-1200"),
        ("StudyTime", "235960.123456", "235960.123456"),
        ("AcquisitionDateTime", "20240101120000-0500", "20240101120000-0500"),
        ("AcquisitionDateTime", "2023-2024", "2023-2024"),
        ("AcquisitionDateTime", "2023-0500-2024-0500", "2023-0500-2024-0500"),
        ("InstanceNumber", 7, 7),
        ("InstanceNumber", "+7", 7),
        ("SliceThickness", 1.25, 1.25),
        ("Rows", 512, 512),
        ("Rows", "512", 512),
        ("RealWorldValueSlope", 0.1, 0.1),
        ("PatientAge", "042Y", "042Y"),
        ("FrameIncrementPointer", "0018,1063", 0x00181063),
        ("TextValue", "  a\\b  ", "  a\\b"),
        ("TimezoneOffsetFromUTC", "+0100", "+0100"),
        ("StudyInstanceUID", [STUDY, SERIES], [STUDY, SERIES]),
    ],
)
def test_values_reach_the_query(key: str, value: Any, expected: Any) -> None:
    """Matching by value, wildcard, range and list, in every kind of VR."""
    assert keys({key: value})[key].value == expected


@pytest.mark.parametrize("value", [None, "", [], [None], [""], {"vr": "PN"}, {"vr": "PN", "Value": None}, {}])
def test_an_empty_value_is_a_return_key(value: Any) -> None:
    """Zero length is universal matching (PS3.4 section C.2.2.2.3)."""
    assert keys({"PatientName": value})["PatientName"].is_empty


@pytest.mark.parametrize("value", [[{"Alphabetic": ""}], {"Alphabetic": None, "Phonetic": ""}])
def test_a_person_name_without_content_is_a_return_key(value: Any) -> None:
    """The DICOM JSON model has an object even for an empty name."""
    assert keys({"PatientName": value})["PatientName"].is_empty


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("PatientID", "a\nb", "control characters"),
        ("PatientID", "a\x00", "control characters"),
        ("PatientID", "a\x7f", "control characters"),
        ("PatientID", "a\x85b", "control characters"),
        ("PatientID", "a\u2028b", "control characters"),
        ("PatientID", "\ud83e", "control characters"),
        ("TextValue", "a\tb", "control characters"),
        ("PatientID", "a\\b", "JSON list"),
        ("StudyInstanceUID", f"{STUDY}\\{SERIES}", "JSON list"),
        ("PatientID", "x" * 300, "64"),
        ("PatientID", "x" * 65, "64"),
        ("PatientID", "*" * 200, "64"),
        ("PatientID", "   ", "only spaces"),
        ("PatientID", 12345, "in quotes"),
        ("PatientID", True, "true or false"),
        ("PatientID", {}, "an object"),
        ("PatientID", {"a": 1}, "an object"),
        ("PatientID", [["a"]], "a list in a list"),
        ("PatientID", ["a", ""], "an empty value"),
        ("PatientID", ["a"] * 101, "100"),
        ("Rows", True, "true or false"),
        ("Rows", 70000, "65535"),
        ("Rows", -1, "between 0"),
        ("Rows", 10**30, "too large"),
        ("Rows", 1.0, "not an integer"),
        ("Modality", "Überhaupt", "ASCII"),
        ("PatientName", "a=b=c=d", "three groups"),
        ("PatientName", "a^b^c^d^e^f", "five components"),
        ("PatientName", "=", "only delimiters"),
        ("PatientName", "x" * 65, "64"),
        ("PatientName", {"Alphabetic": "a=b"}, "="),
        ("PatientName", {"Alphabetic": 1}, "text"),
        ("PatientName", {"alphabetic": "a"}, "Alphabetic"),
        ("StudyInstanceUID", "*", "leave it empty"),
        ("StudyInstanceUID", "not-a-uid", "not a UID"),
        ("StudyInstanceUID", "1.2.", "dots between"),
        ("StudyInstanceUID", ["1.2"] * 10_001, "10000"),
        ("StudyInstanceUID", ["1." + "2" * 60] * 2_000, "65534"),
        ("StudyDate", "2024-01-01", "YYYYMMDD"),
        ("StudyDate", "2024.01.01", "YYYYMMDD"),
        ("StudyDate", "20230229", "not a date"),
        ("StudyDate", "*", "leave it empty"),
        ("StudyDate", "-", "not a date"),
        ("StudyDate", "20250101-20240101", "ends before"),
        ("StudyDate", "20240101-20240102-20240103", "not a date"),
        ("StudyTime", "12:00", "HHMMSS"),
        ("StudyTime", "2500", "not a time"),
        ("AcquisitionDateTime", "2024-01-01T00:00", "not a date and time"),
        ("AcquisitionDateTime", "2024010125", "not a date and time"),
        ("InstanceNumber", "*", "not an integer"),
        ("InstanceNumber", "1.5", "not an integer"),
        ("InstanceNumber", 2**31, "not an integer"),
        ("SliceThickness", "thick", "not a decimal"),
        ("SliceThickness", 0.1 + 0.2, "round it"),
        ("SliceThickness", "1e999", "not a decimal"),
        ("RealWorldValueSlope", "nan", "not a number"),
        ("RecommendedDisplayFrameRateInFloat", 1e300, "too large"),
        ("PatientAge", "42", "042Y"),
        ("FrameIncrementPointer", "Rows", "hexadecimal"),
        ("TextValue", ["a", "b"], "1 that VR UT"),
        ("PixelData", "x", "cannot be matched"),
        ("RequestAttributesSequence", "x", "JSON object"),
        ("RequestAttributesSequence", [None], "JSON object"),
        ("RequestAttributesSequence", [{}] * 101, "100"),
    ],
)
def test_bad_values_are_refused_by_key_and_reason(key: str, value: Any, reason: str) -> None:
    """The answer names the key as the client wrote it, and what is wrong or how to write it."""
    error = refused({key: value})
    assert reason in everything(error)
    assert key in error.extra["key"]


def test_a_list_of_many_uids_is_allowed() -> None:
    """UID list matching is limited by what a data element can hold."""
    uids = [f"1.2.{number}" for number in range(5000)]
    assert list(keys({"StudyInstanceUID": uids}).StudyInstanceUID) == uids


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        ({"vr": "PN", "Value": ["1"]}, "has VR LO"),
        ({"vr": 1, "Value": ["1"]}, "has VR LO"),
        ({"vr": "LO", "Value": "1"}, "must be a list"),
        ({"vr": "LO", "InlineBinary": "AA=="}, "InlineBinary"),
        ({"vr": "LO", "BulkDataURI": "http://x/"}, "BulkDataURI"),
        ({"vr": "LO", "value": ["1"]}, "value"),
    ],
)
def test_bad_dicom_json_elements_are_refused(element: Any, reason: str) -> None:
    """An element of the DICOM JSON model has the right VR and its values in a list."""
    assert reason in refused({"00100020": element}).detail


def test_an_element_with_two_vrs_takes_the_one_that_fits() -> None:
    """For "US or SS" a negative value is SS, unless the client says."""
    assert keys({"SmallestImagePixelValue": -3})["SmallestImagePixelValue"].VR == "SS"
    assert keys({"SmallestImagePixelValue": 3})["SmallestImagePixelValue"].VR == "US"
    assert keys({"00280106": {"vr": "SS", "Value": [3]}})["SmallestImagePixelValue"].VR == "SS"


def test_the_clients_character_set_is_replaced_by_ours() -> None:
    """Values are Unicode here and written in UTF-8, so what the client names cannot be meant."""
    assert "SpecificCharacterSet" not in keys({"SpecificCharacterSet": "ISO_IR 100", "PatientID": "a"})
    assert keys({"SpecificCharacterSet": "ISO_IR 100", "PatientID": "ä"}).SpecificCharacterSet == "ISO_IR 192"


# --- sequences, private elements, limits ---


@pytest.mark.parametrize(
    "value",
    [
        {"Modality": "CT", "requested_procedure_id": ""},
        [{"Modality": "CT", "00401001": None}],
        {"vr": "SQ", "Value": [{"00080060": {"vr": "CS", "Value": ["CT"]}, "00401001": {"vr": "SH"}}]},
    ],
)
def test_sequences_nest(value: Any) -> None:
    """An object, a list of objects and the DICOM JSON model are items."""
    [item] = keys({"RequestAttributesSequence": value}).RequestAttributesSequence
    assert sorted(item.dir()) == ["Modality", "RequestedProcedureID"]
    assert item.Modality == "CT"


@pytest.mark.parametrize("value", [None, "", [], {"vr": "SQ"}, {"vr": "SQ", "Value": []}])
def test_an_empty_sequence_is_a_return_key(value: Any) -> None:
    """All of its items are asked for."""
    assert len(keys({"RequestAttributesSequence": value}).RequestAttributesSequence) == 0


def test_errors_inside_sequences_say_where() -> None:
    """The key is named with its path."""
    error = refused({"RequestAttributesSequence": [{}, {"Modality": "a\nb"}]})
    assert error.extra["key"] == "RequestAttributesSequence[1].Modality"


@pytest.mark.parametrize("name", ["QueryRetrieveLevel", "SpecificCharacterSet", "level"])
def test_level_and_character_set_belong_to_the_whole_query(name: str) -> None:
    """They are refused inside an item."""
    assert refused({"RequestAttributesSequence": {name: "STUDY"}}).extra["key"] == name


def test_private_elements_need_their_vr_and_their_creator() -> None:
    """Nothing about them is in the data dictionary."""
    element = {"vr": "LO", "Value": ["x"]}
    ds = keys({"00090010": "ACME", "00091001": element})
    assert (ds[0x00090010].value, ds[0x00091001].value) == ("ACME", "x")
    assert '"00090010"' in everything(refused({"00091001": element}))
    assert '"00090010"' in everything(refused({"00090010": "", "00091001": element}))
    assert "VR must be given" in refused({"00090010": "ACME", "00091001": "x"}).detail
    assert "not a VR" in refused({"00090010": "ACME", "00091001": {"vr": "XX"}}).detail
    assert '"00090010"' in everything(refused({"RequestAttributesSequence": {"00091001": element}, "00090010": "A"}))


def test_elements_newer_than_the_dictionary_need_their_vr() -> None:
    """A tag that is not known is no error when the client says what it is."""
    assert "VR must be given" in refused({"00101FF9": "x"}).detail
    assert keys({"00101FF9": {"vr": "SH", "Value": ["x"]}})[0x00101FF9].value == "x"


def test_limits_on_keys_and_nesting() -> None:
    """A document cannot make a query without bounds."""
    nested: Any = {"Modality": "CT"}
    for _ in range(9):
        nested = {"RequestAttributesSequence": [nested]}
    assert "8 deep" in refused(nested).detail
    many = {f"0018{element:04X}": {"vr": "LO"} for element in range(0xA100, 0xA100 + 257)}
    assert "256" in refused(many).detail
    assert (
        "256"
        in refused({"RequestAttributesSequence": [{"Modality": ""}] * 100, **dict(list(many.items())[:60])}).detail
    )


# --- level and model ---


@pytest.mark.parametrize(
    ("document", "level"),
    [
        ({}, "PATIENT"),
        ({"PatientID": "1"}, "PATIENT"),
        ({"StudyDate": "20240101"}, "PATIENT"),
        ({"StudyInstanceUID": ""}, "STUDY"),
        ({"StudyInstanceUID": STUDY, "series_instance_uid": ""}, "SERIES"),
        ({"SOPInstanceUID": "", "StudyInstanceUID": STUDY}, "IMAGE"),
        ({"level": "series"}, "SERIES"),
        ({"level": "Instance"}, "IMAGE"),
        ({"level": "", "StudyInstanceUID": ""}, "STUDY"),
        ({"level": "INSTANCE", "QueryRetrieveLevel": "IMAGE"}, "IMAGE"),
        ({"model": "study", "PatientID": "1"}, "STUDY"),
    ],
)
def test_the_level_is_given_or_follows_from_the_keys(document: dict[str, Any], level: str) -> None:
    """The lowest unique key decides, also as a return key."""
    query = find(document)
    assert query.level.value == level
    assert query.dataset.QueryRetrieveLevel == level


@pytest.mark.parametrize(
    ("document", "configured", "expected"),
    [
        ({"level": "PATIENT"}, None, QueryModel.PATIENT_ROOT),
        ({"level": "STUDY"}, None, QueryModel.STUDY_ROOT),
        ({"level": "STUDY"}, QueryModel.PATIENT_ROOT, QueryModel.PATIENT_ROOT),
        ({"level": "STUDY", "model": "patient"}, None, QueryModel.PATIENT_ROOT),
        ({"level": "STUDY", "query_model": "study_root"}, QueryModel.PATIENT_ROOT, QueryModel.STUDY_ROOT),
        (
            {"level": "SERIES", "command": {"sop_class_uid": "1.2.840.10008.5.1.4.1.2.1.1"}},
            None,
            QueryModel.PATIENT_ROOT,
        ),
    ],
)
def test_the_model_is_asked_for_configured_or_follows_from_the_level(
    document: dict[str, Any], configured: QueryModel | None, expected: QueryModel
) -> None:
    """The document counts more than the configuration, and that more than the default."""
    assert find(document, model=configured).model is expected


def test_study_root_has_no_patient_level() -> None:
    """Asking for both is a contradiction."""
    assert "no PATIENT level" in refused({"level": "PATIENT", "model": "study"}).detail
    assert "no PATIENT level" in refused({"level": "PATIENT"}, model=QueryModel.STUDY_ROOT).detail


def test_return_keys_are_added_unless_the_client_chooses() -> None:
    """Keys of the client stay as they are."""
    query = find({"level": "STUDY", "PatientName": "Doe", "StudyDate": ""})
    assert query.dataset.PatientName == "Doe"
    assert query.dataset["StudyInstanceUID"].is_empty
    assert keys({"level": "STUDY", "PatientName": "Doe"}).dir() == ["PatientName", "QueryRetrieveLevel"]


def test_forced_keys_set_and_replace() -> None:
    """Middleware has the last word, under the same checks."""
    forced = {"PatientID": "9", "query_level": "STUDY", "00080060": ""}
    query = find({"patient_id": "1", "level": "PATIENT", "return": "requested"}, forced=forced)
    assert (query.dataset.PatientID, query.level) == ("9", QueryLevel.STUDY)
    assert query.dataset["Modality"].is_empty
    assert refused({}, forced={"PatientID": "a\nb"}).extra["key"] == "PatientID"
    assert refused({}, forced={"patient": "a"}).extra["key"] == "patient"


# --- retrieves ---


@pytest.mark.parametrize("operation", ["get", "move"])
@pytest.mark.parametrize(
    ("document", "level", "model", "expected"),
    [
        ({"StudyInstanceUID": STUDY}, "STUDY", "study", ["StudyInstanceUID"]),
        ({"StudyInstanceUID": [STUDY, SERIES]}, "STUDY", "study", ["StudyInstanceUID"]),
        ({"StudyInstanceUID": STUDY, "PatientName": "", "00080060": None}, "STUDY", "study", ["StudyInstanceUID"]),
        ({"StudyInstanceUID": STUDY, "PatientID": "1"}, "STUDY", "patient", ["PatientID", "StudyInstanceUID"]),
        ({"patient_id": "1"}, "PATIENT", "patient", ["PatientID"]),
        ({"0020000D": STUDY, "0020000E": SERIES}, "SERIES", "study", ["StudyInstanceUID", "SeriesInstanceUID"]),
        ({"StudyInstanceUID": STUDY, "return": "default"}, "STUDY", "study", ["StudyInstanceUID"]),
    ],
)
def test_a_retrieve_holds_unique_keys_only(
    operation: str, document: dict[str, Any], level: str, model: str, expected: list[str]
) -> None:
    """No return keys are added, and those of the client are left out."""
    query = parse_query(document, operation=operation)
    assert (query.level.value, query.model.value) == (level, model)
    assert sorted(query.dataset.dir()) == sorted(["QueryRetrieveLevel", *expected])


@pytest.mark.parametrize(
    ("document", "key", "reason"),
    [
        ({}, "PatientID", "whole archive"),
        ({"level": "STUDY"}, "StudyInstanceUID", "whole archive"),
        ({"study_instance_uid": ""}, "study_instance_uid", "whole archive"),
        ({"StudyInstanceUID": "*"}, "StudyInstanceUID", "wildcards"),
        ({"PatientID": "*"}, "PatientID", "wildcards"),
        ({"PatientID": "12?4"}, "PatientID", "wildcards"),
        ({"PatientID": ["1", "2"]}, "PatientID", "one PatientID"),
        ({"SeriesInstanceUID": SERIES}, "StudyInstanceUID", "whole archive"),
        ({"StudyInstanceUID": [STUDY, "1.3"], "SeriesInstanceUID": SERIES}, "StudyInstanceUID", "one StudyInstanceUID"),
        ({"StudyInstanceUID": STUDY, "SOPInstanceUID": "1.9"}, "SeriesInstanceUID", "needs SeriesInstanceUID"),
        ({"StudyInstanceUID": STUDY, "model": "patient"}, "PatientID", "whole archive"),
        ({"StudyInstanceUID": STUDY, "patient_id": "1", "model": "study"}, "patient_id", '"query_model": "patient"'),
        ({"StudyInstanceUID": STUDY, "Modality": "CT"}, "Modality", "cannot filter"),
        ({"level": "STUDY", "StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES}, "SeriesInstanceUID", "filter"),
        ({"StudyInstanceUID": STUDY, "RequestAttributesSequence": {}}, "RequestAttributesSequence", "cannot filter"),
    ],
)
def test_a_retrieve_that_could_bring_too_much_is_refused(document: dict[str, Any], key: str, reason: str) -> None:
    """Unique keys of the level and above are given, single where they must be, and nothing else filters."""
    error = refused(document, "get")
    assert error.extra["key"] == key
    assert reason in everything(error)


def test_an_operation_without_an_identifier_is_a_mistake_of_ours() -> None:
    """Only find, get and move have one."""
    with pytest.raises(ValueError, match="echo"):
        parse_query({}, operation="echo")
