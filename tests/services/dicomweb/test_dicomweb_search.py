"""Searches: parameters to keys, levels to questions, and the warnings that say what is missing."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from dicomweb_fakes import FakePipeline, element
from twisted.internet.defer import CancelledError, Deferred

from harmonyd.dimse.errors import DimseFailure, IdentifierError
from harmonyd.errors import BadRequest, DeadlinePassed
from harmonyd.services.dicomweb.completing import MAX_QUESTIONS, Completer
from harmonyd.services.dicomweb.counted import KEPT_SECS, Counted
from harmonyd.services.dicomweb.parallel import each_of
from harmonyd.services.dicomweb.search import TOO_MANY, Page, search
from harmonyd.services.dicomweb.search_query import parse_search

STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"


def hospital(level: str, keys: dict[str, Any]) -> list[dict[str, Any]]:
    """Two studies of two series of two instances each; none is answered without the UIDs above it."""
    if level == "STUDY":
        return [{STUDY: element("UI", f"1.{n}"), "00080052": element("CS", level)} for n in (1, 2)]
    study = keys[STUDY]
    if level == "SERIES":
        return [{STUDY: element("UI", study), SERIES: element("UI", f"{study}.{n}")} for n in (1, 2)]
    series = keys[SERIES]
    return [{INSTANCE: element("UI", f"{series}.{n}")} for n in (1, 2)]


def query(level: str, **parameters: str | list[str]):
    lists = {name.replace("__", "."): [v] if isinstance(v, str) else v for name, v in parameters.items()}
    return parse_search(lists, level)


def levels(pipeline: FakePipeline) -> list[str]:
    return [level for level, _ in pipeline.asked]


# --- parameters


def test_keys_go_to_their_level() -> None:
    """A key of the patient or study is matched at the STUDY level, one of the series at SERIES, others where asked."""
    found = query("IMAGE", PatientID="1", Modality="CT", InstanceNumber="3", Rows="512")
    assert found.keys["STUDY"] == {"00100020": "1"}
    assert found.keys["SERIES"] == {"00080060": "CT"}
    assert found.keys["IMAGE"] == {"00200013": "3", "00280010": 512}
    assert query("STUDY", Modality="CT").keys["STUDY"] == {"00080060": "CT"}


def test_values() -> None:
    """Tags, empty values, UID lists in either spelling, and items of sequences."""
    assert query("STUDY", **{"00100010": "Doe*"}).keys["STUDY"] == {"00100010": "Doe*"}
    assert query("STUDY", PatientID="").keys["STUDY"] == {"00100020": None}
    for uids in ("1.2,1.3", "1.2\\1.3", ["1.2", "1.3"]):
        assert query("STUDY", StudyInstanceUID=uids).keys["STUDY"] == {STUDY: ["1.2", "1.3"]}
    items = query("SERIES", RequestAttributesSequence__ScheduledProcedureStepID="7").keys["SERIES"]
    assert items == {"00400275": [{"00400009": "7"}]}
    two = parse_search({"00400275.00400009": ["7"], "00400275.00401001": ["8"]}, "SERIES").keys["SERIES"]
    assert two == {"00400275": [{"00400009": "7", "00401001": "8"}]}


def test_includefield() -> None:
    """Repeated, as a list, "all"; it does not take away what is matched."""
    found = query("STUDY", includefield=["StudyDescription,00100020", "all"], PatientID="1")
    assert found.keys["STUDY"] == {"00100020": "1", "00081030": None}
    assert found.include_all


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"Patient": "1"}, IdentifierError),
        ({"PatientID": ["1", "2"]}, IdentifierError),
        ({"PatientID__Modality": "1"}, IdentifierError),
        ({"includefield": "Nothing"}, IdentifierError),
        ({"limit": "-1"}, BadRequest),
        ({"limit": ["1", "2"]}, BadRequest),
        ({"offset": "x"}, BadRequest),
        ({"fuzzymatching": "perhaps"}, BadRequest),
        ({"__".join(["RequestAttributesSequence"] * 9): "1"}, IdentifierError),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], error: type[Exception]) -> None:
    """They are refused before anything is asked."""
    with pytest.raises(error):
        query("STUDY", **parameters)


# --- questions


@pytest_twisted.ensureDeferred
async def test_one_question_below_what_the_path_names() -> None:
    """With the UIDs above it in the path a level is asked directly."""
    pipeline = FakePipeline(hospital)
    page = await search(pipeline.asker(), query("IMAGE"), {"StudyInstanceUID": "1.1", "SeriesInstanceUID": "1.1.2"}, 99)
    assert levels(pipeline) == ["IMAGE"]
    assert [each[INSTANCE]["Value"] for each in page.records] == [["1.1.2.1"], ["1.1.2.2"]]
    assert page.records[0][SERIES]["Value"] == ["1.1.2"]
    assert page.warnings == []


@pytest_twisted.ensureDeferred
async def test_level_by_level() -> None:
    """Without a study in the path each study and each series is asked; QueryRetrieveLevel is not in the results."""
    pipeline = FakePipeline(hospital)
    page = await search(pipeline.asker(), query("IMAGE", PatientID="7"), {}, 99)
    assert levels(pipeline) == ["STUDY", "SERIES", "IMAGE", "IMAGE", "SERIES", "IMAGE", "IMAGE"]
    assert pipeline.asked[0][1]["00100020"] == "7"
    assert len(page.records) == 8
    assert all("00080052" not in each for each in page.records)
    assert all(results.closed for results in pipeline.results)


@pytest_twisted.ensureDeferred
async def test_a_key_of_the_study_below_a_study() -> None:
    """It is matched at its own level first: another patient's study has no results."""
    pipeline = FakePipeline(lambda level, _: [] if level == "STUDY" else [{}])
    page = await search(pipeline.asker(), query("SERIES", PatientID="7"), {"StudyInstanceUID": "1.1"}, 99)
    assert levels(pipeline) == ["STUDY"]
    assert pipeline.asked[0][1][STUDY] == "1.1"
    assert page.records == []


@pytest_twisted.ensureDeferred
async def test_limit_ends_the_questions() -> None:
    """As soon as there is one more than wanted nothing more is asked, and the client is told."""
    pipeline = FakePipeline(hospital)
    page = await search(pipeline.asker(), query("IMAGE", limit="1", offset="1"), {}, 99)
    assert [each[INSTANCE]["Value"] for each in page.records] == [["1.1.1.2"]]
    assert page.warnings == [TOO_MANY]
    assert levels(pipeline) == ["STUDY", "SERIES", "IMAGE", "IMAGE"]
    assert all(results.closed for results in pipeline.results)


def test_a_page_waits_until_its_questions_are_closed() -> None:
    """Closing one takes a while, as the association has to be ended: the search is over when it is done."""
    pipeline = FakePipeline(hospital)
    closing: Deferred[None] = Deferred()
    pipeline.before_closing["IMAGE"] = closing
    page = Deferred.fromCoroutine(search(pipeline.asker(), query("IMAGE", limit="1"), {}, 99))
    assert not page.called
    assert not pipeline.results[-1].closed
    closing.callback(None)
    assert page.called
    assert [results.closed for results in pipeline.results] == [1] * len(pipeline.results)


@pytest_twisted.ensureDeferred
async def test_an_incomplete_answer_warns() -> None:
    """When the backend cut one of the answers, the results are not all."""
    pipeline = FakePipeline(hospital, cut=("STUDY",))
    page = await search(pipeline.asker(), query("SERIES"), {}, 99)
    assert [warning.removeprefix(TOO_MANY) for warning in page.warnings] == [" (more than max_results)"]


@pytest_twisted.ensureDeferred
async def test_the_deadline() -> None:
    """It ends a search that has found something, with a warning, and fails one that has not; other errors always."""

    def late(level: str, keys: dict[str, Any]) -> list[Any]:
        if level == "SERIES" and keys[STUDY] == "1.2":
            raise error
        return hospital(level, keys)

    error: Exception = DeadlinePassed("too late")
    pipeline = FakePipeline(late)
    page = await search(pipeline.asker(), query("SERIES"), {}, 99)
    assert len(page.records) == 2
    assert "too long" in page.warnings[0]
    assert pipeline.envelopes[0].deadline == 160.0
    with pytest.raises(DeadlinePassed):
        await search(FakePipeline(late).asker(), query("SERIES"), {"StudyInstanceUID": "1.2"}, 99)
    error = DimseFailure("no")
    with pytest.raises(DimseFailure):
        await search(FakePipeline(late).asker(), query("SERIES"), {}, 99)


@pytest_twisted.ensureDeferred
async def test_what_goes_to_the_pipeline() -> None:
    """Middleware sees the client's path and fields, without those that are about the body."""
    pipeline = FakePipeline(hospital)
    asker = pipeline.asker(authorization="Bearer x", accept="text/html", content_length="7", if_none_match="y")
    await search(asker, query("STUDY"), {}, 99)
    (envelope,) = pipeline.envelopes
    assert envelope.metadata == {"path": "/studies", "dimse_op": "find"}
    assert envelope.headers == {
        "authorization": "Bearer x",
        "accept": "application/json",
        "content-type": "application/json",
    }


# --- completing


def counted(level: str, keys: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {**each, "00080060": element("CS", f"M{number}")} if level == "SERIES" else each
        for number, each in enumerate(
            hospital(level, {STUDY: keys.get("StudyInstanceUID"), SERIES: keys.get("SeriesInstanceUID")})
        )
    ]


@pytest_twisted.ensureDeferred
async def test_counts_and_modalities() -> None:
    """They are counted below the study; what the PACS told stays as it is."""
    page = Page([{STUDY: element("UI", "1.1")}, {STUDY: element("UI", "1.2"), "00201208": element("IS", 77)}])
    await Completer(FakePipeline(counted).asker(), Counted(lambda: 0.0)).complete(page, "STUDY")
    first, second = page.records
    assert first["00080061"] == element("CS", "M0", "M1")
    assert (first["00201206"], first["00201208"]) == (element("IS", 2), element("IS", 4))
    assert (second["00201206"], second["00201208"]) == (element("IS", 2), element("IS", 77))
    assert page.warnings == []


@pytest_twisted.ensureDeferred
async def test_what_was_just_counted_is_not_counted_again() -> None:
    """For requests that differ in nothing that could lead elsewhere, and for a moment."""
    now = [0.0]
    kept = Counted(lambda: now[0])

    async def questions(**headers: str) -> int:
        pipeline = FakePipeline(counted)
        page = Page([{STUDY: element("UI", "1.1")}])
        await Completer(pipeline.asker(**headers), kept).complete(page, "STUDY")
        assert page.records[0]["00201208"] == element("IS", 4)
        return len(pipeline.asked)

    asked = await questions(authorization="a", accept="x")
    assert asked > 1
    assert await questions(authorization="a", accept="y") == 0
    assert await questions(authorization="b") == asked
    now[0] += KEPT_SECS
    assert await questions(authorization="a") == asked


@pytest_twisted.ensureDeferred
async def test_there_is_an_end_to_counting() -> None:
    """Beyond so many questions the rest stays out, with a warning."""
    page = Page([{STUDY: element("UI", f"1.{n}")} for n in range(MAX_QUESTIONS)])
    pipeline = FakePipeline(counted)
    await Completer(pipeline.asker(), Counted(lambda: 0.0)).complete(page, "STUDY")
    assert len(pipeline.asked) == MAX_QUESTIONS
    assert len(page.warnings) == 1
    assert "00201208" not in page.records[-1]


@pytest_twisted.ensureDeferred
async def test_a_cut_answer_is_not_counted() -> None:
    """A number that is too small would be a lie."""
    page = Page([{STUDY: element("UI", "1.1"), SERIES: element("UI", "1.1.1")}])
    await Completer(FakePipeline(counted, cut=("IMAGE",)).asker(), Counted(lambda: 0.0)).complete(page, "SERIES")
    assert "00201209" not in page.records[0]
    assert len(page.warnings) == 1


@pytest_twisted.ensureDeferred
async def test_a_few_at_a_time() -> None:
    """Not more than ``at_once`` run; an error ends those that run, and is raised."""
    waiting: list[Deferred[None]] = []
    cancelled: list[int] = []

    async def work(number: int) -> None:
        waiting.append(Deferred())
        try:
            await waiting[-1]
        except CancelledError:
            cancelled.append(number)
            raise

    done = Deferred.fromCoroutine(each_of(range(9), work, 3))
    assert len(waiting) == 3
    waiting[0].callback(None)
    assert len(waiting) == 4
    waiting[1].errback(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await done
    assert sorted(cancelled) == [2, 3]
