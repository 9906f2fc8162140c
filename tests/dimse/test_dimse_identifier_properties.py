"""The identifier parser, for all documents that hypothesis can think of."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR, keyword_dict
from pydicom.dataset import Dataset

from harmonyd.dimse.engine import Query
from harmonyd.dimse.errors import IdentifierError
from harmonyd.dimse.identifier import parse_query
from harmonyd.dimse.keys import resolve, snake
from harmonyd.dimse.plain_keys import plain_keys
from harmonyd.dimse.query_file import any_keys, identifier, query_bytes

# pydicom counts bytes, not characters, when it reads an element inside a sequence.
pytestmark = pytest.mark.filterwarnings("ignore:The value length")
SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

TEXT_KEYS = ("PatientID", "PatientName", "StudyDescription", "PatientComments", "AccessionNumber", "TextValue")
SAFE_TEXT = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="\\=^"), min_size=1, max_size=16)
UIDS = st.lists(st.integers(0, 10**6), min_size=2, max_size=6).map(lambda numbers: ".".join(map(str, numbers)))
DATES = st.dates().map("{:%Y%m%d}".format).map(lambda text: text.zfill(8))
PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "PatientID": SAFE_TEXT,
    "PatientName": SAFE_TEXT,
    "StudyInstanceUID": UIDS | st.lists(UIDS, min_size=2, max_size=4, unique=True),
    "SeriesInstanceUID": UIDS,
    "StudyDate": DATES | DATES.map("{}-".format) | DATES.map("-{}".format),
    "StudyTime": st.times().map("{:%H%M%S}".format),
    "Modality": st.sampled_from(["CT", "MR", "U*", ["CT", "MR"]]),
    "AccessionNumber": SAFE_TEXT,
    "InstanceNumber": st.integers(-(2**31), 2**31 - 1),
    "Rows": st.integers(0, 65535),
    "SliceThickness": st.integers(-(10**6), 10**6) | st.sampled_from([0.5, 1e-5, -2.25]),
    "RequestAttributesSequence": st.fixed_dictionaries({"ScheduledProcedureStepID": SAFE_TEXT | st.none()}),
}
PLAIN_DOCUMENTS = st.fixed_dictionaries({}, optional={key: values | st.none() for key, values in PLAIN.items()})

WORDS = st.sampled_from(["STUDY", "1.2", "*", "patient", "requested", "LO", "SQ"])
JSON_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | WORDS
TAGS = ("00100020", "(0010,0020)", "0020000D", "00091001", "00090010", "7FE00010", "00280106")
MEMBERS = (
    *("level", "query_level", "model", "return", "operation", "destination", "command", "identifier", "query"),
    *("query_metadata", "vr", "Value", "Alphabetic", "match_type", "priority", "sop_class_uid"),
)
NAMES = st.sampled_from([*PLAIN, *map(snake, PLAIN), *TAGS, *MEMBERS, "TextValue"]) | st.text()
ANY_JSON = st.recursive(
    JSON_LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=20,
)
DOCUMENTS = st.dictionaries(NAMES, ANY_JSON, max_size=8) | ANY_JSON


def written(query: Query) -> Dataset:
    return pydicom.dcmread(BytesIO(query_bytes(query)))


def tags_named(document: Any) -> set[int]:
    """Every tag that a name anywhere in the document could mean."""
    if isinstance(document, list):
        return set().union(*map(tags_named, document))
    if not isinstance(document, dict):
        return set()
    tags = set().union(*map(tags_named, document.values()))
    for name in document:
        try:
            tags.add(resolve(name).tag)
        except IdentifierError:
            continue
    return tags


def as_json_element(keyword: str, value: Any) -> dict[str, Any]:
    vr = dictionary_VR(keyword_dict[keyword])
    if vr == "SQ" and value is not None:
        value = {f"{keyword_dict[key]:08X}": as_json_element(key, inner) for key, inner in value.items()}
    if vr == "PN" and value is not None:
        value = {"Alphabetic": value}
    values = value if isinstance(value, list) else [] if value is None else [value]
    return {"vr": vr, "Value": values}


@SETTINGS
@given(DOCUMENTS, st.sampled_from(["find", "get", "move"]))
def test_any_document_is_a_query_or_an_identifier_error(document: Any, operation: str) -> None:
    """No document raises anything else, each error can be sent, and each query can be written."""
    try:
        query = parse_query(document, operation=operation)
    except IdentifierError as error:
        f"{error.detail} {error.extra} {error.hint}".encode()
        return
    assert written(query).QueryRetrieveLevel == query.level.value


@SETTINGS
@given(DOCUMENTS)
def test_no_key_appears_that_was_not_named(document: Any) -> None:
    """Beside the level and the character set the file holds what the document names, and no more."""
    if isinstance(document, dict):
        document = {**document, "return": "requested"}
    try:
        query = parse_query(document, operation="find")
    except IdentifierError:
        return
    allowed = tags_named(document) | {0x00080005, 0x00080052}
    if isinstance(document, dict):
        assert {int(elem.tag) for elem in written(query)} <= allowed


@SETTINGS
@given(st.sampled_from(TEXT_KEYS), st.text())
def test_text_comes_back_from_the_file_as_it_was_given(key: str, text: str) -> None:
    """Whatever is accepted is written unchanged, apart from spaces around it, which DICOM does not tell apart."""
    try:
        query = parse_query({key: text, "return": "requested"}, operation="find")
    except IdentifierError:
        return
    ds = written(query)
    read = "" if ds[key].is_empty else str(ds[key].value)
    expected = text.rstrip("=") if key == "PatientName" else text
    assert read.strip(" ") == expected.strip(" ")
    assert set(ds.dir()) <= {key, "QueryRetrieveLevel", "SpecificCharacterSet"}


@SETTINGS
@given(PLAIN_DOCUMENTS)
def test_all_values_come_back_from_the_file(document: dict[str, Any]) -> None:
    """The file holds the query's data set, element for element."""
    query = parse_query({**document, "return": "requested"}, operation="find")
    assert written(query).to_json_dict() == query.dataset.to_json_dict()
    assert set(document) | {"QueryRetrieveLevel", "SpecificCharacterSet"} >= set(query.dataset.dir()) >= set(document)


@SETTINGS
@given(PLAIN_DOCUMENTS, st.sampled_from(["find", "get", "move"]))
def test_the_spellings_mean_the_same(document: dict[str, Any], operation: str) -> None:
    """Keywords, snake case, tags, DICOM JSON and both wrappers give one query, or are all refused."""
    elements = {f"{keyword_dict[key]:08X}": as_json_element(key, value) for key, value in document.items()}
    spellings: list[dict[str, Any]] = [
        document,
        {snake(key): value for key, value in document.items()},
        {f"{keyword_dict[key] >> 16:04x},{keyword_dict[key] & 0xFFFF:04x}": value for key, value in document.items()},
        elements,
        {"command": {"message_id": 1}, "identifier": elements},
        {"operation": f"C-{operation.upper()}", "query": document},
    ]
    results = [outcome(spelling, operation) for spelling in spellings]
    assert all(result == results[0] for result in results[1:])


def outcome(document: dict[str, Any], operation: str) -> Any:
    try:
        query = parse_query(document, operation=operation)
    except IdentifierError:
        return None
    return query.level, query.model, query.dataset.to_json_dict()


@pytest.mark.parametrize("start", range(0, len(keyword_dict), 1000))
def test_every_keyword_is_found_in_snake_case(start: int) -> None:
    """The names derived from all keywords of the data dictionary lead back to their tags."""
    for keyword in list(keyword_dict)[start : start + 1000]:
        try:
            tag = resolve(keyword).tag
        except IdentifierError:
            continue
        assert tag == keyword_dict[keyword]
        assert resolve(snake(keyword)).tag == tag


ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="\\"), min_size=1, max_size=16)
TEXTUAL: dict[str, st.SearchStrategy[Any]] = {
    "PatientID": ASCII,
    "PatientName": ASCII,
    "PatientComments": ASCII,
    "StudyInstanceUID": UIDS | st.lists(UIDS, min_size=2, max_size=4, unique=True),
    "StudyDate": DATES,
    "Modality": st.sampled_from(["CT", "U*", ["CT", "MR"]]),
    "RetrieveURL": st.just("http://127.0.0.1/a"),
    "OtherPatientNames": st.lists(ASCII, min_size=2, max_size=3),
    **dict.fromkeys(("InstanceNumber", "Rows", "SliceThickness", "LargestImagePixelValue"), st.none()),
}


@SETTINGS
@given(st.fixed_dictionaries({}, optional={key: values | st.none() for key, values in TEXTUAL.items()}), st.booleans())
def test_plain_keys_are_written_as_pydicom_does(values: dict[str, Any], implicit: bool) -> None:
    """Byte for byte, in either transfer syntax; whatever it does not write itself it leaves to pydicom."""
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    plain = plain_keys(ds, implicit=implicit)
    assert plain is not None or "LargestImagePixelValue" in values
    assert plain in (None, any_keys(ds, implicit=implicit))


@SETTINGS
@given(PLAIN_DOCUMENTS, st.booleans())
def test_no_query_is_written_otherwise_than_by_pydicom(document: dict[str, Any], implicit: bool) -> None:
    """Queries with numbers, sequences and any script come out the same, whoever writes them."""
    query = parse_query({**document, "return": "requested"}, operation="find")
    assert identifier(query, implicit=implicit) == any_keys(query.dataset, implicit=implicit)
