"""C-MOVE end to end: real daemon, movescu, storescp and dcmqrscp, in every receiving mode."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from retrieve_kit import (
    DCMTK_MODES,
    DICOM,
    JSON,
    MULTIPART,
    NATIVE,
    ZIP,
    artifact_folders,
    assert_same_objects,
    by_study,
    members_of,
    pacs_backend,
    parts_of,
    post,
    quarantined,
    storage,
    together,
    wait_idle,
    wait_nothing_incoming,
)

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import Answer, RunningDaemon
from harmonyd.testing.data import MadeStudy, demo_files, make_study, report_files
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import dcmtk, free_port, port_is_free, wait_until

Daemons = Callable[..., RunningDaemon]
STUDIES = by_study(demo_files())


@pytest.fixture(scope="module")
def big_study(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    return make_study(tmp_path_factory.mktemp("made"), 300)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, big_study: MadeStudy) -> Iterator[RunningPacs]:
    """dcmqrscp that can deliver to a receiver of each mode, and to a port where nobody listens."""
    files = [*demo_files(), *report_files(), *big_study.files]
    ports = {aet: free_port() for aet in ("HARMONY_MOVE", "TRANSIENT", "OWN_PORT", "NOWHERE")}
    with RunningPacs(tmp_path_factory.mktemp("archive"), files=files, destinations=ports) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, archive: RunningPacs) -> Iterator[RunningDaemon]:
    """One daemon, with backends that differ in how they receive. Debug information is on."""
    unknown = {**pacs_backend(archive), "move_destination_aet": "UNKNOWN"}
    backends = {
        "persistent": pacs_backend(archive),
        "transient": pacs_backend(archive, "TRANSIENT", persistent_store_scp=False),
        "per-association": pacs_backend(archive, "OWN_PORT", store_scp="per-association"),
        "unknown": unknown | {"incoming_store_port": free_port(), "store_scp": "transient"},
        "nowhere": pacs_backend(archive, "NOWHERE", store_scp="transient") | {"incoming_store_port": free_port()},
    }
    config = write_config(tmp_path_factory.mktemp("gateway"), http_port=free_port(), backends=backends)
    with RunningDaemon(config, env={"HARMONY_TEST_DEBUG": "1"}) as running:
        yield running


MODES = pytest.mark.parametrize("mode", ["persistent", *DCMTK_MODES])


def move(daemon: RunningDaemon, study: str, *, backend: str = "persistent", accept: str = JSON) -> Answer:
    return post(daemon, f"move?backend={backend}", {"StudyInstanceUID": study}, accept=accept)


@pytest.mark.parametrize(
    ("study", "mode"),
    [
        *((study, mode) for mode in ("persistent", "per-association") for study in sorted(STUDIES)),
        *((study, "transient") for study in sorted(STUDIES)[:2]),
    ],
)
def test_a_study_as_multipart(gateway: RunningDaemon, study: str, mode: str) -> None:
    """Every instance of a study is one part, with the data set that the PACS has, in each mode."""
    answer = move(gateway, study, backend=mode, accept=MULTIPART)
    assert answer.status == 200
    assert_same_objects(parts_of(answer), STUDIES[study])
    wait_nothing_incoming(gateway)


@MODES
def test_json_names_the_artifacts(gateway: RunningDaemon, mode: str) -> None:
    """The JSON answer counts, names the folder with what arrived, and carries what the PACS was told and said."""
    study, originals = max(STUDIES.items(), key=lambda item: len(item[1]))
    answer = move(gateway, study, backend=mode).json()
    assert (answer["operation"], answer["success"], answer["complete"]) == ("move", True, True)
    assert answer["file_count"] == len(answer["instances"]) == len(originals)
    assert answer["suboperations"]["completed"] == len(originals)
    folder = Path(answer["folder_path"])
    assert folder == storage(gateway) / f"dcmtk_move_{answer['folder_id']}"
    assert_same_objects([path.read_bytes() for path in folder.glob("*")], originals)
    last = json.loads((storage(gateway) / "movescu_last.json").read_text())
    assert answer["debug"] == last
    assert Path(last["args"][0]).name == ("C-MOVE" if NATIVE else "movescu")
    assert ("+P" in last["args"]) is (mode == "transient")
    assert last["status"] == 0
    assert ("status 0x0000" if NATIVE else "Success") in last["stderr"]
    assert isinstance(last["stdout"], str)


@MODES
@pytest.mark.parametrize("accept", [MULTIPART, ZIP])
def test_bytes_are_those_of_the_artifacts(gateway: RunningDaemon, accept: str, mode: str) -> None:
    """What is sent is byte for byte what was received."""
    before = artifact_folders(gateway, "move")
    study, _ = min(STUDIES.items(), key=lambda item: len(item[1]))
    answer = move(gateway, study, backend=mode, accept=accept)
    sent = parts_of(answer) if accept == MULTIPART else list(members_of(answer).values())
    (folder,) = artifact_folders(gateway, "move") - before
    assert sorted(sent) == sorted(path.read_bytes() for path in folder.glob("*"))


@MODES
@pytest.mark.parametrize("report", report_files(), ids=lambda path: path.name)
def test_a_structured_report_alone(gateway: RunningDaemon, report: Path, mode: str) -> None:
    """A study of one instance is the body itself."""
    ((study, originals),) = by_study([report]).items()
    answer = move(gateway, study, backend=mode, accept=DICOM)
    assert_same_objects([answer.body], originals)


@MODES
def test_300_instances(gateway: RunningDaemon, big_study: MadeStudy, mode: str) -> None:
    """A study of 300 instances arrives whole."""
    answer = move(gateway, big_study.study_uid, backend=mode, accept=MULTIPART)
    assert_same_objects(parts_of(answer), dict(zip(big_study.sop_uids, big_study.files, strict=True)))


@MODES
def test_the_same_study_twice_at_once(gateway: RunningDaemon, mode: str) -> None:
    """Two clients that move the same study at once both get all of it, each once."""
    study, originals = max(STUDIES.items(), key=lambda item: len(item[1]))
    answers = together(2, lambda _: move(gateway, study, backend=mode, accept=MULTIPART))
    for answer in answers:
        assert_same_objects(parts_of(answer), originals)
    assert not quarantined(gateway)


def test_ten_at_once_take_turns(gateway: RunningDaemon) -> None:
    """Ten moves at once, of different studies and in all modes, each bring exactly their own."""
    studies = sorted(STUDIES)

    def one(number: int) -> None:
        study = studies[number % len(studies)]
        mode = {3: "transient", 7: "transient", 5: "per-association", 8: "per-association"}.get(number, "persistent")
        told = move(gateway, study, backend=mode).json()
        assert told["complete"] is True
        assert {item["00080018"]["Value"][0] for item in told["instances"]} == set(STUDIES[study])
        assert "warnings" not in told

    together(10, one)
    assert not quarantined(gateway)
    wait_idle(gateway)


@pytest.mark.parametrize(
    ("accept", "mode"),
    [
        *[(accept, "persistent") for accept in (JSON, MULTIPART, DICOM)],
        (MULTIPART, "transient"),
        (JSON, "per-association"),
    ],
)
def test_nothing_matched(gateway: RunningDaemon, accept: str, mode: str) -> None:
    """A study that is not there is 404."""
    assert move(gateway, "1.2.3.4", backend=mode, accept=accept).status == 404


def test_unknown_destination(gateway: RunningDaemon) -> None:
    """A destination the PACS does not know is 502, and the hint says what to add there."""
    answer = move(gateway, next(iter(STUDIES)), backend="unknown")
    told = answer.json()
    assert (answer.status, told["dimse_status"]) == (502, "0xA801")
    assert "host table" in told["hint"]
    assert told["debug"]["status"] == (0xA801 if NATIVE else 69)


def test_destination_that_cannot_be_reached(gateway: RunningDaemon) -> None:
    """A PACS that cannot connect to the address in its table is 502, with the hint to compare it."""
    answer = move(gateway, next(iter(STUDIES)), backend="nowhere")
    assert (answer.status, answer.json()["dimse_status"]) == (502, "0xA702")
    assert "incoming_store_port" in answer.json()["hint"]


@pytest.mark.parametrize("aet", ["HARMONY_MOVE", "OWN_PORT"])
def test_a_delivery_nobody_asked_for(archive: RunningPacs, gateway: RunningDaemon, aet: str) -> None:
    """An object sent to the receiving port out of the blue is kept in quarantine, and a log line says so."""
    port = archive.destinations[aet]
    before = set(quarantined(gateway))
    argv = [dcmtk("storescu"), "-aet", "STRANGER", "-aec", aet, "127.0.0.1", str(port)]
    subprocess.run([*argv, str(report_files()[0])], check=True, capture_output=True)
    (new,) = wait_until(lambda: set(quarantined(gateway)) - before, "the object is in quarantine")
    note = json.loads(new.with_suffix(".json").read_text())
    assert "no C-MOVE was under way" in note["reason"]
    wait_until(lambda: new.name in gateway.log, "a log line names it")
    assert_same_objects([new.read_bytes()], next(iter(by_study([report_files()[0]]).values())))
    for path in (new, new.with_suffix(".json")):
        path.unlink()


@pytest.mark.dcmtk
def test_port_of_a_transient_receiver_taken(archive: RunningPacs, daemon: Daemons) -> None:
    """When something else has the port, the answer says so, and does not blame the PACS."""
    port = free_port()
    argv = [dcmtk("storescp"), "-od", str(archive.layout.folder), str(port)]
    backend = pacs_backend(archive, store_scp="transient") | {"incoming_store_port": port}
    gateway = daemon(backends={"pacs": backend})
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as holder:
        try:
            wait_until(lambda: not port_is_free(port), "the port is taken")
            answer = post(gateway, "move", {"StudyInstanceUID": next(iter(STUDIES))})
        finally:
            holder.terminate()
    assert (answer.status, answer.json()["fault"]) == (503, "ours")
    assert "Retry-After" in answer.headers
    assert f"port {port} is held by pid {holder.pid}" in answer.json()["detail"]
