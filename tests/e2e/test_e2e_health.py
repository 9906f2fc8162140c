"""``/livez`` and ``/readyz``: alive is not ready, and ready means that our own children are RUNNING."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from retrieve_kit import NATIVE

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import Answer, RunningDaemon
from harmonyd.testing.processes import free_port, wait_until

Daemons = Callable[..., RunningDaemon]

QUICK = {
    "probe_interval_secs": 0.1,
    "probe_timeout_secs": 0.3,
    "probe_misses": 2,
    "fatal_after_failures": 2,
    "backoff_initial_secs": 1.0,
    "backoff_max_secs": 1.0,
    "fatal_retry_secs": 1,
}


def gone_pacs(receiver: int) -> dict[str, Any]:
    """A backend whose PACS is not there, and whose receiver runs all the same."""
    return {"pacs": {"aet": "GONE", "host": "127.0.0.1", "port": free_port(), "incoming_store_port": receiver}}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    receiver = free_port()
    config = write_config(
        tmp_path_factory.mktemp("gateway"),
        http_port=free_port(),
        backends=gone_pacs(receiver),
        sections={"supervision": QUICK},
    )
    with RunningDaemon(config) as running:
        yield running


def readiness(daemon: RunningDaemon) -> Answer:
    answer = daemon.http("GET", "/readyz")
    assert answer.status == (200 if answer.json()["status"] == "ready" else 503)
    assert daemon.http("GET", "/livez").json() == {"status": "ready", "checks": {}}
    return answer


def detail_of(answer: Answer) -> str:
    detail: str = answer.json()["checks"]["children"]["detail"]
    return detail


def storescp(daemon: RunningDaemon) -> psutil.Process:
    [found] = [child for child in daemon.children() if child.name() == "storescp"]
    return found


def test_readiness_does_not_depend_on_a_pacs(gateway: RunningDaemon) -> None:
    """The only PACS is away; harmonyd is ready, says what it looked at, and the operation is told as 502."""
    answer = wait_until(lambda: (found := readiness(gateway)).status == 200 and found, "ready")
    checks = {name: check["ok"] for name, check in answer.json()["checks"].items()}
    assert checks == {"storage": True, "children": True, "receiving": True}
    assert detail_of(answer) == ("0 running" if NATIVE else "1 running")
    told = gateway.http("GET", "/readyz?verbose").json()
    assert all(each["since"].endswith("Z") for each in (told, *told["checks"].values()))
    assert gateway.http("GET", "/livez?verbose").json()["since"] <= told["since"]
    assert gateway.http("POST", "/dicom/echo").status == 502
    assert readiness(gateway).status == 200


@pytest.mark.dcmtk
def test_a_child_that_ends_makes_it_not_ready_until_it_is_back(gateway: RunningDaemon) -> None:
    """503 names the child and how it ended; the next process of the same child is ready again."""
    before = storescp(gateway)
    before.kill()
    not_ready = wait_until(lambda: (found := readiness(gateway)).status == 503 and found, "not ready")
    assert not_ready.headers["Cache-Control"] == "no-store"
    assert detail_of(not_ready).startswith("storescp:incoming-")
    assert "ended by SIGKILL" in detail_of(not_ready)
    wait_until(lambda: readiness(gateway).status == 200, "ready again")
    assert storescp(gateway).pid != before.pid


@pytest.mark.dcmtk
def test_a_child_that_hangs_is_found_and_replaced(gateway: RunningDaemon) -> None:
    """A stopped storescp answers no C-ECHO: it is not ready, and is started anew."""
    before = wait_until(lambda: readiness(gateway).status == 200 and storescp(gateway), "ready")
    before.send_signal(signal.SIGSTOP)
    not_ready = wait_until(lambda: (found := readiness(gateway)).status == 503 and found, "not ready")
    assert "hung" in detail_of(not_ready)
    wait_until(lambda: readiness(gateway).status == 200, "ready again")
    assert storescp(gateway).pid != before.pid
    assert not before.is_running()


@pytest.mark.dcmtk
def test_a_child_that_cannot_start_is_named_with_the_reason(tmp_path: Path) -> None:
    """FATAL: a stranger has the port, and /readyz says who; once the port is free, harmonyd becomes ready by itself."""
    receiver = free_port()
    config = write_config(
        tmp_path, http_port=free_port(), backends=gone_pacs(receiver), sections={"supervision": QUICK}
    )
    daemon = RunningDaemon(config)
    holder = f"port {receiver} is held by pid {os.getpid()}"
    with socket.create_server(("", receiver)):
        daemon.launch()
        try:
            wait_until(lambda: "-> FATAL: " in daemon.log and holder in not_ready(daemon), "it says who has it")
            assert f"storescp:incoming-{receiver}" in not_ready(daemon)
        except BaseException:
            daemon.kill9()
            raise
    wait_until(lambda: readiness(daemon).status == 200, "ready once the port is free")
    daemon.stop()


def not_ready(daemon: RunningDaemon) -> str:
    """What is said about the children; nothing while the daemon does not listen."""
    try:
        answer = readiness(daemon)
    except OSError:
        return ""
    assert answer.status == 503
    return detail_of(answer)


def test_health_is_served_where_telemetry_says(daemon: Daemons) -> None:
    """[telemetry] network: the paths are there, and on no other network."""
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
    assert running.http("GET", "/readyz").status == 200
    assert inside.http("GET", "/readyz").status == 404
