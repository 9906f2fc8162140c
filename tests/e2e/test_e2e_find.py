"""Finds over HTTP: their results, while they arrive and all of them; their keys as they reach the PACS."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from http.client import HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any

import pytest
from misbehaving import STUDY_UID, Stage, lines_of, stage, values_of
from retrieve_kit import NATIVE

from harmonyd.testing.data import MadeStudy, make_study, uid_for
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import wait_until

JSON, ARRAY, LINES = "application/json", "application/dicom+json", "application/x-ndjson"
FORMS = (JSON, ARRAY, LINES)
MANY = 1200
PATIENT_ID, SOP_UID, INSTANCE_NUMBER = "00100020", "00080018", "00200013"
CREATOR, PRIVATE_TEXT, PRIVATE_ITEMS = "00090010", "00091001", "00091002"

EXPLICIT = {"little": "1.2.840.10008.1.2.1", "big": "1.2.840.10008.1.2.2"}
RECORD: dict[str, Any] = {
    "00080052": {"vr": "CS", "Value": ["STUDY"]},
    CREATOR: {"vr": "LO", "Value": ["HARMONYD TEST"]},
    PRIVATE_TEXT: {"vr": "LO", "Value": ["private text"]},
    PRIVATE_ITEMS: {
        "vr": "SQ",
        "Value": [{CREATOR: {"vr": "LO", "Value": ["HARMONYD TEST"]}, "00091003": {"vr": "DS", "Value": [1.5, -2]}}],
    },
    "00081111": {
        "vr": "SQ",
        "Value": [
            {"00081150": {"vr": "UI", "Value": ["1.2.3"]}, "00081155": {"vr": "UI", "Value": ["1.2.3.4"]}},
            {"00081150": {"vr": "UI", "Value": ["1.2.5"]}},
        ],
    },
    "00081032": {"vr": "SQ"},
    PATIENT_ID: {"vr": "LO", "Value": ["REC1"]},
    "0020000D": {"vr": "UI", "Value": [STUDY_UID]},
}


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that the peer ``gated`` waits for before its second answer."""
    return tmp_path_factory.mktemp("gate") / "open"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    """A study of 1,200 instances."""
    return make_study(tmp_path_factory.mktemp("many"), MANY, size=8)


@pytest.fixture(scope="module")
def big_pacs(tmp_path_factory: pytest.TempPathFactory, many: MadeStudy) -> Iterator[RunningPacs]:
    """A dcmqrscp that holds ``many``."""
    with RunningPacs(tmp_path_factory.mktemp("big_pacs"), files=many.files) as running:
        yield running


@pytest.fixture(scope="module")
def nodes(
    tmp_path_factory: pytest.TempPathFactory, pacs: RunningPacs, big_pacs: RunningPacs, gate: Path
) -> Iterator[Stage]:
    """Well-behaved peers, and two real PACS."""
    scripts: dict[str, tuple[str, dict[str, Any]]] = {
        "three": ("serve", {}),
        "none": ("serve", {"count": 0}),
        "gated": ("serve", {"count": 2, "after": 1, "then": "wait", "gate": str(gate)}),
        "records": ("serve", {"records": (RECORD,)}),
        **{name: ("serve", {"records": (RECORD,), "transfer_syntax": uid}) for name, uid in EXPLICIT.items()},
    }
    backends = {
        "pacs": {"aet": pacs.aet, "host": "localhost", "port": pacs.port},
        "thousand": {"aet": big_pacs.aet, "host": "127.0.0.1", "port": big_pacs.port},
        "two_of_three": {"peer": "three", "max_results": 2},
        "all_three": {"peer": "three", "max_results": 3},
    }
    options = {"association_timeout_ms": 30_000}
    with stage(tmp_path_factory.mktemp("find"), scripts, backends, options) as running:
        yield running


def _records(form: str, body: bytes) -> list[Any]:
    if form == LINES:
        return lines_of(body)
    members: Any = json.loads(body)
    return list(members) if form == ARRAY else list(members["matches"])


# --- how many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_no_result(nodes: Stage, form: str) -> None:
    """That nothing matches is a result."""
    answer = nodes.ask("find", "none", Accept=form)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == form
    assert answer.headers["X-Request-ID"].startswith("test-")
    assert _records(form, answer.body) == []
    if form == JSON:
        assert answer.json() == {"operation": "find", "success": True, "complete": True, "matches": [], "count": 0}


@pytest.mark.parametrize("form", FORMS)
def test_many_results(nodes: Stage, many: MadeStudy, form: str) -> None:
    """1,200 results of a real PACS are all there, each once, each right."""
    keys = {
        "StudyInstanceUID": many.study_uid,
        "SeriesInstanceUID": many.series_uids[0],
        "SOPInstanceUID": "",
        "InstanceNumber": "",
    }
    answer = nodes.ask("find", "thousand", {**keys, "return": "requested"}, Accept=form)
    records = _records(form, answer.body)
    numbers = dict(zip(values_of(records, SOP_UID), values_of(records, INSTANCE_NUMBER), strict=True))
    assert len(records) == MANY
    assert numbers == {uid: number for number, uid in enumerate(many.sop_uids, 1)}
    assert set(values_of(records, "0020000D")) == {many.study_uid}


def test_too_many_results(nodes: Stage) -> None:
    """Where max_results is reached, the answer says so, or is cut after as many results."""
    members = nodes.ask("find", "two_of_three").json()
    assert values_of(members["matches"], PATIENT_ID) == ["PEER0001", "PEER0002"]
    assert members["count"] == 2
    assert members["complete"] is False
    assert "max_results (2)" in members["incomplete_reason"]
    for form in (ARRAY, LINES):
        with pytest.raises(IncompleteRead) as cut:
            nodes.ask("find", "two_of_three", Accept=form)
        assert _records(form, cut.value.partial + (b"]" if form == ARRAY else b"")) == members["matches"]


def test_as_many_results_as_allowed(nodes: Stage) -> None:
    """Exactly max_results results are all of them."""
    members = nodes.ask("find", "all_three").json()
    assert (members["count"], members["complete"]) == (3, True)
    assert len(lines_of(nodes.ask("find", "all_three", Accept=LINES).body)) == 3


# --- while they arrive ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_result_is_sent_when_it_arrives(nodes: Stage, gate: Path, form: str) -> None:
    """The client has the first result while the PACS has not sent the second."""
    asked = len(nodes.peers["gated"].events("request"))
    with nodes.stream("find", "gated", Accept=form) as response:
        first = _read_until(response, b"PEER0001")
        assert len(nodes.peers["gated"].events("response")) == asked
        assert b"PEER0002" not in first
        gate.touch()
        try:
            rest = response.read()
        finally:
            gate.unlink()
    assert values_of(_records(form, first + rest), PATIENT_ID) == ["PEER0001", "PEER0002"]


def _read_until(response: HTTPResponse, wanted: bytes) -> bytes:
    """What is received up to ``wanted``; the connection's own timeout is the deadline."""
    data = b""
    while wanted not in data:
        piece = response.read1(65536)
        assert piece, f"the answer ended: {data!r}"
        data += piece
    return data


def test_a_client_that_leaves_ends_the_query(nodes: Stage, gate: Path) -> None:
    """When nobody waits for the answer any more, the association is ended and its program gone."""
    peer = nodes.peers["gated"]
    associations = len(peer.events("association"))
    with nodes.stream("find", "gated", Accept=LINES) as response:
        _read_until(response, b"PEER0001")
    peer.wait_for("closed", associations + 1)
    wait_until(lambda: "findscu" not in [child.name() for child in nodes.daemon.children()], "findscu is gone")
    assert not gate.exists()


# --- keys -------------------------------------------------------------------------------------------------------------

SPELLINGS: dict[str, Any] = {
    "snake case": {"patient_id": "77*", "query_level": "STUDY", "modalities_in_study": ""},
    "keywords": {"PatientID": "77*", "QueryRetrieveLevel": "STUDY", "ModalitiesInStudy": None},
    "DICOM JSON": {
        PATIENT_ID: {"vr": "LO", "Value": ["77*"]},
        "00080052": {"vr": "CS", "Value": ["STUDY"]},
        "00080061": {"vr": "CS"},
    },
    "wrapper": {
        "command": {"message_id": 7, "affected_sop_class_uid": "1.2.840.10008.5.1.4.1.2.2.1"},
        "identifier": {PATIENT_ID: {"vr": "LO", "Value": ["77*"]}, "00080061": {"vr": "CS", "Value": []}},
        "query_metadata": {PATIENT_ID: {"match_type": "WILDCARD"}, "level": "STUDY"},
    },
    "mixed": {"operation": "C-FIND", "level": "STUDY", "query": {"patient_id": "77*", "0008,0061": ""}},
}


def _received(nodes: Stage, backend: str, document: Any) -> dict[str, Any]:
    """The identifier that the peer ``backend`` receives when a client asks for ``document``."""
    answer = nodes.ask("find", backend, document)
    assert answer.status == 200, answer.body
    identifier: dict[str, Any] = nodes.peers[backend].events("request")[-1]["identifier"]
    return identifier


def test_four_spellings_reach_the_pacs_as_one(nodes: Stage) -> None:
    """However the keys are written, the PACS receives the same identifier."""
    received = {name: _received(nodes, "three", document) for name, document in SPELLINGS.items()}
    first = received["keywords"]
    assert first[PATIENT_ID] == {"vr": "LO", "Value": ["77*"]}
    assert first["00080052"] == {"vr": "CS", "Value": ["STUDY"]}
    assert all(identifier == first for identifier in received.values()), received


def test_four_spellings_get_the_same_answer(nodes: Stage) -> None:
    """A real PACS answers all of them with the same studies."""
    answers = [nodes.ask("find", "pacs", document).json() for document in SPELLINGS.values()]
    assert answers[0]["count"] > 0
    assert all(patient.startswith("77") for patient in values_of(answers[0]["matches"], PATIENT_ID))
    assert all(answer == answers[0] for answer in answers)


def test_the_operation_may_stand_in_the_body(nodes: Stage) -> None:
    """A POST to the prefix itself does what its body says, with the same answer."""
    document = {"operation": "C-FIND", "level": "STUDY", "query": {"PatientID": "77*"}}
    answer = nodes.daemon.http("POST", "/dicom?backend=pacs", json=document)
    assert answer.json() == nodes.ask("find", "pacs", document).json()


def test_only_what_was_asked_for(nodes: Stage) -> None:
    """With "return": "requested" the PACS gets the client's keys and the level, and nothing else."""
    document = {"StudyInstanceUID": [STUDY_UID, uid_for("another")], "PatientName": "", "return": "requested"}
    assert _received(nodes, "three", document) == {
        "00080052": {"vr": "CS", "Value": ["STUDY"]},
        "00100010": {"vr": "PN"},
        "0020000D": {"vr": "UI", "Value": [STUDY_UID, uid_for("another")]},
    }


@pytest.mark.parametrize("backend", EXPLICIT)
def test_private_elements_and_sequences_in_a_query(nodes: Stage, backend: str) -> None:
    """Private elements and nested sequences arrive as they were asked for."""
    wanted = {key: value for key, value in RECORD.items() if key != "00081032"}
    assert _received(nodes, backend, {**wanted, "return": "requested"}) == wanted


@pytest.mark.parametrize("backend", EXPLICIT)
def test_private_elements_and_sequences_in_an_answer(nodes: Stage, backend: str) -> None:
    """Private elements, nested sequences and empty ones are in the answer as the PACS sent them."""
    assert nodes.ask("find", backend).json()["matches"] == [RECORD]


def test_private_elements_without_vr(nodes: Stage) -> None:
    """In Implicit VR nobody knows the VR of a private element: its bytes are given, and everything else is the same.

    The native engine asks in Explicit VR where it is offered, though the PACS would rather have Implicit.
    """
    (match,) = nodes.ask("find", "records").json()["matches"]
    if NATIVE:
        assert match == RECORD
        return
    assert match[PRIVATE_TEXT] == {"vr": "UN", "InlineBinary": b64encode(b"private text").decode()}
    assert match[PRIVATE_ITEMS]["vr"] == "UN"
    private = (PRIVATE_TEXT, PRIVATE_ITEMS)
    assert {key: match[key] for key in match if key not in private} == {
        key: RECORD[key] for key in RECORD if key not in private
    }


def test_each_level_of_a_real_pacs(nodes: Stage) -> None:
    """A client can go from patient to study to series to image with what each answer gave it."""
    keys: dict[str, Any] = {"PatientID": "98890234"}
    for level, tag in (("PATIENT", PATIENT_ID), ("STUDY", "0020000D"), ("SERIES", "0020000E"), ("IMAGE", SOP_UID)):
        members = nodes.ask("find", "pacs", {**keys, "query_level": level, "query_model": "patient"}).json()
        assert members["complete"] is True, members
        assert members["count"] > 0
        keys[tag] = values_of(members["matches"], tag)[0]
    assert members["matches"][0][PATIENT_ID]["Value"] == ["98890234"]


@pytest.mark.dcmtk
def test_artifacts_of_a_find(nodes: Stage) -> None:
    """The responses lie in a folder of their own, one file each, beside a record that the request's id leads to."""
    assert nodes.ask("find", "three", **{"X-Request-ID": "test-artifacts"}).json()["count"] == 3
    path, record = nodes.record("test-artifacts")
    assert record["complete"] is True
    names = [response.name for response in path.with_suffix("").iterdir()]
    assert sorted(names) == ["rsp0001.dcm", "rsp0002.dcm", "rsp0003.dcm"]
