"""Text beyond ASCII, in both directions: queries go out in UTF-8, answers come in whatever their PACS holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from misbehaving import STUDY_UID, Stage, lines_of, stage, values_of

from harmonyd.testing.data import CHARSETS, Charset, make_charset_studies
from harmonyd.testing.pacs import RunningPacs

CHARACTER_SET, NAME, DESCRIPTION = "00080005", "00100010", "00081030"
GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
BEYOND_ASCII = [name for name, charset in CHARSETS.items() if charset.defined_terms]


@pytest.fixture(scope="module")
def world_pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPacs]:
    """A dcmqrscp with a study in each character set."""
    studies = make_charset_studies(tmp_path_factory.mktemp("studies"))
    files = [path for study in studies for path in study.files]
    with RunningPacs(tmp_path_factory.mktemp("world_pacs"), files=files) as running:
        yield running


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, world_pacs: RunningPacs) -> Iterator[Stage]:
    """A peer that answers in each character set in turn, and the real PACS."""
    scripts: dict[str, tuple[str, dict[str, Any]]] = {"mixed": ("serve", {"charset": "mixed", "count": len(CHARSETS)})}
    backends = {"pacs": {"aet": world_pacs.aet, "host": "127.0.0.1", "port": world_pacs.port}}
    options = {"association_timeout_ms": 30_000}
    with stage(tmp_path_factory.mktemp("world"), scripts, backends, options) as running:
        yield running


def _name_of(charset: Charset) -> dict[str, str]:
    """The patient's name as the DICOM JSON model has it (PS3.18 section F.2.2)."""
    return dict(zip(GROUPS, charset.person_name.split("="), strict=False))


def _assert_texts(records: list[Any]) -> None:
    """One record for each character set, in their order, each with its own name and description."""
    assert values_of(records, NAME) == [_name_of(charset) for charset in CHARSETS.values()]
    assert values_of(records, DESCRIPTION) == [charset.description for charset in CHARSETS.values()]


# --- answers ----------------------------------------------------------------------------------------------------------


def test_each_answer_in_its_own_character_set(world: Stage) -> None:
    """Latin-1, Japanese, Chinese and UTF-8 in one result are all Unicode in the answer, whatever its form."""
    answer = world.ask("find", "mixed")
    _assert_texts(answer.json()["matches"])
    assert "山田^太郎".encode() in answer.body
    assert lines_of(world.ask("find", "mixed", Accept="application/x-ndjson").body) == answer.json()["matches"]
    assert json.loads(world.ask("find", "mixed", Accept="application/dicom+json").body) == answer.json()["matches"]


def test_the_character_set_of_the_source_is_kept(world: Stage) -> None:
    """Specific Character Set tells how the source was encoded, while JSON is UTF-8 (PS3.18 section F.2.2, note 3)."""
    matches = world.ask("find", "mixed").json()["matches"]
    told = ["\\".join(value or "" for value in record.get(CHARACTER_SET, {}).get("Value", [])) for record in matches]
    assert told == [charset.defined_terms for charset in CHARSETS.values()]


@pytest.mark.parametrize("operation", ["get", "move"])
def test_instances_in_their_own_character_set(world: Stage, operation: str) -> None:
    """What is told of retrieved instances is right as well."""
    members = world.ask(operation, "mixed").json()
    assert members["complete"] is True, members
    _assert_texts(sorted(members["instances"], key=lambda record: int(record["00200013"]["Value"][0])))


@pytest.mark.parametrize("name", CHARSETS)
def test_records_of_a_real_pacs(world: Stage, name: str) -> None:
    """dcmqrscp answers in the character set of its record where it cannot convert it; the text is right anyway."""
    members = world.ask("find", "pacs", {"PatientID": f"CS-{name}", "level": "STUDY"}).json()
    assert members["count"] == 1, members
    (record,) = members["matches"]
    assert record[NAME]["Value"] == [_name_of(CHARSETS[name])]
    assert record[DESCRIPTION]["Value"] == [CHARSETS[name].description]


# --- queries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHARSETS)
@pytest.mark.parametrize("escaped", [False, True])
def test_a_query_goes_out_in_utf8(world: Stage, name: str, escaped: bool) -> None:
    """The PACS receives the text that was asked for, and a Specific Character Set when ASCII is not enough for it."""
    charset = CHARSETS[name]
    document = {"PatientName": charset.person_name, "StudyDescription": f"{charset.description}*", "level": "STUDY"}
    body = json.dumps(document, ensure_ascii=escaped).encode()
    headers = {"Content-Type": "application/json"}
    answer = world.daemon.http("POST", "/dicom/find?backend=mixed", body=body, headers=headers)
    assert answer.status == 200, answer.body
    received = world.peers["mixed"].events("request")[-1]["identifier"]
    assert received[NAME]["Value"] == [_name_of(charset)]
    assert received[DESCRIPTION]["Value"] == [f"{charset.description}*"]
    expected = {"vr": "CS", "Value": ["ISO_IR 192"]} if charset.defined_terms else None
    assert received.get(CHARACTER_SET) == expected


def test_a_client_cannot_choose_another_character_set(world: Stage) -> None:
    """A Specific Character Set in the query is replaced by the one its text is written in."""
    document = {"PatientName": "Müller^*", "SpecificCharacterSet": "ISO_IR 100", "StudyInstanceUID": STUDY_UID}
    assert world.ask("find", "mixed", document).status == 200
    received = world.peers["mixed"].events("request")[-1]["identifier"]
    assert received[CHARACTER_SET]["Value"] == ["ISO_IR 192"]
    assert received[NAME]["Value"] == [{"Alphabetic": "Müller^*"}]


def test_a_real_pacs_finds_unicode(world: Stage) -> None:
    """A name in UTF-8 with a wildcard finds the record that is stored in UTF-8."""
    members = world.ask("find", "pacs", {"PatientName": "Διονυσ*", "level": "STUDY"}).json()
    assert values_of(members["matches"], "00100020") == ["CS-utf8"]
