"""Operations that outlive their requests, over a real PACS: the answer is the same, only later."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from later_kit import ASYNC, Later, assert_no_fault, left_on_disk, start
from retrieve_kit import (
    JSON,
    MULTIPART,
    ZIP,
    artifact_folders,
    assert_same_objects,
    ct_bytes,
    members_of,
    multipart,
    pacs_backend,
    parts_of,
    post,
)

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port, wait_until

COUNT = 6
NDJSON = "application/x-ndjson"


@dataclass(frozen=True)
class Place:
    """A daemon with an http endpoint at /dicom and a DICOMweb one at /web, over a PACS that has one study."""

    daemon: RunningDaemon
    study: str
    files: dict[str, Path]

    @property
    def query(self) -> dict[str, str]:
        return {"StudyInstanceUID": self.study}


@pytest.fixture(scope="module", params=["native", "dcmtk"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("later")
    study = make_study(folder / "made", COUNT, size=128)
    with RunningPacs(folder / "pacs", files=study.files, destinations={"HARMONY_MOVE": free_port()}) as pacs:
        config = write_config(
            folder,
            http_port=free_port(),
            backends={"pacs": pacs_backend(pacs, engine=request.param)},
            endpoints={
                "http": {"service": "http", "path_prefix": "/dicom", "methods": ["POST"]},
                "web": {"service": "dicomweb", "path_prefix": "/web", "cors_origins": ["https://viewer.example"]},
            },
        )
        with RunningDaemon(config) as running:
            files = dict(zip(study.sop_uids, study.files, strict=True))
            yield Place(running, study.study_uid, files)
            assert_no_fault(running)


@pytest.mark.parametrize(("operation", "accept"), [("get", MULTIPART), ("move", ZIP), ("get", JSON)])
def test_the_result_is_the_answer(place: Place, operation: str, accept: str) -> None:
    """The result of a retrieve is what the request would have been answered with, as often as it is asked for."""
    later = start(place.daemon, operation, place.query, accept)
    state = later.end()
    assert state["state"] == "complete"
    assert (state["instances"], state["success"], state["complete"]) == (COUNT, True, True)
    assert state["suboperations"]["completed"] == COUNT
    result = later.get("/result")
    assert result.status == 200
    assert state["result"] == {"status": 200, "content_type": result.headers["Content-Type"], "bytes": len(result.body)}
    if accept == JSON:
        document = result.json()
        assert document["file_count"] == COUNT
        assert document["folder_id"] == later.id
    else:
        received = parts_of(result) if accept == MULTIPART else list(members_of(result).values())
        assert_same_objects(received, place.files)
        assert state["bytes"] == sum(map(len, received))
    assert [folder.name for folder in artifact_folders(place.daemon, operation) if folder.name.endswith(later.id)]
    assert later.get("/result").body == result.body
    assert place.daemon.http("HEAD", f"{later.path}/result").headers["Content-Length"] == str(len(result.body))


@pytest.mark.parametrize("accept", [JSON, NDJSON])
def test_a_find_is_the_same_to_the_byte(place: Place, accept: str) -> None:
    """A find's result has the bytes of the answer that a client gets which waits."""
    query = {"StudyInstanceUID": place.study, "query_level": "IMAGE", "SeriesInstanceUID": ""}
    now = post(place.daemon, "find", query, accept=accept)
    later = start(place.daemon, "find", query, accept)
    state = later.end()
    assert (state["matches"], state["operation"]) == (COUNT, "find")
    result = later.get("/result")
    assert (result.status, result.body) == (now.status, now.body)
    for name in ("Content-Type", "Cache-Control"):
        assert result.headers[name] == now.headers[name]


def test_a_download_goes_on_where_it_stopped(place: Place) -> None:
    """Ranges of a result are its bytes; the whole comes to who has the range of another one."""
    later = start(place.daemon, "get", place.query, MULTIPART)
    later.end()
    whole = later.get("/result")
    tag, size = whole.headers["ETag"], len(whole.body)
    for asked, first, last in (("bytes=0-99", 0, 100), ("bytes=100-", 100, size), ("bytes=-7", size - 7, size)):
        part = later.get("/result", Range=asked, If_Range=tag)
        assert part.status == 206
        assert part.body == whole.body[first:last]
        assert part.headers["Content-Range"] == f"bytes {first}-{last - 1}/{size}"
    assert later.get("/result", Range="bytes=0-99", If_Range='"another"').body == whole.body
    assert later.get("/result", Range="bytes=0-1,5-6").body == whole.body
    beyond = later.get("/result", Range=f"bytes={size}-")
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")


def test_dicomweb_retrieves_and_stores(place: Place, tmp_path: Path) -> None:
    """WADO-RS and STOW-RS can be answered later, too; pages of the configured origins may read it all."""
    origin = {"Origin": "https://viewer.example"}
    accepted = place.daemon.http("GET", f"/web/studies/{place.study}", headers={**ASYNC, **origin, "Accept": MULTIPART})
    assert accepted.headers["Access-Control-Allow-Origin"] == "https://viewer.example"
    assert "Location" in accepted.headers["Access-Control-Expose-Headers"]
    later = Later(place.daemon, accepted)
    assert later.end()["state"] == "complete"
    assert_same_objects(parts_of(later.get("/result")), place.files)
    preflight = {**origin, "Access-Control-Request-Method": "DELETE"}
    assert "DELETE" in place.daemon.http("OPTIONS", later.path, headers=preflight).headers[
        "Access-Control-Allow-Methods"
    ]

    bodies = [ct_bytes(tmp_path, number, study=f"later {place.study}") for number in (1, 2, 3)]
    sent = multipart(bodies)
    sent["headers"] |= ASYNC
    later = Later(place.daemon, place.daemon.http("POST", "/web/studies", **sent))
    state = later.end()
    assert (state["operation"], state["state"], state["instances"]) == ("store", "complete", 3)
    assert state["suboperations"] == {"completed": 3, "failed": 0, "warning": 0, "remaining": 0}
    assert state["bytes"] == len(sent["body"])
    response = later.get("/result")
    assert (response.status, response.headers["Content-Type"]) == (200, "application/dicom+json")
    assert len(response.json()["00081199"]["Value"]) == 3


def test_what_ends_well_is_an_answer_though_it_says_no(place: Place) -> None:
    """STOW-RS of what is no DICOM file at all: the operation has failed, and the result is the answer that says so."""
    sent = multipart([b"no DICOM file"])
    sent["headers"] |= ASYNC
    later = Later(place.daemon, place.daemon.http("POST", "/web/studies", **sent))
    assert later.end()["state"] == "failed"
    assert later.get("/result").status == 409


def test_a_failure_is_the_failure_of_the_request(place: Place) -> None:
    """An operation that fails has the problem detail as its state tells it, and as the answer would have told it."""
    query = {"StudyInstanceUID": "1.2.3.9.9.9"}
    now = post(place.daemon, "get", query)
    later = start(place.daemon, "get", query, X_Request_ID="mine")
    state = later.end()
    result = later.get("/result")
    assert (state["state"], result.status, result.headers["Content-Type"]) == (
        "failed",
        now.status,
        "application/problem+json",
    )
    assert result.json() == state["problem"] == {**now.json(), "request_id": "mine"}
    assert state["request"] == {"id": "mine", "method": "POST", "path": "/dicom/get"}


def test_what_is_wrong_at_once_is_told_at_once(place: Place) -> None:
    """Nobody has to ask later for what can be said now, and nothing is left of it."""
    before = left_on_disk(place.daemon)
    wrong: Any = (("find", {"Nonsense": "1"}, 400), ("get", {"StudyDate": "2024"}, 400), ("x", {}, 404))
    for path, document, status in wrong:
        answer = place.daemon.http("POST", f"/dicom/{path}", json=document, headers=ASYNC)
        assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.body
    refused = place.daemon.http("POST", "/dicom/get", json=place.query, headers={**ASYNC, "Accept": "text/plain"})
    assert refused.status == 406
    wait_until(lambda: left_on_disk(place.daemon) == before, "nothing is left")


@pytest.mark.parametrize("prefer", ["respond-async, wait=30", 'wait="30"; x=y,RESPOND-ASYNC'])
def test_a_client_that_would_rather_wait(place: Place, prefer: str) -> None:
    """With ``wait`` the answer itself comes, where it is there in that time, and nothing has to be fetched."""
    before = left_on_disk(place.daemon)
    answer = place.daemon.http("POST", "/dicom/get", json=place.query, headers={"Prefer": prefer, "Accept": MULTIPART})
    assert answer.status == 200
    assert_same_objects(parts_of(answer), place.files)
    wait_until(lambda: left_on_disk(place.daemon) == before, "nothing is left")


def test_whose_operation_it_is(place: Place) -> None:
    """No other endpoint has it, nothing lists them, and no method but its own is possible."""
    later = start(place.daemon, "find", {**place.query, "query_level": "STUDY"})
    later.end()
    elsewhere = later.path.replace("/dicom", "/web")
    for path in (elsewhere, f"{elsewhere}/result", "/dicom/operations", "/dicom/operations/", f"{later.path}/x",
                 "/dicom/operations/" + 32 * "0", "/dicom/operations/../../etc/passwd"):  # fmt: skip
        answer = place.daemon.http("GET", path)
        assert answer.status in (400, 404), path
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert place.daemon.http("DELETE", elsewhere).status == 404
    assert place.daemon.http("POST", f"{later.path}/result").headers["Allow"] == "GET, HEAD"
    assert place.daemon.http("POST", later.path).headers["Allow"] == "GET, HEAD, DELETE"
    assert place.daemon.http("GET", "/dicom/find").headers["Allow"] == "POST"
    assert place.daemon.http("GET", "/web/studies", headers=ASYNC).status == 200
    assert later.delete().status == 204
    assert later.get().status == later.delete().status == 404
    assert not later.folder.exists()


def test_events_say_how_it_ends(place: Place) -> None:
    """Every watcher gets the end, whenever it comes; who comes again after that is told to stay away."""
    later = start(place.daemon, "get", place.query, MULTIPART)
    with later.watching() as found:
        seen = list(found)
    ids, names = [int(each[0]) for each in seen], [each[1] for each in seen]
    assert ids == sorted(set(ids))
    assert names == ["progress"] * (len(names) - 1) + ["complete"]
    assert seen[-1][2] == later.state
    with later.watching(Last_Event_ID="1") as found:
        assert list(found) == [seen[-1]]
    assert later.get("/events", Last_Event_ID=str(ids[-1])).status == 204


def test_fifty_clients_and_fifty_watchers(place: Place) -> None:
    """Fifty operations at once, each watched by one client, all end, and each result is whole."""

    def one(number: int) -> str:
        query = {"StudyInstanceUID": place.study, "query_level": "IMAGE", "SeriesInstanceUID": ""}
        later = start(place.daemon, "find", query)
        with later.watching() as found:
            *_, (_, name, state) = found
        result = json.loads(later.get("/result").body)
        assert (state["matches"], result["count"]) == (COUNT, COUNT)
        assert later.delete().status == 204
        return name

    with ThreadPoolExecutor(50) as pool:
        assert set(pool.map(one, range(50))) == {"complete"}


def _scripts() -> list[str]:
    page = (Path(__file__).parents[2] / "docs" / "long-operations.md").read_text("utf-8")
    return re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_curl_as_documented(place: Place, tmp_path: Path) -> None:
    """The commands of the page, one after the other in one shell, do what it says."""
    script = "set -e\n" + "".join(_scripts()).replace("http://127.0.0.1:8080", place.daemon.base_url)
    script = re.sub(r"1\.3\.6\.[\d.]+", place.study, script)
    (tmp_path / "image.dcm").write_bytes(ct_bytes(tmp_path, 1, study=f"documented {place.study}"))
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.count("event: complete") == 2
    assert '"state": "complete"' in done.stdout
    assert json.loads(done.stdout[done.stdout.rindex('{"operation": "store"') :])["stored"] == 1
    with ZipFile(tmp_path / "study.zip") as archive:
        assert len(archive.namelist()) == COUNT
