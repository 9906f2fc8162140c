"""``/metrics``: scraped from a real daemon, read with Prometheus's parser, compared with what was done before."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from endpoint_kit import endpoint, send
from metrics_kit import PATH, Scrape, scrape
from misbehaving import stage
from pydicom import dcmread
from reload_kit import Host, http
from retrieve_kit import DICOM, ct_bytes, pacs_backend

from harmonyd import __version__
from harmonyd.metrics.families import FAMILIES
from harmonyd.testing.certificates import Authority
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import MadeStudy, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port, wait_until

MARK = "ZZMARKEDPATIENT"
MEMORY = "harmonyd_child_resident_memory_bytes"


def gone() -> dict[str, Any]:
    """A backend whose PACS is not there."""
    return {"aet": "GONE", "host": "127.0.0.1", "port": free_port()}


@pytest.fixture
def study(tmp_path: Path) -> MadeStudy:
    return make_study(tmp_path / "made", 3, patient_id=MARK)


@pytest.fixture
def archive(tmp_path: Path, study: MadeStudy) -> Iterator[RunningPacs]:
    """A dcmqrscp that has the study."""
    with RunningPacs(tmp_path / "pacs", files=study.files, destinations={"HARMONY_MOVE": free_port()}) as running:
        yield running


def post(daemon: RunningDaemon, operation: str, document: Any = None) -> int:
    return daemon.http("POST", f"/dicom/{operation}", json=document).status


# --- operations


def test_operations_are_measured(
    daemon: Callable[..., RunningDaemon], archive: RunningPacs, study: MadeStudy, tmp_path: Path
) -> None:
    """After one echo, find, get, move and store the figures are those of what was done, and no patient is in them."""
    running = daemon(backends={"pacs": pacs_backend(archive)})
    whole = {"StudyInstanceUID": study.study_uid}
    before = scrape(running)
    assert not before.has("harmonyd_operations_total")
    assert post(running, "echo") == 200
    found = running.http("POST", "/dicom/find", json={"PatientID": MARK, **whole, "level": "IMAGE"})
    assert found.status == 200, found.body
    matches = len(found.json()["matches"])
    assert post(running, "get", whole) == 200
    assert post(running, "move", whole) == 200
    stored = running.http("POST", "/dicom/store", body=ct_bytes(tmp_path), headers={"Content-Type": DICOM})
    assert stored.status == 200
    assert post(running, "find", {"StudyInstanceUID": "1.2.3.4.5.6.7"}) == 200
    assert post(running, "get", {"StudyInstanceUID": "1.2.3.4.5.6.7"}) == 404
    after = scrape(running)
    at = {"backend": "pacs"}
    for operation, outcomes, results in (
        ("echo", {"complete": 1}, 0),
        ("find", {"complete": 2}, matches),
        ("get", {"complete": 1, "nothing_found": 1}, len(study.files)),
        ("move", {"complete": 1}, len(study.files)),
        ("store", {"complete": 1}, 1),
    ):
        labels = {**at, "operation": operation}
        count = sum(outcomes.values())
        assert after.outcomes("pacs", operation) == outcomes
        assert after.sum("harmonyd_operation_seconds_count", **labels) == count
        assert after.sum("harmonyd_operation_queue_seconds_count", **labels) == count
        assert after.sum("harmonyd_operations_in_flight", **labels) == 0
        assert after.sum("harmonyd_operation_results_total", **labels) == results
        assert after.sum("harmonyd_operation_seconds_sum", **labels) > 0
    assert after.sum("harmonyd_operation_first_result_seconds_count", **at, operation="find") == 1
    sizes = sum(len(dcmread(path).PixelData) for path in study.files)
    assert after.sum("harmonyd_operation_bytes_total", **at, operation="get") > sizes
    assert after.sum("harmonyd_http_requests_total", endpoint="http", status="2xx") == 6
    assert after.sum("harmonyd_http_requests_total", endpoint="http", status="4xx") == 1
    assert after.sum("harmonyd_http_request_seconds_count", endpoint="http") == 7
    assert after.sum("harmonyd_http_requests_in_flight") == 1, "the scrape itself"
    for secret in (MARK, study.study_uid, str(tmp_path)):
        assert secret not in after.text


def test_how_operations_fail_is_told_apart(tmp_path: Path) -> None:
    """Each way in which a PACS fails is its own outcome; a client that leaves makes its operation a cancelled one."""
    scripts: dict[str, tuple[str, dict[str, Any]]] = {
        "full": ("reject", {"reject": (2, 3, 2)}),
        "failing": ("serve", {"count": 0, "status": 0xA700}),
        "partial": ("serve", {"count": 2, "status": 0xB000}),
        "hanging": ("serve", {"after": 2, "then": "hang"}),
    }
    with stage(tmp_path, scripts) as on:
        assert on.ask("find", "full").status == 502
        assert on.ask("find", "failing").status == 502
        assert on.ask("get", "partial").status == 200
        with on.stream("find", "hanging", Accept="application/x-ndjson") as response:
            assert response.readline()
            during = scrape(on.daemon)
            assert during.sum("harmonyd_operations_in_flight", backend="hanging", operation="find") == 1
            assert during.outcomes("hanging", "find") == {}
        after = wait_until(
            lambda: (seen := scrape(on.daemon)).outcomes("hanging", "find") and seen, "the operation has ended"
        )
        assert after.outcomes("hanging", "find") == {"cancelled": 1}
        assert after.sum("harmonyd_operations_in_flight", backend="hanging") == 0
        assert after.sum("harmonyd_http_requests_total", status="cut") == 1
        assert after.outcomes("full", "find") == {"no_association": 1}
        assert after.outcomes("failing", "find") == {"failure_status": 1}
        assert after.outcomes("partial", "get") == {"incomplete": 1}


def test_a_pacs_that_is_away(daemon: Callable[..., RunningDaemon]) -> None:
    """Its operations are unreachable; readiness, also as a metric, does not depend on it."""
    running = daemon(backends={"pacs": gone()})
    assert post(running, "echo") == 502
    seen = scrape(running)
    assert seen.outcomes("pacs", "echo") == {"unreachable": 1}
    assert not any(value for _, value in seen.all("harmonyd_operation_first_result_seconds_count", backend="pacs"))
    assert seen.sum("harmonyd_ready") == 1
    assert seen.sum("harmonyd_build_info", version=__version__) == 1


# --- what a label may be


def test_requests_make_no_labels(daemon: Callable[..., RunningDaemon]) -> None:
    """Whatever clients put into paths, methods, queries and names of operations: no series comes of it."""
    running = daemon(backends={"pacs": gone()})
    wild = [f"/{MARK}/{number}?q={MARK}" for number in range(20)]
    wild += [f"/dicom/{MARK}{number}" for number in range(20)] + ["/%ff", "/a/../b", "/%zz", "/dicom/echo/"]

    def everything() -> Scrape:
        for path in wild:
            running.http("GET", path)
            running.http("POST", path, json={"operation": MARK, "PatientName": MARK})
        running.http("FROB", "/dicom/echo")
        return scrape(running)

    everything()  # with it the first scrape has been counted
    first, second = everything(), everything()
    assert second.series == first.series
    assert MARK not in second.text
    labels = {dict(found).get("endpoint") for _, found in second.series}
    assert labels <= {None, "", "http", "metrics", "readyz"}


@pytest.mark.dcmtk
def test_it_is_what_the_table_says(tmp_path: Path, archive: RunningPacs) -> None:
    """Each family that is scraped is in the table, with its type, text and labels, and each of the table is scraped."""
    own = Authority(tmp_path).issue("server")
    tls = {"cert_file": str(own.cert), "key_file": str(own.key)}
    backends = {"pacs": pacs_backend(archive, engine="native"), "away": gone()}
    inside = endpoint(free_port(), engine="native", tls=tls)
    parts: dict[str, Any] = {
        "backends": {**backends, "moved": {**gone(), "engine": "dcmtk", "incoming_store_port": free_port()}},
        "endpoints": {**inside, "http": http("/dicom")},
        "pipelines": {
            "in": {"description": "", "networks": ["default"], "endpoints": ["inbound"], "middleware": [],
                   "backends": ["away"]},
            "out": {"description": "", "networks": ["default"], "endpoints": ["http"], "middleware": [],
                    "backends": ["pacs", "moved"]},
        },
    }  # fmt: skip
    with Host(tmp_path / "host", **parts) as host:
        assert post(host.daemon, "echo") == 200
        seen = wait_until(lambda: (now := scrape(host.daemon)).has(MEMORY) and now, "the memory of children is known")
        families = {family.name: family for family in seen.families}
    ours = {name: family for name, family in families.items() if not name.startswith(("process_", "python_"))}
    for name, family in ours.items():
        declared = FAMILIES[f"{name}_total" if family.type == "counter" else name]
        assert (family.type, family.documentation) == (declared.kind, declared.text)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(declared.labels)
    exported = {f"{name}_total" if family.type == "counter" else name for name, family in ours.items()}
    only_then = {name for name in FAMILIES if name.startswith("harmonyd_spool_")}
    only_then |= {"harmonyd_tool_processes", "harmonyd_auth_refusals_total"}
    assert set(FAMILIES) - only_then <= exported


# --- children, spool, certificates


@pytest.mark.dcmtk
def test_children_and_their_restarts(tmp_path: Path) -> None:
    """A kept child has one state, memory and CPU time; one that is killed is counted when it has been started again."""
    receiver = free_port()
    with Host(tmp_path / "host", backends={"pacs": {**gone(), "incoming_store_port": receiver}}) as host:
        child = f"storescp:incoming-{receiver}"
        seen = scrape(host.daemon)
        assert seen.sum("harmonyd_child_state", child=child) == 1
        assert seen.sum("harmonyd_child_state", child=child, state="RUNNING") == 1
        assert seen.sum("harmonyd_child_restarts_total", child=child) == 0
        known = wait_until(lambda: (now := scrape(host.daemon)).has(MEMORY, child=child) and now, "its memory is known")
        assert known.sum(MEMORY, child=child) > 1_000_000
        assert known.sum("harmonyd_child_cpu_seconds_total", child=child) >= 0
        os.kill(host.pid(child), 9)
        wait_until(lambda: scrape(host.daemon).sum("harmonyd_child_restarts_total", child=child) == 1, "a restart")
        wait_until(
            lambda: scrape(host.daemon).sum("harmonyd_child_state", child=child, state="RUNNING") == 1, "it runs"
        )


def test_what_waits_in_the_spool(tmp_path: Path, study: MadeStudy) -> None:
    """Objects for a PACS that is away are counted, have an age, and it is said that it is away."""
    port = free_port()
    parts = {"backends": {"pacs": gone()}, "endpoints": endpoint(port)}
    queue = {"endpoint": "inbound", "backend": "pacs"}
    with Host(tmp_path / "host", **parts) as host:
        send(port, *study.files)
        name = "harmonyd_spool_waiting_objects"
        wait_until(lambda: (now := scrape(host.daemon)).has(name) and now.sum(name, **queue) == 3, "all wait")
        seen = wait_until(
            lambda: (now := scrape(host.daemon)).sum("harmonyd_spool_backend_away", **queue) and now, "it is away"
        )
        assert seen.sum("harmonyd_spool_objects") == 3
        assert seen.sum("harmonyd_spool_bytes") >= sum(path.stat().st_size for path in study.files) // 2
        assert 0 <= seen.sum("harmonyd_spool_oldest_age_seconds", **queue) < 3600
        assert seen.sum("harmonyd_spool_quarantined_objects", **queue) == 0
        assert seen.sum("harmonyd_scrape_ok", part="spool") == 1
        assert MARK not in seen.text


def test_when_certificates_expire(tmp_path: Path) -> None:
    """The time in the file, also after it was renewed; a file with nothing usable is told as such."""
    authority = Authority(tmp_path)
    own, renewed = authority.issue("own", days=3), authority.issue("renewed", days=200)
    tls = {"cert_file": str(own.cert), "key_file": str(own.key), "ca_file": str(authority.cert)}
    labels = {"where": "endpoint", "name": "inbound", "file": "cert_file"}
    name = "harmonyd_certificate_expiry_timestamp_seconds"
    with Host(tmp_path / "host", endpoints=endpoint(free_port(), engine="native", tls=tls)) as host:
        first = scrape(host.daemon)
        own.cert.write_bytes(renewed.cert.read_bytes())
        second = scrape(host.daemon)
        own.cert.write_bytes(b"nothing")
        third = scrape(host.daemon)
    days = (second.sum(name, **labels) - first.sum(name, **labels)) / 86400
    assert 196 < days < 198
    assert first.sum("harmonyd_certificate_unreadable", **labels) == 0
    assert third.sum("harmonyd_certificate_unreadable", **labels) == 1
    assert not third.has(name, **labels)
    assert third.has(name, where="endpoint", name="inbound", file="ca_file")


# --- configuration and clients


def test_a_reload_keeps_counting_and_forgets_what_is_gone(tmp_path: Path) -> None:
    """Counters go on; those of a backend and an endpoint that were taken out go, and ``metrics = false`` ends it."""
    both = {"backends": {"one": gone(), "two": gone()}, "endpoints": {"http": http("/dicom"), "other": http("/other")}}
    with Host(tmp_path / "host", **both) as host:
        daemon = host.daemon
        for backend in ("one", "two"):
            assert daemon.http("POST", f"/dicom/echo?backend={backend}").status == 502
        assert daemon.http("POST", "/other/echo?backend=one").status == 502
        assert scrape(daemon).has("harmonyd_operations_total", backend="two")
        host.reload(backends={"one": both["backends"]["one"]}, endpoints={"http": http("/dicom")})
        assert daemon.http("POST", "/dicom/echo").status == 502
        seen = scrape(daemon)
        assert seen.outcomes("one", "echo") == {"unreachable": 3}
        assert not seen.has("harmonyd_operations_total", backend="two")
        assert not seen.has("harmonyd_http_requests_total", endpoint="other")
        host.reload(sections={"telemetry": {"metrics": False}})
        assert host.status(PATH) == 404
        host.reload()
        assert host.status(PATH) == 200


def test_where_it_is_served(daemon: Callable[..., RunningDaemon]) -> None:
    """On the network of [telemetry] alone, in the OpenAPI document there, with GET and HEAD."""
    port = free_port()
    running = daemon(
        backends={"echo": {"service": "echo"}},
        sections={
            "network": {"inside": {"http": {"bind_address": "127.0.0.1", "bind_port": port}}},
            "telemetry": {"network": "default"},
        },
    )
    inside = RunningDaemon(running.config)
    inside.port = port
    assert inside.http("GET", PATH).status == 404
    head = running.http("HEAD", PATH)
    assert (head.status, head.body) == (200, b"")
    assert running.http("POST", PATH, json={}).headers["Allow"] == "GET, HEAD"
    described = json.loads(running.http("GET", "/openapi.json").body)["paths"][PATH]
    assert list(described["get"]["responses"]["200"]["content"]) == ["text/plain"]


def test_many_scrapes_at_once(daemon: Callable[..., RunningDaemon]) -> None:
    """Fifty at the same time each get all of it."""
    running = daemon(backends={"pacs": gone()})
    with ThreadPoolExecutor(50) as pool:
        scrapes = list(pool.map(lambda _: scrape(running), range(50)))
    assert all(each.sum("harmonyd_ready") == 1 and each.has("process_start_time_seconds") for each in scrapes)
    lag = wait_until(
        lambda: (now := scrape(running)).sum("harmonyd_event_loop_lag_seconds_count") > 0 and now, "the lag is measured"
    )
    assert lag.sum("harmonyd_event_loop_lag_seconds_sum") >= 0
