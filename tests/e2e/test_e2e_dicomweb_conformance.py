"""What PS3.18 says of searches, retrieves and stores, where other tests do not look: totals, upper levels, forms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dicomweb_kit import Gateway, dicomweb_over, pacs_options
from pydicom import dcmread

from harmonyd.services.dicomweb.entities import REQUIRED, json_key
from harmonyd.testing.data import make_ct, uid_for
from harmonyd.testing.pacs import RunningPacs

STUDY, SERIES = uid_for("conformance"), uid_for("conformance/1")
UP_TO_KNOWN = {"NumberOfFrames", "RequestAttributesSequence", "Rows", "Columns", "BitsAllocated"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{number}.dcm" for number in range(1, 4)]
    for number, path in enumerate(paths, 1):
        make_ct(path, study_uid=STUDY, series_uid=SERIES, instance_number=number, patient_id="C1", size=16)
        ds = dcmread(path)
        ds.StudyDescription = "the study"
        ds.save_as(path)
    return paths


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, images: list[Path]) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("conformance")
    with (
        RunningPacs(folder / "pacs", files=images) as pacs,
        dicomweb_over(folder / "web", pacs_options(pacs, "native")) as running,
    ):
        yield running


def only(record: dict[str, Any], keyword: str) -> Any:
    (value,) = record[json_key(keyword)]["Value"]
    return value


@pytest.mark.parametrize(
    ("query", "count", "total"),
    [
        ("", 3, "3"),
        ("limit=3", 3, "3"),
        ("limit=2&offset=1", 2, "3"),
        ("offset=7", 0, "3"),
        ("limit=2", 2, None),
        ("limit=0", 0, None),
    ],
)
def test_the_total_where_it_is_known(web: Gateway, query: str, count: int, total: str | None) -> None:
    """It counts what offset left out; a page that ends before the end has a warning instead."""
    answer = web.ask(f"/studies/{STUDY}/series/{SERIES}/instances?{query}")
    assert answer.status == (200 if count else 204)
    assert len(json.loads(answer.body or b"[]")) == count
    assert answer.headers["X-Total-Count"] == total
    assert ("299" in answer.headers.get("Warning", "")) is (total is None)
    assert "CRITICAL" not in web.daemon.log


@pytest.mark.parametrize(
    ("path", "level"),
    [("/studies", "STUDY"), (f"/studies/{STUDY}/series", "SERIES"), (f"/studies/{STUDY}/instances", "IMAGE")],
)
def test_each_result_has_what_its_level_requires(web: Gateway, path: str, level: str) -> None:
    """Also what this PACS never tells, counted where it can be; and the URL to retrieve it."""
    for record in json.loads(web.ask(path).body):
        missing = {keyword for keyword in REQUIRED[level] if json_key(keyword) not in record}
        assert missing <= UP_TO_KNOWN
        assert only(record, "RetrieveURL").startswith(f"{web.url}/studies/{STUDY}")
        if level == "STUDY":
            assert (only(record, "NumberOfStudyRelatedSeries"), only(record, "NumberOfStudyRelatedInstances")) == (1, 3)
            assert record[json_key("ModalitiesInStudy")]["Value"] == ["CT"]
        if level == "SERIES":
            assert only(record, "NumberOfSeriesRelatedInstances") == 3


@pytest.mark.parametrize(
    "named", ["includefield=StudyDescription,00080060", "includefield=00081030&includefield=Modality"]
)
def test_attributes_of_the_levels_above(web: Gateway, named: str) -> None:
    """Where they are asked for, also above what the path names."""
    for record in json.loads(web.ask(f"/studies/{STUDY}/series/{SERIES}/instances?{named}").body):
        assert (only(record, "StudyDescription"), only(record, "Modality")) == ("the study", "CT")


def test_uids_with_leading_zeros_can_be_asked_for(web: Gateway) -> None:
    """There are archives that have them."""
    assert web.ask("/studies?StudyInstanceUID=1.02.003").status == 204
    assert web.ask("/studies/1.02.003").status == 404


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "*/*",
        "multipart/related",
        "multipart/related; type=application/dicom",
        "multipart/related;type=application/dicom;transfer-syntax=*",
        'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1',
        'multipart/related; type="*/*"',
        'text/html;q=0.9, multipart/related; type="application/dicom";q=0.1',
    ],
)
def test_forms_as_clients_ask_for_them(web: Gateway, accept: str | None) -> None:
    """Quoted or not, with stars, with weights."""
    answer = web.ask(f"/studies/{STUDY}/series/{SERIES}", accept)
    assert (answer.status, answer.headers.get_content_type()) == (200, "multipart/related")
    assert {fields["content-type"].partition(";")[0] for fields, _ in answer.parts()} == {"application/dicom"}


@pytest.mark.parametrize(
    ("query", "status", "content_type"),
    [
        ("accept=application/dicom%2Bjson", 200, "application/dicom+json"),
        ("accept=application/dicom+json", 200, "application/dicom+json"),
        ("accept=application/json", 200, "application/json"),
        ("accept=nonsense", 406, "application/problem+json"),
        ("accept=text/html", 406, "application/problem+json"),
    ],
)
def test_the_query_parameter_accept(web: Gateway, query: str, status: int, content_type: str) -> None:
    """It stands in for the header, a plus sign that became a space included; what is none is told."""
    answer = web.ask(f"/studies?{query}", "image/png")
    assert (answer.status, answer.headers.get_content_type()) == (status, content_type)


def test_a_single_picture_in_parts(web: Gateway, images: list[Path]) -> None:
    """A client that asks for parts gets one."""
    ds = dcmread(images[0])
    path = f"/studies/{STUDY}/series/{SERIES}/instances/{ds.SOPInstanceUID}"
    answer = web.ask(f"{path}/rendered", 'multipart/related; type="image/png"')
    assert [fields["content-type"] for fields, _ in answer.parts()] == ["image/png"]


@pytest.mark.parametrize("root", ["application/dicom+json", "application/dicom+xml"])
def test_metadata_is_not_stored(web: Gateway, root: str) -> None:
    """Only whole objects are: 415 says so."""
    kind = f'multipart/related; type="{root}"; boundary=x'
    answer = web.ask("/studies", method="POST", body=b"--x\r\n\r\n[]\r\n--x--\r\n", Content_Type=kind)
    assert answer.status == 415


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/studies", "GET, HEAD, POST, OPTIONS"),
        ("PUT", f"/studies/{STUDY}/metadata", "GET, HEAD, OPTIONS"),
        ("POST", "/instances", "GET, HEAD, OPTIONS"),
    ],
)
def test_methods_that_a_resource_has_not(web: Gateway, method: str, path: str, allow: str) -> None:
    """405 says which it has; OPTIONS does, too."""
    answer = web.ask(path, method=method)
    assert (answer.status, answer.headers["Allow"]) == (405, allow)
    assert web.ask(path, method="OPTIONS").headers["Allow"] == allow
