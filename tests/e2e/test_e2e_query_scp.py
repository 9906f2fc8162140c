"""C-FIND as an SCP: workstations ask a PACS through the daemon, and get what they would get without it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from query_kit import (
    OSIRIX_KEYS,
    STUDY_KEYS,
    STUDY_ROOT_FIND,
    WEASIS_KEYS,
    WORKLIST_FIND,
    Node,
    as_set,
    associate,
    dataset,
    find,
    findscu,
    raw_elements,
    several,
)
from retrieve_kit import together

from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import CHARSETS, demo_files, make_charset_studies, make_study, report_files
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port

_FOLDERS = count()
WEASIS_SERIES_KEYS = (
    *("QueryRetrieveLevel=SERIES", f"StudyInstanceUID={dcmread(demo_files()[0]).StudyInstanceUID}", "Modality"),
    *("SeriesNumber", "SeriesDescription", "SeriesInstanceUID"),
)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPacs]:
    """One with every test data set, those of each character set among them."""
    folder = tmp_path_factory.mktemp("pacs")
    studies = make_charset_studies(folder / "charsets")
    files = [*demo_files(), *report_files(), *(file for study in studies for file in study.files)]
    with RunningPacs(folder / "qrscp", files=files) as running:
        yield running


@pytest.fixture(scope="module")
def other_pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPacs]:
    """One with a study that the first has, too, and one that it has not."""
    folder = tmp_path_factory.mktemp("other")
    own = make_study(folder / "own", 1, patient_id="ONLY-HERE")
    shared = make_study(folder / "shared", 1, patient_id="CS-ascii", charset="ascii", size=16)
    with RunningPacs(folder / "qrscp", files=[*own.files, *shared.files]) as running:
        yield running


@pytest.fixture(scope="module")
def slow() -> Iterator[ScriptedPeer]:
    """Has more answers than anybody waits for."""
    with ScriptedPeer(count=10_000, interval_secs=0.05) as peer:
        yield peer


@pytest.fixture(scope="module")
def failing() -> Iterator[ScriptedPeer]:
    """Has one answer, and then no more resources."""
    with ScriptedPeer(count=1, status=0xA700, comment="come back at night") as peer:
        yield peer


@pytest.fixture(scope="module")
def worklist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedPeer]:
    """Answers whatever it is asked, worklists among it."""
    step = {"vr": "SQ", "Value": [{"00400001": {"vr": "AE", "Value": ["CT1"]}}]}
    record = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]}, "00400100": step}
    with ScriptedPeer(records=(record,)) as peer:
        yield peer


@pytest.fixture(scope="module")
def daemon(
    pacs: RunningPacs,
    other_pacs: RunningPacs,
    slow: ScriptedPeer,
    failing: ScriptedPeer,
    worklist: ScriptedPeer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RunningDaemon, dict[str, Node]]]:
    """One with an endpoint for each way to ask."""

    def backend(peer: Any, engine: str = "native", **options: Any) -> dict[str, Any]:
        return {"aet": peer.aet, "host": "127.0.0.1", "port": peer.port, "engine": engine, **options}

    nobody = {"aet": "NOBODY", "host": "127.0.0.1", "port": free_port(), "engine": "native"}
    given = {
        "native": ({"pacs": backend(pacs, max_associations=60)}, {}),
        "dcmtk": ({"pacs2": backend(pacs, "dcmtk", incoming_store_port=free_port())}, {}),
        "both": ({"one": backend(pacs), "two": backend(other_pacs)}, {"fan_out": True}),
        "half": ({"here": backend(pacs), "away": nobody}, {"fan_out": True}),
        "slow": ({"slow": backend(slow)}, {}),
        "failing": ({"failing": backend(failing)}, {}),
        "nobody": ({"nobody": nobody}, {}),
        "hanging": ({"hanging": backend(slow, operation_timeout_ms=300)}, {}),
        "capped": ({"capped": backend(pacs, max_results=3)}, {}),
        "worklist": ({"worklist": backend(worklist)}, {}),
        "changing": ({"pacs3": backend(pacs)}, {"middleware": ["own", "renamed"]}),
    }
    middleware = {
        "own": {"type": "metadata", "identifier": {"PatientID": "CS-latin1"}},
        "renamed": {
            "type": "transform",
            "apply": "right",
            "per_record": True,
            "spec": [
                {"operation": "shift", "spec": {"*": "&"}},
                {"operation": "default", "spec": {"00080080": {"vr": "LO", "Value": ["Krankenhaus Süd"]}}},
            ],
        },
    }
    running, nodes = several(tmp_path_factory.mktemp("daemon"), given, middleware)
    with running:
        yield running, nodes


@pytest.fixture(scope="module")
def nodes(daemon: tuple[RunningDaemon, dict[str, Node]]) -> dict[str, Node]:
    return daemon[1]


@pytest.fixture(scope="module")
def direct(pacs: RunningPacs) -> Node:
    """The PACS itself."""
    return Node(pacs.aet, pacs.port)


def straight_and_through(
    direct: Node, through: Node, folder: Path, *keys: str, model: str = "-S", options: tuple[str, ...] = ()
) -> tuple[list[Dataset], list[Dataset]]:
    """What findscu gets from the PACS, and through the daemon."""
    straight = findscu(direct, folder / f"direct{next(_FOLDERS)}", *keys, model=model, options=options)
    return straight, findscu(through, folder / f"through{next(_FOLDERS)}", *keys, model=model, options=options)


def final(found: list[tuple[Dataset, Dataset | None]]) -> tuple[int, str]:
    """Status and comment of the last response."""
    status = found[-1][0]
    return status.Status, status.get("ErrorComment", "")


@pytest.mark.parametrize("engine", ["native", "dcmtk"])
def test_all_studies_are_the_same_tag_by_tag(
    direct: Node, nodes: dict[str, Node], engine: str, tmp_path: Path
) -> None:
    """Every study, in every character set, as it comes from the PACS itself, byte for byte."""
    straight, proxied = straight_and_through(direct, nodes[engine], tmp_path, *STUDY_KEYS)
    assert len(straight) > 7 + len(CHARSETS)
    assert as_set(proxied) == as_set(straight)


@pytest.mark.parametrize(
    ("keys", "model", "options"),
    [
        (("QueryRetrieveLevel=PATIENT", "PatientID", "PatientName"), "-P", ()),
        (("QueryRetrieveLevel=SERIES", "PatientID=77654033", "StudyInstanceUID", "SeriesInstanceUID"), "-P", ()),
        (("QueryRetrieveLevel=IMAGE", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"), "-S", ()),
        (OSIRIX_KEYS, "-S", ()),
        (WEASIS_KEYS, "-S", ()),
        (WEASIS_SERIES_KEYS, "-S", ()),
        (WEASIS_KEYS, "-S", ("-xi",)),
    ],
    ids=["patients", "series", "images", "osirix", "weasis", "weasis-series", "implicit"],
)
def test_what_workstations_ask(
    direct: Node, nodes: dict[str, Node], keys: Any, model: str, options: Any, tmp_path: Path
) -> None:
    """At every level of both roots, in either transfer syntax: the PACS's own answers."""
    straight, proxied = straight_and_through(direct, nodes["native"], tmp_path, *keys, model=model, options=options)
    assert straight
    assert as_set(proxied) == as_set(straight)


@pytest.mark.parametrize("name", CHARSETS)
def test_names_in_any_character_set(direct: Node, nodes: dict[str, Node], name: str) -> None:
    """A question in a character set reaches the PACS in that one: what matches there, matches through us."""
    charset = CHARSETS[name]
    question = dataset(QueryRetrieveLevel="STUDY", PatientName="", PatientID="", StudyInstanceUID="")
    if charset.defined_terms:
        question.SpecificCharacterSet = charset.defined_terms.split("\\")
    question.PatientName = charset.person_name.split("=")[0] + "*"
    answers = []
    for node in (direct, nodes["native"]):
        assoc = associate(node, STUDY_ROOT_FIND)
        answers.append([raw_elements(ds) for _, ds in find(assoc, question) if ds is not None])
        assoc.release()
    assert answers[0] == answers[1]
    assert answers[0]


def test_several_pacs_are_one(nodes: dict[str, Node], tmp_path: Path) -> None:
    """A study that both have comes once, and each match says where it is."""
    found = findscu(nodes["both"], tmp_path / "found", *STUDY_KEYS)
    ids = [ds.PatientID for ds in found]
    assert (ids.count("CS-ascii"), ids.count("ONLY-HERE")) == (1, 1)
    assert all(ds.RetrieveAETitle for ds in found)


def test_one_of_several_is_away(nodes: dict[str, Node]) -> None:
    """What the others have comes, and the final status is no success: it is not all."""
    assoc = associate(nodes["half"], STUDY_ROOT_FIND)
    found = find(assoc, dataset(QueryRetrieveLevel="STUDY", StudyInstanceUID="", PatientID=""))
    assoc.release()
    assert len(found) > 7
    status, comment = final(found)
    assert (status, comment.startswith("away failed: Cannot connect")) == (0xA700, True)


def test_a_worklist(nodes: dict[str, Node], worklist: ScriptedPeer) -> None:
    """Is asked for as one."""
    assoc = associate(nodes["worklist"], WORKLIST_FIND)
    step = dataset(ScheduledStationAETitle="CT1", Modality="CT")
    found = find(assoc, dataset(PatientName="*", ScheduledProcedureStepSequence=[step]), WORKLIST_FIND)
    assoc.release()
    (_, match), (last, _) = found
    assert match is not None
    assert match.ScheduledProcedureStepSequence[0].ScheduledStationAETitle == "CT1"
    assert last.Status == 0


def test_middleware_changes_questions_and_matches(nodes: dict[str, Node]) -> None:
    """A key that is forced, and records that are transformed; the text is in the caller's character set."""
    assoc = associate(nodes["changing"], STUDY_ROOT_FIND)
    question = dataset(SpecificCharacterSet="ISO_IR 100", QueryRetrieveLevel="STUDY", PatientName="", PatientID="")
    (_, match), (last, _) = find(assoc, question)
    assoc.release()
    assert match is not None
    assert (match.PatientID, match.InstitutionName, last.Status) == ("CS-latin1", "Krankenhaus Süd", 0)
    assert (match.SpecificCharacterSet, str(match.PatientName)) == ("ISO_IR 100", CHARSETS["latin1"].person_name)


@pytest.mark.parametrize(
    ("name", "status", "comment"),
    [
        ("failing", 0xA700, "come back at night"),
        ("nobody", 0xC001, "Cannot connect to NOBODY@127.0.0.1"),
        ("hanging", 0xC001, ""),
        ("capped", 0xA700, "more than max_results (3) matches"),
    ],
)
def test_what_can_go_wrong(nodes: dict[str, Node], name: str, status: int, comment: str) -> None:
    """Reaches the caller as a status, with the PACS's comment or ours."""
    assoc = associate(nodes[name], STUDY_ROOT_FIND)
    found = find(assoc, dataset(QueryRetrieveLevel="STUDY", StudyInstanceUID=""))
    assert assoc.is_established
    assoc.release()
    assert final(found)[0] == status
    assert final(found)[1].startswith(comment)


def test_a_question_that_does_not_fit(nodes: dict[str, Node]) -> None:
    """Without a level there is nothing to ask."""
    assoc = associate(nodes["native"], STUDY_ROOT_FIND)
    assert final(find(assoc, dataset(PatientID="X"))) == (0xA900, "no Query/Retrieve Level")
    assoc.release()


def test_a_cancel_reaches_the_pacs(nodes: dict[str, Node], slow: ScriptedPeer) -> None:
    """The caller gets Cancel, and the PACS stops working for it."""
    before = len(slow.events("cancel"))
    assoc = associate(nodes["slow"], STUDY_ROOT_FIND)
    statuses = []
    for status, _ in assoc.send_c_find(
        dataset(QueryRetrieveLevel="STUDY", StudyInstanceUID=""), STUDY_ROOT_FIND, msg_id=7
    ):
        statuses.append(status.Status)
        if len(statuses) == 2:
            assoc.send_c_cancel(7, query_model=STUDY_ROOT_FIND)
    assoc.release()
    assert (statuses[:2], statuses[-1]) == ([0xFF00, 0xFF00], 0xFE00)
    slow.wait_for("cancel", before + 1)


def test_a_caller_that_leaves_is_cancelled(nodes: dict[str, Node], slow: ScriptedPeer) -> None:
    """The PACS stops working for nobody."""
    before = len(slow.events("cancel"))
    assoc = associate(nodes["slow"], STUDY_ROOT_FIND)
    next(iter(assoc.send_c_find(dataset(QueryRetrieveLevel="STUDY", StudyInstanceUID=""), STUDY_ROOT_FIND)))
    assoc.abort()
    slow.wait_for("cancel", before + 1)


def test_many_callers_at_once(nodes: dict[str, Node]) -> None:
    """Fifty associations, each with a question of its own; one more is rejected."""
    assocs = [associate(nodes["native"], STUDY_ROOT_FIND) for _ in range(50)]
    question = dataset(QueryRetrieveLevel="STUDY", StudyInstanceUID="", PatientID="CS-*")

    def ask(number: int) -> int:
        return sum(ds is not None for _, ds in find(assocs[number], question))

    with pytest.raises(AssertionError):
        associate(nodes["native"], STUDY_ROOT_FIND)
    assert together(50, ask) == [len(CHARSETS)] * 50
    for assoc in assocs:
        assoc.release()


def test_metrics_and_log(daemon: tuple[RunningDaemon, dict[str, Node]], tmp_path: Path) -> None:
    """A question is measured like any other operation; its line in the log has the request that its operation has."""
    running, nodes = daemon
    findscu(nodes["native"], tmp_path / "found", *WEASIS_KEYS)
    metrics = running.http("GET", "/metrics").body.decode()
    assert 'harmonyd_operations_total{backend="pacs",operation="find",outcome="complete"}' in metrics
    assert "C-FIND of WORKSTATION" in running.log
