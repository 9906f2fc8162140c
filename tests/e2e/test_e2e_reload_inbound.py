"""Endpoints that receive are changed while associations run: whatever was acknowledged reaches the backends."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from endpoint_kit import (
    MODES,
    Receiver,
    acknowledged,
    assert_kept,
    endpoint,
    senders,
    settle,
    wait_more,
)
from reload_kit import Host

from harmonyd.testing.data import demo_files
from harmonyd.testing.processes import free_port, port_is_free, wait_until

Hosts = Callable[..., Host]
MODE_CHANGES = ("per-association", "persistent", "per-association", "persistent")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Start a daemon: ``hosts(**arguments of write_config)``."""
    with ExitStack() as stack:
        yield lambda **arguments: stack.enter_context(Host(tmp_path / "host", **arguments))


def keeping(folder: Path) -> dict[str, Any]:
    """A backend that keeps objects."""
    return {"service": "storage", "path": str(folder)}


def assert_all_kept(folder: Path, sending: Any) -> None:
    assert_kept(folder, acknowledged(sending), [uid for sender in sending for uid in sender.sent])


@pytest.mark.dcmtk
@pytest.mark.deadline(240)
def test_the_mode_changes(hosts: Hosts, tmp_path: Path) -> None:
    """From one mode to the other and back, on the same port, again and again."""
    port, backends = free_port(), {"kept": keeping(tmp_path / "kept")}
    host = hosts(backends=backends, endpoints=endpoint(port))
    with senders(tmp_path, lambda: port) as sending:
        for mode in MODE_CHANGES:
            wait_more(sending, 30)
            assert "storescp:inbound" in host.reload(backends=backends, endpoints=endpoint(port, store_scp=mode))
        wait_more(sending, 30)
    settle(host.daemon)
    assert_all_kept(tmp_path / "kept", sending)


@pytest.mark.deadline(240)
@pytest.mark.parametrize("mode", MODES)
def test_the_port_changes(hosts: Hosts, tmp_path: Path, mode: str) -> None:
    """The old port is closed, senders go on at the new one."""
    ports, backends = [free_port()], {"kept": keeping(tmp_path / "kept")}
    host = hosts(backends=backends, endpoints=endpoint(ports[-1], store_scp=mode))
    with senders(tmp_path, lambda: ports[-1]) as sending:
        for _ in range(2):
            wait_more(sending, 30)
            ports.append(free_port())
            host.reload(backends=backends, endpoints=endpoint(ports[-1], store_scp=mode))
            assert port_is_free(ports[-2])
        wait_more(sending, 30)
    settle(host.daemon)
    assert_all_kept(tmp_path / "kept", sending)


@pytest.mark.deadline(240)
@pytest.mark.parametrize("mode", MODES)
def test_backends_and_order_change(hosts: Hosts, tmp_path: Path, mode: str) -> None:
    """A backend that is added gets what comes from then on, the first one gets all; so it is when in_order changes."""
    port, first = free_port(), {"kept": keeping(tmp_path / "kept")}
    host = hosts(backends=first, endpoints=endpoint(port, store_scp=mode))
    with Receiver() as node, senders(tmp_path, lambda: port) as sending:
        both = {**first, "node": node.backend}
        wait_more(sending, 30)
        assert "backend:node" in host.reload(backends=both, endpoints=endpoint(port, store_scp=mode))
        before = set(acknowledged(sending))
        known = {uid for sender in sending for uid in sender.sent}
        wait_more(sending, 60)
        for in_order in (True, False):
            host.reload(backends=both, endpoints=endpoint(port, store_scp=mode, in_order=in_order))
            wait_more(sending, 30)
        for sender in sending:
            sender.__exit__()
        settle(host.daemon)
        added = acknowledged(sending).keys() - known
        assert len(added) > 30
        assert added <= node.files.keys()
        assert before <= acknowledged(sending).keys()
    assert_all_kept(tmp_path / "kept", sending)


def test_an_endpoint_is_renamed(hosts: Hosts, tmp_path: Path) -> None:
    """What one had received and nothing took is an alarm; it is delivered once an endpoint has that name again."""
    port, backends = free_port(), {"kept": keeping(tmp_path / "kept")}
    options = endpoint(port, store_scp="per-association")["inbound"]
    management = {"management": {"enabled": True, "network": "default"}}
    lost = tmp_path / "host" / "tmp" / "spool" / "receiving"
    for name in ("before", "later"):
        (lost / name / "incoming").mkdir(parents=True)
        shutil.copy(demo_files()[0], lost / name / "incoming" / "CT.1")

    def untaken() -> list[str]:
        return [left["endpoint"] for left in host.daemon.http("GET", "/admin/spool").json()["untaken"]]

    def told() -> str:
        ready = host.daemon.http("GET", "/readyz")
        assert ready.status == 200
        return str(ready.json()["checks"]["receiving"]["detail"])

    host = hosts(backends=backends, endpoints={"later": options}, sections=management)
    assert untaken() == ["before"]
    assert "nothing takes what before has received" in told()
    assert "that endpoint before has received lie in" in host.daemon.log
    host.reload(backends=backends, endpoints={"before": options}, sections=management)
    wait_until(lambda: list((tmp_path / "kept").glob("*/*/*.dcm")), "it is delivered")
    wait_until(lambda: untaken() == [] and told() == "objects are accepted", "nothing is left")
