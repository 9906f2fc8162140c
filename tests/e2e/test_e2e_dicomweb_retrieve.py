"""WADO-RS of whole objects and metadata: what arrives is what the PACS has, in a form that the client accepts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import IncompleteRead
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest
import requests
from archive_peer import ArchivePeer, shipped
from dicomweb_kit import ENGINES, Gateway, dicomweb_over, originals, pacs_options
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless
from retrieve_kit import peer_backend

from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port

MIXED = shipped(
    "CT_small.dcm",
    "MR_small_implicit.dcm",
    "MR_small_RLE.dcm",
    "image_dfl.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "MR_small_jp2klossless.dcm",
    "test-SR.dcm",
    study="1.2.826.0.1.3680043.8.498.1",
)
DICOM = 'multipart/related; type="application/dicom"'
STUDY = MIXED[0].StudyInstanceUID
SERIES = MIXED[0].SeriesInstanceUID


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPacs]:
    folder = tmp_path_factory.mktemp("pacs")
    with RunningPacs(folder, destinations={"HARMONY_MOVE": free_port()}) as running:
        yield running


@pytest.fixture(scope="module", params=[(engine, mode) for engine in ENGINES for mode in ("get", "move")])
def web(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pacs: RunningPacs
) -> Iterator[Gateway]:
    engine, mode = request.param
    moves = {"move_destination_aet": "HARMONY_MOVE", "incoming_store_port": pacs.destinations["HARMONY_MOVE"]}
    with dicomweb_over(
        tmp_path_factory.mktemp("web"), pacs_options(pacs, engine, dimse_retrieve_mode=mode, **moves)
    ) as running:
        yield running


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with ArchivePeer(MIXED) as peer, dicomweb_over(tmp_path_factory.mktemp("mixed"), peer.backend) as running:
        yield running


def path_of(ds: Dataset) -> str:
    return f"/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"


def test_study_series_and_instance(web: Gateway, pacs: RunningPacs) -> None:
    """dicomweb-client gets the data sets that dcmqrscp has, by either engine and either way to retrieve."""
    archive = originals(list(pacs.files))
    one = next(ds for ds in archive.values() if ds.Modality == "CT")
    keys = (str(one.StudyInstanceUID), str(one.SeriesInstanceUID), str(one.SOPInstanceUID))
    study = web.client.retrieve_study(keys[0])
    assert {ds.SOPInstanceUID for ds in study} == {uid for uid, ds in archive.items() if ds.StudyInstanceUID == keys[0]}
    assert all(ds == archive[ds.SOPInstanceUID] for ds in study)
    web.client.set_chunk_size(1000)
    for series in (web.client.retrieve_series(*keys[:2]), list(web.client.iter_series(*keys[:2]))):
        assert {ds.SOPInstanceUID for ds in series} == {
            uid for uid, ds in archive.items() if ds.SeriesInstanceUID == keys[1]
        }
        assert all(ds == archive[ds.SOPInstanceUID] for ds in series)
    web.client.set_chunk_size(10**6)
    assert {ds.SOPInstanceUID for ds in web.client.iter_study(keys[0])} == {ds.SOPInstanceUID for ds in study}
    assert web.client.retrieve_instance(*keys) == one
    assert len(web.client.retrieve_study_metadata(keys[0])) == len(study)


def test_a_study_of_mixed_transfer_syntaxes_comes_as_it_is_stored(mixed: Gateway) -> None:
    """All instances arrive, each in the transfer syntax that it has; "*" means the same."""
    for accept in (None, "*/*", DICOM, f"{DICOM}; transfer-syntax=*", "multipart/related; type=application/dicom"):
        parts = mixed.ask(f"/studies/{STUDY}", accept).parts()
        received = [dcmread(BytesIO(content)) for _, content in parts]
        syntaxes = {ds.SOPInstanceUID: ds.file_meta.TransferSyntaxUID for ds in received}
        assert syntaxes.keys() == {ds.SOPInstanceUID for ds in MIXED}
        compressed = [ds for ds in MIXED if ds.file_meta.TransferSyntaxUID.is_compressed]
        assert all(syntaxes[ds.SOPInstanceUID] == ds.file_meta.TransferSyntaxUID for ds in compressed), accept


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless])
def test_another_transfer_syntax(mixed: Gateway, syntax: str) -> None:
    """What can be transcoded is, with the same UIDs and pixels; nothing of it is left on the disk."""
    ds = MIXED[5]
    answer = mixed.ask(path_of(ds), f"{DICOM}; transfer-syntax={syntax}")
    (received,) = (dcmread(BytesIO(content)) for _, content in answer.parts())
    assert received.file_meta.TransferSyntaxUID == syntax
    assert received.SOPInstanceUID == ds.SOPInstanceUID
    assert (received.pixel_array == ds.pixel_array).all()
    assert not list(Path(mixed.daemon.config.parent).rglob("*.transcoded"))


def test_a_whole_study_in_one_transfer_syntax(mixed: Gateway) -> None:
    """Every instance of a mixed study is converted, reports too."""
    parts = mixed.ask(f"/studies/{STUDY}", f"{DICOM}; transfer-syntax={ExplicitVRLittleEndian}").parts()
    syntaxes = {dcmread(BytesIO(content)).file_meta.TransferSyntaxUID for _, content in parts}
    assert (len(parts), syntaxes) == (len(MIXED), {ExplicitVRLittleEndian})


def test_what_cannot_be_made_is_406(mixed: Gateway) -> None:
    """A report has no pixels to compress; there is no such transfer syntax; nobody has text/html."""
    for syntax in (JPEG2000Lossless, "1.2.3"):
        assert mixed.ask(path_of(MIXED[-1]), f"{DICOM}; transfer-syntax={syntax}").status == 406
    assert mixed.ask(f"/studies/{STUDY}", "text/html").status == 406


def test_zip_and_a_single_file(mixed: Gateway) -> None:
    """A study as a ZIP file; an instance as application/dicom, which a study of several cannot be."""
    with ZipFile(BytesIO(mixed.ask(f"/studies/{STUDY}", "application/zip").body)) as archive:
        assert len(archive.namelist()) == len(MIXED)
    single = mixed.ask(path_of(MIXED[0]), "application/dicom")
    assert dcmread(BytesIO(single.body)) == MIXED[0]
    assert mixed.ask(f"/studies/{STUDY}", "application/dicom").status == 406


def test_what_the_pacs_does_not_have_is_404(web: Gateway) -> None:
    """dicomweb-client raises with the status."""
    with pytest.raises(requests.HTTPError, match="404"):
        web.client.retrieve_study("1.2.3.4")


def test_an_instance_of_another_series(web: Gateway, pacs: RunningPacs) -> None:
    """dcmqrscp sends it whatever series is named; below the wrong one it is 404, before and after it is kept."""
    one = next(ds for ds in originals(list(pacs.files)).values() if ds.Modality == "CT")
    wrong = path_of(one).replace(f"/series/{one.SeriesInstanceUID}/", "/series/1.2.3/")
    for _ in range(2):
        for path, accept in ((wrong, "application/dicom"), (f"{wrong}/metadata", "*/*"), (f"{wrong}/frames/1", "*/*")):
            assert web.ask(path, accept).status == 404
        assert web.ask(path_of(one), "application/dicom").status == 200


def test_metadata_leads_to_bulk_data(mixed: Gateway) -> None:
    """Metadata is the data set without bulk data, which is at the BulkDataURI, whole."""
    records = mixed.client.retrieve_series_metadata(STUDY, SERIES)
    assert len(records) == len(MIXED)
    by_uid = {record["00080018"]["Value"][0]: record for record in records}
    for ds in (MIXED[0], MIXED[1], MIXED[3]):
        record = by_uid[ds.SOPInstanceUID]
        assert record["00100010"]["Value"][0]["Alphabetic"] == str(ds.PatientName)
        assert record.get("00080005", {"Value": ["ISO_IR 192"]})["Value"] == ["ISO_IR 192"]
        assert "InlineBinary" not in record["7FE00010"]
        assert mixed.client.retrieve_bulkdata(record["7FE00010"]["BulkDataURI"]) == [ds.PixelData]
    as_instances = mixed.ask(f"/studies/{STUDY}/series/{SERIES}", "application/dicom+json")
    assert json.loads(as_instances.body) == records
    (only,) = [mixed.client.retrieve_instance_metadata(STUDY, SERIES, MIXED[0].SOPInstanceUID)]
    assert only == by_uid[MIXED[0].SOPInstanceUID]
    parts = mixed.ask(f"/studies/{STUDY}/metadata", 'multipart/related; type="application/dicom+xml"').parts()
    assert len(parts) == len(MIXED)
    assert b"<BulkData uri=" in parts[0][1]


def test_bulk_data_that_is_not_there(mixed: Gateway) -> None:
    """404 for a tag, an item and an instance that do not exist."""
    for place in ("00420011", "00081140/1/00420011", "nonsense"):
        assert mixed.ask(f"{path_of(MIXED[0])}/bulkdata/{place}").status == 404


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("/studies/1.2.3", DICOM),
        ("/studies/1.2.3", "application/zip"),
        ("/studies/1.2.3/metadata", "application/dicom+json"),
        ("/studies/1.2.3/rendered", "image/png"),
    ],
)
def test_an_answer_that_is_not_whole_does_not_end_cleanly(tmp_path: Path, path: str, accept: str) -> None:
    """The PACS breaks off in the middle: what arrived is sent, and the answer is cut."""
    with (
        ScriptedPeer(count=5, after=2, then="abort") as peer,
        dicomweb_over(tmp_path, peer_backend(peer, engine="dcmtk")) as web,
    ):
        with pytest.raises(IncompleteRead) as cut:
            web.ask(path, accept)
        assert len(cut.value.partial) > 100


def test_the_first_instance_does_not_wait_for_the_last(tmp_path: Path) -> None:
    """What has arrived is sent while the PACS still sends the rest."""
    gate = tmp_path / "gate"
    with (
        ScriptedPeer(count=3, after=1, then="wait", gate=str(gate)) as peer,
        dicomweb_over(tmp_path / "web", peer_backend(peer, engine="dcmtk")) as web,
    ):
        answer = requests.get(f"{web.url}/studies/1.2.3", headers={"Accept": DICOM}, stream=True, timeout=20)
        chunks = answer.iter_content(None)
        assert next(chunks).startswith(b"--")
        gate.touch()
        assert b"".join(chunks).endswith(b"--\r\n")


def test_a_tree_of_json(mixed: Gateway) -> None:
    """A report, with nested sequences, comes through metadata as pydicom writes it."""
    record = mixed.client.retrieve_instance_metadata(STUDY, SERIES, MIXED[-1].SOPInstanceUID)
    assert record["0040A730"] == json.loads(json.dumps(MIXED[-1].to_json_dict()))["0040A730"]
