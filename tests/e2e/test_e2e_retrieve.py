"""C-GET end to end: real daemon, real getscu, real dcmqrscp; and scripted peers for what a real one does not do."""

from __future__ import annotations

from collections.abc import Iterator
from http.client import IncompleteRead
from pathlib import Path

import pytest
from misbehaving import STUDY_UID, Stage, stage
from retrieve_kit import (
    DICOM,
    JSON,
    MULTIPART,
    ZIP,
    artifact_folders,
    assert_same_objects,
    by_study,
    members_of,
    pacs_backend,
    parts_of,
    post,
    quarantined,
    scratch_files,
    storage,
)

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import MadeStudy, demo_files, make_study, report_files
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port


@pytest.fixture(scope="module")
def big_study(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    return make_study(tmp_path_factory.mktemp("made"), 300, series=2)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, big_study: MadeStudy) -> Iterator[RunningPacs]:
    """dcmqrscp with pydicom's images and reports, and a study of 300."""
    files = [*demo_files(), *report_files(), *big_study.files]
    ports = {"HARMONY_MOVE": free_port()}
    with RunningPacs(tmp_path_factory.mktemp("archive"), files=files, destinations=ports) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, archive: RunningPacs) -> Iterator[RunningDaemon]:
    config = write_config(
        tmp_path_factory.mktemp("gateway"), http_port=free_port(), backends={"pacs": pacs_backend(archive)}
    )
    with RunningDaemon(config) as running:
        yield running


STUDIES = by_study(demo_files())


@pytest.mark.parametrize("study", sorted(STUDIES))
def test_a_study_as_multipart(gateway: RunningDaemon, study: str) -> None:
    """Every instance of a study is one part, with the data set that the PACS has."""
    answer = post(gateway, "get", {"StudyInstanceUID": study}, accept=MULTIPART)
    assert answer.status == 200
    assert answer.headers.get_content_type() == "multipart/related"
    assert_same_objects(parts_of(answer), STUDIES[study])


def test_json_names_the_artifacts(gateway: RunningDaemon) -> None:
    """The JSON answer counts, tells the PACS's counters, and names the folder that holds what arrived."""
    study, originals = max(STUDIES.items(), key=lambda item: len(item[1]))
    answer = post(gateway, "get", {"study_instance_uid": study}).json()
    assert answer["operation"] == "get"
    assert answer["success"] is True
    assert answer["complete"] is True
    assert answer["file_count"] == len(answer["instances"]) == len(originals)
    assert answer["suboperations"]["completed"] == len(originals)
    assert answer["suboperations"]["failed"] == answer["suboperations"]["warning"] == 0
    assert {item["00080018"]["Value"][0] for item in answer["instances"]} == set(originals)
    assert not any("7FE00010" in item for item in answer["instances"])
    folder = Path(answer["folder_path"])
    assert folder == storage(gateway) / f"dcmtk_get_{answer['folder_id']}"
    assert_same_objects([path.read_bytes() for path in folder.glob("*")], originals)
    assert "warnings" not in answer
    assert "debug" not in answer


@pytest.mark.parametrize("accept", [MULTIPART, ZIP])
def test_bytes_are_those_of_the_artifacts(gateway: RunningDaemon, accept: str) -> None:
    """What is sent is byte for byte what DCMTK wrote."""
    before = artifact_folders(gateway, "get")
    study, originals = min(STUDIES.items(), key=lambda item: len(item[1]))
    answer = post(gateway, "get", {"StudyInstanceUID": study}, accept=accept)
    sent = parts_of(answer) if accept == MULTIPART else list(members_of(answer).values())
    (folder,) = artifact_folders(gateway, "get") - before
    assert sorted(sent) == sorted(path.read_bytes() for path in folder.glob("*"))
    assert len(sent) == len(originals)


def test_zip_has_an_entry_an_instance(gateway: RunningDaemon) -> None:
    """A zip names each instance by its UID."""
    study, originals = next(iter(STUDIES.items()))
    answer = post(gateway, "get", {"StudyInstanceUID": study}, accept=ZIP)
    assert answer.headers["Content-Type"] == "application/zip"
    members = members_of(answer)
    assert set(members) == {f"{uid}.dcm" for uid in originals}
    assert_same_objects(members.values(), originals)


@pytest.mark.parametrize("report", report_files(), ids=lambda path: path.name)
def test_a_structured_report_alone(gateway: RunningDaemon, report: Path) -> None:
    """One instance, asked for by its UIDs, is the body itself."""
    ((study, originals),) = by_study([report]).items()
    answer = post(gateway, "get", {"StudyInstanceUID": study}, accept=DICOM)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == DICOM
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    assert_same_objects([answer.body], originals)


def test_series_and_image_level(gateway: RunningDaemon, big_study: MadeStudy) -> None:
    """A series, and a list of instances, bring exactly what they name."""
    series = {"StudyInstanceUID": big_study.study_uid, "SeriesInstanceUID": big_study.series_uids[0]}
    assert post(gateway, "get", series).json()["file_count"] == 150
    wanted = [uid for number, uid in enumerate(big_study.sop_uids[:6]) if number % 2 == 0]
    answer = post(gateway, "get", {**series, "SOPInstanceUID": wanted}).json()
    assert sorted(item["00080018"]["Value"][0] for item in answer["instances"]) == sorted(wanted)


def test_more_than_one_as_a_single_object(gateway: RunningDaemon, big_study: MadeStudy) -> None:
    """Two or more do not fit application/dicom: 406 that says what does."""
    answer = post(gateway, "get", {"StudyInstanceUID": big_study.study_uid}, accept=DICOM)
    assert answer.status == 406
    assert "multipart/related" in answer.json()["hint"]
    assert not scratch_files(gateway)


def test_300_instances(gateway: RunningDaemon, big_study: MadeStudy) -> None:
    """A study of 300 instances arrives whole."""
    answer = post(gateway, "get", {"StudyInstanceUID": big_study.study_uid}, accept=MULTIPART)
    assert_same_objects(parts_of(answer), dict(zip(big_study.sop_uids, big_study.files, strict=True)))


@pytest.mark.parametrize("accept", [JSON, MULTIPART, ZIP, DICOM])
def test_nothing_matched(gateway: RunningDaemon, accept: str) -> None:
    """A study that is not there is 404, whatever the client accepts."""
    answer = post(gateway, "get", {"StudyInstanceUID": "1.2.3.4"}, accept=accept)
    assert answer.status == 404
    problem = answer.json()
    assert problem["operation"] == "get"
    assert problem["success"] is False


@pytest.mark.parametrize("operation", ["get", "move"])
@pytest.mark.parametrize(
    "query",
    [
        {},
        {"patient_name": "*"},
        {"StudyInstanceUID": ""},
        {"StudyInstanceUID": None, "query_level": "STUDY"},
        {"StudyInstanceUID": "1.2.*"},
        {"patient_id": "*", "query_level": "PATIENT"},
        {"patient_id": "7705?397", "query_level": "PATIENT"},
        {"query_level": "SERIES", "SeriesInstanceUID": "1.2.3"},
        {"query_level": "IMAGE", "StudyInstanceUID": "1.2.3", "SOPInstanceUID": "1.2.3.4"},
    ],
)
def test_what_would_fetch_the_archive(gateway: RunningDaemon, operation: str, query: dict[str, str]) -> None:
    """A retrieve without a unique key of its level, or with a pattern in it, never reaches the PACS."""
    before = artifact_folders(gateway)
    answer = post(gateway, operation, query)
    assert answer.status == 400
    assert answer.json()["key"]
    assert artifact_folders(gateway) == before


def test_patient_level(gateway: RunningDaemon) -> None:
    """A patient's unique key brings all studies of that patient."""
    everything = by_study(demo_files())
    found = post(gateway, "find", {"patient_id": "98890234", "query_level": "STUDY", "StudyInstanceUID": None}).json()
    studies = {match["0020000D"]["Value"][0] for match in found["matches"]}
    answer = post(gateway, "get", {"patient_id": "98890234", "query_level": "PATIENT"}).json()
    assert answer["complete"] is True
    assert len(studies) > 1
    assert answer["file_count"] == sum(len(everything[study]) for study in studies)


# --- what a PACS can do wrong -----------------------------------------------------------------------------------------

SCRIPTS = {
    "half-fails": {"count": 6, "failed": 3},
    "all-fails": {"count": 4, "failed": 4, "status": 0xA702},
    "fewer": {"count": 5, "withheld": 2},
    "strangers": {"extra": 2},
    "abort": {"count": 5, "after": 2, "then": "abort"},
    "drop": {"count": 5, "after": 2, "then": "drop"},
    "abort-first": {"count": 5, "after": 0, "then": "abort"},
    "no-counters": {"count": 2, "counters": False},
    "nothing": {"count": 0},
}


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A daemon with a peer for each script."""
    scripts = {name: ("serve", given) for name, given in SCRIPTS.items()}
    with stage(tmp_path_factory.mktemp("wrong"), scripts, options={"association_timeout_ms": 20_000}) as running:
        yield running


def test_half_of_it_fails(wrong: Stage) -> None:
    """B000 with failed sub-operations is a success of what arrived, and told as incomplete."""
    answer = wrong.ask("get", "half-fails")
    told = answer.json()
    assert answer.status == 200
    assert told["complete"] is False
    assert "3 failed" in told["incomplete_reason"]
    assert told["file_count"] == 3
    assert told["suboperations"] == {"completed": 3, "failed": 3, "warning": 0, "remaining": None}
    for accept in (MULTIPART, ZIP):
        with pytest.raises(IncompleteRead):
            wrong.ask("get", "half-fails", Accept=accept)
    assert "3 failed" in wrong.daemon.log


def test_all_of_it_fails(wrong: Stage) -> None:
    """When not one instance arrives there is no answer to give: 502 with the counters."""
    answer = wrong.ask("get", "all-fails")
    assert (answer.status, answer.json()["dimse_status"]) == (502, "0xA702")
    assert answer.json()["suboperations"]["failed"] == 4


def test_fewer_than_counted(wrong: Stage) -> None:
    """Instances that the PACS counts, and did not send, are missing: told, not believed."""
    told = wrong.ask("get", "fewer").json()
    assert told["complete"] is False
    assert "5 instances delivered, 3 arrived" in told["incomplete_reason"]
    assert told["file_count"] == 3


def test_strangers_are_put_aside(wrong: Stage) -> None:
    """Instances nobody asked for are kept in quarantine with a note, and reported, never mixed in."""
    before = quarantined(wrong.daemon)
    told = wrong.ask("get", "strangers").json()
    assert told["complete"] is True
    assert told["file_count"] == 3
    assert {item["0020000D"]["Value"][0] for item in told["instances"]} == {STUDY_UID}
    assert "2 received files put in quarantine: not asked for" in told["warnings"]
    new = {path: reason for path, reason in quarantined(wrong.daemon).items() if path not in before}
    assert list(new.values()) == ["not asked for"] * 2
    assert len(parts_of(wrong.ask("get", "strangers", Accept=MULTIPART))) == 3


@pytest.mark.parametrize("then", ["abort", "drop"])
def test_the_pacs_breaks_off(wrong: Stage, then: str) -> None:
    """What arrived before an abort is sent; the JSON says why it is not all, a multipart answer is cut."""
    told = wrong.ask("get", then).json()
    assert told["success"] is False
    assert told["complete"] is False
    assert "aborted" in told["incomplete_reason"]
    assert told["file_count"] == len(told["instances"]) == 2
    with pytest.raises(IncompleteRead):
        wrong.ask("get", then, Accept=MULTIPART)
    assert not scratch_files(wrong.daemon)


@pytest.mark.parametrize("accept", [JSON, MULTIPART, ZIP, DICOM])
def test_breaks_off_before_the_first(wrong: Stage, accept: str) -> None:
    """An abort before anything arrived is a 502, whatever was accepted."""
    assert wrong.ask("get", "abort-first", Accept=accept).status == 502


def test_counters_left_out(wrong: Stage) -> None:
    """Counters are optional: without them a success with instances is complete, and one without is not found."""
    told = wrong.ask("get", "no-counters").json()
    assert (told["complete"], told["file_count"]) == (True, 2)
    assert "suboperations" not in told
    assert wrong.ask("get", "nothing").status == 404
