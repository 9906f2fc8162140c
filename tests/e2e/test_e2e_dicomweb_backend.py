"""DICOMweb archives behind every pipeline: Orthanc's, and our own over a dcmqrscp; compared with what DIMSE answers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from dicomweb_client import DICOMwebClient
from orthanc_kit import Orthanc
from pydicom import dcmread
from pynetdicom import AE
from query_kit import Node, findscu

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import demo_files, make_charset_studies, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import dcmtk, free_port, wait_until

USER = ("gateway", "pass word")
DEMO = [path for path in demo_files() if path.stat().st_size < 1_000_000]
OF_DIMSE_ALONE = ("00080005", "00080054")
"""Specific Character Set, for DICOMweb answers in UTF-8, and Retrieve AE Title, which no such archive has."""


@dataclass
class World:
    """A gateway whose backends are Orthanc over DICOMweb (``web``) and DIMSE (``pacs``), and itself (``loop``)."""

    daemon: RunningDaemon
    orthanc: Orthanc
    port: int
    scp: int
    files: list[Path]

    def ask(self, operation: str, document: Any, backend: str = "web") -> Any:
        """The decoded answer."""
        url = f"http://127.0.0.1:{self.port}/dicom/{operation}?backend={backend}"
        return requests.post(url, json=document, timeout=30).json()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    secret = folder / "password"
    secret.write_text(f"{USER[1]}\n")
    secret.chmod(0o600)
    files = [*DEMO]
    for study in make_charset_studies(folder / "charsets"):
        files += study.files
    port, scp = free_port(), free_port()
    with ExitStack() as stack:
        orthanc = stack.enter_context(Orthanc(folder / "orthanc", {"HARMONY_SCU": free_port()}, dicomweb_user=USER))
        for path in files:
            orthanc.add(path)
        pacs = stack.enter_context(RunningPacs(folder / "pacs", files=DEMO))
        native = {"engine": "native", "host": "127.0.0.1"}
        backends = {
            "web": {
                "service": "dicomweb",
                "url": orthanc.dicomweb_url,
                "username": USER[0],
                "password_file": str(secret),
                "page_size": 3,
                "max_store_objects": 2,
            },
            "pacs": {**native, **orthanc.backend},
            "loop": {"service": "dicomweb", "url": f"http://127.0.0.1:{port}/archive"},
            "dcmqrscp": {**native, "aet": pacs.aet, "port": pacs.port},
        }

        def pipeline(endpoint: str, *names: str) -> dict[str, Any]:
            base = {"description": "", "networks": ["default"], "middleware": []}
            return {**base, "endpoints": [endpoint], "backends": list(names)}

        config = write_config(
            folder / "gateway",
            http_port=port,
            backends=backends,
            endpoints={
                "http": {"service": "http", "path_prefix": "/dicom"},
                "web": {"service": "dicomweb", "path_prefix": "/web", "public_url": f"http://127.0.0.1:{port}"},
                "archive": {"service": "dicomweb", "path_prefix": "/archive"},
                "scp": {
                    "service": "dicom",
                    "engine": "native",
                    "local_aet": "GATE",
                    "port": scp,
                    "services": ["store", "find", "get"],
                },
            },
            pipelines={
                "asked": pipeline("http", "web", "pacs", "loop", "dcmqrscp"),
                "web": pipeline("web", "web"),
                "archive": pipeline("archive", "dcmqrscp"),
                "inbound": pipeline("scp", "web"),
            },
        )
        daemon = stack.enter_context(RunningDaemon(config))
        yield World(daemon, orthanc, port, scp, files)


def by_uid(matches: list[dict[str, Any]], tag: str) -> dict[str, dict[str, Any]]:
    """Matches without what only DIMSE tells."""
    return {
        match[tag]["Value"][0]: {key: entry for key, entry in match.items() if key not in OF_DIMSE_ALONE}
        for match in matches
    }


def test_an_echo_says_that_the_archive_lets_us_in(world: World) -> None:
    """The credentials are right."""
    answer = world.ask("echo", {})
    assert (answer["success"], answer["host"]) == (True, "127.0.0.1")


STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
QUESTIONS: list[tuple[dict[str, Any], str]] = [
    ({"level": "STUDY", "PatientID": None}, STUDY),
    ({"level": "STUDY", "PatientName": "D*"}, STUDY),
    ({"level": "STUDY", "PatientName": "*ller*"}, STUDY),
    ({"level": "STUDY", "PatientName": "Yamada*", "StudyDescription": None}, STUDY),
    ({"level": "STUDY", "StudyDate": "19970101-20101231"}, STUDY),
    ({"level": "STUDY", "StudyDate": "20040101-"}, STUDY),
    ({"level": "STUDY", "ModalitiesInStudy": "CT"}, STUDY),
    ({"level": "STUDY", "PatientID": "nobody"}, STUDY),
    ({"level": "SERIES", "Modality": "MR", "StudyInstanceUID": None}, SERIES),
]


@pytest.mark.parametrize(("asked", "tag"), QUESTIONS)
def test_orthanc_answers_the_same_over_both(world: World, asked: dict[str, Any], tag: str) -> None:
    """Tag by tag, in several pages: keys, wildcards, ranges, character sets."""
    web, pacs = world.ask("find", asked), world.ask("find", asked, "pacs")
    assert web["complete"] and pacs["complete"]
    assert by_uid(web["matches"], tag) == by_uid(pacs["matches"], tag)
    assert (web["count"] == 0) == (asked.get("PatientID") == "nobody")


def test_each_series_and_instance_is_the_same_over_both(world: World) -> None:
    """Below each study; a list of UIDs is one question."""
    studies = [match[STUDY]["Value"][0] for match in world.ask("find", {"level": "STUDY"})["matches"]]
    several = {"level": "STUDY", "StudyInstanceUID": studies[:3], "return": "requested"}
    assert world.ask("find", several)["count"] == 3
    for study in studies:
        asked: dict[str, Any] = {"level": "SERIES", "StudyInstanceUID": study}
        web, pacs = (by_uid(world.ask("find", asked, name)["matches"], SERIES) for name in ("web", "pacs"))
        assert web == pacs
        asked = {**asked, "level": "IMAGE", "SeriesInstanceUID": next(iter(web))}
        web, pacs = (by_uid(world.ask("find", asked, name)["matches"], INSTANCE) for name in ("web", "pacs"))
        assert web == pacs != {}


def test_patients_are_made_of_their_studies(world: World) -> None:
    """Each once, though DICOMweb has no such level, and with the counts that a PACS tells."""
    asked = {"level": "PATIENT"}
    web, pacs = (by_uid(world.ask("find", asked, name)["matches"], "00100020") for name in ("web", "pacs"))
    assert web == pacs


@pytest.mark.parametrize("backend", ["web", "loop"])
def test_studies_come_as_they_are_stored(world: World, backend: str) -> None:
    """Of Orthanc, and of our own endpoint: equal data sets in their own transfer syntax, and the count is told."""
    files = DEMO if backend == "loop" else world.files
    originals = {str(ds.SOPInstanceUID): ds for ds in map(dcmread, files)}
    for study in sorted({str(ds.StudyInstanceUID) for ds in originals.values()}):
        answer = world.ask("get", {"StudyInstanceUID": study}, backend)
        expected = {uid for uid, ds in originals.items() if ds.StudyInstanceUID == study}
        assert answer["complete"], answer
        assert answer["suboperations"]["completed"] == answer["file_count"] == len(expected)
        received = [dcmread(path) for path in Path(answer["folder_path"]).iterdir()]
        assert {str(ds.SOPInstanceUID) for ds in received} == expected
        for ds in received:
            original = originals[str(ds.SOPInstanceUID)]
            assert ds.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
            assert ds == original


def test_a_series_and_an_instance_by_move(world: World) -> None:
    """A move is a get; there is no other way to an archive."""
    ds = dcmread(world.files[0])
    asked = {"StudyInstanceUID": str(ds.StudyInstanceUID), "SeriesInstanceUID": str(ds.SeriesInstanceUID)}
    assert world.ask("move", asked)["complete"]
    answer = world.ask("move", {**asked, "SOPInstanceUID": str(ds.SOPInstanceUID)})
    assert (answer["file_count"], answer["complete"]) == (1, True)


def test_what_is_not_there_is_404(world: World) -> None:
    """As with a PACS."""
    answer = world.ask("get", {"StudyInstanceUID": "1.2.3"})
    assert (answer["status"], answer["fault"]) == (404, "caller")


def test_our_dicomweb_endpoint_over_an_archive(world: World) -> None:
    """Search, retrieve, metadata and store through both halves of the service."""
    client = DICOMwebClient(f"http://127.0.0.1:{world.port}/web")
    studies = client.search_for_studies()
    assert len(studies) == len({str(dcmread(path).StudyInstanceUID) for path in world.files})
    ds = dcmread(world.files[0])
    study = str(ds.StudyInstanceUID)
    assert str(ds.SOPInstanceUID) in {str(each.SOPInstanceUID) for each in client.retrieve_study(study)}
    assert client.retrieve_study_metadata(study)
    stored = client.store_instances([ds])
    assert [str(item.ReferencedSOPInstanceUID) for item in stored.ReferencedSOPSequence] == [str(ds.SOPInstanceUID)]


def test_a_store_tells_each_outcome(world: World, tmp_path: Path) -> None:
    """Several requests of two objects each."""
    study = make_study(tmp_path, 5)
    boundary = b"xyz"
    parts = [b"--xyz\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() for path in study.files]
    body = b"\r\n".join([*parts, b"--" + boundary + b"--"])
    kind = 'multipart/related; type="application/dicom"; boundary=xyz'
    url = f"http://127.0.0.1:{world.port}/dicom/store?backend=web"
    answer = requests.post(url, data=body, headers={"Content-Type": kind}, timeout=30).json()
    assert (answer["stored"], answer["success"]) == (5, True)
    assert {each["status"] for each in answer["instances"]} == {"0x0000"}
    assert world.ask("find", {"level": "STUDY", "StudyInstanceUID": study.study_uid}, "pacs")["count"] == 1


def test_what_a_modality_sends_reaches_the_archive(world: World, tmp_path: Path) -> None:
    """C-STORE, spool, STOW-RS."""
    study = make_study(tmp_path, 3)
    objects = [dcmread(path) for path in study.files]
    ae = AE("MODALITY")
    ae.add_requested_context(objects[0].SOPClassUID, objects[0].file_meta.TransferSyntaxUID)
    assoc = ae.associate("127.0.0.1", world.scp, ae_title="GATE")
    assert [assoc.send_c_store(ds).Status for ds in objects] == [0, 0, 0]
    assoc.release()
    asked = {"level": "STUDY", "StudyInstanceUID": study.study_uid, "NumberOfStudyRelatedInstances": None}

    def is_there() -> bool:
        matches = world.ask("find", asked, "pacs")["matches"]
        return bool(matches) and matches[0]["00201208"].get("Value") == [3]

    wait_until(is_there, "all three are there", 10)


def test_a_workstation_queries_the_archive_with_dimse(world: World, tmp_path: Path) -> None:
    """C-FIND through us answers what Orthanc answers itself, in every character set."""
    keys = ("QueryRetrieveLevel=STUDY", "StudyInstanceUID", "PatientName", "PatientID", "StudyDate")
    through = findscu(Node("GATE", world.scp), tmp_path / "through", *keys, options=("-aet", "HARMONY_SCU"))
    asked = {"level": "STUDY", "return": "requested", "PatientName": None, "PatientID": None, "StudyDate": None}
    direct = world.ask("find", {**asked, "StudyInstanceUID": None}, "pacs")["matches"]

    def name(match: dict[str, Any]) -> str:
        groups = match.get("00100010", {}).get("Value", [{}])[0]
        return "=".join(groups.get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")).rstrip("=")

    found = {str(ds.StudyInstanceUID): str(ds.PatientName) for ds in through}
    assert found == {match[STUDY]["Value"][0]: name(match) for match in direct}


def test_a_workstation_retrieves_from_the_archive_with_dimse(world: World, tmp_path: Path) -> None:
    """C-GET through us brings the objects as they are stored."""
    ds = dcmread(world.files[0])
    of_study = {
        str(each.SOPInstanceUID) for each in map(dcmread, world.files) if each.StudyInstanceUID == ds.StudyInstanceUID
    }
    folder = tmp_path / "got"
    folder.mkdir()
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={ds.StudyInstanceUID}")
    argv = [dcmtk("getscu"), "-v", "-S", "-od", str(folder), "-aec", "GATE", "127.0.0.1", str(world.scp), *keys]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert f"Number of Completed Suboperations : {len(of_study)}" in done.stdout + done.stderr
    assert {str(dcmread(path).SOPInstanceUID) for path in folder.iterdir()} == of_study


def test_credentials_are_nowhere(world: World) -> None:
    """Neither in the log nor in an answer."""
    assert USER[1] not in world.daemon.log and "Authorization" not in world.daemon.log
    assert USER[1] not in json.dumps(requests.get(f"{world.daemon.base_url}/openapi.json", timeout=10).json())
