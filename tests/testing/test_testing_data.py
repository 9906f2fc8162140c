"""The data that tests and the demo use."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from pydicom import dcmread

from harmonyd.testing import data
from harmonyd.testing.processes import dcmtk


def test_demo_files_are_all_instances() -> None:
    """The demo's files are 81 different instances of 7 studies, without README and DICOMDIR."""
    headers = [dcmread(path, stop_before_pixels=True) for path in data.demo_files()]
    assert len({header.SOPInstanceUID for header in headers}) == 81
    assert len({header.StudyInstanceUID for header in headers}) == 7
    assert {header.Modality for header in headers} == {"CR", "CT", "MR"}


def test_report_files_are_structured_reports() -> None:
    """The reports are two SR instances."""
    assert [dcmread(path).Modality for path in data.report_files()] == ["SR", "SR"]


def test_made_study_has_unique_instances(tmp_path: Path) -> None:
    """A made study has the instances, series and UIDs it says."""
    study = data.make_study(tmp_path, 7, series=2, patient_id="P1")
    headers = [dcmread(path) for path in study.files]
    assert [str(header.SOPInstanceUID) for header in headers] == list(study.sop_uids)
    assert {str(header.SeriesInstanceUID) for header in headers} == set(study.series_uids)
    assert {str(header.StudyInstanceUID) for header in headers} == {study.study_uid}
    assert len(set(study.sop_uids)) == 7
    assert all(len(uid) <= 64 for uid in study.sop_uids)


def test_made_instance_has_pixels(tmp_path: Path) -> None:
    """A made CT has a pixel for each row and column, and DCMTK can read it to its end."""
    study = data.make_study(tmp_path, 1, size=48)
    header = dcmread(study.files[0])
    assert len(header.PixelData) == 2 * header.Rows * header.Columns == 2 * 48 * 48
    dumped = subprocess.run([dcmtk("dcmdump"), "-q", study.files[0]], check=False, capture_output=True)
    assert dumped.returncode == 0


@pytest.mark.parametrize("name", data.CHARSETS)
def test_made_text_is_in_its_character_set(tmp_path: Path, name: str) -> None:
    """pydicom reads the name and the description back from each character set."""
    (study,) = data.make_charset_studies(tmp_path, [name])
    header = dcmread(study.files[0])
    assert str(header.PatientName) == data.CHARSETS[name].person_name
    assert header.StudyDescription == data.CHARSETS[name].description


def test_samples_are_limited_and_optional(tmp_path: Path) -> None:
    """At most 50 ``.dcm`` files of dev/samples are taken, and none when there is no such folder."""
    assert data.sample_files(tmp_path) == []
    folder = tmp_path / "dev" / "samples" / "deeper"
    folder.mkdir(parents=True)
    for number in range(60):
        (folder / f"{number}.dcm").touch()
    (folder / "notes.txt").touch()
    found = data.sample_files(tmp_path)
    assert len(found) == 50
    assert {path.suffix for path in found} == {".dcm"}
