"""A limited subject in front of a PACS that ignores keys, forgets elements, or sends what was not asked for."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from harmonyd.dimse.engine import Instance, Match, Query
from harmonyd.dimse.identifier import parse_query
from harmonyd.errors import Forbidden, NotFound
from harmonyd.permit import Element
from harmonyd.services.dicom.holding import KNOWN_SECS, MAX_KNOWN, HeldResults, Hold, Seen
from harmonyd.services.dicom.results import InstanceRecord

ONLY = (((Element("00100020", "PatientID", ("N*",)),),),)
STUDIES = {"1.1": "N1", "1.2": "S1", "1.3": ""}


def entry(study: str, patient: str) -> dict[str, Any]:
    return {"0020000D": {"vr": "UI", "Value": [study]}, "00100020": {"vr": "LO", "Value": [patient]}}


class Pacs:
    """Answers a question for a study; with ``ignores_keys`` it answers with all that it has."""

    def __init__(self, *, ignores_keys: bool = False) -> None:
        self.asked: list[Query] = []
        self._ignores_keys = ignores_keys

    async def find(self, query: Query) -> Sequence[Mapping[str, Any]]:
        self.asked.append(query)
        wanted = str(query.dataset[0x0020000D].value)
        return [entry(s, p) for s, p in STUDIES.items() if self._ignores_keys or s == wanted]


def hold(pacs: Pacs, seen: Seen | None = None) -> Hold:
    return Hold(ONLY, seen or Seen(lambda: 0.0), pacs.find)


def query(operation: str = "get", **document: Any) -> Query:
    return parse_query({"query_model": "study", **document}, operation=operation)


@pytest.mark.parametrize("ignores_keys", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_retrieve_is_preceded_by_a_look(ignores_keys: bool) -> None:
    """Only what belongs to the limit passes, also where the PACS answers with more than it was asked for."""
    pacs = Pacs(ignores_keys=ignores_keys)
    assert await hold(pacs).studies(query(StudyInstanceUID="1.1", level="STUDY")) == {"1.1"}
    for other in ("1.2", "1.3", "1.4"):
        with pytest.raises(NotFound):
            await hold(pacs).studies(query(StudyInstanceUID=other, level="STUDY"))
    with pytest.raises(NotFound):
        await hold(pacs).studies(query(StudyInstanceUID=["1.1", "1.2"], level="STUDY"))


@pytest_twisted.ensureDeferred
async def test_a_look_is_remembered_for_a_while() -> None:
    """For the same limits and study, not for others, and not for long; the memory for it is bounded."""
    now = 0.0
    pacs, seen = Pacs(), Seen(lambda: now)
    for _ in range(3):
        await hold(pacs, seen).studies(query(StudyInstanceUID="1.1", level="STUDY"))
    assert len(pacs.asked) == 1
    assert not seen.has((((Element("00100020", "PatientID", ("S*",)),),),), "1.1")
    seen.forget({"1.1"})
    assert not seen.has(ONLY, "1.1")
    seen.note(ONLY, "1.1")
    now = KNOWN_SECS
    assert not seen.has(ONLY, "1.1")
    now = 0.0
    for number in range(MAX_KNOWN):
        seen.note(ONLY, f"2.{number}")
    assert not seen.has(ONLY, "1.1")
    assert seen.has(ONLY, "2.0")


@pytest_twisted.ensureDeferred
async def test_a_patient_is_not_retrieved_as_a_whole() -> None:
    """Nobody knows which studies that would be."""
    with pytest.raises(Forbidden):
        await hold(Pacs()).studies(query(PatientID="N1", level="PATIENT", query_model="patient"))


@pytest_twisted.ensureDeferred
async def test_a_query_gets_the_limit_as_a_key_and_answers_are_looked_at() -> None:
    """The client's own key stays, and whatever comes back has to be within the limit all the same."""

    def build(more: Mapping[str, str], **own: Any) -> Query:
        return parse_query({"level": "STUDY", **own}, operation="find", forced=more)

    asked, shows = await hold(Pacs()).query(build)
    assert asked.dataset.PatientID == "N*"
    assert shows(Match(json.dumps(entry("1.1", "N1")).encode()))
    for other in (entry("1.2", "S1"), entry("1.3", ""), {"0020000D": {"vr": "UI", "Value": ["1.1"]}}):
        assert not shows(Match(json.dumps(other).encode()))
    asked, _ = await hold(Pacs()).query(lambda more: build(more, PatientID="N1"))
    assert asked.dataset.PatientID == "N1"


@pytest.mark.parametrize("level", ["PATIENT", "STUDY"])
@pytest_twisted.ensureDeferred
async def test_a_match_opens_no_study(level: str) -> None:
    """A PACS that repeats the keys of a query makes any study look like a match; a retrieve asks for its attributes."""

    def build(more: Mapping[str, str]) -> Query:
        asked = {"level": level, "query_model": "patient", "PatientID": "N1", "StudyInstanceUID": "1.2"}
        return parse_query(asked, operation="find", forced=more)

    pacs, seen = Pacs(), Seen(lambda: 0.0)
    _, shows = await hold(pacs, seen).query(build)
    shows(Match(json.dumps(entry("1.2", "N1")).encode()))
    with pytest.raises(NotFound):
        await hold(pacs, seen).studies(query(StudyInstanceUID="1.2", level="STUDY"))
    assert pacs.asked[0].dataset.PatientID in ("", None), "there is nothing to repeat"


@pytest_twisted.ensureDeferred
async def test_below_a_study_only_what_belongs_to_it_is_shown() -> None:
    """A PACS that finds series of other studies, or does not say of which they are, gives nothing away."""
    many = [f"1.{number}" for number in range(101)]
    series = query("find", level="SERIES", StudyInstanceUID=["1.1", "1.2"])
    _, shows = await hold(Pacs()).query(lambda _: series)
    assert shows(Match(json.dumps(entry("1.1", "N1")).encode()))
    assert not shows(Match(json.dumps(entry("1.2", "N1")).encode()))
    assert not shows(Match(b"{}"))
    with pytest.raises(Forbidden):
        await hold(Pacs()).query(lambda _: query("find", level="SERIES", Modality="CT"))
    with pytest.raises(Forbidden):
        await hold(Pacs()).query(lambda _: query("find", level="IMAGE", StudyInstanceUID=many))


@pytest.mark.parametrize(
    ("study", "patient", "passes"),
    [("1.1", "N1", True), ("1.9", "N2", True), ("1.2", "N1", False), ("1.1", "S1", False), ("", "N1", False)],
)
@pytest_twisted.ensureDeferred
async def test_what_is_stored_belongs_to_the_limit_and_to_no_study_of_others(
    study: str, patient: str, passes: bool
) -> None:
    """An object of one's own must not join the study of another patient: that would then be within the limit."""
    if passes:
        await hold(Pacs()).admit([entry(study, patient)])
        return
    with pytest.raises(Forbidden):
        await hold(Pacs()).admit([entry("1.1", "N1"), entry(study, patient)])


class Sent:
    """Results of a retrieve."""

    operation, media_type, items_key = "get", "application/json", "instances"

    def __init__(self, *studies: str) -> None:
        self._studies = studies
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[InstanceRecord]:
        for number, study in enumerate(self._studies):
            yield InstanceRecord(Instance(Path("x"), "1", f"9.{number}", "1", 1, study, "1"), None)  # type: ignore[arg-type]

    def summary(self) -> Mapping[str, Any]:
        return {"success": True, "complete": True}

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize("other", ["1.2", ""])
@pytest_twisted.ensureDeferred
async def test_an_object_of_another_study_ends_the_answer(other: str) -> None:
    """What a PACS sends, or a cache has, against the keys is not passed on."""
    sent = Sent("1.1", other, "1.1")
    held = HeldResults(sent, frozenset({"1.1"}))
    came = []
    with pytest.raises(Forbidden):
        async for record in held:
            came.append(record.name)
    assert came == ["9.0"]
    await held.aclose()
    assert sent.closed
