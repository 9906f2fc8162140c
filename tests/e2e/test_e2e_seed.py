"""Harmony's DIMSE guide, followed as it is written: its TOML, its curl commands, its bodies, its artifacts.

Only ports are adapted, so that tests can run beside anything.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli_kit import replaced
from retrieve_kit import storage

from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import MadeStudy, demo_files, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import dcmtk, free_port, wait_until

MAIN = """
[proxy]
id = "seed"
log_level = "debug"
pipelines_path = "pipelines"
[network.default.http]
bind_address = "127.0.0.1"
bind_port = 8080
[storage]
backend = "filesystem"
[storage.options]
path = "./tmp"
"""

BACKEND = """
[backends.my_pacs]
service = "dicom"

[backends.my_pacs.options]
aet = "ORTHANC"
host = "localhost"
port = 4242
local_aet = "HARMONY_SCU"
use_tls = false
"""

ENDPOINT = """
[endpoints.dicom_scp]
service = "dicom"

[endpoints.dicom_scp.options]
local_aet = "HARMONY_SCP"
# bind_addr = "0.0.0.0"
# port = 11112
"""

BRIDGE = """
[pipelines.dicom_backend_demo]
description = "Demo DICOM backend usage - HTTP request triggers DIMSE SCU operations"
networks = ["default"]
endpoints = ["http_to_dicom"]
middleware = []
backends = ["dicom_pacs"]

[endpoints.http_to_dicom]
service = "http"
options = { path_prefix = "/dicom" }

[backends.dicom_pacs]
service = "dicom"

[backends.dicom_pacs.options]
aet = "ORTHANC"
host = "localhost"
port = 4242
local_aet = "HARMONY_SCU"
"""

# The guide has neither: "assuming an HTTP endpoint", and a pipeline that references the DICOM endpoint.
REST = """
[pipelines.trigger]
description = "what the guide assumes"
networks = ["default"]
endpoints = ["trigger_dicom"]
middleware = []
backends = ["my_pacs"]

[endpoints.trigger_dicom]
service = "http"
options = { path_prefix = "/trigger-dicom" }

[pipelines.receive]
description = "processes what the SCP receives"
networks = ["default"]
endpoints = ["dicom_scp"]
middleware = []
backends = []
"""

COMMANDS = {
    "echo": "curl -X POST http://localhost:8080/{prefix}/echo",
    "find": """curl -X POST http://localhost:8080/{prefix}/find \\
  -H "Content-Type: application/json" \\
  -d '{{"patient_id": "12345", "query_level": "PATIENT"}}'""",
}


@dataclass(frozen=True)
class Seed:
    """The guide's configuration, running."""

    daemon: RunningDaemon
    pacs: RunningPacs
    study: MadeStudy
    scp_port: int

    def post(self, path: str, document: Any = None) -> Any:
        answer = self.daemon.http("POST", path, json=document if document is not None else {})
        return {"status": answer.status, **answer.json()}


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seed]:
    folder = tmp_path_factory.mktemp("seed")
    study = make_study(folder / "study", 4, patient_id="12345", size=16)
    http_port, scp_port, receiver = free_port(), free_port(), free_port()
    files = [*demo_files()[:10], *study.files]
    with RunningPacs(folder / "pacs", files=files, aet="ORTHANC", destinations={"HARMONY_SCU": receiver}) as pacs:
        main = replaced(MAIN, "8080", str(http_port))
        port = f"port = {pacs.port}"
        pipelines = {
            "backend": replaced(BACKEND, "port = 4242", port),
            "endpoint": replaced(ENDPOINT, "# port = 11112", f"port = {scp_port}"),
            "bridge": replaced(BRIDGE, "port = 4242", f"{port}\nincoming_store_port = {receiver}"),
            "rest": REST,
        }
        (folder / "pipelines").mkdir()
        (folder / "config.toml").write_text(main)
        for name, text in pipelines.items():
            (folder / "pipelines" / f"{name}.toml").write_text(text)
        with RunningDaemon(folder / "config.toml") as daemon:
            yield Seed(daemon, pacs, study, scp_port)


@pytest.mark.parametrize("prefix", ["dicom", "trigger-dicom"])
def test_the_curl_commands_of_the_guide(seed: Seed, prefix: str) -> None:
    """C-ECHO and C-FIND with the guide's own commands, for the bridge and for the backend fragment."""
    answers = {name: json.loads(shell(seed, command.format(prefix=prefix))) for name, command in COMMANDS.items()}
    assert answers["echo"] == {
        "operation": "echo",
        "success": True,
        "complete": True,
        "remote_aet": "ORTHANC",
        "host": "localhost",
        "port": seed.pacs.port,
    }
    found = answers["find"]
    assert (found["operation"], found["success"], found["complete"], found["count"]) == ("find", True, True, 1)
    assert found["matches"][0]["00100020"]["Value"] == ["12345"]


def shell(seed: Seed, command: str) -> str:
    adapted = replaced(command, "localhost:8080", f"localhost:{seed.daemon.port}")
    return subprocess.run(["bash", "-c", adapted], capture_output=True, text=True, check=True).stdout


def test_the_endpoint_fragment_receives(seed: Seed, tmp_path: Path) -> None:
    """The SCP is started with the pipeline that references it, and what storescu sends runs through that pipeline."""
    study = make_study(tmp_path, 2, patient_id="SENT", size=16)
    sent = [dcmtk("storescu"), "-aec", "HARMONY_SCP", "localhost", str(seed.scp_port), *map(str, study.files)]
    subprocess.run(sent, check=True, capture_output=True)
    kept = storage(seed.daemon) / "received" / "dicom_scp" / study.study_uid
    found = wait_until(lambda: len(files := sorted(kept.rglob("*.dcm"))) == 2 and files, "both objects are kept")
    assert {path.stem for path in found} == set(study.sop_uids)


def test_harmonys_wrapper(seed: Seed) -> None:
    """Bodies of ``command``, ``identifier`` and ``query_metadata``, with DICOM JSON inside."""
    identifier = {
        "00100020": {"vr": "LO", "Value": ["12345"]},
        "0020000D": {"vr": "UI", "Value": []},
        "00080052": {"vr": "CS", "Value": ["STUDY"]},
    }
    metadata = {"00100020": {"match_type": "EXACT"}, "0020000D": {"match_type": "RETURN_KEY"}}
    wrapped = {"command": {"message_id": 1}, "identifier": identifier, "query_metadata": metadata}
    answer = seed.post("/dicom/find", wrapped)
    assert (answer["status"], answer["count"]) == (200, 1)
    assert answer["matches"][0]["0020000D"]["Value"] == [seed.study.study_uid]
    assert answer["matches"] == seed.post("/dicom/find", {"identifier": identifier})["matches"]


def test_a_contradicting_wrapper_is_refused(seed: Seed) -> None:
    """``query_metadata`` that contradicts the key it describes names the key in a 400."""
    identifier = {"PatientID": "123*", "QueryRetrieveLevel": "STUDY"}
    answer = seed.post("/dicom/find", {"identifier": identifier, "query_metadata": {"PatientID": "EXACT"}})
    assert (answer["status"], answer["key"]) == (400, "query_metadata.PatientID")


@pytest.mark.parametrize("operation", ["C-ECHO", "C-FIND", "C-GET", "C-MOVE"])
def test_the_operation_in_the_body(seed: Seed, operation: str) -> None:
    """``POST {prefix}`` with ``operation``, ``level`` and ``query`` does what the path would have named."""
    query = {"StudyInstanceUID": seed.study.study_uid}
    document = {"operation": operation} if operation == "C-ECHO" else None
    answer = seed.post("/dicom", document or {"operation": operation, "level": "STUDY", "query": query})
    expected = {"C-FIND": {"count": 1}, "C-GET": {"file_count": 4}, "C-MOVE": {"file_count": 4}}.get(operation, {})
    assert answer["status"] == 200
    assert answer["operation"] == operation.removeprefix("C-").lower()
    assert expected.items() <= answer.items()


@pytest.mark.parametrize(
    ("path", "document", "said"),
    [
        ("/dicom/find", {"operation": "C-GET", "query": {}}, "The path asks for find, the body for get"),
        ("/dicom/echo", {"operation": "C-FIND", "level": "STUDY", "query": {}}, "The path asks for echo"),
        ("/dicom", {"query": {"PatientID": "12345"}}, "names no operation"),
        ("/dicom", None, "names no operation"),
        ("/dicom", {"operation": "C-FROBNICATE"}, "operation"),
    ],
)
def test_an_operation_that_is_not_clear(seed: Seed, path: str, document: Any, said: str) -> None:
    """Path and body that differ, and a body that names none, are the caller's mistake."""
    answer = seed.post(path, document)
    assert answer["status"] == 400
    assert said in answer["detail"]
    assert answer["success"] is False


def test_artifacts_lie_where_the_guide_says(seed: Seed) -> None:
    """``dcmtk_find_<uuid>/rsp*.dcm``, ``dcmtk_get_<uuid>/*``, ``dcmtk_move_<uuid>/*`` and ``movescu_last.json``."""
    query = {"StudyInstanceUID": seed.study.study_uid, "query_level": "STUDY"}
    for operation in ("find", "get", "move"):
        before = set(artifacts(seed, operation))
        assert seed.post(f"/dicom/{operation}", query)["status"] == 200
        [folder] = set(artifacts(seed, operation)) - before
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["rsp0001.dcm"] if operation == "find" else len(names) == 4
    debug = json.loads((storage(seed.daemon) / "movescu_last.json").read_text())
    assert Path(debug["args"][0]).name == "movescu"
    assert "-S" in debug["args"]
    assert shlex.join(debug["args"]).count("-aem HARMONY_SCU") == 1
    assert debug["status"] == 0
    assert "Received Final Move Response" in debug["stderr"]
    assert debug["stdout"] == ""


def artifacts(seed: Seed, operation: str) -> list[Path]:
    pattern = re.compile(rf"dcmtk_{operation}_[0-9a-f]{{32}}")
    return [path for path in storage(seed.daemon).iterdir() if pattern.fullmatch(path.name)]
