"""Pipelines end to end: chains of middleware, choosing backends, several networks, endpoints and backends at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from retrieve_kit import NATIVE, peer_backend, quarantined

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import Answer, RunningDaemon
from harmonyd.testing.peer import Event, ScriptedPeer
from harmonyd.testing.processes import free_port

FORCED = {"PatientID": "WARD-7", "ModalitiesInStudy": "CT", "00080050": "ACC-1"}


@dataclass(frozen=True)
class Place:
    """One daemon with many pipelines, two networks and two nodes."""

    daemon: RunningDaemon
    inside_port: int
    one: ScriptedPeer
    two: ScriptedPeer

    def post(self, path: str, document: Any = None, **options: Any) -> Answer:
        return self.daemon.http("POST", path, json={} if document is None else document, **options)

    def inside(self, method: str, path: str) -> Answer:
        """A request on the second network."""
        other = RunningDaemon(self.daemon.config)
        other.port = self.inside_port
        return other.http(method, path)

    def asked(self, node: ScriptedPeer) -> list[Event]:
        return node.events("request")

    def seen(self, node: ScriptedPeer, path: str, document: Any, status: int = 200) -> dict[str, Any]:
        """The identifier that a node was asked with for a request; what comes before a C-GET is about the same."""
        before = len(self.asked(node))
        answer = self.post(path, document)
        assert answer.status == status, answer.body
        [*first, event] = self.asked(node)[before:]
        identifier: dict[str, Any] = event["identifier"]
        assert not first or NATIVE
        for about_classes in first:
            assert identifier.items() <= about_classes["identifier"].items()
        return identifier


def pipeline(endpoint: str, *middleware: str, backends: list[str], networks: tuple[str, ...] = ("default",)) -> Any:
    return {
        "description": "",
        "networks": list(networks),
        "endpoints": [endpoint],
        "middleware": list(middleware),
        "backends": backends,
    }


MIDDLEWARE: dict[str, Any] = {
    "pass": {"type": "passthru"},
    "also_pass": {"type": "passthru", "options": {}},
    "only_find": {"type": "path_filter", "rules": ["/find", "/{any}/find"]},
    "own_patient": {"type": "metadata", "identifier": {"PatientID": "WARD-7"}},
    "force": {"type": "metadata", "identifier": FORCED},
    "always_find": {"type": "metadata", "options": {"dimse_op": "find"}},
    "always_two": {"type": "metadata", "set": {"backend": "two"}},
    "nobody": {"type": "metadata", "set": {"skip_backends": "true"}},
    "tell": {"type": "metadata", "set": {"ward": "7", "path": "/rewritten"}},
}
PIPELINES: dict[str, Any] = {
    "direct": pipeline("direct", backends=["one", "two"]),
    "chain": pipeline("chain", "pass", "only_find", "force", "also_pass", backends=["one"]),
    "retrieve": pipeline("retrieve", "own_patient", backends=["one"]),
    "fixed": pipeline("fixed", "always_find", "always_two", backends=["one", "two"]),
    "nowhere": pipeline("nowhere", "nobody", backends=["one"]),
    "told": pipeline("told", "pass", "tell", backends=["mirror"]),
    "inside": pipeline("inside", backends=["mirror"], networks=("inside",)),
    "both": pipeline("both", backends=["mirror"], networks=("default", "inside")),
    "empty": pipeline("empty", backends=[]),
    "nested": pipeline("nested", backends=["mirror"]),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    inside = free_port()
    endpoints = {name: {"service": "http", "path_prefix": f"/{name}"} for name in PIPELINES}
    endpoints["told"] = {"service": "echo", "path_prefix": "/told/"}
    endpoints["nested"] = {"service": "http", "path_prefix": "/direct/nested", "methods": ["GET"]}
    with ScriptedPeer(aet="ONE") as one, ScriptedPeer(aet="TWO", count=5) as two:
        config = write_config(
            tmp_path_factory.mktemp("place"),
            http_port=free_port(),
            backends={"one": peer_backend(one), "two": peer_backend(two), "mirror": {"service": "echo"}},
            endpoints=endpoints,
            middleware=MIDDLEWARE,
            pipelines=PIPELINES,
            sections={"network": {"inside": {"http": {"bind_address": "127.0.0.1", "bind_port": inside}}}},
        )
        with RunningDaemon(config) as daemon:
            yield Place(daemon, inside, one, two)


# --- which backend ----------------------------------------------------------------------------------------------------


def test_without_middleware_the_first_backend_answers(place: Place) -> None:
    """``middleware = []``: the request goes to the first of the pipeline's backends as it is."""
    asked = len(place.asked(place.two))
    answer = place.post("/direct/find", {"query_level": "STUDY"})
    assert (answer.status, answer.json()["count"]) == (200, 3)
    assert len(place.asked(place.two)) == asked


def test_the_query_chooses_among_the_backends(place: Place) -> None:
    """``?backend=NAME`` names any backend of the pipeline."""
    assert place.post("/direct/find?backend=two", {"query_level": "STUDY"}).json()["count"] == 5
    assert place.post("/direct/echo?backend=one").json()["remote_aet"] == "ONE"


@pytest.mark.parametrize("path", ["/direct/echo?backend=mirror", "/direct/echo?backend=", "/fixed?backend=one"])
def test_a_backend_that_is_not_left_is_forbidden(place: Place, path: str) -> None:
    """One of another pipeline, none, and one that middleware has ruled out: 403, the same for all, and nobody asked."""
    asked = len(place.asked(place.one)), len(place.asked(place.two))
    answer = place.post(path, {"query_level": "STUDY"})
    assert (answer.status, answer.json()["detail"]) == (403, "This request may not choose that backend.")
    assert (len(place.asked(place.one)), len(place.asked(place.two))) == asked


def test_two_backends_in_one_query(place: Place) -> None:
    """A request goes to one backend: naming two is a mistake."""
    assert place.post("/direct/echo?backend=one&backend=two").status == 400


def test_middleware_sets_operation_and_backend(place: Place) -> None:
    """Whatever path and body say, it is a find at that backend; naming the same backend is allowed."""
    for path, document in (("/fixed", {}), ("/fixed/get", {}), ("/fixed?backend=two", {"operation": "C-ECHO"})):
        answer = place.post(path, {"query_level": "STUDY", **document})
        assert (answer.status, answer.json()["operation"], answer.json()["count"]) == (200, "find", 5)


def test_no_backend(place: Place) -> None:
    """``skip_backends`` answers without one; a pipeline that has none says so."""
    assert place.post("/nowhere/find").status == 204
    answer = place.post("/empty/find")
    assert (answer.status, answer.json()["detail"]) == (404, "Pipeline empty has no backend that could answer.")


# --- a chain ----------------------------------------------------------------------------------------------------------


def test_the_chain_lets_through_what_its_rules_allow(place: Place) -> None:
    """path_filter: the listed paths pass, a trailing slash is ignored, all others are 404 and reach no backend."""
    asked = len(place.asked(place.one))
    for path in ("/chain/find", "/chain/find/", "/chain/anything/find"):
        assert place.post(path, {"query_level": "STUDY"}).json()["count"] == 3
    for path in ("/chain", "/chain/echo", "/chain/find/find/find", "/chain//find", "/chain/FIND"):
        assert place.post(path).status == 404
    assert len(place.asked(place.one)) == asked + 3


@pytest.mark.parametrize(
    "document",
    [
        {"query_level": "STUDY"},
        {"patient_id": "*", "query_level": "STUDY"},
        {"PatientID": ["WARD-7", "WARD-8"], "QueryRetrieveLevel": "STUDY"},
        {"00100020": {"vr": "LO", "Value": ["OTHER"]}, "AccessionNumber": None, "level": "STUDY"},
        {"identifier": {"PatientID": ""}, "level": "STUDY", "ModalitiesInStudy": ["MR", "CT"]},
        {"query": {"patient_id": "OTHER"}, "level": "STUDY", "return": "requested"},
    ],
)
def test_a_client_cannot_widen_a_query_that_is_narrowed(place: Place, document: dict[str, Any]) -> None:
    """Identifier keys that middleware forces are what the PACS sees, however the client spells its own."""
    seen = place.seen(place.one, "/chain/find", document)
    assert seen["00100020"]["Value"] == ["WARD-7"]
    assert seen["00080061"]["Value"] == ["CT"]
    assert seen["00080050"]["Value"] == ["ACC-1"]


def test_a_client_still_narrows_further(place: Place) -> None:
    """Keys that are not forced reach the PACS as the client gave them."""
    seen = place.seen(place.one, "/chain/find", {"PatientName": "Doe*", "query_level": "STUDY"})
    assert seen["00100010"]["Value"] == [{"Alphabetic": "Doe*"}]


@pytest.mark.parametrize("document", [{}, {"query_model": "patient"}, {"patient_id": "OTHER"}])
def test_a_retrieve_stays_with_the_forced_patient(place: Place, document: dict[str, Any]) -> None:
    """Patient ID is then a unique key of the retrieve; and what a PACS sends of other patients is put aside."""
    seen = place.seen(place.one, "/retrieve/get", {"StudyInstanceUID": "1.2.3", **document}, status=502)
    assert seen["00100020"]["Value"] == ["WARD-7"]
    assert seen["0020000D"]["Value"] == ["1.2.3"]
    assert set(quarantined(place.daemon).values()) == {"not asked for"}


def test_a_retrieve_cannot_leave_the_forced_patient_out(place: Place) -> None:
    """Study Root has no Patient ID: a client that insists on it is refused, and no PACS is asked."""
    asked = len(place.asked(place.one))
    answer = place.post("/retrieve/get", {"StudyInstanceUID": "1.2.3", "query_model": "study"})
    assert answer.status == 400
    assert len(place.asked(place.one)) == asked


def test_what_middleware_sets_is_seen_by_the_backend(place: Place) -> None:
    """The echo endpoint and backend show metadata, method, path, query, headers and body; credentials stay out."""
    headers = {"Authorization": "Basic c2VjcmV0", "X-Thing": "1"}
    answer = place.daemon.http("PUT", "/told/a%20b/c?x=1&x=2", body=b"hello", headers=headers)
    said = answer.json()
    assert answer.status == 200
    assert (said["method"], said["path"], said["query"]) == ("PUT", "/a b/c", {"x": ["1", "2"]})
    assert said["metadata"] == {"ward": "7", "path": "/rewritten"}
    assert said["body"] == {"size_bytes": 5, "text": "hello"}
    assert said["headers"]["x-thing"] == "1"
    assert said["id"] == answer.headers["X-Request-ID"]
    assert "c2VjcmV0" not in json.dumps(said)


# --- networks and endpoints -------------------------------------------------------------------------------------------


def test_each_network_serves_its_own_pipelines(place: Place) -> None:
    """A pipeline is served on the networks it names, and on no other; health on all of them."""
    assert place.inside("GET", "/inside").status == 200
    assert place.daemon.http("GET", "/inside").status == 404
    assert place.inside("GET", "/direct/echo").status == 404
    for answer in (place.inside("GET", "/both/x"), place.daemon.http("GET", "/both/x")):
        assert (answer.status, answer.json()["path"]) == (200, "/x")
    assert place.inside("GET", "/readyz").status == 200


def test_the_longest_prefix_wins_by_whole_segments(place: Place) -> None:
    """/direct/nested is the inner endpoint's, /direct/nestedx the outer's; methods are the endpoint's."""
    assert place.daemon.http("GET", "/direct/nested/x").json()["path"] == "/x"
    refused = place.post("/direct/nested/x")
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")
    outer = place.post("/direct/nestedx")
    assert (outer.status, "no such operation" in outer.json()["detail"]) == (404, True)
