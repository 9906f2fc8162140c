"""Correlation ids, problem details, content negotiation and the log, over real requests to a real daemon."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import pytest
from retrieve_kit import (
    DICOM,
    JSON,
    MULTIPART,
    NATIVE,
    ZIP,
    ct_bytes,
    pacs_backend,
    peer_backend,
    post,
    storage,
    wait_idle,
)

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import MadeStudy, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port, wait_until

Daemons = Callable[..., RunningDaemon]
Peers = Callable[..., ScriptedPeer]
Line = dict[str, Any]
DICOM_JSON = "application/dicom+json"
NDJSON = "application/x-ndjson"
MARK = "MARKEDPATIENT"
LOG = {"logging": {"format": "json"}}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    return make_study(tmp_path_factory.mktemp("made"), 3, patient_id=MARK, size=16)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, study: MadeStudy) -> Iterator[RunningPacs]:
    files, ports = study.files, {"HARMONY_MOVE": free_port()}
    with RunningPacs(tmp_path_factory.mktemp("archive"), files=files, destinations=ports) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, archive: RunningPacs) -> Iterator[RunningDaemon]:
    """At debug level, with small limits, and a second backend that is not there."""
    config = write_config(
        tmp_path_factory.mktemp("gateway"),
        http_port=free_port(),
        backends={"pacs": pacs_backend(archive), "gone": {"aet": "GONE", "host": "127.0.0.1", "port": free_port()}},
        sections={**LOG, "limits": {"max_json_bytes": 10_000}},
    )
    with RunningDaemon(config) as running:
        yield running


def log_lines(daemon: RunningDaemon) -> list[Line]:
    """The log; each line is one JSON object."""
    return [json.loads(line) for line in daemon.raw_log.splitlines()]


def lines_of(daemon: RunningDaemon, request_id: str) -> list[Line]:
    return [line for line in log_lines(daemon) if line.get("request") == request_id]


# --- correlation ids --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["echo", "find", "get", "move", "store"])
def test_one_id_joins_everything_about_a_request(
    gateway: RunningDaemon, study: MadeStudy, tmp_path: Path, operation: str
) -> None:
    """The client's id is in the answer's header, in every line of the log about it, and beside its artifacts."""
    request_id = f"my-{operation}.1"
    headers = {"X-Request-ID": request_id}
    if operation == "store":
        headers["Content-Type"] = DICOM
        answer = gateway.http("POST", "/dicom/store", body=ct_bytes(tmp_path), headers=headers)
    else:
        answer = post(gateway, operation, {"StudyInstanceUID": study.study_uid}, headers=headers)
    assert (answer.status, answer.headers["X-Request-ID"]) == (200, request_id)
    wait_idle(gateway)
    lines = lines_of(gateway, request_id)
    objects = [line for line in lines if line["message"].endswith(" has come from pacs")]
    assert bool(objects) == (operation in ("get", "move"))
    *children, outcome, access = (line for line in lines if line not in objects)
    named = re.match(f"{operation} ([0-9a-f]{{32}}) at pacs: ", outcome["message"])
    assert named
    tool = {"get": "getscu"}.get(operation, f"{operation}scu")
    assert [line["child"] for line in children] == ([] if NATIVE else [f"{tool}:{named[1]}"] * 2)
    assert len({line["pid"] for line in children}) <= 1
    assert {line["operation"] for line in lines} == {operation}
    assert access["message"].startswith(f"POST /dicom/{operation} 200 ")
    assert [line["level"] for line in lines if line not in objects] == ["debug"] * len(children) + ["info", "info"]
    about = [line for line in log_lines(gateway) if named[1] in json.dumps(line)]
    assert [line for line in about if line not in objects] == [*children, outcome]


@pytest.mark.parametrize(
    ("operation", "counted"),
    [
        pytest.param("find", "count", marks=pytest.mark.dcmtk),
        ("get", "file_count"),
        ("move", "file_count"),
    ],
)
def test_a_record_lies_beside_the_artifacts(
    gateway: RunningDaemon, study: MadeStudy, operation: str, counted: str
) -> None:
    """It tells which request asked, when, and what came of it; the artifact folder holds the objects only."""
    headers = {"X-Request-ID": f"record-of-{operation}"}
    answer = post(gateway, operation, {"StudyInstanceUID": study.study_uid}, headers=headers).json()
    [record] = records(gateway, f"record-of-{operation}")
    path = storage(gateway) / f"dcmtk_{operation}_{record['operation_id']}"
    began, ended = record.pop("began"), record.pop("ended")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", began)
    assert began <= ended
    expected = {
        "request_id": f"record-of-{operation}",
        "operation_id": answer.get("folder_id", record["operation_id"]),
        "operation": operation,
        "backend": "pacs",
        "remote_aet": "QRSCP",
        "success": True,
        "complete": True,
        counted: answer[counted],
        **({"suboperations": answer["suboperations"]} if "suboperations" in answer else {}),
    }
    assert record == expected
    assert len(list(path.iterdir())) == answer[counted]
    if operation == "move":
        last = json.loads((storage(gateway) / "movescu_last.json").read_text())
        assert (last["request_id"], last["operation_id"]) == (record["request_id"], record["operation_id"])


def records(daemon: RunningDaemon, request_id: str) -> list[Line]:
    found = [json.loads(path.read_text()) for path in storage(daemon).glob("dcmtk_*.json")]
    return [record for record in found if record["request_id"] == request_id]


def test_the_record_of_what_failed(gateway: RunningDaemon, daemon: Daemons, peer: Peers) -> None:
    """A failure before the answer, and a client that left in the middle, are told as what they are."""
    answer = post(gateway, "get?backend=gone", {"StudyInstanceUID": "1.2.3"}, headers={"X-Request-ID": "failing"})
    assert answer.status == 502
    [record] = records(gateway, "failing")
    assert (record["success"], record["complete"], record["backend"]) == (False, False, "gone")
    assert record["error"] == answer.json()["detail"]
    assert f"not complete: {record['error']}" in lines_of(gateway, "failing")[-2]["message"]

    node = peer("serve", count=20, after=2)
    other = daemon(backends={"peer": peer_backend(node)}, sections=LOG)
    connection = other.connect()
    headers = {"X-Request-ID": "leaving", "Accept": MULTIPART}
    response = other.send(connection, "POST", "/dicom/get", json={"StudyInstanceUID": "1.2.3"}, headers=headers)
    response.readline()
    response.close()
    connection.close()
    left = wait_until(lambda: records(other, "leaving"), "the record is there")[0]
    assert (left["success"], left["complete"]) == (False, False)
    assert left["incomplete_reason"] == "nobody took the rest of the answer"
    assert left["file_count"] >= 1


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 129, "semi;colon", "Zoë"])
def test_an_id_is_made_where_the_client_gives_none_that_is_sane(gateway: RunningDaemon, given: str | None) -> None:
    """Else anything could be written into the log; a made one differs from request to request."""
    headers = {} if given is None else {"X-Request-ID": given.encode("latin-1").decode("latin-1")}
    made = {gateway.http("GET", "/livez", headers=headers).headers["X-Request-ID"] for _ in range(2)}
    assert len(made) == 2
    assert all(re.fullmatch(r"[0-9a-f]{32}", request_id) for request_id in made)
    assert all(lines_of(gateway, request_id) for request_id in made)


# --- problem details --------------------------------------------------------------------------------------------------

PROBLEMS: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "no route": ("GET", "/nowhere", {}, 404, "Nothing is served"),
    "no operation": ("POST", "/dicom/frobnicate", {}, 404, "no such operation"),
    "nothing matches": ("POST", "/dicom/get", {"json": {"StudyInstanceUID": "1.2.3.4"}}, 404, "matches"),
    "wrong method": ("GET", "/dicom/find", {}, 405, "POST"),
    "wrong method for health": ("DELETE", "/readyz", {}, 405, "GET"),
    "not acceptable": ("POST", "/dicom/find", {"headers": {"Accept": "text/html"}, "json": {}}, 406, "find"),
    "too large": ("POST", "/dicom/find", {"body": b" " * 10_001}, 413, "10,?000"),
    "wrong type": ("POST", "/dicom/find", {"body": b"<a/>", "headers": {"Content-Type": "text/xml"}}, 415, "text/xml"),
    "no DICOM": ("POST", "/dicom/store", {"body": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "text/plain"),
    "not JSON": ("POST", "/dicom/find", {"body": b'{"a": '}, 400, "JSON"),
    "unknown key": ("POST", "/dicom/find", {"json": {"PatientIdd": "1"}}, 400, "PatientIdd"),
    "whole archive": ("POST", "/dicom/get", {"json": {"query_level": "STUDY"}}, 400, "StudyInstanceUID"),
    "other backend": ("POST", "/dicom/echo?backend=none", {}, 403, "backend"),
    "PACS away": ("POST", "/dicom/echo?backend=gone", {}, 502, "GONE"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_problem_details(gateway: RunningDaemon, case: str) -> None:
    """Each has its status, RFC 9457's members, ours, and the correlation id; and one line of access log."""
    method, path, arguments, status, said = PROBLEMS[case]
    answer = gateway.http(method, path, **arguments)
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    members = answer.json()
    assert members["status"] == status
    assert members["type"].startswith("urn:harmonyd:problem:")
    assert members["title"]
    assert re.search(said, f"{members['detail']} {members.get('hint')}")
    assert (members["success"], members["error"]) == (False, members["detail"])
    assert members["fault"] == ("remote" if status >= 500 else "caller")
    assert members["request_id"] == answer.headers["X-Request-ID"]
    assert ("Allow" in answer.headers) == (status == 405)
    if path.startswith(("/dicom/find", "/dicom/get", "/dicom/echo")) and status not in (403, 405, 413):
        assert members["operation"] == path.split("/")[2].partition("?")[0]
    access = lines_of(gateway, members["request_id"])[-1]
    logged = path.partition("?")[0].replace("frobnicate", "…")
    assert access["message"].startswith(f"{method} {logged} {status} ")


def test_head(gateway: RunningDaemon) -> None:
    """HEAD goes where GET goes, and has no body; operations are not asked for with it."""
    for path in ("/livez", "/readyz"):
        head, get = gateway.http("HEAD", path), gateway.http("GET", path)
        assert (head.status, head.body) == (200, b"")
        assert head.headers["Content-Type"] == get.headers["Content-Type"] == JSON
    refused = gateway.http("HEAD", "/dicom/find")
    assert (refused.status, refused.body, refused.headers["Allow"]) == (405, b"", "POST")


# --- content negotiation ----------------------------------------------------------------------------------------------

ACCEPTED = [
    *[(operation, "", JSON) for operation in ("echo", "find", "get", "move")],
    *[(operation, "*/*", JSON) for operation in ("echo", "find", "get", "move")],
    *[("find", kind, kind) for kind in (DICOM_JSON, NDJSON)],
    *[(operation, kind, kind) for operation in ("get", "move") for kind in (MULTIPART, ZIP)],
    ("get", "multipart/related", MULTIPART),
    ("find", "text/html, application/dicom+json;q=0.3, application/json;q=0.2", DICOM_JSON),
    ("find", "application/json;q=0, */*", DICOM_JSON),
    ("get", "application/zip;q=0.9, application/json;q=0.5", ZIP),
]


@pytest.mark.parametrize(("operation", "accept", "expected"), ACCEPTED)
def test_accept_decides(gateway: RunningDaemon, study: MadeStudy, operation: str, accept: str, expected: str) -> None:
    """Every listed media type, the default, wildcards and weights."""
    answer = post(gateway, operation, {"StudyInstanceUID": study.study_uid}, accept=accept)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith(expected.partition(";")[0])
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("operation", ["get", "move"])
def test_one_object_as_it_is(gateway: RunningDaemon, study: MadeStudy, operation: str) -> None:
    """``application/dicom`` is for exactly one instance; more of them are 406."""
    one = {"StudyInstanceUID": study.study_uid, "SeriesInstanceUID": study.series_uids[0]}
    answer = post(gateway, operation, {**one, "SOPInstanceUID": study.sop_uids[0]}, accept=DICOM)
    assert (answer.status, answer.headers["Content-Type"]) == (200, DICOM)
    assert answer.body[128:132] == b"DICM"
    many = post(gateway, operation, {"StudyInstanceUID": study.study_uid}, accept=DICOM)
    assert many.status == 406


@pytest.mark.parametrize("operation", ["echo", "find", "get", "move", "store"])
def test_what_cannot_be_answered_is_406_with_what_can(gateway: RunningDaemon, operation: str) -> None:
    """The problem detail lists the media types there are; no child is started."""
    answer = post(gateway, operation, {"StudyInstanceUID": "1.2.3"}, accept="image/png")
    assert answer.status == 406
    assert JSON in answer.json()["offered"]
    assert not [line for line in lines_of(gateway, answer.headers["X-Request-ID"]) if "child" in line]


# --- the log ----------------------------------------------------------------------------------------------------------


def test_every_line_is_one_object(gateway: RunningDaemon) -> None:
    """Time, level, logger and message in each; children have their name and pid."""
    lines = log_lines(gateway)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert all(re.fullmatch(r"[\d-]{10}T[\d:]{8}\.\d{3}Z", line["time"]) for line in lines)
    running = [line for line in lines if "STARTING -> RUNNING" in line["message"]]
    assert running or NATIVE
    assert all(line["child"].startswith("storescp:") and isinstance(line["pid"], int) for line in running)


def test_no_patient_data_at_info_level(
    daemon: Daemons, archive: RunningPacs, peer: Peers, study: MadeStudy, tmp_path: Path
) -> None:
    """Names and numbers that clients ask for, PACS answer and modalities send are in no line above debug."""
    failing, aborting = peer("serve", status=0xC001), peer("serve", after=1, then="abort")
    backends = {
        "pacs": pacs_backend(archive, incoming_store_port=free_port()),
        "failing": peer_backend(failing),
        "aborting": peer_backend(aborting),
    }
    running = daemon(backends=backends, sections={**LOG, "proxy": {"log_level": "info"}})
    query = {"PatientID": MARK, "PatientName": f"{MARK}*", "query_level": "STUDY"}
    for name in backends:
        post(running, f"find?backend={name}&PatientName={MARK}", query)
        with pytest.raises(IncompleteRead) if name != "pacs" else nullcontext():
            post(running, f"find?backend={name}", query, accept=NDJSON)
    post(running, "get", {"StudyInstanceUID": study.study_uid, "PatientID": MARK})
    post(running, "find", {"PatientID": f"{MARK}\n"})
    running.http("POST", "/dicom/find", body=f'{{"PatientID": "{MARK}'.encode())
    headers = {"Content-Type": DICOM}
    assert running.http("POST", "/dicom/store", body=study.files[0].read_bytes(), headers=headers).status == 200
    wait_idle(running)
    lines = log_lines(running)
    assert sum("POST /dicom/find" in line["message"] for line in lines) == 8
    assert MARK not in running.raw_log
    assert {line["level"] for line in lines} <= {"info", "warn"}


@pytest.mark.dcmtk
def test_verbose_shows_what_children_say(daemon: Daemons, archive: RunningPacs, study: MadeStudy) -> None:
    """HARMONY_TEST_VERBOSE_DCMTK=1: the output of SCU tools and of store SCPs is in the log, under their names."""
    backends = {"pacs": pacs_backend(archive)}
    config = {"backends": backends, "sections": {**LOG, "proxy": {"log_level": "info"}}}
    running = daemon(env={"HARMONY_TEST_VERBOSE_DCMTK": "1"}, **with_own_receiver(config))
    post(running, "find", {"StudyInstanceUID": study.study_uid}, headers={"X-Request-ID": "verbose"})
    said = [line["message"] for line in lines_of(running, "verbose") if line.get("child", "").startswith("findscu:")]
    assert any("Received Find Response 1" in text for text in said)
    from_receiver = [line for line in log_lines(running) if line.get("child", "").startswith("storescp:incoming-")]
    assert any("Association Received" in line["message"] for line in from_receiver)


def with_own_receiver(config: dict[str, Any]) -> dict[str, Any]:
    backend = {**config["backends"]["pacs"], "incoming_store_port": free_port()}
    return {**config, "backends": {"pacs": backend}}
