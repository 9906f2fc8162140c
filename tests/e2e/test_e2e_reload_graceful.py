"""What a reload takes away ends with its grace: listeners, associations, moves, objects on their way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
from endpoint_kit import wait_delivered
from misbehaving import STUDY_UID
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import CTImageStorage, Verification
from reload_kit import FAST, Host, http, scp
from retrieve_kit import NATIVE

from harmonyd.testing.data import make_ct, uid_for
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port, port_is_free, wait_until

NDJSON = "application/x-ndjson"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Start a daemon: ``hosts(**arguments of write_config)``."""
    started: list[Host] = []

    def start(**arguments: Any) -> Host:
        started.append(Host(tmp_path / "host", **arguments).__enter__())
        return started[-1]

    yield start
    for each in started:
        each.__exit__(None, None, None)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Scripted peers that wait go on when it is there."""
    return tmp_path / "gate"


def waiting_peer(gate: Path, **options: Any) -> ScriptedPeer:
    """A peer that sends one of three answers, then waits."""
    return ScriptedPeer("serve", count=3, after=1, then="wait", gate=str(gate), **options)


def node(peer: ScriptedPeer, **options: Any) -> dict[str, Any]:
    """A backend that leads to a peer."""
    return {"aet": peer.aet, "host": "127.0.0.1", "port": peer.port, **options}


@contextmanager
def association(port: int) -> Iterator[Association]:
    """An open association with a store SCP."""
    client = AE(ae_title="MODALITY")
    client.add_requested_context(Verification)
    client.add_requested_context(CTImageStorage)
    opened = client.associate("127.0.0.1", port, ae_title="RECEIVER")
    assert opened.is_established
    try:
        yield opened
    finally:
        opened.abort()


def ct(folder: Path, number: int = 1) -> Path:
    """A made object."""
    path = folder / f"made-{number}.dcm"
    uids = {"study_uid": uid_for("reload"), "series_uid": uid_for("reload/1")}
    make_ct(path, **uids, instance_number=number, patient_id="MADE", size=16)
    return path


def received(host: Host) -> list[Path]:
    """Objects that an endpoint without a backend has kept."""
    return sorted((host.folder / "tmp" / "received").rglob("*.dcm"))


# --- HTTP listeners


def test_the_address_of_a_listener_changes(hosts: Callable[..., Host], gate: Path) -> None:
    """From 127.0.0.1 to all addresses, on the same port; an answer that streams meanwhile is whole."""
    with waiting_peer(gate) as peer:
        host = hosts(backends={"pacs": node(peer)})
        response = _ask(host, host.http_port)
        first = response.readline()
        everywhere = {"default": {"http": {"bind_address": "0.0.0.0", "bind_port": host.http_port}}}
        assert "network:default" in host.reload(backends={"pacs": node(peer)}, sections={"network": everywhere})
        assert host.status("/livez") == 200
        assert [item.laddr.ip for item in _listening(host, host.http_port)] == ["0.0.0.0"]
        gate.touch()
        assert len([first, *response.read().splitlines()]) == 3


def test_an_address_that_cannot_be_had(hosts: Callable[..., Host]) -> None:
    """The old listener, which had to make room for it, listens again."""
    host = hosts()
    nowhere = {"default": {"http": {"bind_address": "192.0.2.1", "bind_port": host.http_port}}}
    assert "192.0.2.1" in host.refuse(sections={"network": nowhere})
    assert host.status("/dicom/x") == 200
    assert [item.laddr.ip for item in _listening(host, host.http_port)] == ["127.0.0.1"]


def test_networks_come_and_go(hosts: Callable[..., Host], gate: Path) -> None:
    """A new one serves at once; one that is removed accepts nothing more, and ends what it has begun."""
    with waiting_peer(gate) as peer:
        port = free_port()
        backends = {"pacs": node(peer)}
        networks = {"extra": {"http": {"bind_address": "127.0.0.1", "bind_port": port}}}
        pipeline = {"networks": ["default", "extra"], "endpoints": ["http"], "backends": ["pacs"]}
        host = hosts(backends=backends)
        changes = host.reload(backends=backends, pipelines={"test": pipeline}, sections={"network": networks})
        assert changes == "added network:extra; changed pipeline:test"
        answer = _ask(host, port)
        first = answer.readline()
        assert host.reload(backends=backends) == "changed pipeline:test; removed network:extra"
        assert not _listening(host, port)
        gate.touch()
        assert len([first, *answer.read().splitlines()]) == 3


def test_a_stop_does_not_wait_for_what_is_leaving(hosts: Callable[..., Host], gate: Path) -> None:
    """An answer at a removed listener that would go on for ever is ended by SIGTERM like any other."""
    with waiting_peer(gate) as peer:
        port = free_port()
        backends = {"pacs": node(peer)}
        networks = {"extra": {"http": {"bind_address": "127.0.0.1", "bind_port": port}}}
        pipeline = {"networks": ["default", "extra"], "endpoints": ["http"], "backends": ["pacs"]}
        host = hosts(backends=backends, pipelines={"test": pipeline}, sections={"network": networks})
        answer = _ask(host, port)
        assert answer.readline()
        host.reload()
        host.daemon.stop()


def _listening(host: Host, port: int) -> list[Any]:
    found = psutil.Process(host.daemon.pid).net_connections("tcp")
    return [item for item in found if item.status == psutil.CONN_LISTEN and item.laddr.port == port]


def _ask(host: Host, port: int) -> Any:
    """A C-FIND whose answer is read later."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Accept": NDJSON}
    return host.daemon.send(connection, "POST", "/dicom/find", json={"StudyInstanceUID": STUDY_UID}, headers=headers)


# --- receiving


def test_an_association_gets_its_grace(hosts: Callable[..., Host], tmp_path: Path) -> None:
    """Its storescp changes the port: what is sent meanwhile is received, then the process is replaced."""
    old, new = free_port(), free_port()
    patient = {"supervision": {**FAST, "stop_grace_secs": 30}}
    host = hosts(backends={}, endpoints={"http": http("/dicom"), "receive": scp(old)}, sections=patient)
    assert host.receiver(old)
    with association(old) as assoc, ThreadPoolExecutor(1) as pool:
        ending = pool.submit(
            host.reload, backends={}, endpoints={"http": http("/new"), "receive": scp(new)}, sections=patient
        )
        wait_until(lambda: host.status("/new/x") != 404 or host.status("/dicom/x") == 404, "the routes are new")
        assert assoc.send_c_store(ct(tmp_path)).Status == 0
        assert not ending.done()
        assoc.release()
        assert "changed storescp:receive" in ending.result(30)
    wait_until(lambda: received(host), "the object is kept")
    assert port_is_free(old)
    with association(new) as assoc:
        assert assoc.send_c_store(ct(tmp_path, 2)).Status == 0
    wait_until(lambda: len(received(host)) == 2, "both objects are kept")


def test_the_grace_has_an_end(hosts: Callable[..., Host]) -> None:
    """An association that stays open does not hold up the reload for longer."""
    port = free_port()
    host = hosts(backends={}, endpoints={"http": http("/dicom"), "receive": scp(port)})
    with association(port) as assoc:
        host.reload(backends={}, endpoints={"http": http("/dicom")})
        wait_until(lambda: not assoc.is_alive(), "the association is over")
    assert host.children() == {}


@pytest.mark.parametrize("comes_back", [False, True])
def test_received_objects_are_handed_on(hosts: Callable[..., Host], tmp_path: Path, comes_back: bool) -> None:
    """What a removed endpoint holds reaches the backend it was for, or the endpoint's new one if it comes back."""
    port, away = free_port(), free_port()
    backends = {"pacs": {"aet": "PEER", "host": "127.0.0.1", "port": away, "connect_timeout_ms": 500}}
    endpoints = {"http": http("/dicom"), "receive": scp(port)}
    host = hosts(backends=backends, endpoints=endpoints)
    with association(port) as assoc:
        assert assoc.send_c_store(ct(tmp_path)).Status == 0
        assoc.release()
    wait_until(lambda: "pacs is away: " in host.daemon.log, "the backend is away")
    host.reload()
    assert host.children() == {}
    with ScriptedPeer("serve", port=free_port() if comes_back else away) as peer:
        if comes_back:
            host.reload(backends={"pacs": node(peer)}, endpoints=endpoints)
            assert host.receiver(port)
        wait_until(lambda: peer.events("stored"), "the object arrives", 30.0)
        wait_delivered(host.daemon)


# --- moves


def test_a_move_ends_where_it_has_begun(hosts: Callable[..., Host], gate: Path) -> None:
    """Its receiver is closed only after it, while the one that takes its place is there at once."""
    old, new = free_port(), free_port()
    with waiting_peer(gate, destinations={"OLD": old, "NEW": new}) as peer:
        before = node(peer, move_destination_aet="OLD", incoming_store_port=old)
        after = node(peer, move_destination_aet="NEW", incoming_store_port=new)
        host = hosts(backends={"pacs": before})
        wait_until(lambda: not port_is_free(old), "the receiver runs")
        with ThreadPoolExecutor(1) as pool:
            moving = pool.submit(host.daemon.http, "POST", "/dicom/move", json={"StudyInstanceUID": STUDY_UID})
            peer.wait_for("waiting")
            changes = host.reload(backends={"pacs": after})
            assert changes.startswith(f"added storescp:incoming-{new}; changed backend:pacs")
            assert host.receiver(old) != host.receiver(new)
            gate.touch()
            answer = moving.result(30)
        assert (answer.status, answer.json()["complete"]) == (200, True)
        wait_until(lambda: port_is_free(old), "the old receiver is gone")
        wait_until(lambda: NATIVE or set(host.children()) == {f"storescp:incoming-{new}"}, "and its process")
        again = host.daemon.http("POST", "/dicom/move", json={"StudyInstanceUID": STUDY_UID}).json()
        assert (again["complete"], len(again["instances"])) == (True, 3)


def test_a_receiver_with_another_ae_title(hosts: Callable[..., Host]) -> None:
    """It is replaced on its port, and does not go on under the old name."""
    port = free_port()
    with ScriptedPeer("serve", destinations={"OLD": port, "NEW": port}) as peer:
        host = hosts(backends={"pacs": node(peer, move_destination_aet="OLD", incoming_store_port=port)})
        pid = wait_until(lambda: NATIVE or host.pid(f"storescp:incoming-{port}"), "the receiver runs")
        host.reload(backends={"pacs": node(peer, move_destination_aet="NEW", incoming_store_port=port)})
        name = f"storescp:incoming-{port}"
        wait_until(lambda: NATIVE or host.children().get(name, ("", pid))[1] not in (0, pid), "it is new")
        answer = host.daemon.http("POST", "/dicom/move", json={"StudyInstanceUID": STUDY_UID}).json()
        assert (answer["complete"], len(answer["instances"])) == (True, 3)


# --- the end comes in between


def test_a_stop_during_a_reload(hosts: Callable[..., Host]) -> None:
    """SIGTERM while an association has its grace: the daemon ends as it should, with exit code 0."""
    port = free_port()
    patient = {"supervision": {**FAST, "stop_grace_secs": 3}}
    host = hosts(backends={}, endpoints={"http": http("/dicom"), "receive": scp(port)}, sections=patient)
    with association(port):
        host.write(backends={}, endpoints={"http": http("/new"), "receive": scp(free_port())}, sections=patient)
        host.hang_up()
        wait_until(lambda: host.status("/dicom/x") == 404, "the routes are new")
        host.daemon.stop()
    assert "Traceback" not in host.daemon.log
