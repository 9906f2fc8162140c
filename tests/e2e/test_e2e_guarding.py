"""What protects a PACS from clients, and clients from a PACS that is away: of one real daemon, and PACSs that die."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from dicomweb_kit import pacs_options
from endpoint_kit import AET, endpoint, entries, send, wait_delivered
from metrics_kit import scrape

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import Answer, RunningDaemon
from harmonyd.testing.data import make_ct, uid_for
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port, wait_until

QUICK = {"failures": 3, "open_secs": 0.5, "max_open_secs": 0.5}
SLOW = {"failures": 2, "open_secs": 3600, "max_open_secs": 3600}
HERE = ["default"]
NIGHT_SECS = 12 * 3600
PROXIED = "198.51.100."
ANY: dict[str, Any] = {"PatientID": "*", "level": "STUDY"}


@dataclass
class Site:
    """The daemon, its PACS, and what listens."""

    daemon: RunningDaemon
    pacs: RunningPacs
    inbound: int
    objects: list[Path]

    def ask(self, path: str, document: Any = ANY, **headers: str) -> Answer:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.daemon.http("POST", path, json=document, headers=fields)

    def node(self, name: str, query: str = "") -> Any:
        return self.daemon.http("GET", f"/admin/backends/{name}{query}").json()

    def state(self, name: str) -> str:
        return str(self.node(name)["state"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("guarding")) as site:
        yield site


@contextmanager
def running(folder: Path) -> Iterator[Site]:
    objects = [folder / f"{number}.dcm" for number in range(3)]
    for number, path in enumerate(objects):
        uids = {"study_uid": uid_for("g"), "series_uid": uid_for("g/1")}
        make_ct(path, **uids, instance_number=number, patient_id="G1", size=16)
    inbound = free_port()
    with (
        RunningPacs(folder / "pacs", files=objects[:1]) as pacs,
        ScriptedPeer("silent") as hung,
        RunningDaemon(_config(folder, pacs, hung, inbound)) as daemon,
    ):
        yield Site(daemon, pacs, inbound, objects)


def _config(folder: Path, pacs: RunningPacs, hung: ScriptedPeer, inbound: int) -> Path:
    night = datetime.now(UTC) + timedelta(seconds=NIGHT_SECS)
    hours = f"{night:%H:%M}-{night + timedelta(minutes=1):%H:%M}"
    away = {"engine": "native", "aet": "AWAY", "host": "127.0.0.1", "port": free_port(), "breaker": SLOW}
    backends = {
        "native": pacs_options(pacs, "native", breaker=QUICK, association_idle_ms=0),
        "dcmtk": pacs_options(pacs, "dcmtk", breaker=QUICK, incoming_store_port=free_port()),
        "careful": pacs_options(pacs, "native", selectivity={}),
        "nightly": pacs_options(
            pacs, "native", permitted_hours=[hours], permitted_hours_zone="UTC", permitted_hours_for=["retrieve"]
        ),
        "hung": {"engine": "native", "aet": "HUNG", "host": "127.0.0.1", "port": hung.port},
        "away": away,
        "gone": away,
    }
    endpoints = {
        **{name: {"service": "http", "path_prefix": f"/{name}"} for name in ("dicom", "paced", "few", "both")},
        "web": {"service": "dicomweb", "path_prefix": "/web"},
        **endpoint(inbound),
    }
    middleware = {
        "pace": {"type": "rate_limit", "requests": 2, "per_secs": 3600},
        "share": {"type": "concurrency", "limit": 1},
    }
    pipelines = {
        "plain": {"endpoints": ["dicom"], "backends": ["native", "dcmtk", "nightly", "gone"]},
        "paced": {"endpoints": ["paced"], "middleware": ["pace"], "backends": ["native"]},
        "few": {"endpoints": ["few"], "middleware": ["share"], "backends": ["hung"]},
        "web": {"endpoints": ["web"], "middleware": ["pace", "share"], "backends": ["careful"]},
        "both": {"endpoints": ["both"], "backends": ["away", "careful"], "fan_out": True},
        "in": {"endpoints": ["inbound"], "middleware": ["pace", "share"], "backends": ["native"]},
    }
    return write_config(
        folder,
        http_port=free_port(),
        backends=backends,
        endpoints=endpoints,
        middleware=middleware,
        pipelines={name: {"networks": HERE, **given} for name, given in pipelines.items()},
        sections={
            "management": {"enabled": True, "network": "default"},
            "network": {"default": {"http": {"trusted_proxies": ["127.0.0.1"]}}},
            "spool": {"retry_max_secs": 1, "max_attempts": 2},
        },
    )


# --- the circuit breaker


@pytest.mark.dcmtk
def test_a_pacs_that_dies_and_comes_back(tmp_path: Path) -> None:
    """502 until the breaker opens, then 503 at once; what was received waits; all goes on when the PACS is back."""
    with running(tmp_path) as site:
        _dies_and_comes_back(site)


def _dies_and_comes_back(site: Site) -> None:
    names = ("native", "dcmtk")
    finds = {name: f"/dicom/find?backend={name}" for name in names}
    for path in finds.values():
        assert site.ask(path).json()["count"] == 1
    site.pacs.stop()
    for name, path in finds.items():
        assert [site.ask(path).status for _ in range(3)] == [502] * 3
        answer = site.ask(path)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        members = answer.json()
        assert members["type"] == "urn:harmonyd:problem:circuit-open"
        assert "in a row" in members["detail"] and "Connection refused" in members["detail"]
        assert (members["backend"], members["operation"], members["retry_after_secs"]) == (name, "find", 1)
        assert site.node(name)["trips"] == 1
        # Who asks for an echo gets the truth.
        assert site.ask(f"/dicom/echo?backend={name}", None).status == 502
    send(site.inbound, *site.objects[1:])
    wait_until(lambda: any(info.deliveries[0].reason for info in entries(site.daemon)), "a delivery was tried")
    wait_until(lambda: site.node("native")["last_echo"], "the breaker has tried it by itself")
    told = scrape(site.daemon)
    for name in names:
        assert told.sum("harmonyd_backend_breaker_state", backend=name, state="closed") == 0
        assert told.sum("harmonyd_backend_breaker_trips_total", backend=name) == 1
        assert told.sum("harmonyd_backend_refused_total", backend=name, reason="breaker") >= 1
    deliveries = [delivery for info in entries(site.daemon) for delivery in info.deliveries]
    assert [(each.state, each.attempts) for each in deliveries] == [("WAITING", 0)] * 2
    site.pacs.files = ()
    site.pacs.start()
    for name, path in finds.items():
        wait_until(lambda name=name: site.state(name) == "closed", "it answers again")  # type: ignore[misc]
        assert site.ask(path).status == 200
    wait_delivered(site.daemon)
    found = site.ask(finds["native"], {"StudyInstanceUID": uid_for("g"), "level": "IMAGE", "SeriesInstanceUID": ""})
    assert found.json()["count"] == 3
    assert site.node("native")["last_echo"]["ok"] is True
    log = site.daemon.log_file.read_text("utf-8")
    assert "native is not asked for 0.5 s, after 3 failures in a row" in log
    assert "native answers again, after" in log


def test_a_pacs_that_is_left_alone_is_away_for_all_of_them(site: Site) -> None:
    """A search of several PACS does not wait for it, and says so."""
    for _ in range(2):
        assert site.ask("/both/find", {"PatientID": "G1"}).status == 200
    assert site.state("away") == "open"
    members = site.ask("/both/find", {"PatientID": "G1"}).json()
    assert [each["success"] for each in members["backends"]] == [False, True]
    assert members["count"] == 1
    assert "away is not asked now, after 2 failures in a row" in members["incomplete_reason"]


# --- hours, queries


def test_a_retrieve_by_day(site: Site) -> None:
    """503 until the night begins; a query is answered."""
    assert site.ask("/dicom/find?backend=nightly").status == 200
    answer = site.ask("/dicom/get?backend=nightly", {"StudyInstanceUID": uid_for("g")})
    assert answer.status == 503
    assert answer.json()["type"] == "urn:harmonyd:problem:outside-hours"
    assert NIGHT_SECS - 600 < int(answer.headers["Retry-After"]) <= NIGHT_SECS
    node = site.node("nightly")
    assert (node["permitted"]["find"], node["permitted"]["retrieve"]) == (True, False)
    begins = datetime.fromisoformat(node["next_permitted_at"])
    assert abs(begins.timestamp() - time.time() - NIGHT_SECS) < 600


def test_a_query_that_is_too_broad(site: Site) -> None:
    """Through DICOMweb as through a plain endpoint, and through several PACS."""
    asked = {"X-Forwarded-For": f"{PROXIED}1"}
    for answer in (
        site.daemon.http("GET", "/web/studies?PatientName=*", headers=asked),
        site.ask("/both/find?backend=careful", {"PatientName": "*"}),
    ):
        assert (answer.status, answer.json()["type"]) == (400, "urn:harmonyd:problem:too-broad")
        assert "PatientID" in answer.json()["hint"]
    narrow = site.daemon.http("GET", f"/web/studies/{uid_for('g')}/instances", headers=asked)
    assert narrow.status == 200


# --- callers


def test_a_rate(site: Site) -> None:
    """429 with Retry-After for one caller behind the proxy; another one is served; the proxy cannot be made up."""
    statuses = [site.ask("/paced/find", X_Forwarded_For=f"{PROXIED}2").status for _ in range(3)]
    assert statuses == [200, 200, 429]
    answer = site.ask("/paced/find", X_Forwarded_For=f"203.0.113.1, {PROXIED}2")
    assert (answer.status, answer.json()["type"]) == (429, "urn:harmonyd:problem:too-many-requests")
    assert 1 <= int(answer.headers["Retry-After"]) <= 1800
    assert site.ask("/paced/find", X_Forwarded_For=f"{PROXIED}3").status == 200
    assert scrape(site.daemon).sum("harmonyd_limited_requests_total", middleware="pace") >= 2


def test_many_questions_are_one_request(site: Site) -> None:
    """A search through the levels, with a limit of one request at once and two in the hour."""
    asked = {"X-Forwarded-For": f"{PROXIED}4"}
    for _ in range(2):
        answer = site.daemon.http("GET", "/web/instances?PatientID=G1", headers=asked)
        assert (answer.status, len(answer.json())) == (200, 1)
    assert site.daemon.http("GET", "/web/instances?PatientID=G1", headers=asked).status == 429


def test_how_much_at_once(site: Site) -> None:
    """A second request of the same caller is refused until the first has gone, also where that answers later."""
    first = _held(site, "/few/find", f"{PROXIED}5")
    wait_until(lambda: site.node("hung")["in_flight"] == 1, "the first one runs")
    assert site.ask("/few/find", X_Forwarded_For=f"{PROXIED}5").status == 429
    later = site.ask("/few/find", Prefer="respond-async", X_Forwarded_For=f"{PROXIED}6")
    assert later.status == 202
    assert site.ask("/few/find", Prefer="respond-async", X_Forwarded_For=f"{PROXIED}6").status == 429
    first.close()
    assert site.daemon.http("DELETE", later.headers["Location"]).status == 200
    wait_until(lambda: site.node("hung")["in_flight"] == 0, "both have ended")
    for number in (5, 6):
        again = _held(site, "/few/find", f"{PROXIED}{number}")
        wait_until(lambda: site.node("hung")["in_flight"] == 1, "the next one runs")
        again.close()
        wait_until(lambda: site.node("hung")["in_flight"] == 0, "it has ended")


def _held(site: Site, path: str, address: str) -> HTTPConnection:
    """A client that has asked, and reads nothing."""
    client = site.daemon.connect()
    headers = {"Content-Type": "application/json", "X-Forwarded-For": address}
    client.request("POST", path, body=b'{"PatientID": "G1"}', headers=headers)
    return client


# --- health


def test_how_the_nodes_are(site: Site) -> None:
    """All of them; an echo is asked for on demand, and one that is away does not change whether we are ready."""
    with ThreadPoolExecutor() as pool:
        fresh = pool.submit(site.node, "native", "?refresh")
        told = site.daemon.http("GET", "/admin/backends").json()
        node = fresh.result()
    assert [each["name"] for each in told][:2] == ["native", "dcmtk"]
    assert (node["aet"], node["port"], node["state"]) == (site.pacs.aet, site.pacs.port, "closed")
    assert node["last_echo"]["ok"] is True and node["last_echo"]["latency_ms"] > 0
    assert (node["in_flight"], node["waiting"]) == (0, 0)
    gone = site.node("gone", "?refresh=true")
    assert gone["last_echo"]["ok"] is False and "Connection refused" in gone["last_echo"]["error"]
    assert gone["failures_in_a_row"] == 1
    assert site.daemon.http("GET", "/readyz").status == 200
    assert site.daemon.http("GET", "/admin/backends/nobody").status == 404
    assert AET not in str(told), "it is about who is asked, not about who asks"
