"""Spans of a real daemon at a real collector: one trace from the client through the pipeline to the PACS and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from collector_kit import collector
from endpoint_kit import WebServer, endpoint, send
from query_kit import AET, STUDY_ROOT_FIND, Node, associate, dataset, find
from query_kit import endpoint as query_endpoint
from retrieve_kit import peer_backend

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import make_study
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port, wait_until

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
MARK = "ZQNAME"


@dataclass(frozen=True)
class Seen:
    """What came of it, after the daemon has stopped."""

    spans: list[Any]
    server: WebServer
    log: list[dict[str, Any]]

    def of(self, trace_id: str) -> dict[str, Any]:
        """The spans of a trace, by name."""
        return {span.name: span for span in self.spans if span.trace_id.hex() == trace_id}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """A find by a child, one that fails, a forwarded request, and two objects that come in."""
    folder = tmp_path_factory.mktemp("tracing")
    inbound, node = free_port(), Node(AET, free_port())
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "a=1", "X-Request-ID": "traced"}
    with ExitStack() as stack:
        url, taken = stack.enter_context(collector())
        server = stack.enter_context(WebServer([200]))
        peer = stack.enter_context(ScriptedPeer())
        common = {"description": "x", "networks": ["default"], "middleware": []}
        config = write_config(
            folder,
            http_port=free_port(),
            backends={
                "pacs": peer_backend(peer, engine="dcmtk"),
                "nowhere": {"aet": "X", "host": "127.0.0.1", "port": free_port(), "engine": "dcmtk"},
                "asked": peer_backend(peer, engine="native", incoming_store_port=free_port()),
                "server": server.backend,
            },
            endpoints={
                "http": {"service": "http", "path_prefix": "/dicom"},
                "web": {"service": "http", "path_prefix": "/web"},
                **endpoint(inbound, engine="native"),
                "qr": query_endpoint(node.port),
            },
            pipelines={
                "qr": {**common, "endpoints": ["qr"], "backends": ["asked"]},
                "dimse": {**common, "endpoints": ["http"], "backends": ["pacs", "nowhere"]},
                "web": {**common, "endpoints": ["web", "inbound"], "backends": ["server"]},
            },
            sections={"telemetry": {"tracing": {"enabled": True, "endpoint": url}}},
        )
        with RunningDaemon(config) as daemon:
            keys = {"PatientName": MARK, "query_level": "STUDY"}
            assert daemon.http("POST", "/dicom/find?backend=pacs", json=keys, headers=headers).status == 200
            assert daemon.http("POST", "/dicom/echo?backend=nowhere").status == 502
            assert daemon.http("GET", f"/web/{MARK}?name={MARK}", headers=headers).status == 200
            assoc = associate(node, STUDY_ROOT_FIND)
            assert find(assoc, dataset(QueryRetrieveLevel="STUDY", PatientName=MARK))[-1][0].Status == 0
            assoc.release()
            send(inbound, *make_study(folder / "study", 2, patient_id=MARK).files)
            wait_until(lambda: len(server.received) == 3, "the objects are delivered")
        scopes = [scope for each in taken for found in each.resource_spans for scope in found.scope_spans]
        spans = [span for scope in scopes for span in scope.spans]
        yield Seen(spans, server, [json.loads(line) for line in daemon.raw_log.splitlines()])


def test_one_trace_from_the_client_to_the_child(seen: Seen) -> None:
    """Each span is a child of the one before: request, pipeline, operation, child."""
    spans = seen.of(TRACE)
    chain = [spans[name] for name in ("POST /dicom", "pipeline dimse", "DIMSE find pacs", "child findscu")]
    assert chain[0].parent_span_id.hex() == SPAN
    assert [span.parent_span_id for span in chain[1:]] == [span.span_id for span in chain[:-1]]
    attributes = {each.key: each.value.string_value or each.value.int_value for each in chain[2].attributes}
    assert attributes["harmonyd.outcome"] == "complete"
    assert attributes["harmonyd.count"] == 3
    assert attributes["harmonyd.request"] == "traced"


def test_a_failure_is_told(seen: Seen) -> None:
    """By the outcome of the operation, and the status of the request."""
    [operation] = [span for span in seen.spans if span.name == "DIMSE echo nowhere"]
    assert operation.status.message == "unreachable"
    assert "status 502" in {span.status.message for span in seen.of(operation.trace_id.hex()).values()}


def test_an_http_backend_gets_our_span(seen: Seen) -> None:
    """``traceparent`` names the span of the forwarding; id and state are passed on."""
    _, _, headers, _ = next(each for each in seen.server.received if each[0] == "GET")
    forwarding = seen.of(TRACE)["HTTP GET server"]
    assert headers["traceparent"] == f"00-{TRACE}-{forwarding.span_id.hex()}-01"
    assert (headers["tracestate"], headers["x-request-id"]) == ("a=1", "traced")


def test_an_association_is_a_trace(seen: Seen) -> None:
    """Its id is that of the association, which the log names, too; delivering is part of it."""
    of_senders = [line for line in seen.log if line.get("calling_aet", "WORKSTATION") != "WORKSTATION"]
    [association] = {line["association"] for line in of_senders if "association" in line}
    spans = seen.of(association)
    assert {"receive inbound", "deliver inbound server", "HTTP C-STORE server"} <= spans.keys()


def test_no_span_names_a_patient(seen: Seen) -> None:
    """Neither in its name nor in an attribute."""
    assert MARK not in str(seen.spans)


def test_log_lines_name_the_trace(seen: Seen) -> None:
    """Those of the request and of its child."""
    about = [line for line in seen.log if line.get("request") == "traced"]
    assert {line.get("trace") for line in about} == {TRACE}
    assert any("child" in line for line in about)


def test_what_a_workstation_asks_is_in_the_trace_of_its_association(seen: Seen) -> None:
    """From the pipeline to the PACS; lines of the log say which."""
    (line,) = (line for line in seen.log if line["message"].startswith("C-FIND of WORKSTATION"))
    assert line["trace"] == line["association"]
    spans = seen.of(line["association"])
    assert spans["DIMSE find asked"].parent_span_id == spans["pipeline qr"].span_id
    assert spans["pipeline qr"].parent_span_id.hex() == line["association"][:16]
