"""No log line, log of a child, metric or error names a patient, whatever is asked and whatever goes wrong.

Marked names and numbers go through everything at the level debug; at the end nobody but who asked has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from http.client import IncompleteRead
from pathlib import Path

import pytest
from endpoint_kit import WebServer, associate, endpoint, send_as_is, status_of
from patients_kit import damaged_objects, marked_study
from query_kit import AET, STUDY_ROOT_FIND, WORKLIST_FIND, Node, dataset
from query_kit import associate as query_associate
from query_kit import endpoint as query_endpoint
from retrieve_kit import multipart, peer_backend

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import Answer, RunningDaemon
from harmonyd.testing.log_lines import log_schema, wrong_lines
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port, wait_until

NAME, NUMBER, BIRTH, COMMENT = "ZQNAME", "ZQ4711", "19660606", "ZQCOMMENT"
"""A patient's name, number and birth date; and what a PACS writes beside its status."""
MARKS = (NAME, NUMBER, BIRTH)
PERSON = f"{NAME}^Marked"
RECORD = {
    "00080052": {"vr": "CS", "Value": ["STUDY"]},
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": PERSON}]},
    "00100020": {"vr": "LO", "Value": [NUMBER]},
    "00100030": {"vr": "DA", "Value": [BIRTH]},
    "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
}
STUDY_ROOT_GET, STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.3", "1.2.840.10008.5.1.4.1.2.2.2"
ODD = {
    "type": "transform",
    "apply": "right",
    "per_record": True,
    "spec": [
        {"operation": "shift", "spec": {"00100020": {"*": "00201208.&"}, "*": "&"}},
        {"operation": "default", "spec": {"00201208": {"vr": "IS"}}},
    ],
}
"""Makes of a patient's number one of instances, which it cannot be."""
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@dataclass
class Scene:
    """A daemon, and all that it answered."""

    daemon: RunningDaemon
    inbound: int
    server: WebServer
    folder: Path
    workstations: dict[str, Node] = field(default_factory=dict)
    """Where a workstation reaches each backend."""
    answers: list[Answer] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """Error Comments that workstations got."""

    def ask(self, method: str, path: str, **options: object) -> Answer | None:
        """One request; None when its answer was cut."""
        with suppress(IncompleteRead):
            self.answers.append(self.daemon.http(method, path, **options))  # type: ignore[arg-type]
            return self.answers[-1]
        return None


pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")


@pytest.fixture(scope="module", params=["dcmtk", "native"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """All that there is, over one engine, once everything was asked."""
    folder = tmp_path_factory.mktemp(f"patients-{request.param}")
    inbound = free_port()
    scripts: dict[str, dict[str, object]] = {
        "pacs": {"records": (RECORD,), "destinations": {"HARMONY_SCU": (receiver := free_port())}},
        "failing": {"status": 0xC001, "comment": f"no {COMMENT}", "store_statuses": (0xC000,)},
        "warning": {"status": 0xB000, "comment": f"less {COMMENT}", "store_statuses": (0xB000,)},
        "aborting": {"after": 1, "then": "abort"},
        "garbage": {"after": 0, "then": "garbage"},
    }
    with ExitStack() as stack:
        peers = {name: stack.enter_context(ScriptedPeer(**options)) for name, options in scripts.items()}
        server = stack.enter_context(WebServer([500]))
        backends = {name: peer_backend(peer, engine=request.param) for name, peer in peers.items()}
        backends["pacs"] |= {"incoming_store_port": receiver, "move_destination_aet": "HARMONY_SCU"}
        backends["nowhere"] = {"aet": "NOBODY", "host": "127.0.0.1", "port": free_port(), "engine": request.param}
        endpoints = {
            "http": {"service": "http", "path_prefix": "/dicom"},
            "web": {"service": "dicomweb", "path_prefix": "/dicomweb"},
            "fhir": {"service": "http", "path_prefix": "/fhir"},
            **endpoint(inbound, engine=request.param),
        }
        nodes = {name: Node(AET, free_port()) for name in backends}
        somewhere = {"SOMEWHERE": {"host": "127.0.0.1", "port": free_port()}}
        endpoints |= {
            f"qr-{name}": query_endpoint(node.port, move_destinations=somewhere) for name, node in nodes.items()
        }
        common = {"description": "x", "networks": ["default"], "middleware": []}
        config = write_config(
            folder,
            http_port=free_port(),
            backends={**backends, "server": server.backend},
            endpoints=endpoints,
            middleware={"odd": ODD},
            pipelines={
                "dimse": {**common, "endpoints": ["http"], "backends": list(backends)},
                "web": {**common, "endpoints": ["web"], "backends": ["pacs"]},
                "fhir": {**common, "endpoints": ["fhir", "inbound"], "backends": ["server"]},
                **{
                    f"qr-{name}": {**common, "endpoints": [f"qr-{name}"], "middleware": ["odd"], "backends": [name]}
                    for name in nodes
                },
            },
        )
        daemon = stack.enter_context(RunningDaemon(config))
        found = Scene(daemon, inbound, server, folder, nodes)
        ask_everything(found, tuple(backends))
        ask_as_workstations(found)
        bring_everything(found, request.param)
        yield found


def ask_everything(scene: Scene, backends: tuple[str, ...]) -> None:
    """Each operation at each backend; wrong requests; DICOMweb; other paths."""
    keys = {"PatientName": PERSON, "PatientID": NUMBER, "PatientBirthDate": BIRTH, "query_level": "STUDY"}
    content = marked_study(scene.folder / "asked", PERSON, NUMBER, BIRTH)[0].read_bytes()
    store = {"body": content, "headers": {"Content-Type": "application/dicom"}}
    for backend in backends:
        at = f"backend={backend}&PatientName={NAME}"
        scene.ask("POST", f"/dicom/echo?{at}")
        for form in ("application/json", "application/x-ndjson"):
            headers = {"Accept": form, "X-Request-ID": f"find-{backend}"}
            scene.ask("POST", f"/dicom/find?{at}", json=keys, headers=headers)
        retrieve = {"StudyInstanceUID": "1.2.826.0.1.3680043.8.498.1"}
        for operation in ("get", "move"):
            scene.ask("POST", f"/dicom/{operation}?{at}", json=retrieve)
            scene.ask("POST", f"/dicom/{operation}?{at}", json={**retrieve, **keys})
        scene.ask("POST", f"/dicom/store?{at}", **store)
        scene.ask("POST", f"/dicom/store?{at}", **multipart([content, content[:-40]]))
    for wrong in (
        {**keys, "StudyDate": NAME},
        {**keys, "PatientBirthDate": f"{BIRTH}-{NAME}"},
        {**keys, "query_level": NAME},
        {**keys, "operation": NAME},
        {**keys, "NumberOfStudyRelatedInstances": NAME},
        {**keys, "StudyInstanceUID": NAME},
        {**keys, "PatientID": [NUMBER] * 3000},
        {**keys, "PatientName": f"{NAME}\n"},
        {**keys, "PatientName": f"{NAME}=" * 9},
        {**keys, "PatientName": {"vr": "PN", "Value": [NAME], "more": 1}},
        {**keys, "PatientSex": NAME * 9},
        {**keys, "StudyTime": NUMBER},
        {"identifier": {"PatientID": {"vr": NAME[:4], "Value": [NUMBER]}}},
        [NAME],
        NAME,
    ):
        scene.ask("POST", "/dicom/find", json=wrong)
        scene.ask("POST", "/dicom/get", json=wrong)
    scene.ask("POST", "/dicom/find", body=f'{{"PatientID": "{NUMBER}", "PatientName": "{NAME}'.encode())
    scene.ask("POST", "/dicom/find", body=b'{"PatientID": ' + BIRTH.encode() * 600 + b"}")
    scene.ask("POST", f"/dicom/{NAME}", json=keys)
    scene.ask("POST", "/dicom/store", body=NAME.encode(), headers={"Content-Type": "application/dicom"})
    for path in (
        f"/studies?PatientName={NAME}*&PatientID={NUMBER}",
        f"/studies?StudyDate={NAME}",
        f"/studies?limit={NAME}",
        f"/studies/{NAME}/series",
        f"/studies/1.2.3/instances?PatientName={NAME}",
        f"/studies/1.2.3/series/1/instances/1/frames/{NAME}",
        "/studies/1.2.826.0.1.3680043.8.498.1/metadata",
        f"/studies/1.2.3/{NAME}",
    ):
        scene.ask("GET", f"/dicomweb{path}")
    scene.ask("POST", "/dicomweb/studies", body=content, headers={"Content-Type": f"text/{NAME}"})
    scene.ask("GET", f"/fhir/Patient/{NUMBER}?name={NAME}")
    scene.ask("GET", f"/nowhere/{NAME}")
    later = {"Prefer": "respond-async", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "X-Request-ID": "later-1"}
    begun = scene.ask("POST", f"/dicom/find?backend=failing&PatientID={NUMBER}", json=keys, headers=later)
    assert begun is not None
    wait_until(lambda: "operation_id" in (ended_line(scene) or {}), "the later operation ended")


def ask_as_workstations(scene: Scene) -> None:
    """C-FIND, C-GET and C-MOVE over DIMSE, also wrong ones."""
    keys = {"PatientName": PERSON, "PatientID": NUMBER, "PatientBirthDate": BIRTH, "StudyInstanceUID": "1.2.3"}
    for name in ("pacs", "failing", "nowhere"):
        node = scene.workstations[name]
        assoc = query_associate(node, STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE, WORKLIST_FIND)
        asked = [dataset(QueryRetrieveLevel=level, **keys) for level in ("STUDY", NAME)]
        asked += [dataset(QueryRetrieveLevel="STUDY", **{**keys, "StudyInstanceUID": NAME})]
        answers = [list(assoc.send_c_find(each, STUDY_ROOT_FIND)) for each in asked]
        answers += [list(assoc.send_c_find(dataset(**keys), WORKLIST_FIND))]
        for each in asked:
            answers.append(list(assoc.send_c_get(each, STUDY_ROOT_GET)))
            answers.append(list(assoc.send_c_move(each, "SOMEWHERE", STUDY_ROOT_MOVE)))
        scene.told += [status.get("ErrorComment", "") for answer in answers for status, _ in answer]
        assoc.abort()


def ended_line(scene: Scene) -> dict[str, object] | None:
    """The line that an operation which is answered later ends with."""
    for text in scene.daemon.raw_log.splitlines():
        if 'harmonyd.operations' in text and "later-1" in text:
            return json.loads(text)  # type: ignore[no-any-return]
    return None


def bring_everything(scene: Scene, engine: str) -> None:
    """Objects that are well, that are damaged, and that nobody takes."""
    whole = marked_study(scene.folder / "brought", PERSON, NUMBER, BIRTH)
    send_as_is(scene.inbound, *whole)
    for path in damaged_objects(scene.folder / "damaged", whole[0], NAME):
        association = associate(scene.inbound)
        status_of(association, path)
        association.abort()
    said = ("was not taken by server", "is put in quarantine", "is away")
    wait_until(lambda: any(text in scene.daemon.log for text in said), "a delivery has failed")


def test_no_line_names_a_patient(scene: Scene) -> None:
    """The log, at debug: neither what clients ask for, nor what peers answer and send, nor what a PACS comments."""
    text = scene.daemon.raw_log
    found = [line for line in text.splitlines() if any(mark in line for mark in (*MARKS, COMMENT))]
    assert found == []
    assert '"level": "debug"' in text
    assert "Traceback" not in text


def test_no_log_of_a_child_names_a_patient(scene: Scene) -> None:
    """What DCMTK's programs say is kept in files of their own."""
    for path in (scene.folder / "tmp" / "log").glob("*"):
        text = path.read_text("utf-8", "replace")
        assert [mark for mark in (*MARKS, COMMENT) if mark in text] == [], path


def test_no_metric_names_a_patient(scene: Scene) -> None:
    """Labels are names of the configuration."""
    text = scene.daemon.http("GET", "/metrics").body.decode()
    assert "harmonyd_" in text
    assert [mark for mark in (*MARKS, COMMENT) if mark in text] == []


def test_no_error_repeats_what_was_asked(scene: Scene) -> None:
    """Problem details name keys, not values; the comment of a PACS is told to who asked."""
    problems = [answer for answer in scene.answers if answer.status >= 400]
    assert len(problems) > 40
    assert [body for body in (each.body.decode() for each in problems) if any(mark in body for mark in MARKS)] == []
    assert any(COMMENT in each.json()["detail"] for each in problems if b"dimse_comment" in each.body)
    assert any(COMMENT in comment for comment in scene.told)
    assert [comment for comment in scene.told if any(mark in comment for mark in MARKS)] == []


def test_the_lines_are_as_documented(scene: Scene) -> None:
    """Every line is JSON as the schema has it; most fields occur."""
    lines = scene.daemon.raw_log.splitlines(keepends=True)
    assert list(wrong_lines(lines)) == []
    seen = {name for line in lines for name in json.loads(line)}
    # Children are the dcmtk engine's, associations are known by id to the native one, and nothing broke.
    engines_own = {"child", "pid", "association", "calling_aet", "cause"}
    assert log_schema()["properties"].keys() - seen <= {"traceback", *engines_own}


def test_the_request_is_followed(scene: Scene) -> None:
    """The child and the operation have the id of the request; what is answered later has its trace, too."""
    lines = [json.loads(line) for line in scene.daemon.raw_log.splitlines()]
    about = [line for line in lines if line.get("request") == "find-failing"]
    assert {"find"} == {line["operation"] for line in about if "operation_id" in line}
    if "findscu" in scene.daemon.raw_log:
        assert any(re.match("findscu:", line.get("child", "")) and line["pid"] for line in about)
    later = [line for line in lines if line.get("request") == "later-1"]
    assert {line["trace"] for line in later} == {TRACE}
    loggers = {line["logger"] for line in later}
    assert {"harmonyd.operations.operation.Operation", "harmonyd.services.dicom.record"} <= loggers
