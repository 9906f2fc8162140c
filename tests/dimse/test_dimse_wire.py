"""Identifiers and matches between what came, JSON, and what goes on."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.filereader import read_dataset

from harmonyd.dimse import wire
from harmonyd.dimse.engine import QueryLevel, QueryModel, Received
from harmonyd.dimse.errors import IdentifierError
from harmonyd.dimse.query_file import identifier
from harmonyd.dimse.recode import EXPLICIT_VR_LE, IMPLICIT_VR_LE, MalformedDataset


def received(**keys: Any) -> Received:
    ds = Dataset()
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    return Received(wire.written(ds, EXPLICIT_VR_LE), EXPLICIT_VR_LE)


def query(model: QueryModel = QueryModel.STUDY_ROOT, **keys: Any) -> Any:
    one = received(**keys)
    return wire.query_of(json.loads(wire.json_of(one)), model, one)


def test_what_nobody_changed_goes_on_as_it_came() -> None:
    """Its bytes are the caller's; beside them there are level and unique keys of the model."""
    found = query(QueryRetrieveLevel="SERIES", StudyInstanceUID="1.2", PatientID="P1", PatientName="D*")
    assert (found.level, found.model) == (QueryLevel.SERIES, QueryModel.STUDY_ROOT)
    assert identifier(found) is found.received.data
    assert set(found.dataset.dir()) == {"QueryRetrieveLevel", "StudyInstanceUID"}
    assert identifier(found, implicit=True).startswith(b"\x08\x00\x52\x00\x06\0\0\0SERIES")
    keys = {"QueryRetrieveLevel": "STUDY", "PatientID": "P1", "StudyInstanceUID": ["1.2", "1.3"]}
    patient = query(QueryModel.PATIENT_ROOT, **keys)
    assert (patient.dataset.PatientID, list(patient.dataset.StudyInstanceUID)) == ("P1", ["1.2", "1.3"])


def test_a_worklist_has_no_level() -> None:
    """It is a query of its own model."""
    found = query(QueryModel.WORKLIST, PatientName="D*")
    assert found.model is QueryModel.WORKLIST
    assert not found.dataset


@pytest.mark.parametrize(
    ("keys", "model", "wrong"),
    [
        ({}, QueryModel.STUDY_ROOT, "no Query/Retrieve Level"),
        ({"QueryRetrieveLevel": "FRAME"}, QueryModel.PATIENT_ROOT, "none that there is"),
        ({"QueryRetrieveLevel": "PATIENT"}, QueryModel.STUDY_ROOT, "no PATIENT level"),
    ],
)
def test_levels_that_cannot_be(keys: Any, model: QueryModel, wrong: str) -> None:
    """Missing, unknown, or not one of the model's."""
    with pytest.raises(IdentifierError, match=wrong):
        query(model, **keys)


@pytest.mark.filterwarnings("ignore:Invalid value")
@pytest.mark.parametrize("value", ["", "*", "1.2.*", "1.?"])
def test_a_retrieve_needs_its_unique_key(value: str) -> None:
    """Else a node would send all that it has."""
    with pytest.raises(IdentifierError, match="StudyInstanceUID"):
        wire.require_key(query(QueryRetrieveLevel="STUDY", StudyInstanceUID=value, PatientName="D"))
    wire.require_key(query(QueryRetrieveLevel="STUDY", StudyInstanceUID="1.2"))


def test_what_middleware_made_is_encoded_anew() -> None:
    """With its level; what is no data set is refused."""
    document = {"00080052": {"vr": "CS", "Value": ["STUDY"]}, "00100020": {"vr": "LO", "Value": ["X1"]}}
    found = wire.changed_query(document, QueryModel.STUDY_ROOT)
    assert (found.received, found.dataset.PatientID) == (None, "X1")
    with pytest.raises(IdentifierError):
        wire.changed_query(["PatientID"], QueryModel.STUDY_ROOT)


@pytest.mark.parametrize(
    ("name", "wanted", "declared"),
    [
        ("Doe^Jane", (), None),
        ("Doe^Jane", ("ISO_IR 100",), None),
        ("Müller^Jörg", ("ISO_IR 100",), "ISO_IR 100"),
        ("Müller^Jörg", (), "ISO_IR 192"),
        ("Διονυσιος", ("ISO_IR 100",), "ISO_IR 192"),
        ("Διονυσιος", ("ISO_IR 126",), "ISO_IR 126"),
        ("山田^太郎", ("", "ISO 2022 IR 87"), "ISO_IR 192"),
        ("Müller", ("ISO_IR 4711",), "ISO_IR 192"),
    ],
)
def test_the_character_set_of_an_answer(name: str, wanted: tuple[str, ...], declared: str | None) -> None:
    """ASCII needs none; the caller's where it is enough; else UTF-8, and nothing is lost."""
    match = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": name}]}, "00080005": {"vr": "CS", "Value": ["GB18030"]}}
    data = wire.encoded(json.dumps(match).encode(), IMPLICIT_VR_LE, wanted)
    ds = read_dataset(BytesIO(data), True, True)
    assert (ds.get("SpecificCharacterSet"), str(ds.PatientName)) == (declared, name)


@pytest.mark.parametrize("text", [b"[]", b"{", b'{"00100010": 7}', b'{"00280010": {"vr": "US", "Value": ["x"]}}'])
def test_what_is_no_match_is_told(text: bytes) -> None:
    """Instead of whatever a library raises."""
    with pytest.raises(MalformedDataset):
        wire.encoded(text, EXPLICIT_VR_LE, ())
