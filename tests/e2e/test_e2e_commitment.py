"""Storage Commitment, MPPS and worklist through a whole daemon, with pynetdicom on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from commitment_kit import MODALITY, NO_SUCH_INSTANCE, Modality, committed, failed
from pydicom import dcmread
from pydicom.uid import generate_uid
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage
from query_kit import WORKLIST_FIND, dataset, find

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.peer_managed import PERFORMED_STEP
from harmonyd.testing.processes import free_port, wait_until

SERVICES = ("store", "commit")
_NUMBERS = count()


def endpoint(port: int, *services: str, **options: Any) -> dict[str, Any]:
    return {
        "service": "dicom",
        "engine": "native",
        "local_aet": "HARMONY",
        "bind_addr": "127.0.0.1",
        "port": port,
        "services": list(services or SERVICES),
        **options,
    }


def pipeline(endpoints: list[str], backends: list[str]) -> dict[str, Any]:
    return {"networks": ["default"], "endpoints": endpoints, "middleware": [], "backends": backends}


def native(peer: ScriptedPeer | RunningPacs, **options: Any) -> dict[str, Any]:
    return {"engine": "native", "aet": peer.aet, "host": "127.0.0.1", "port": peer.port, **options}


def study(folder: Path, instances: int = 2) -> list[Path]:
    number = next(_NUMBERS)
    return list(make_study(folder / str(number), instances, patient_id=f"COMMIT{number}", size=16).files)


def uids(files: list[Path]) -> set[str]:
    return {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files}


@pytest.fixture(scope="module")
def listener() -> Iterator[ScriptedPeer]:
    """Where modalities are told over another association."""
    with ScriptedPeer(aet=MODALITY) as peer:
        yield peer


@pytest.fixture(scope="module")
def peer() -> Iterator[ScriptedPeer]:
    """A PACS that commits over the same association, and a RIS."""
    with ScriptedPeer(records=({"00100020": {"vr": "LO", "Value": ["W1"]}},)) as running:
        yield running


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPacs]:
    with RunningPacs(tmp_path_factory.mktemp("pacs") / "qrscp") as running:
        yield running


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return {name: free_port() for name in ("kept", "passed", "away", "steps")}


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory,
    ports: dict[str, int],
    pacs: RunningPacs,
    peer: ScriptedPeer,
    listener: ScriptedPeer,
) -> Iterator[RunningDaemon]:
    folder = tmp_path_factory.mktemp("daemon")
    known = {"move_destinations": {MODALITY: {"host": "127.0.0.1", "port": listener.port}}}
    config = write_config(
        folder,
        http_port=free_port(),
        backends={
            "folder": {"service": "storage", "path": "kept"},
            "pacs": native(pacs),
            "nobody": {"engine": "native", "aet": "NOBODY", "host": "127.0.0.1", "port": free_port()},
            "ris": native(peer),
        },
        endpoints={
            "kept": endpoint(ports["kept"], **known),
            "passed": endpoint(ports["passed"], **known),
            "away": endpoint(ports["away"], "store", "commit", "mpps", commit_wait_secs=1, **known),
            "steps": endpoint(ports["steps"], "mpps", "find"),
            "http": {"service": "http", "path_prefix": "/ris"},
            "http-pacs": {"service": "http", "path_prefix": "/pacs"},
        },
        pipelines={
            "kept": pipeline(["kept"], ["folder"]),
            "passed": pipeline(["passed", "http-pacs"], ["pacs", "folder"]),
            "away": pipeline(["away"], ["nobody"]),
            "steps": pipeline(["steps", "http"], ["ris"]),
        },
    )
    with RunningDaemon(config) as running:
        yield running


# --- asked of us


@pytest.mark.parametrize("where", ["kept", "passed"])
def test_what_all_backends_have_is_committed_over_the_same_association(
    daemon: RunningDaemon, ports: dict[str, int], tmp_path: Path, where: str
) -> None:
    """The report names what was stored just now as committed, and what never came as not there."""
    files = study(tmp_path, 3)
    stranger = generate_uid()
    modality = Modality("HARMONY", ports[where])
    modality.store(files)
    status, uid = modality.ask(files, stranger)
    assert status == 0
    kind, report = modality.told.get(timeout=20)
    modality.release()
    assert kind == 2
    assert report.TransactionUID == uid
    assert committed(report) == uids(files)
    assert failed(report) == {stranger: NO_SUCH_INSTANCE}


def test_who_has_hung_up_is_called(
    daemon: RunningDaemon, ports: dict[str, int], listener: ScriptedPeer, tmp_path: Path
) -> None:
    """The report goes over an association of ours, in the role of SCP, to the node in move_destinations."""
    files = study(tmp_path)
    modality = Modality("HARMONY", ports["away"])
    modality.store(files)
    status, uid = modality.ask(files)
    modality.release()  # the backend is away: it is decided a second later
    assert status == 0

    def told() -> dict[str, Any] | None:
        reports = [event["report"] for event in listener.events("n-event-report")]
        return next((each for each in reports if each["00081195"]["Value"] == [uid]), None)

    report = wait_until(told, "the modality is told", 20)
    assert "00081199" not in report
    items = report["00081198"]["Value"]
    assert {item["00081155"]["Value"][0] for item in items} == uids(files)
    assert {item["00081197"]["Value"][0] for item in items} == {0x0110}


def test_a_transaction_is_known_again(daemon: RunningDaemon, ports: dict[str, int], tmp_path: Path) -> None:
    """The same one is reported again; another one of the same UID is refused."""
    files = study(tmp_path)
    modality = Modality("HARMONY", ports["kept"])
    modality.store(files)
    status, uid = modality.ask(files)
    assert (status, modality.told.get(timeout=20)[0]) == (0, 1)
    status, _ = modality.ask(files, uid=uid)
    assert (status, modality.told.get(timeout=20)[0]) == (0, 1)
    assert modality.ask(files[:1], uid=uid)[0] == 0x0131
    modality.release()


def test_a_request_that_says_nothing_is_refused(daemon: RunningDaemon, ports: dict[str, int]) -> None:
    """Invalid argument value, and the association stays open."""
    modality = Modality("HARMONY", ports["kept"])
    assert modality.ask([])[0] == 0x0115
    assert modality.ask([])[0] == 0x0115
    modality.release()


# --- asked by us


def test_a_client_asks_a_pacs(daemon: RunningDaemon, peer: ScriptedPeer) -> None:
    """POST commit: N-ACTION, and the report over the same association."""
    uid = generate_uid()
    body = {"references": [{"sop_class_uid": CTImageStorage, "sop_instance_uid": uid}]}
    answer = daemon.http("POST", "/ris/commit", json=body)
    assert answer.status == 200, answer.body
    told = answer.json()
    assert (told["operation"], told["success"], told["failed"]) == ("commit", True, [])
    assert told["committed"] == [{"sop_class_uid": CTImageStorage, "sop_instance_uid": uid}]
    assert peer.wait_for("n-action")["references"] == [uid]


def test_what_is_to_be_committed_is_looked_up(daemon: RunningDaemon, ports: dict[str, int], tmp_path: Path) -> None:
    """A study's UID will do where the PACS tells SOP classes; this one does not, and they are not guessed."""
    files = study(tmp_path)
    modality = Modality("HARMONY", ports["passed"])
    modality.store(files)
    modality.ask(files)
    assert modality.told.get(timeout=20)[0] == 1
    modality.release()
    uid = str(dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)
    answer = daemon.http("POST", "/pacs/commit", json={"study_instance_uid": uid})
    assert answer.status == 502, answer.body
    assert "SOP classes" in answer.json()["detail"]
    assert daemon.http("POST", "/pacs/commit", json={"StudyInstanceUID": generate_uid()}).status == 404


def test_a_pacs_that_knows_no_commitment(daemon: RunningDaemon) -> None:
    """502: it accepts no presentation context."""
    item = {"sop_class_uid": CTImageStorage, "sop_instance_uid": generate_uid()}
    answer = daemon.http("POST", "/pacs/commit", json={"references": [item]})
    assert answer.status == 502, answer.body
    assert "presentation context" in answer.json()["detail"]
    assert daemon.http("POST", "/pacs/commit", json={"references": [{}]}).status == 400


# --- worklist and MPPS


def test_a_client_asks_for_the_worklist(daemon: RunningDaemon, peer: ScriptedPeer) -> None:
    """The keys of the step stand in its sequence, and return keys are added."""
    answer = daemon.http("POST", "/ris/worklist", json={"Modality": "CT", "PatientID": "W1"})
    assert answer.status == 200, answer.body
    assert answer.json()["matches"] == [{"00100020": {"vr": "LO", "Value": ["W1"]}}]
    asked = [event for event in peer.events("request") if event["op"] == "C-FIND"][-1]["identifier"]
    step = asked["00400100"]["Value"][0]
    assert step["00080060"]["Value"] == ["CT"]
    assert "00400002" in step
    assert "00080052" not in asked


def test_a_workstation_asks_for_the_worklist(
    daemon: RunningDaemon, ports: dict[str, int], peer: ScriptedPeer
) -> None:
    """C-FIND of the worklist goes through, sequence and all."""
    assoc = AE(ae_title="WS")
    assoc.add_requested_context(WORKLIST_FIND)
    asking = assoc.associate("127.0.0.1", ports["steps"], ae_title="HARMONY")
    step = dataset(Modality="MR", ScheduledStationAETitle="")
    found = find(asking, dataset(PatientID="", ScheduledProcedureStepSequence=[step]), WORKLIST_FIND)
    asking.release()
    assert [status.Status for status, _ in found] == [0xFF00, 0]
    asked = [event for event in peer.events("request") if event["op"] == "C-FIND"][-1]["identifier"]
    assert asked["00400100"]["Value"][0]["00080060"]["Value"] == ["MR"]


def test_steps_go_through(daemon: RunningDaemon, ports: dict[str, int], peer: ScriptedPeer) -> None:
    """N-CREATE and N-SET reach the RIS in order, with the modality's SOP Instance UID and attributes."""
    node = AE(ae_title=MODALITY)
    node.add_requested_context(PERFORMED_STEP)
    assoc = node.associate("127.0.0.1", ports["steps"], ae_title="HARMONY")
    uid = generate_uid()
    created = dataset(PerformedProcedureStepStatus="IN PROGRESS", PatientName="Müller^Jörg", Modality="CT")
    created.SpecificCharacterSet = "ISO_IR 100"
    status, _ = assoc.send_n_create(created, PERFORMED_STEP, uid)
    assert status.Status == 0
    status, _ = assoc.send_n_set(dataset(PerformedProcedureStepStatus="COMPLETED"), PERFORMED_STEP, uid)
    assert status.Status == 0
    assoc.release()
    step = peer.wait_for("n-create")
    assert step["uid"] == uid
    assert step["attributes"]["00100010"]["Value"] == [{"Alphabetic": "Müller^Jörg"}]
    assert peer.wait_for("n-set")["attributes"]["00400252"]["Value"] == ["COMPLETED"]


def test_a_step_whose_ris_is_away_is_refused(daemon: RunningDaemon, ports: dict[str, int]) -> None:
    """A processing failure, so that the modality sends again; nothing is kept."""
    node = AE(ae_title=MODALITY)
    node.add_requested_context(PERFORMED_STEP)
    assoc = node.associate("127.0.0.1", ports["away"], ae_title="HARMONY")
    status, _ = assoc.send_n_create(dataset(Modality="CT"), PERFORMED_STEP, generate_uid())
    assoc.release()
    assert status.Status in (0x0110, 0x0213)
    assert status.ErrorComment
