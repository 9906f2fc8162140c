"""Which received files are an answer to what was asked, and where the others go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydicom import Dataset

from harmonyd.dimse.accept import Intake, quarantine, wanted_keys
from harmonyd.dimse.engine import Query, QueryLevel, QueryModel
from harmonyd.testing.data import make_ct, uid_for

STUDY, SERIES = uid_for("study"), uid_for("series")


def query(**keys: object) -> Query:
    ds = Dataset()
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    return Query(QueryLevel.STUDY, QueryModel.STUDY_ROOT, ds)


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    """Where a receiver writes."""
    folder = tmp_path / "incoming"
    folder.mkdir()
    return folder


@pytest.fixture
def intake(tmp_path: Path) -> Intake:
    """For one study."""
    folder = tmp_path / "dcmtk_move_1"
    folder.mkdir()
    return Intake(query(StudyInstanceUID=STUDY), folder, tmp_path / "quarantine")


def arrive(folder: Path, number: int = 1, *, study: str = STUDY, name: str = "", patient: str = "P") -> Path:
    path = folder / (name or f"CT.{number}")
    make_ct(path, study_uid=study, series_uid=SERIES, instance_number=number, patient_id=patient, size=8)
    return path


def reasons(intake: Intake) -> list[str]:
    return sorted(json.loads(path.read_text())["reason"] for path in intake.quarantine_folder.glob("*.json"))


def test_taken_into_the_folder(intake: Intake, incoming: Path) -> None:
    """What was asked for is moved into the operation's folder, under its UID."""
    content = arrive(incoming).read_bytes()
    (instance,) = intake.take([incoming / "CT.1"])
    assert instance.path == intake.folder / instance.sop_instance_uid
    assert instance.path.read_bytes() == content
    assert instance.size_bytes == len(content)
    assert instance.sop_instance_uid == uid_for(f"{SERIES}/1")
    assert not list(incoming.iterdir())
    assert not reasons(intake)


def test_left_where_it_is(intake: Intake) -> None:
    """A tool that writes into the operation's folder keeps its names."""
    path = arrive(intake.folder, name="CT.whatever")
    (instance,) = intake.take([path])
    assert instance.path == path


def test_not_asked_for(intake: Intake, incoming: Path) -> None:
    """Another study goes to quarantine, whole, with the reason beside it."""
    content = arrive(incoming, study=uid_for("another")).read_bytes()
    assert not intake.take([incoming / "CT.1"])
    assert reasons(intake) == ["not asked for"]
    (kept,) = intake.quarantine_folder.glob("*.dcm")
    assert kept.read_bytes() == content
    assert intake.put_aside["not asked for"] == 1
    assert not intake.damaged


def test_twice(intake: Intake, incoming: Path) -> None:
    """The first copy counts, the second goes to quarantine."""
    paths = [arrive(incoming, name="first"), arrive(incoming, name="second")]
    assert len(intake.take(paths)) == 1
    assert reasons(intake) == ["the same SOP Instance UID arrived twice"]


@pytest.mark.parametrize("kept", [0, 100, 200, -1])
def test_damaged(intake: Intake, incoming: Path, kept: int) -> None:
    """A file that is not whole counts as damage; it is in quarantine as it came."""
    path = arrive(incoming)
    path.write_bytes(path.read_bytes()[:kept])
    content = path.read_bytes()
    assert not intake.take([path])
    assert intake.damaged == 1
    (reason,) = reasons(intake)
    assert reason.startswith("damaged: ")
    (aside,) = intake.quarantine_folder.glob("*.dcm")
    assert aside.read_bytes() == content


def test_gone_already(intake: Intake, incoming: Path) -> None:
    """A file that somebody has taken away meanwhile is passed over, and the others are taken."""
    assert len(intake.take([incoming / "nothing", arrive(incoming)])) == 1


@pytest.mark.parametrize(
    ("asked", "matches"),
    [
        ({"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES}, True),
        ({"StudyInstanceUID": STUDY, "SeriesInstanceUID": uid_for("x")}, False),
        ({"SOPInstanceUID": [uid_for("x"), uid_for(f"{SERIES}/1")]}, True),
        ({"SOPInstanceUID": [uid_for("x"), uid_for("y")]}, False),
        ({"PatientID": "P"}, True),
        ({"PatientID": " P "}, True),
        ({"PatientID": "Q"}, False),
        ({"PatientID": "P", "StudyDate": "19991231"}, True),
        ({"StudyInstanceUID": ""}, True),
    ],
)
def test_what_matches(tmp_path: Path, incoming: Path, asked: dict[str, object], matches: bool) -> None:
    """All unique keys have to match, lists by any of their values; other keys decide nothing."""
    intake = Intake(query(**asked), tmp_path, tmp_path / "quarantine")
    assert bool(intake.take([arrive(incoming)])) is matches


def test_wanted_keys() -> None:
    """Only unique keys with a value are wanted."""
    asked = query(StudyInstanceUID=[STUDY, SERIES], SeriesInstanceUID=None, StudyDate="20240101", PatientID="P ")
    assert wanted_keys(asked) == {"patient_id": {"P"}, "study_instance_uid": {STUDY, SERIES}}


def test_quarantine_of_a_file_that_is_gone(tmp_path: Path) -> None:
    """Two who put the same file aside do not leave a note without a file."""
    with pytest.raises(FileNotFoundError):
        quarantine(tmp_path / "nothing", tmp_path / "quarantine", "why")
    assert not list((tmp_path / "quarantine").iterdir())


def test_quarantine_keeps_both_of_one_name(tmp_path: Path) -> None:
    """Files of the same name do not replace one another."""
    for content in (b"1", b"2"):
        (tmp_path / "file").write_bytes(content)
        quarantine(tmp_path / "file", tmp_path / "quarantine", "why")
    kept = {path.read_bytes() for path in (tmp_path / "quarantine").glob("*.dcm")}
    assert kept == {b"1", b"2"}
