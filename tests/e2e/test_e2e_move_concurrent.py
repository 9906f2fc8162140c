"""Many C-MOVEs at once to one AE title on a port of our own: each answer has exactly what was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from misbehaving import STUDY_UID, Stage, stage
from reload_kit import Host
from retrieve_kit import (
    MULTIPART,
    pacs_backend,
    peer_backend,
    post,
    quarantined,
    read,
    storage,
    together,
    tool_processes,
    wait_idle,
    wait_nothing_incoming,
)

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import Answer, RunningDaemon
from harmonyd.testing.data import MadeStudy, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.peer_records import STRANGER_STUDY_UID
from harmonyd.testing.processes import free_port, port_is_free, wait_until

MODE = "per-association"
UNASKED = "arrived at OWN_PORT while no C-MOVE was under way that could have asked for it"


def assert_nothing_left(daemon: RunningDaemon) -> None:
    """No process of ours runs for anybody, and nothing lies where it was received, nor a folder of one association."""
    wait_idle(daemon)
    wait_until(lambda: not tool_processes(daemon, "storescp"), "every association has ended")
    wait_until(lambda: not received_in(storage(daemon) / "incoming"), "nothing is left in incoming")


def received_in(folder: Path) -> list[Path]:
    """What lies in the folders of its ports; the native engine keeps one for each."""
    return [path for path in folder.glob("*/*") if path.name != "native" or list(path.iterdir())]


# --- a real PACS ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[MadeStudy]:
    """Eight studies of three series; the first two are of one patient."""
    folder = tmp_path_factory.mktemp("made")
    made = [make_study(folder / str(number), 24, patient_id=f"P{number}", series=3) for number in range(1, 8)]
    return [make_study(folder / "0", 12, patient_id="P1", study_uid="2.25.10", series=3), *made]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, studies: list[MadeStudy]) -> Iterator[RunningDaemon]:
    """A daemon at a dcmqrscp with these studies. At the end nothing is left, and nothing was put aside."""
    files = [path for study in studies for path in study.files]
    ports = {"HARMONY_MOVE": free_port()}
    with RunningPacs(tmp_path_factory.mktemp("pacs"), files=files, destinations=ports) as archive:
        backends = {"pacs": pacs_backend(archive, store_scp=MODE)}
        config = write_config(tmp_path_factory.mktemp("gateway"), http_port=free_port(), backends=backends)
        with RunningDaemon(config) as running:
            yield running
            assert_nothing_left(running)
            assert quarantined(running) == {}


@pytest.fixture(scope="module")
def alone(gateway: RunningDaemon, studies: list[MadeStudy]) -> Mapping[str, bytes]:
    """SOP Instance UID → the file that a move brings when no other runs."""
    found: dict[str, bytes] = {}
    for study in studies:
        found |= moved(post(gateway, "move", {"StudyInstanceUID": study.study_uid}))
    assert set(found) == {uid for study in studies for uid in study.sop_uids}
    return found


def moved(answer: Answer) -> dict[str, bytes]:
    """SOP Instance UID → the file, of a move that must be complete."""
    told = answer.json()
    assert answer.status == 200, told
    assert told["complete"] is True
    assert "warnings" not in told
    files = [path.read_bytes() for path in Path(told["folder_path"]).iterdir()]
    found = {str(read(data).SOPInstanceUID): data for data in files}
    assert len(found) == len(files) == told["file_count"] == told["suboperations"]["completed"]
    return found


def of(study: MadeStudy) -> dict[str, str]:
    return {"StudyInstanceUID": study.study_uid}


def assert_each_its_own(
    gateway: RunningDaemon, alone: Mapping[str, bytes], wanted: list[tuple[dict[str, Any], set[str]]]
) -> None:
    """All at once; each brings exactly the instances named beside it, with the bytes that a move alone brings."""
    answers = together(len(wanted), lambda number: post(gateway, "move", wanted[number][0]))
    for (query, uids), answer in zip(wanted, answers, strict=True):
        assert moved(answer) == {uid: alone[uid] for uid in uids}, query


def test_eight_studies(gateway: RunningDaemon, alone: Mapping[str, bytes], studies: list[MadeStudy]) -> None:
    """Moves of eight studies at once."""
    assert_each_its_own(gateway, alone, [(of(study), set(study.sop_uids)) for study in studies])


def test_the_same_study(gateway: RunningDaemon, alone: Mapping[str, bytes], studies: list[MadeStudy]) -> None:
    """Moves of one study at once, beside those of another."""
    wanted = [(of(study), set(study.sop_uids)) for study in (studies[3], studies[3], studies[3], studies[4])]
    assert_each_its_own(gateway, alone, wanted)


def test_series_of_one_study(gateway: RunningDaemon, alone: Mapping[str, bytes], studies: list[MadeStudy]) -> None:
    """Moves of the three series of a study at once, and of the whole study."""
    study = studies[5]
    wanted = [(of(study), set(study.sop_uids))]
    for number, series in enumerate(study.series_uids):
        wanted.append(({**of(study), "SeriesInstanceUID": series}, set(study.sop_uids[number::3])))
    assert_each_its_own(gateway, alone, wanted)


def test_a_patient_beside_studies(gateway: RunningDaemon, alone: Mapping[str, bytes], studies: list[MadeStudy]) -> None:
    """A move of all that there is of a patient, beside moves of that patient's studies and of another's."""
    patient = {"PatientID": "P1", "QueryRetrieveLevel": "PATIENT"}
    wanted = [(of(study), set(study.sop_uids)) for study in (*studies[:2], studies[6])]
    wanted.append((patient, {uid for study in studies[:2] for uid in study.sop_uids}))
    assert_each_its_own(gateway, alone, wanted)


def test_two_studies_in_one_move(gateway: RunningDaemon, alone: Mapping[str, bytes], studies: list[MadeStudy]) -> None:
    """A move of a list of studies, beside moves of one of them and of another."""
    both = {"StudyInstanceUID": [study.study_uid for study in studies[1:3]]}
    wanted = [(of(study), set(study.sop_uids)) for study in studies[2:4]]
    wanted.append((both, {uid for study in studies[1:3] for uid in study.sop_uids}))
    assert_each_its_own(gateway, alone, wanted)


# --- scripted peers ---------------------------------------------------------------------------------------------------

SCRIPTS = {
    "good": {"count": 4},
    "strangers": {"extra": 2},
    "elsewhere": {"originator_aet": "WORKSTATION"},
    "pauses": {"count": 4, "after": 2, "then": "wait"},
}


@pytest.fixture
def played(tmp_path: Path) -> Iterator[Stage]:
    """A daemon with a peer for each script; ``pauses`` goes on when there is a file ``gate``. Nothing may be left."""
    scripts = {name: ("serve", {**given, "gate": str(tmp_path / "gate")}) for name, given in SCRIPTS.items()}
    options = {"store_scp": MODE, "association_timeout_ms": 20_000}
    with stage(tmp_path / "daemon", scripts, options=options) as running:
        yield running
        assert_nothing_left(running.daemon)


def begun(response: HTTPResponse) -> bytes:
    """The answer as far as the beginning of the second instance, when the first one is whole."""
    data = b""
    while instances_in(data) < 2:
        more = response.read1()
        assert more, "the answer ended"
        data += more
    return data


def instances_in(body: bytes) -> int:
    return body.count(b"DICM\x02\x00")


def test_what_nobody_asked_for(played: Stage) -> None:
    """It is in quarantine with the reason, and the answer has what was asked for."""
    told = played.ask("move", "strangers").json()
    assert (told["complete"], told["file_count"]) == (True, 3)
    aside = wait_until(lambda: len(quarantined(played.daemon)) == 2 and quarantined(played.daemon), "two are aside")
    assert set(aside.values()) == {UNASKED}
    assert {str(read(path.read_bytes()).StudyInstanceUID) for path in aside} == {STRANGER_STUDY_UID}


def test_another_move_originator(played: Stage) -> None:
    """What names another Move Originator was moved by somebody else: it is put aside, and missed in the answer."""
    answer = played.ask("move", "elsewhere")
    assert answer.status == 502
    assert "3 instances delivered, 0 arrived" in answer.json()["detail"]
    assert list(quarantined(played.daemon).values()) == [UNASKED] * 3


def test_streamed_as_it_arrives(played: Stage, tmp_path: Path) -> None:
    """The client has the first instance before the PACS has sent the last."""
    with played.stream("move", "pauses", Accept=MULTIPART) as response:
        body = begun(response)
        played.peers["pauses"].wait_for("waiting")
        assert instances_in(body) == 2
        assert not played.peers["pauses"].events("response")
        (tmp_path / "gate").touch()
        body += response.read()
    assert instances_in(body) == 4


def test_one_of_several_clients_leaves(played: Stage, tmp_path: Path) -> None:
    """The others, of other studies and of the same one, have exactly their own."""
    documents = [{"StudyInstanceUID": uid} for uid in (STUDY_UID, "2.25.7", "2.25.8", "2.25.7")]
    with ThreadPoolExecutor(2) as pool, ExitStack() as stack:
        leaving = stack.enter_context(played.stream("move", "pauses", documents[1], Accept=MULTIPART))
        begun(leaving)
        running = [pool.submit(played.ask, "move", "pauses", document) for document in (documents[0], documents[2])]
        played.peers["pauses"].wait_for("waiting", 3)
        stack.close()
        played.peers["pauses"].wait_for("closed")
        (tmp_path / "gate").touch()
        answers = [future.result() for future in running]
    answers.append(played.ask("move", "pauses", documents[3]))
    for document, answer in zip((documents[0], *documents[2:]), answers, strict=True):
        told = answer.json()
        assert (told["complete"], told["file_count"]) == (True, 4)
        assert {item["0020000D"]["Value"][0] for item in told["instances"]} == {document["StudyInstanceUID"]}
    assert set(quarantined(played.daemon).values()) <= {UNASKED, "its C-MOVE ended before it was taken"}


def test_an_endpoint_of_the_same_name(tmp_path: Path) -> None:
    """With an endpoint on the same port and AE title, what no move asked for goes through that endpoint's pipeline."""
    port = free_port()
    with ScriptedPeer(extra=2, destinations={"OWN_PORT": port}) as peer:
        endpoints = {
            "http": {"service": "http", "path_prefix": "/dicom"},
            "inbound": {"service": "dicom", "port": port, "local_aet": "OWN_PORT", "store_scp": MODE},
        }
        pipelines = {
            "asking": {"networks": ["default"], "endpoints": ["http"], "backends": ["pacs"]},
            "receiving": {"networks": ["default"], "endpoints": ["inbound"], "backends": []},
        }
        backends = {"pacs": peer_backend(peer, store_scp=MODE)}
        config = write_config(
            tmp_path, http_port=free_port(), endpoints=endpoints, backends=backends, pipelines=pipelines
        )
        with RunningDaemon(config) as running:
            told = post(running, "move", {"StudyInstanceUID": STUDY_UID}).json()
            assert (told["complete"], told["file_count"]) == (True, 3)
            kept = storage(running) / "received" / "inbound"
            found = wait_until(
                lambda: len(list(kept.glob("*/*/*.dcm"))) == 2 and list(kept.glob("*/*/*.dcm")), "both are kept"
            )
            assert {path.parent.parent.name for path in found} == {STRANGER_STUDY_UID}
            assert quarantined(running) == {}
            assert_nothing_left(running)


def test_the_receiver_is_removed_under_a_move(tmp_path: Path) -> None:
    """After a reload without its backend the move goes on to its end, and the port is free after it."""
    gate, port = tmp_path / "gate", free_port()
    script = {"count": 4, "after": 2, "then": "wait", "gate": str(gate), "destinations": {"OWN_PORT": port}}
    with ScriptedPeer(**script) as peer:
        backends = {"pacs": peer_backend(peer, store_scp=MODE)}
        with Host(tmp_path / "daemon", backends=backends) as host:
            connection = host.daemon.connect()
            headers, query = {"Accept": MULTIPART}, {"StudyInstanceUID": STUDY_UID}
            response = host.daemon.send(connection, "POST", "/dicom/move", json=query, headers=headers)
            body = begun(response)
            peer.wait_for("waiting")
            host.reload()
            assert not port_is_free(port)
            gate.touch()
            body += response.read()
            connection.close()
            assert instances_in(body) == 4
            wait_until(lambda: port_is_free(port), "the port is free")
            assert_nothing_left(host.daemon)
            wait_nothing_incoming(host.daemon)
