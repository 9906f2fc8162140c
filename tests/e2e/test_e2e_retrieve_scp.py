"""C-GET and C-MOVE as an SCP: workstations retrieve from a PACS through the daemon, and get what it has."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from archive_peer import ArchivePeer, shipped
from endpoint_kit import Receiver
from orthanc_kit import Orthanc
from pydicom import dcmread
from query_kit import RUNS_ALONE, Node, associate, dataset, raw_elements, several
from retrieve_kit import SHIPPED_SYNTAXES, storage, together

from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import make_study, report_files
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import dcmtk, free_port, wait_until

STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
MADE = 40
SUCCESS = "0x0000: Success: Sub-operations complete"
MIXED = "1.2.826.0.1.3680043.9.1"
_MIXED_FILES = tuple(name for name in SHIPPED_SYNTAXES if "bigendian" not in name)  # pynetdicom sends none


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A study of many images, and reports."""
    made = make_study(tmp_path_factory.mktemp("study"), MADE, patient_id="MANY", series=2)
    return [*made.files, *report_files()]


@pytest.fixture(scope="module")
def many(files: list[Path]) -> str:
    """Its Study Instance UID."""
    return str(dcmread(files[0]).StudyInstanceUID)


@pytest.fixture(scope="module")
def pacs(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPacs]:
    folder = tmp_path_factory.mktemp("pacs")
    with RunningPacs(folder, files=files, destinations={"HARMONY_MOVE": free_port()}) as running:
        yield running


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Where C-MOVEs send to."""
    with Receiver() as running:
        yield running


@pytest.fixture(scope="module")
def slow() -> Iterator[ScriptedPeer]:
    """Sends an object now and then, without end."""
    with ScriptedPeer(count=500, interval_secs=0.05) as peer:
        yield peer


@pytest.fixture(scope="module")
def partial() -> Iterator[ScriptedPeer]:
    """Fails to send two of five."""
    with ScriptedPeer(count=5, failed=2) as peer:
        yield peer


@pytest.fixture(scope="module")
def mixed() -> Iterator[ArchivePeer]:
    """Has a study whose objects are compressed in many ways."""
    with ArchivePeer(shipped(*_MIXED_FILES, study=MIXED)) as peer:
        yield peer


@pytest.fixture(scope="module")
def orthanc(pacs: RunningPacs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """A workstation; it knows the endpoint ``get`` of the daemon by its own port."""
    with Orthanc(tmp_path_factory.mktemp("orthanc") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def daemon(
    pacs: RunningPacs,
    receiver: Receiver,
    slow: ScriptedPeer,
    partial: ScriptedPeer,
    mixed: ArchivePeer,
    orthanc: Orthanc,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RunningDaemon, dict[str, Node]]]:
    """One whose backends retrieve in each way."""
    moves = {
        "move_destination_aet": "HARMONY_MOVE",
        "incoming_store_port": pacs.destinations["HARMONY_MOVE"],
        "dimse_retrieve_mode": "move",
    }

    def backend(peer: Any, **options: Any) -> dict[str, Any]:
        return {"aet": peer.aet, "host": "127.0.0.1", "port": peer.port, "engine": "native", **options}

    given = {
        "get": ({"pacs-get": backend(pacs)}, {}),
        "move": ({"pacs-move": backend(pacs, **moves)}, {}),
        "mixed": ({"mixed": {**mixed.backend, "engine": "native"}}, {}),
        "slow": ({"slow": backend(slow)}, {}),
        "partial": ({"partial": backend(partial)}, {}),
        "nobody": ({"nobody": {"aet": "X", "host": "127.0.0.1", "port": free_port(), "engine": "native"}}, {}),
    }
    destinations = {
        "RECEIVER": {"host": "127.0.0.1", "port": receiver.port},
        "ORTHANC": {"host": "127.0.0.1", "port": orthanc.port},
        "AWAY": {"host": "127.0.0.1", "port": free_port()},
    }
    folder = tmp_path_factory.mktemp("daemon")
    running, nodes = several(folder, given, move_destinations=destinations)
    with running:
        yield running, nodes
        wait_until(lambda: not list(storage(running).glob("dcmtk_*")), "no file is left of what was passed on")


@pytest.fixture(scope="module")
def nodes(daemon: tuple[RunningDaemon, dict[str, Node]]) -> dict[str, Node]:
    return daemon[1]


def scu(program: str, node: Node, uid: str, *options: str) -> str:
    """What a program of DCMTK's says."""
    argv = [dcmtk(program), "-d", *RUNS_ALONE[1:], "-S", *options, "-aet", "WS", "-aec", node.aet]
    argv += ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={uid}", "127.0.0.1", str(node.port)]
    done = subprocess.run(argv, check=False, capture_output=True, stdin=subprocess.DEVNULL)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def same(path: Path, sent: Path) -> bool:
    return raw_elements(dcmread(path)) == raw_elements(dcmread(sent))


@pytest.mark.parametrize("way", ["get", "move"])
def test_getscu(nodes: dict[str, Node], many: str, files: list[Path], way: str, tmp_path: Path) -> None:
    """Gets every object of a study as it is, however the backend retrieves it, with a Pending response for each."""
    said = scu("getscu", nodes[way], many, "-od", str(tmp_path))
    assert SUCCESS in said
    sent = {str(dcmread(path).SOPInstanceUID): path for path in files[:MADE]}
    got = {str(dcmread(path).SOPInstanceUID): path for path in tmp_path.iterdir()}
    assert got.keys() == sent.keys()
    assert all(same(path, sent[uid]) for uid, path in got.items())


@pytest.mark.parametrize("way", ["get", "move"])
def test_movescu(nodes: dict[str, Node], many: str, receiver: Receiver, way: str) -> None:
    """Has every object sent to a destination; each Pending response counts on, and the last one is the truth."""
    receiver.files.clear()
    said = scu("movescu", nodes[way], many, "-aem", "RECEIVER")
    assert SUCCESS in said
    assert len(receiver.files) == MADE
    completed = [int(number) for number in re.findall(r"Completed Suboperations +: (\d+)", said)]
    assert completed == [*range(1, MADE + 1), MADE]
    remaining = [int(number) for number in re.findall(r"Remaining Suboperations +: (\d+)", said)]
    assert remaining == list(range(len(remaining)))[::-1]
    assert len(remaining) >= MADE - 2, "what remains may be unknown at first"


def test_every_transfer_syntax(nodes: dict[str, Node], receiver: Receiver, mixed: ArchivePeer) -> None:
    """In one study: each object is passed on as it is."""
    receiver.files.clear()
    said = scu("movescu", nodes["mixed"], MIXED, "-aem", "RECEIVER")
    assert SUCCESS in said
    sent = {str(ds.SOPInstanceUID): ds for ds in mixed.datasets}
    got = {uid: dcmread(BytesIO(file), force=True) for uid, file in receiver.files.items()}
    assert got.keys() == sent.keys()
    for uid, ds in got.items():
        syntax = sent[uid].file_meta.TransferSyntaxUID
        assert ds.file_meta.TransferSyntaxUID == syntax or not syntax.is_compressed, "pynetdicom converts these"
        assert ds.get("PixelData") == sent[uid].get("PixelData")


def test_many_moves_at_once(nodes: dict[str, Node], many: str, receiver: Receiver) -> None:
    """None takes another's objects, and all are whole."""
    receiver.files.clear()
    said = together(6, lambda number: scu("movescu", nodes["get"], many, "-aem", "RECEIVER"))
    assert all(SUCCESS in each for each in said)
    assert len(receiver.files) == MADE


@pytest.mark.parametrize(
    ("name", "destination", "status"),
    [("get", "NOBODY", 0xA801), ("get", "AWAY", 0xA702), ("nobody", "RECEIVER", 0xC001)],
)
def test_moves_that_cannot_be(
    nodes: dict[str, Node], many: str, name: str, destination: str, status: int
) -> None:
    """An unknown destination, one that is away, and a PACS that is."""
    assoc = associate(nodes[name], STUDY_ROOT_MOVE)
    identifier = dataset(QueryRetrieveLevel="STUDY", StudyInstanceUID=many)
    last, _ = list(assoc.send_c_move(identifier, destination, STUDY_ROOT_MOVE))[-1]
    assoc.release()
    assert last.Status == status
    assert last.ErrorComment


@pytest.mark.filterwarnings("ignore:Invalid value")
@pytest.mark.parametrize("key", ["", "1.2.*"])
def test_a_retrieve_without_its_key(nodes: dict[str, Node], key: str) -> None:
    """Would be for all that there is, and is refused."""
    assoc = associate(nodes["get"], STUDY_ROOT_MOVE)
    identifier = dataset(QueryRetrieveLevel="STUDY")
    identifier.add_new(0x0020000D, "UI", key)
    ((last, _),) = list(assoc.send_c_move(identifier, "RECEIVER", STUDY_ROOT_MOVE))
    assoc.release()
    assert last.Status == 0xA900


def test_nothing_matches(nodes: dict[str, Node]) -> None:
    """Which is a success without sub-operations, as at a PACS."""
    assoc = associate(nodes["get"], STUDY_ROOT_MOVE)
    identifier = dataset(QueryRetrieveLevel="STUDY", StudyInstanceUID="1.2.3.4.5")
    ((last, _),) = list(assoc.send_c_move(identifier, "RECEIVER", STUDY_ROOT_MOVE))
    assoc.release()
    assert (last.Status, last.NumberOfCompletedSuboperations) == (0, 0)


def test_what_the_pacs_fails_to_send(nodes: dict[str, Node], receiver: Receiver) -> None:
    """Is counted as failed: the caller does not take the study for whole."""
    assoc = associate(nodes["partial"], STUDY_ROOT_MOVE)
    identifier = dataset(QueryRetrieveLevel="STUDY", StudyInstanceUID="1.2.3")
    last, _ = list(assoc.send_c_move(identifier, "RECEIVER", STUDY_ROOT_MOVE))[-1]
    assoc.release()
    assert (last.Status, last.NumberOfCompletedSuboperations, last.NumberOfFailedSuboperations) == (0xB000, 3, 2)


def test_a_cancelled_move_is_cancelled_at_the_pacs(nodes: dict[str, Node], slow: ScriptedPeer) -> None:
    """The caller gets Cancel, and how much remains."""
    before = len(slow.events("cancel"))
    assoc = associate(nodes["slow"], STUDY_ROOT_MOVE)
    identifier = dataset(QueryRetrieveLevel="STUDY", StudyInstanceUID="1.2.3")
    statuses = []
    for status, _ in assoc.send_c_move(identifier, "RECEIVER", STUDY_ROOT_MOVE, msg_id=3):
        statuses.append(status)
        if len(statuses) == 2:
            assoc.send_c_cancel(3, query_model=STUDY_ROOT_MOVE)
    assoc.release()
    assert (statuses[0].Status, statuses[-1].Status) == (0xFF00, 0xFE00)
    assert statuses[-1].NumberOfRemainingSuboperations > 300
    slow.wait_for("cancel", before + 1)


def test_a_caller_that_leaves(nodes: dict[str, Node], slow: ScriptedPeer) -> None:
    """Ends what the PACS does for it."""
    before = len(slow.events("cancel"))
    assoc = associate(nodes["slow"], STUDY_ROOT_MOVE)
    identifier = dataset(QueryRetrieveLevel="STUDY", StudyInstanceUID="1.2.3")
    next(iter(assoc.send_c_move(identifier, "RECEIVER", STUDY_ROOT_MOVE)))
    assoc.abort()
    slow.wait_for("cancel", before + 1)


def test_orthanc_queries_and_retrieves(nodes: dict[str, Node], orthanc: Orthanc, many: str) -> None:
    """Through its REST interface for modalities: it finds a study, and has it moved to itself."""
    node = nodes["get"]
    modality = {"AET": node.aet, "Host": "127.0.0.1", "Port": node.port}
    orthanc.rest("PUT", "/modalities/harmonyd", json.dumps(modality).encode())
    asked = {"Level": "Study", "Query": {"StudyInstanceUID": many, "PatientName": ""}}
    query = json.loads(orthanc.rest("POST", "/modalities/harmonyd/query", json.dumps(asked).encode()))
    answers = json.loads(orthanc.rest("GET", f"{query['Path']}/answers"))
    assert len(answers) == 1
    orthanc.rest("POST", f"{query['Path']}/answers/0/retrieve", b"ORTHANC")
    assert json.loads(orthanc.rest("GET", "/statistics"))["CountInstances"] == MADE
