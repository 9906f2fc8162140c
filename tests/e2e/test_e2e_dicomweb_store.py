"""STOW-RS: what is posted is what the PACS gets, over one association, and each instance is told what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from xml.etree import ElementTree

import pytest
import requests
from archive_peer import ArchivePeer, shipped
from dicomweb_kit import ENGINES, Gateway, dicomweb_over, pacs_options
from pydicom import Dataset
from pydicom.uid import generate_uid

from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port

MULTIPART = 'multipart/related; type="application/dicom"; boundary=here'
STUDY = "1.2.826.0.1.3680043.8.498.3"
FILES = ("CT_small.dcm", "MR_small_RLE.dcm", "SC_rgb_jpeg_gdcm.dcm", "JPEG2000.dcm")


@pytest.fixture
def objects() -> list[Dataset]:
    return shipped(*FILES, study=STUDY)


@pytest.fixture(scope="module")
def peer() -> Iterator[ArchivePeer]:
    with ArchivePeer([]) as running:
        yield running


@pytest.fixture(scope="module", params=ENGINES)
def web(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, peer: ArchivePeer
) -> Iterator[Gateway]:
    backend = {**peer.backend, "engine": request.param}
    with dicomweb_over(tmp_path_factory.mktemp("web"), backend) as running:
        yield running


@pytest.fixture(autouse=True)
def _emptied(peer: ArchivePeer) -> None:
    peer.stored.clear()
    peer.refused.clear()
    peer.aborts.clear()


def part10(ds: Dataset) -> bytes:
    out = BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def multipart(*parts: bytes) -> bytes:
    return (
        b"".join(b"\r\n--here\r\nContent-Type: application/dicom\r\n\r\n" + part for part in parts)
        + b"\r\n--here--\r\n"
    )


def post(
    web: Gateway, path: str, body: bytes, content_type: str = MULTIPART, accept: str | None = None
) -> tuple[int, dict]:
    answer = web.ask(path, accept, method="POST", body=body, Content_Type=content_type)
    return answer.status, json.loads(answer.body)


def uids(items: dict) -> list[str]:
    return [item["00081155"]["Value"][0] for item in items["Value"]]


def test_what_dicomweb_client_stores(web: Gateway, peer: ArchivePeer, objects: list[Dataset]) -> None:
    """Objects of several transfer syntaxes arrive over one association, as they are; the response refers to each."""
    before = peer.associations
    response = web.client.store_instances(objects, study_instance_uid=STUDY)
    assert peer.associations == before + 1
    assert response.RetrieveURL == f"{web.url}/studies/{STUDY}"
    assert [item.ReferencedSOPInstanceUID for item in response.ReferencedSOPSequence] == [
        ds.SOPInstanceUID for ds in objects
    ]
    assert "FailedSOPSequence" not in response
    for ds, stored in zip(objects, peer.stored, strict=True):
        assert stored.SOPInstanceUID == ds.SOPInstanceUID
        assert stored.PixelData == ds.PixelData
    url = response.ReferencedSOPSequence[0].RetrieveURL
    assert url == f"{web.url}/studies/{STUDY}/series/{STUDY}.1/instances/{STUDY}.1.1"


def test_a_single_part(web: Gateway, peer: ArchivePeer, objects: list[Dataset]) -> None:
    """One object may be the body itself."""
    status, response = post(web, "/studies", part10(objects[0]), "application/dicom")
    assert status == 200
    assert uids(response["00081199"]) == [objects[0].SOPInstanceUID]
    assert [ds.SOPInstanceUID for ds in peer.stored] == [objects[0].SOPInstanceUID]


def test_some_are_refused_by_the_pacs(web: Gateway, peer: ArchivePeer, objects: list[Dataset]) -> None:
    """202, and the failed ones have the PACS's reason."""
    peer.refused.add(objects[1].SOPInstanceUID)
    status, response = post(web, "/studies", multipart(*map(part10, objects)))
    assert status == 202
    assert uids(response["00081199"]) == [ds.SOPInstanceUID for ds in objects if ds is not objects[1]]
    (failed,) = response["00081198"]["Value"]
    assert failed["00081155"]["Value"] == [objects[1].SOPInstanceUID]
    assert failed["00081197"]["Value"] == [0xA700]


def test_all_are_refused_by_the_pacs(web: Gateway, peer: ArchivePeer, objects: list[Dataset]) -> None:
    """409, with the same response."""
    peer.refused.update(ds.SOPInstanceUID for ds in objects)
    status, response = post(web, "/studies", multipart(*map(part10, objects)))
    assert status == 409
    assert uids(response["00081198"]) == [ds.SOPInstanceUID for ds in objects]
    with pytest.raises(requests.HTTPError, match="409"):
        web.client.store_instances(objects)


def test_objects_of_another_study_and_damaged_ones(web: Gateway, peer: ArchivePeer, objects: list[Dataset]) -> None:
    """They are refused one by one; the others are stored."""
    objects[2].StudyInstanceUID = generate_uid()
    body = multipart(part10(objects[0]), b"no DICOM", part10(objects[1])[:-1000], part10(objects[2]))
    status, response = post(web, f"/studies/{STUDY}", body)
    assert status == 202
    assert [ds.SOPInstanceUID for ds in peer.stored] == uids(response["00081199"]) == [objects[0].SOPInstanceUID]
    (other_study,) = response["00081198"]["Value"]
    assert other_study["00081155"]["Value"] == [objects[2].SOPInstanceUID]
    assert other_study["00081197"]["Value"] == [0xC409]
    assert [item["00081197"]["Value"] for item in response["0008119A"]["Value"]] == [[0xC000], [0xC000]]


def test_nothing_that_can_be_stored(web: Gateway, peer: ArchivePeer) -> None:
    """Without an object to send no association is opened."""
    before = peer.associations
    status, response = post(web, "/studies", multipart(b"no DICOM"))
    assert (status, list(response)) == (409, ["0008119A"])
    assert peer.associations == before


def test_xml(web: Gateway, objects: list[Dataset]) -> None:
    """The response can be had in XML."""
    answer = web.ask(
        "/studies", "application/dicom+xml", method="POST", body=multipart(part10(objects[0])), Content_Type=MULTIPART
    )
    assert answer.headers["Content-Type"] == "application/dicom+xml"
    tags = [child.get("keyword") for child in ElementTree.fromstring(answer.body)]
    assert tags == ["RetrieveURL", "ReferencedSOPSequence"]


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("text/plain", b"x", 415),
        ('multipart/related; type="application/dicom+json"; boundary=here', b"x", 415),
        (MULTIPART, b"--here\r\n", 400),
        (MULTIPART, b"--here--\r\n", 400),
        ('multipart/related; type="application/dicom"', b"x", 400),
    ],
)
def test_bodies_that_are_not_to_be_read(web: Gateway, content_type: str, body: bytes, status: int) -> None:
    """A problem detail says what is wrong with the whole."""
    found, problem = post(web, "/studies", body, content_type)
    assert (found, problem["status"]) == (status, status)


def test_a_pacs_that_is_away(tmp_path_factory: pytest.TempPathFactory, objects: list[Dataset]) -> None:
    """502, as for any other request, and not a list of failures of the instances."""
    backend = {"engine": "native", "aet": "AWAY", "host": "127.0.0.1", "port": free_port()}
    with dicomweb_over(tmp_path_factory.mktemp("away"), backend) as web:
        status, problem = post(web, "/studies", multipart(part10(objects[0])))
        assert (status, problem["type"]) == (502, "urn:harmonyd:problem:remote-unreachable")
        with pytest.raises(requests.HTTPError, match="502"):
            web.client.search_for_studies()


def test_a_pacs_that_aborts(web: Gateway, peer: ArchivePeer, objects: list[Dataset]) -> None:
    """What was answered before the abort is stored, the others have failed; 502 when there is nothing of the kind."""
    peer.aborts = {objects[2].SOPInstanceUID}
    status, response = post(web, "/studies", multipart(*map(part10, objects)))
    assert status == 202
    assert uids(response["00081199"]) == [ds.SOPInstanceUID for ds in objects[:2]]
    assert uids(response["00081198"]) == [ds.SOPInstanceUID for ds in objects[2:]]
    assert {item["00081197"]["Value"][0] for item in response["00081198"]["Value"]} == {0x0110}
    status, problem = post(web, "/studies", part10(objects[2]), "application/dicom")
    assert (status, problem["status"]) == (502, 502)


def test_what_is_stored_can_be_retrieved(tmp_path_factory: pytest.TempPathFactory, objects: list[Dataset]) -> None:
    """Through a real PACS and back."""
    folder = tmp_path_factory.mktemp("pacs")
    with RunningPacs(folder, files=[]) as pacs, dicomweb_over(folder / "web", pacs_options(pacs, "native")) as web:
        web.client.store_instances([objects[0]])
        (back,) = web.client.retrieve_study(STUDY)
        assert (back.SOPInstanceUID, back.PixelData) == (objects[0].SOPInstanceUID, objects[0].PixelData)
