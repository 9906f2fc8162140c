"""Orthanc behind the daemon, and before it: what goes through is what comes without, tag by tag."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from orthanc_kit import Orthanc
from pydicom import Dataset, dcmread
from query_kit import OSIRIX_KEYS, RUNS_ALONE, STUDY_KEYS, WEASIS_KEYS, Node, as_set, findscu, raw_elements, several
from retrieve_kit import together

from harmonyd.testing.data import demo_files, make_charset_studies, report_files
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import dcmtk, free_port

_FOLDERS = count()
LEVELS = ("Study", "Series", "Instance")
SERIES_KEYS = ("QueryRetrieveLevel=SERIES", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber")
IMAGE_KEYS = ("QueryRetrieveLevel=IMAGE", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Every test data set."""
    studies = make_charset_studies(tmp_path_factory.mktemp("charsets"))
    return [*demo_files(), *report_files(), *(file for study in studies for file in study.files)]


@pytest.fixture(scope="module")
def pacs(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPacs]:
    with RunningPacs(tmp_path_factory.mktemp("pacs"), files=files) as running:
        yield running


@pytest.fixture(scope="module")
def archive(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An Orthanc that has all of it, and moves to us. It answers only who it knows."""
    known = dict.fromkeys(("HARMONY_SCU", "WORKSTATION", "WS"), 104) | {"HARMONY_MOVE": free_port()}
    with Orthanc(tmp_path_factory.mktemp("archive") / "data", known) as running:
        for path in files:
            running.add(path)
        yield running


@pytest.fixture(scope="module")
def nodes(pacs: RunningPacs, archive: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Node]]:
    moves = {
        "move_destination_aet": "HARMONY_MOVE",
        "incoming_store_port": archive.modalities["HARMONY_MOVE"],
        "dimse_retrieve_mode": "move",
    }
    native = {**archive.backend, "engine": "native"}
    given = {
        "get": ({"archive-get": native}, {}),
        "move": ({"archive-move": {**native, **moves}}, {}),
        "pacs": ({"pacs": {"aet": pacs.aet, "host": "127.0.0.1", "port": pacs.port, "engine": "native"}}, {}),
    }
    destinations = {"ORTHANC": {"host": "127.0.0.1", "port": archive.port}}
    daemon, nodes = several(tmp_path_factory.mktemp("daemon"), given, move_destinations=destinations)
    with daemon:
        yield nodes


def found(node: Node, folder: Path, *keys: str, model: str = "-S") -> list[Dataset]:
    """What findscu gets, without what differs from time to time."""
    return findscu(node, folder / f"found{next(_FOLDERS)}", *keys, model=model)


@pytest.mark.parametrize(
    ("keys", "model"),
    [(STUDY_KEYS, "-S"), (OSIRIX_KEYS, "-S"), (WEASIS_KEYS, "-S"), (SERIES_KEYS, "-S"), (IMAGE_KEYS, "-S"),
     (("QueryRetrieveLevel=PATIENT", "PatientID", "PatientName"), "-P")],
    ids=["studies", "osirix", "weasis", "series", "images", "patients"],
)  # fmt: skip
def test_what_orthanc_answers(nodes: dict[str, Node], archive: Orthanc, keys: Any, model: str, tmp_path: Path) -> None:
    """To what workstations ask, it answers through us byte for byte what it answers without."""
    straight = found(Node("ORTHANC", archive.port), tmp_path, *keys, model=model)
    assert len(straight) > 5
    assert as_set(found(nodes["get"], tmp_path, *keys, model=model)) == as_set(straight)


@pytest.mark.parametrize(("way", "most"), [("get", 4), ("move", 4), ("pacs", None)])
def test_every_object_is_what_it_is_without_us(
    nodes: dict[str, Node],
    archive: Orthanc,
    pacs: RunningPacs,
    files: list[Path],
    way: str,
    most: int | None,
    tmp_path: Path,
) -> None:
    """Of every test data set (of Orthanc some), however it is asked for it."""
    direct = Node(pacs.aet, pacs.port) if way == "pacs" else Node("ORTHANC", archive.port)
    studies = list(dict.fromkeys(str(dcmread(path, stop_before_pixels=True).StudyInstanceUID) for path in files))[:most]

    def got(node: Node, uid: str) -> dict[str, Any]:
        folder = tmp_path / f"got{next(_FOLDERS)}"
        folder.mkdir()
        argv = [dcmtk("getscu"), *RUNS_ALONE[1:], "-S", "-od", str(folder), "+B", "-aet", "WS", "-aec", node.aet]
        argv += ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={uid}", "127.0.0.1", str(node.port)]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, env={"TCP_NODELAY": "1", "PATH": "/usr/bin"})
        return {path.name: raw_elements(dcmread(path)) for path in folder.iterdir()}

    def compare(number: int) -> int:
        straight = got(direct, studies[number])
        assert got(nodes[way], studies[number]) == straight
        return len(straight)

    assert sum(together(len(studies), compare)) >= len(studies)


@pytest.mark.parametrize("level", LEVELS)
def test_orthanc_asks_and_retrieves_at_every_level(
    nodes: dict[str, Node], archive: Orthanc, files: list[Path], level: str
) -> None:
    """Through its REST interface for modalities; what it has then of a study is what it has asked for."""
    node, original = nodes["pacs"], dcmread(files[0])
    wanted = json.dumps({"Level": "Study", "Query": {"StudyInstanceUID": original.StudyInstanceUID}}).encode()
    for name in json.loads(archive.rest("POST", "/tools/find", wanted)):
        archive.rest("DELETE", f"/studies/{name}")
    archive.rest(
        "PUT", "/modalities/harmonyd", json.dumps({"AET": node.aet, "Host": "127.0.0.1", "Port": node.port}).encode()
    )
    uids = {"StudyInstanceUID": original.StudyInstanceUID}
    if level != "Study":
        uids["SeriesInstanceUID"] = original.SeriesInstanceUID
    if level == "Instance":
        uids["SOPInstanceUID"] = original.SOPInstanceUID
    asked = {"Level": level, "Query": uids, "Normalize": False}
    query = json.loads(archive.rest("POST", "/modalities/harmonyd/query", json.dumps(asked).encode()))
    answers = json.loads(archive.rest("GET", f"{query['Path']}/answers"))
    assert len(answers) == 1
    archive.rest("POST", f"{query['Path']}/retrieve", b"ORTHANC")
    expected = {
        str(ds.SOPInstanceUID) for ds in map(dcmread, files) if all(ds.get(key) == uid for key, uid in uids.items())
    }
    (study,) = json.loads(archive.rest("POST", "/tools/find", wanted))
    instances = json.loads(archive.rest("GET", f"/studies/{study}/instances"))
    assert {each["MainDicomTags"]["SOPInstanceUID"] for each in instances} == expected
