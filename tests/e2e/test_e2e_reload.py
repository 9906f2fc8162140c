"""Reload while running: what changed changes, what did not goes on, and a wrong configuration changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from misbehaving import STUDY_UID
from reload_kit import ECHO, FAST, Host, http, scp
from retrieve_kit import NATIVE

from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port, port_is_free, wait_until

NDJSON = "application/x-ndjson"


@pytest.fixture(scope="module")
def module_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One daemon for the whole module: reloads are what it is for."""
    with Host(tmp_path_factory.mktemp("reload")) as running:
        yield running


@pytest.fixture
def host(module_host: Host) -> Host:
    """The daemon with an echo at /dicom, and nothing else."""
    module_host.reload()
    return module_host


def get(connection: HTTPConnection, path: str) -> int:
    """One request on a connection that stays open."""
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    assert response.getheader("Connection") != "close"
    return response.status


def find(host: Host, path: str = "/dicom/find") -> Any:
    """A C-FIND whose answer is read later."""
    connection = host.daemon.connect()
    headers = {"Accept": NDJSON}
    return host.daemon.send(connection, "POST", path, json={"StudyInstanceUID": STUDY_UID}, headers=headers)


def node(peer: ScriptedPeer, **options: Any) -> dict[str, Any]:
    """A backend that leads to a peer."""
    return {"aet": peer.aet, "host": "127.0.0.1", "port": peer.port, **options}


def test_a_route_changes_under_an_open_connection(host: Host) -> None:
    """A connection that a client keeps goes on, and its next request takes the new route."""
    connection = host.daemon.connect()
    assert get(connection, "/dicom/x") == 200
    sock = connection.sock
    changes = host.reload(endpoints={"http": http("/other")})
    assert changes == "changed pipeline:test"
    assert get(connection, "/dicom/x") == 404
    assert get(connection, "/other/x") == 200
    assert connection.sock is sock
    connection.close()


def test_nothing_has_changed(host: Host) -> None:
    """A reload for nothing does nothing, and says so."""
    assert host.reload() == "nothing has changed"


def test_middleware_is_taken_over(host: Host) -> None:
    """What middleware does changes with the next request."""
    rules = {"only": {"type": "path_filter", "rules": ["/allowed"]}}
    host.reload(middleware=rules)
    assert [host.status(f"/dicom/{name}") for name in ("allowed", "x")] == [200, 404]
    host.reload()
    assert host.status("/dicom/x") == 200


def test_a_new_backend(host: Host) -> None:
    """The first DICOM in a configuration that had none: the engine is made for it."""
    with ScriptedPeer("serve", count=2) as peer:
        changes = host.reload(backends={"pacs": node(peer)})
        assert changes == "added backend:pacs; changed pipeline:test; removed backend:answer"
        assert len(find(host).read().splitlines()) == 2


def test_a_find_ends_with_what_it_has_begun_with(host: Host, tmp_path: Path) -> None:
    """Its route, pipeline and backend are taken away while it streams: the answer is whole all the same."""
    gate = tmp_path / "gate"
    with ScriptedPeer("serve", count=4, after=2, then="wait", gate=str(gate)) as slow, ScriptedPeer("serve") as other:
        host.reload(backends={"pacs": node(slow)})
        response = find(host)
        lines = [response.readline(), response.readline()]
        host.reload(backends={"pacs": node(other)}, endpoints={"http": http("/elsewhere")})
        assert len(find(host, "/elsewhere/find").read().splitlines()) == 3
        host.reload()
        assert host.status("/dicom/x") == 200
        gate.touch()
        lines += response.read().splitlines()
    assert len([json.loads(line) for line in lines]) == 4


def test_slots_of_an_unchanged_backend_stay(host: Host, tmp_path: Path) -> None:
    """A backend that did not change is the same one: its limit of associations holds over a reload."""
    gate = tmp_path / "gate"
    with ScriptedPeer("serve", count=2, after=1, then="wait", gate=str(gate)) as peer:
        backends = {"pacs": node(peer, max_associations=1, max_queue=0)}
        host.reload(backends=backends)
        response = find(host)
        first = response.readline()
        host.reload(backends=backends, endpoints={"http": http("/elsewhere")})
        refused = find(host, "/elsewhere/find")
        assert refused.status == 503
        assert "max_queue" in refused.read().decode()
        gate.touch()
        assert len([first, *response.read().splitlines()]) == 2
        assert find(host, "/elsewhere/find").status == 200


def test_a_store_scp_is_replaced_only_when_it_changed(host: Host) -> None:
    """One with a new port gets a new process there; its neighbour, and one that only keeps elsewhere, go on."""
    ports = {name: free_port() for name in ("stays", "moves", "turns")}
    endpoints = {name: scp(port) for name, port in ports.items()}
    changes = host.reload(endpoints=endpoints)
    assert changes.startswith("added storescp:stays, storescp:moves, storescp:turns")
    before = {name: host.receiver(port) for name, port in ports.items()}
    new_port = free_port()
    changes = host.reload(
        endpoints={**endpoints, "moves": scp(new_port), "turns": scp(ports["turns"], storage_dir="./turned")}
    )
    assert changes == "changed storescp:moves, pipeline:test"
    assert all(host.receiver(ports[name]) == before[name] for name in ("stays", "turns"))
    assert port_is_free(ports["moves"])
    assert host.receiver(new_port)


def test_a_removed_store_scp_is_gone(host: Host) -> None:
    """Its process, its port and its line in the status; and it does not make us unready."""
    port = free_port()
    host.reload(endpoints={"receive": scp(port)})
    assert host.receiver(port)
    pids = [pid for _, pid in host.children().values()]
    host.reload()
    assert host.children() == {}
    assert port_is_free(port)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert host.status("/readyz") == 200


def test_two_store_scps_swap_ports(host: Host) -> None:
    """Both are ended before one is started, so neither finds its port taken."""
    one, two = free_port(), free_port()
    host.reload(endpoints={"a": scp(one), "b": scp(two)})
    host.reload(endpoints={"a": scp(two), "b": scp(one)})
    assert host.receiver(one) != host.receiver(two)
    assert {state for state, _ in host.children().values()} <= {"RUNNING"}
    assert "BACKOFF" not in host.daemon.log


def test_an_invalid_configuration_changes_nothing(host: Host) -> None:
    """Every mistake is told, and the old configuration stays in force."""
    port = free_port()
    host.reload(endpoints={"http": http("/dicom"), "receive": scp(port)})
    receiver = host.receiver(port)
    reason = host.refuse(endpoints={"http": http("no slash"), "receive": scp(0)})
    assert "path_prefix" in reason
    assert "[endpoints.receive.options] port = 0" in host.daemon.log
    assert host.status("/dicom/x") == 200
    assert host.receiver(port) == receiver
    (host.folder / "config.toml").write_text("[proxy")
    assert "not valid TOML" in host.until_told("the configuration stays as it was: ", host.hang_up)


def test_what_needs_a_restart_is_refused(host: Host) -> None:
    """The storage path and the control socket cannot change while we run; the message says what to do."""
    sections = {"storage": {"options": {"path": "./elsewhere"}}, "control": {"mode": "0600"}}
    reason = host.refuse(sections=sections, endpoints={"http": http("/other")})
    assert "[storage.options] path" in reason
    assert reason.endswith("restart harmonyd to use this")
    assert "[control] mode" in host.daemon.log
    assert host.status("/dicom/x") == 200


def test_a_port_that_a_stranger_has(host: Host) -> None:
    """The reload is refused as a whole, and the stranger is named, whichever protocol the port is for."""
    with ScriptedPeer("silent") as stranger:
        for arguments in ({"http_port": stranger.port}, {"endpoints": {"receive": scp(stranger.port)}}):
            reason = host.refuse(**{"endpoints": {"http": http("/other")}, **arguments})
            assert f"port {stranger.port}" in reason
            assert "harmonyd.testing.peer" in reason
            assert host.status("/dicom/x") == 200
            assert host.children() == {}


def test_settings_are_taken_over(host: Host) -> None:
    """Log format, limits and supervision change at once."""
    sections = {
        "logging": {"format": "text"},
        "limits": {"max_json_bytes": 1000},
        "supervision": {**FAST, "probe_interval_secs": 0.7},
    }
    changes = host.reload(sections=sections)
    assert changes == "changed settings:limits, settings:logging, settings:supervision"
    assert not host.daemon.raw_log.splitlines()[-1].startswith("{")
    assert host.daemon.http("POST", "/dicom/x", json=[" " * 2000]).status == 413


def test_twenty_reloads_leave_nothing(host: Host) -> None:
    """No process and no descriptor more than after the first one."""
    ports = [free_port(), free_port()]

    def change(number: int) -> None:
        receivers = {"receive": scp(ports[number % 2]), f"also{number}": scp(free_port())}
        host.reload(
            endpoints={"http": http(f"/path{number}"), **receivers},
            backends={**ECHO, f"more{number}": {"service": "echo"}},
            sections={"network": {"extra": {"http": {"bind_address": "127.0.0.1", "bind_port": free_port()}}}},
        )

    change(0)
    change(1)
    processes, descriptors = host.processes(), host.descriptors()
    for number in range(2, 20):
        change(number)
    assert host.status("/path19/x") == 200
    assert set(host.children()) == (set() if NATIVE else {"storescp:receive", "storescp:also19"})
    assert host.receiver(ports[1])
    wait_until(lambda: host.processes() == processes, f"{host.processes()} is {processes}")
    wait_until(lambda: host.descriptors() == descriptors, f"{host.descriptors()} is {descriptors}")


def test_many_signals_at_once(host: Host) -> None:
    """Reloads do not overlap; the last configuration is the one in force."""
    host.write(endpoints={"http": http("/first"), "receive": scp(free_port())})
    host.hang_up()
    second = {"http": http("/second"), "receive": scp(free_port())}
    host.write(endpoints=second)
    for _ in range(20):
        host.hang_up()
    wait_until(lambda: host.status("/second/x") == 200, "the last configuration is in force")
    wait_until(lambda: host.reload(endpoints=second) == "nothing has changed", "nothing is left to do")
    assert host.receiver(second["receive"]["port"])
