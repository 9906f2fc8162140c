"""``rewrite`` and ``deidentify`` over every way in and out: each side sees its own view, and nothing of the other's."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from dicomweb_client import DICOMwebClient
from dicomweb_kit import pacs_options
from endpoint_kit import wait_delivered
from pydicom import Dataset, dcmread
from pynetdicom import evt
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from query_kit import AET, STUDY_ROOT_FIND, Node, associate, dataset, endpoint, find

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import Answer, RunningDaemon
from harmonyd.testing.data import MadeStudy, make_study, shipped_folder
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port

PATIENT = "00100020"
STUDY = "0020000D"
COMPRESSED = shipped_folder() / "MR_small_RLE.dcm"
CT = "1.2.840.10008.5.1.4.1.1.2"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
DICOM = {"Content-Type": "application/dicom"}


@dataclass
class Bed:
    """One daemon: ``plain`` shows what the PACS has, ``ours`` rewrites towards it, ``research`` de-identifies."""

    daemon: RunningDaemon
    dicom_port: int
    research_port: int
    there: MadeStudy
    """In the PACS from the start."""
    folder: Path

    def ask(self, prefix: str, operation: str, document: dict[str, Any], accept: str = "application/json") -> Answer:
        return self.daemon.http("POST", f"/{prefix}/{operation}", json=document, headers={"Accept": accept})

    def found(self, prefix: str, **keys: Any) -> list[dict[str, Any]]:
        answer = self.ask(prefix, "find", {"level": "STUDY", "PatientID": "", **keys})
        assert answer.status == 200, answer.body
        return answer.json()["matches"]

    def client(self, prefix: str) -> DICOMwebClient:
        return DICOMwebClient(f"{self.daemon.base_url}/{prefix}")

    def web(self, path: str, accept: str) -> tuple[int, bytes]:
        connection = HTTPConnection(*self.daemon.base_url.removeprefix("http://").split(":"), timeout=30)
        try:
            connection.request("GET", path, headers={"Accept": accept})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    folder = tmp_path_factory.mktemp("rewriting")
    (folder / "key").write_bytes(b"k" * 40)
    (folder / "key").chmod(0o600)
    there = make_study(folder / "there", 2, patient_id="THERE-1", size=16)
    dicom_port, research_port = free_port(), free_port()
    ours = {
        "type": "rewrite", "towards": "backend",
        "prefix": {"PatientID": "A-"}, "map": {"Manufacturer": {"harmonyd": "Other"}},
        "uids": {"key_file": str(folder / "key")},
        "blank": [{"when": {"Modality": "MR", "Rows": 64}, "regions": [[0, 0, 64, 1]]}],
    }  # fmt: skip
    hide = {
        "type": "deidentify", "towards": "client", "key_file": str(folder / "key"), "report_path": "report.jsonl",
        "blank": [{"when": {"Modality": "CT"}, "regions": [[0, 0, 16, 2]]}],
    }  # fmt: skip
    http = {"service": "http"}
    web = {"service": "dicomweb"}
    ways = {"plain": [], "ours": ["ours"], "research": ["hide"]}
    endpoints = {name: {**http, "path_prefix": f"/{name}"} for name in ways}
    endpoints |= {f"{name}-web": {**web, "path_prefix": f"/{name}-web"} for name in ways}
    endpoints["inbound"] = endpoint(dicom_port, ["store", "find", "get"])
    endpoints["readers"] = endpoint(research_port, ["find", "get"])
    extra = {"ours": ["inbound"], "research": ["readers"]}
    pipelines = {
        name: {
            "description": "x", "networks": ["default"], "backends": ["pacs"], "middleware": links,
            "endpoints": [name, f"{name}-web", *extra.get(name, [])],
        }
        for name, links in ways.items()
    }  # fmt: skip
    with RunningPacs(folder / "pacs", files=there.files) as pacs:
        config = write_config(
            folder,
            http_port=free_port(),
            backends={"pacs": pacs_options(pacs, "native")},
            endpoints=endpoints,
            middleware={"ours": ours, "hide": hide},
            pipelines=pipelines,
        )
        with RunningDaemon(config) as daemon:
            yield Bed(daemon, dicom_port, research_port, there, folder)


def only(matches: list[dict[str, Any]], tag: str) -> list[str]:
    return [match[tag]["Value"][0] for match in matches]


def data_sets(data: bytes) -> Dataset:
    return dcmread(BytesIO(data))


@pytest.fixture(scope="module")
def stored(bed: Bed) -> MadeStudy:
    """A study that came in three ways through ``ours``: C-STORE, a plain POST, and STOW-RS."""
    study = make_study(bed.folder / "mine", 3, patient_id="7", size=16)
    assoc = associate(Node(AET, bed.dicom_port), CT)
    assert assoc.send_c_store(dcmread(study.files[0])).Status == 0
    assoc.release()
    wait_delivered(bed.daemon)
    posted = bed.daemon.http("POST", "/ours/store", body=study.files[1].read_bytes(), headers=DICOM)
    assert posted.status == 200, posted.body
    assert posted.json()["instances"][0]["sop_instance_uid"] == study.sop_uids[1]
    response = bed.client("ours-web").store_instances([dcmread(study.files[2])], study_instance_uid=study.study_uid)
    (item,) = response[0x00081199].value
    assert item.ReferencedSOPInstanceUID == study.sop_uids[2]
    assert item.RetrieveURL.endswith(
        f"/studies/{study.study_uid}/series/{study.series_uids[0]}/instances/{study.sop_uids[2]}"
    )
    return study


def test_what_the_pacs_has(bed: Bed, stored: MadeStudy) -> None:
    """Behind ``ours`` are other names; a client that asks for those finds nothing."""
    (match,) = bed.found("plain", PatientID="A-7")
    assert match[STUDY]["Value"][0].startswith("2.25.")
    assert match[STUDY]["Value"][0] != stored.study_uid
    assert bed.found("ours", PatientID="A-7") == []
    assert bed.found("ours", StudyInstanceUID=match[STUDY]["Value"][0]) == []
    got = bed.ask("plain", "get", {"level": "STUDY", "StudyInstanceUID": match[STUDY]["Value"][0]}).json()
    assert {each["00080070"]["Value"][0] for each in got["instances"]} == {"Other"}
    assert not {each["00080018"]["Value"][0] for each in got["instances"]} & set(stored.sop_uids)


@pytest.mark.parametrize("keys", [{"PatientID": "7"}, {"PatientID": "7*"}, {"patient_id": "?"}])
def test_a_query_in_the_clients_view(bed: Bed, stored: MadeStudy, keys: dict[str, str]) -> None:
    """Identifiers are translated there, and results back."""
    (match,) = bed.found("ours", **keys)
    assert only([match], PATIENT) == ["7"]
    assert only([match], STUDY) == [stored.study_uid]


def test_round_trip_over_http(bed: Bed, stored: MadeStudy) -> None:
    """What was stored comes back as it was, byte for byte of the data set."""
    answer = bed.ask("ours", "get", {"level": "STUDY", "StudyInstanceUID": stored.study_uid}, "application/zip")
    assert answer.status == 200
    with zipfile.ZipFile(BytesIO(answer.body)) as archive:
        got = {name.removesuffix(".dcm"): data_sets(archive.read(name)) for name in archive.namelist()}
    assert got == {uid: dcmread(path) for uid, path in zip(stored.sop_uids, stored.files, strict=True)}


def test_round_trip_over_dicomweb(bed: Bed, stored: MadeStudy) -> None:
    """Search, metadata, instances and frames are all in the client's view, and the second time, from the cache, too."""
    client = bed.client("ours-web")
    (found,) = client.search_for_studies(search_filters={"PatientID": "7"})
    assert only([found], STUDY) == [stored.study_uid]
    uids = (stored.study_uid, stored.series_uids[0], stored.sop_uids[0])
    for _ in range(2):
        assert client.retrieve_instance(*uids) == dcmread(stored.files[0])
        metadata = client.retrieve_instance_metadata(*uids)
        assert metadata[PATIENT]["Value"] == ["7"]
        assert "/".join(("studies", uids[0], "series", uids[1])) in json.dumps(metadata) or "7FE00010" not in metadata
        assert client.retrieve_instance_frames(*uids, [1])[0] == dcmread(stored.files[0]).PixelData
    every = client.retrieve_study_metadata(stored.study_uid)
    assert sorted(only(every, "00080018")) == sorted(stored.sop_uids)


def asked_over_dicom(port: int, **keys: Any) -> list[Dataset]:
    """The matches of a C-FIND."""
    assoc = associate(Node(AET, port), STUDY_ROOT_FIND)
    given = {"StudyInstanceUID": "", "PatientID": "", "PatientName": "", **keys}
    matches = find(assoc, dataset(QueryRetrieveLevel="STUDY", **given))
    assoc.release()
    assert matches[-1][0].Status == 0
    return [match for _, match in matches if match is not None]


def got_over_dicom(port: int, study: str) -> list[Dataset]:
    """What a C-GET brings."""
    came: list[Dataset] = []

    def take(event: evt.Event) -> int:
        ds = event.dataset
        ds.file_meta = event.file_meta
        came.append(ds)
        return 0

    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = CT, False, True
    handlers = [(evt.EVT_C_STORE, take)]
    assoc = associate(Node(AET, port), STUDY_ROOT_GET, CT, ext_neg=[role], evt_handlers=handlers)
    answers = list(assoc.send_c_get(dataset(QueryRetrieveLevel="STUDY", StudyInstanceUID=study), STUDY_ROOT_GET))
    assoc.release()
    assert answers[-1][0].Status == 0
    assert answers[-1][0].NumberOfCompletedSuboperations == len(came)
    return came


def test_round_trip_over_dicom(bed: Bed, stored: MadeStudy) -> None:
    """C-FIND and C-GET are in the client's view, too."""
    (match,) = asked_over_dicom(bed.dicom_port, PatientID="7")
    assert (match.PatientID, match.StudyInstanceUID) == ("7", stored.study_uid)
    assert asked_over_dicom(bed.dicom_port, PatientID="A-7") == []
    came = {ds.SOPInstanceUID: ds for ds in got_over_dicom(bed.dicom_port, stored.study_uid)}
    assert came == {uid: dcmread(path) for uid, path in zip(stored.sop_uids, stored.files, strict=True)}


def test_readers_over_dicom_see_nobody(bed: Bed, seen: dict[str, Any]) -> None:
    """What C-FIND and C-GET bring is de-identified; a question by name is refused with a status."""
    (match,) = asked_over_dicom(bed.research_port, StudyInstanceUID=seen[STUDY]["Value"][0])
    assert match.PatientID == match.PatientName == seen[PATIENT]["Value"][0]
    came = got_over_dicom(bed.research_port, match.StudyInstanceUID)
    assert [ds.PatientIdentityRemoved for ds in came] == ["YES", "YES"]
    text = "".join(map(str, [match, *came]))
    assert [mark for mark in MARKS if mark.decode() in text] == []
    assoc = associate(Node(AET, bed.research_port), STUDY_ROOT_FIND)
    ((status, _),) = find(assoc, dataset(QueryRetrieveLevel="STUDY", PatientName="Smith*"))
    assoc.release()
    assert status.Status != 0


def test_compressed_pixels_are_decoded(bed: Bed) -> None:
    """Where regions are to be blanked; then the object is not compressed any more."""
    posted = bed.daemon.http("POST", "/ours/store", body=COMPRESSED.read_bytes(), headers=DICOM)
    assert posted.status == 200, posted.body
    study = {"level": "STUDY", "StudyInstanceUID": dcmread(COMPRESSED).StudyInstanceUID}
    answer = bed.ask("ours", "get", study, "application/dicom")
    assert answer.status == 200, answer.body
    after, before = data_sets(answer.body), dcmread(COMPRESSED)
    assert after.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert (after.pixel_array[1:] == before.pixel_array[1:]).all()
    assert len(set(after.pixel_array[0])) == 1


def test_unknown_uids_are_not_found(bed: Bed, stored: MadeStudy) -> None:
    """A UID of the other side, or of nobody, is none."""
    assert bed.ask("research", "get", {"level": "STUDY", "StudyInstanceUID": bed.there.study_uid}).status == 404
    status, _ = bed.web(f"/research-web/studies/{bed.there.study_uid}/metadata", "application/dicom+json")
    assert status == 404


@pytest.fixture(scope="module")
def seen(bed: Bed) -> dict[str, Any]:
    """What ``research`` sees of the study that was there."""
    matches = bed.found("research", NumberOfStudyRelatedInstances="", StudyDate="", PatientName="")
    pseudonym = bed.found("research", PatientID=only(matches, PATIENT)[0])
    assert len(pseudonym) == 1
    for match in matches:
        got = bed.ask("research", "get", {"level": "STUDY", "StudyInstanceUID": match[STUDY]["Value"][0]})
        if got.json()["file_count"] == 2:
            return match
    raise AssertionError("the study is not there")


MARKS = (b"THERE-1", b"20240229", b"19700101")


def test_research_sees_nobody(bed: Bed, seen: dict[str, Any]) -> None:
    """Neither queries nor metadata nor instances nor bulk data show who it is; the top rows are black."""
    study = seen[STUDY]["Value"][0]
    answer = bed.ask("research", "get", {"level": "STUDY", "StudyInstanceUID": study}, "application/zip")
    secrets = [*MARKS, bed.there.study_uid.encode(), *(uid.encode() for uid in bed.there.sop_uids)]
    shown = [answer.body, json.dumps(seen).encode()]
    client = bed.client("research-web")
    for _ in range(2):
        metadata = client.retrieve_study_metadata(study)
        shown.append(json.dumps(metadata).encode())
        first = metadata[0]
        uids = (study, first["0020000E"]["Value"][0], first["00080018"]["Value"][0])
        ds = client.retrieve_instance(*uids)
        out = BytesIO()
        ds.save_as(out)
        shown.append(out.getvalue())
        assert (ds.PatientIdentityRemoved, ds.BurnedInAnnotation) == ("YES", "NO")
        assert [item.CodeValue for item in ds.DeidentificationMethodCodeSequence] == ["113100", "113101"]
        assert ds.PixelData[:64] == bytes(64) and ds.PixelData[64:] != bytes(len(ds.PixelData) - 64)
        (frame,) = client.retrieve_instance_frames(*uids, [1])
        assert frame == ds.PixelData
        status, rendered = bed.web(
            f"/research-web/studies/{uids[0]}/series/{uids[1]}/instances/{uids[2]}/bulkdata/7FE00010",
            'multipart/related; type="application/octet-stream"',
        )
        assert status == 200 and frame in rendered
    for text in shown:
        assert [secret for secret in secrets if secret in text] == []


def test_a_removed_attribute_cannot_be_asked_for(bed: Bed) -> None:
    """Else whoever may not see a name could find out whose it is."""
    answer = bed.ask("research", "find", {"level": "STUDY", "PatientName": "Smith*"})
    assert answer.status == 400
    assert "PatientName" in answer.json()["detail"]


def test_the_report(bed: Bed, seen: dict[str, Any]) -> None:
    """Each object has a line that tells what was done to which element, and no value."""
    text = (bed.folder / "report.jsonl").read_text("utf-8")
    line = json.loads(text.splitlines()[0])
    assert line["actions"]["pseudonym"] == {"00100010": 1, PATIENT: 1}
    assert line["actions"]["blank"] == {"7FE00010": 1}
    assert "THERE-1" not in text


def test_nothing_stays_on_the_disk(bed: Bed, seen: dict[str, Any], stored: MadeStudy) -> None:
    """What was made for an answer or a delivery goes with it."""
    left = [*(bed.folder / "tmp").glob("dcmtk_*/*.new"), *(bed.folder / "tmp").glob("dcmtk_store_*")]
    assert left == []
