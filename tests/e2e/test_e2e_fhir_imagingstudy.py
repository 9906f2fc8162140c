"""The example that answers FHIR searches from a PACS: its own configuration, over dcmqrscp."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from fhir.resources.R4B.bundle import Bundle
from pydicom import Dataset, dcmread

from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import demo_files, make_study, report_files, uid_for
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "fhir-imagingstudy"
MANY = 150


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPacs]:
    """The usual archive, and a patient with many studies."""
    folder = tmp_path_factory.mktemp("pacs")
    made = tmp_path_factory.mktemp("many")
    many = [study for number in range(MANY) for study in _study(made, number)]
    with RunningPacs(folder, files=[*demo_files(), *report_files(), *many], aet="DEMO_PACS") as running:
        yield running


def _study(folder: Path, number: int) -> tuple[Path, ...]:
    study = uid_for(f"many-{number}")
    return make_study(folder / str(number), 1, study_uid=study, patient_id="MANY", size=16).files


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, pacs: RunningPacs) -> Iterator[str]:
    with example(tmp_path_factory.mktemp("fhir") / "config", pacs.port) as running:
        yield running


@contextmanager
def example(folder: Path, pacs_port: int) -> Iterator[str]:
    """The example as it is, but for ports."""
    shutil.copytree(EXAMPLE, folder)
    http_port = free_port()
    _replace(folder / "config.toml", {"bind_port = 8081": f"bind_port = {http_port}", "../../tmp/fhir": "tmp"})
    ports = f"port = {pacs_port}\nincoming_store_port = {free_port()}"
    _replace(folder / "pipelines" / "imagingstudy.toml", {"port = 4242": ports})
    with RunningDaemon(folder / "config.toml"):
        yield f"http://127.0.0.1:{http_port}/fhir/ImagingStudy"


def _replace(path: Path, words: dict[str, str]) -> None:
    text = path.read_text("utf-8")
    for old, new in words.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, "utf-8")


@pytest.fixture(scope="module")
def archive(pacs: RunningPacs) -> list[Dataset]:
    return [dcmread(path, stop_before_pixels=True) for path in pacs.files]


def search(url: str, **params: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A Bundle that is one, and its ImagingStudy resources by id."""
    answer = requests.get(url, params, headers={"Accept": "application/fhir+json"}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/fhir+json"
    bundle = answer.json()
    assert Bundle.model_validate(bundle).type == "searchset"
    return bundle, {each["resource"]["id"]: each["resource"] for each in bundle.get("entry", [])}


@pytest.mark.parametrize("form", ["{}", "Patient/{}"])
def test_studies_of_a_patient(url: str, archive: list[Dataset], form: str) -> None:
    """Each study of the patient is an ImagingStudy with what the PACS knows of it."""
    patient = "77654033"
    mine = {str(ds.StudyInstanceUID): ds for ds in archive if ds.PatientID == patient}
    bundle, found = search(url, patient=form.format(patient))
    assert bundle["total"] == len(mine) > 0
    assert found.keys() == mine.keys()
    for uid, resource in found.items():
        assert resource["identifier"][0] == {"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}
        assert resource["subject"]["identifier"]["value"] == patient
        assert resource["subject"]["display"] == " ".join(str(mine[uid].PatientName).split("^")).strip()
        date = str(mine[uid].StudyDate)
        assert resource["started"] == f"{date[:4]}-{date[4:6]}-{date[6:]}"
        assert resource["status"] == "available"


@pytest.mark.parametrize("form", ["{}", "urn:oid:{}", "urn:dicom:uid|urn:oid:{}"])
def test_a_study_by_identifier(url: str, archive: list[Dataset], form: str) -> None:
    """The Study Instance UID, in the spellings that FHIR has for it."""
    uid = str(archive[0].StudyInstanceUID)
    _, found = search(url, identifier=form.format(uid))
    assert list(found) == [uid]


def test_nothing_is_a_bundle_too(url: str) -> None:
    """A search that finds nothing has a total of 0, and no entries."""
    bundle, found = search(url, patient="NOBODY")
    assert (bundle["total"], found) == (0, {})


def test_many_results(url: str) -> None:
    """Records are transformed one by one, all of them together once more."""
    bundle, found = search(url, patient="MANY")
    assert bundle["total"] == len(found) == MANY


def test_what_is_wrong_is_told(url: str) -> None:
    """A value that no identifier can have, another resource, another method: problem details."""
    assert requests.get(url, {"identifier": "urn:oid:x*y"}, timeout=30).status_code == 400
    assert requests.get(url + "/1", timeout=30).status_code == 404
    assert requests.post(url, timeout=30).status_code == 405


def test_a_pacs_that_is_away(tmp_path: Path) -> None:
    """It is an error, and no Bundle without entries."""
    with example(tmp_path / "config", free_port()) as url:
        answer = requests.get(url, {"patient": "1"}, timeout=60)
        assert answer.status_code == 502 and answer.json()["backend"] == "pacs"
