"""What limits operations that outlive their requests, and what ends them: time, full disks, reloads, stops, crashes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from later_kit import ASYNC, Later, assert_no_fault, left_on_disk, start
from pynetdicom import AE, AllStoragePresentationContexts, evt
from reload_kit import Host, http
from retrieve_kit import MULTIPART, ct_bytes, multipart, peer_backend, storage

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import COMMAND, Answer, RunningDaemon
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port, wait_until

QUERY = {"StudyInstanceUID": "1.2.826.0.1.3680043.8.498.1"}
COUNT, SIZE = 5, 256
OBJECT_BYTES = 2 * SIZE * SIZE
"""Of the pixels of one made instance."""


@pytest.fixture(scope="module")
def peers() -> Iterator[dict[str, ScriptedPeer]]:
    """A PACS that answers, one that hangs in the middle of a retrieve, and one that never answers a store."""
    with ExitStack() as stack:
        made = {
            "good": ScriptedPeer("serve", count=COUNT, size=SIZE),
            "hanging": ScriptedPeer("serve", count=COUNT, after=2, then="hang"),
        }
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(stack.enter_context, made.values()))
        yield made


def backends(peers: dict[str, ScriptedPeer]) -> dict[str, Any]:
    patient = {"engine": "native", "association_timeout_ms": 60_000}
    return {name: peer_backend(peer, **patient) for name, peer in peers.items()}


def daemon_with(folder: Path, peers: dict[str, ScriptedPeer], **sections: Any) -> RunningDaemon:
    """A daemon with an http endpoint at /dicom and another one at /other."""
    config = write_config(
        folder,
        http_port=free_port(),
        backends=backends(peers),
        endpoints={"http": http("/dicom"), "other": http("/other")},
        sections=sections,
    )
    return RunningDaemon(config)


def asked(daemon: RunningDaemon, path: str = "/dicom/find") -> Answer:
    return daemon.http("POST", path, json=QUERY, headers=ASYNC)


def test_how_many_there_may_be(tmp_path: Path, peers: dict[str, ScriptedPeer]) -> None:
    """Those that run, those that are kept and those who watch are limited; what is removed makes room."""
    limits = {"max_running": 2, "max_kept": 3, "max_watchers": 2}
    management = {"enabled": True, "network": "default"}
    with daemon_with(tmp_path, peers, operations=limits, management=management) as running, ExitStack() as stack:
        hanging = [start(running, "get?backend=hanging", QUERY) for _ in range(2)]
        shown = running.http("GET", "/admin/operations").json()
        assert {(item["id"], item["backend"], item["asynchronous"]) for item in shown} == {
            (later.id, "hanging", True) for later in hanging
        }
        refused = asked(running)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        for later in hanging:
            next(stack.enter_context(later.watching()))
        assert hanging[0].get("/events").status == 503
        assert [later.delete().json()["state"] for later in hanging] == ["cancelled"] * 2
        assert running.http("GET", "/admin/operations").json() == []
        wait_until(lambda: hanging[0].get("/events").status == 200, "those who watched have gone")
        assert start(running, "find", QUERY).end()["state"] == "complete"
        refused = asked(running)
        assert (refused.status, refused.json()["fault"]) == (503, "ours")
        assert int(refused.headers["Retry-After"]) > 3000, "when the first one expires"
        assert hanging[0].delete().status == 204
        assert start(running, "find", QUERY).end()["state"] == "complete"
        assert_no_fault(running)


def test_how_large_results_may_be(tmp_path: Path, peers: dict[str, ScriptedPeer]) -> None:
    """A result that does not fit is 507 and takes no room; what is removed makes room, and who reads it reads on."""
    limits = {"max_gb": 1.5 * COUNT * OBJECT_BYTES / 1e9}
    with daemon_with(tmp_path, peers, operations=limits) as running:
        first = start(running, "get?backend=good", QUERY, MULTIPART)
        assert first.end()["state"] == "complete"
        second = start(running, "get?backend=good", QUERY, MULTIPART)
        state = second.end()
        assert (state["state"], state["problem"]["status"]) == ("failed", 507)
        assert second.get("/result").status == 507
        assert [path.name for path in second.folder.iterdir()] == ["operation.json"]
        assert first.delete().status == 204
        third = start(running, "get?backend=good", QUERY, MULTIPART)
        assert third.end()["state"] == "complete"
        connection = running.connect()
        reading = running.send(connection, "GET", f"{third.path}/result")
        begun = reading.read(1000)
        assert third.delete().status == 204
        assert len(begun + reading.read()) == int(reading.headers["Content-Length"]) > COUNT * OBJECT_BYTES
        connection.close()
        assert_no_fault(running)


def test_a_result_expires(tmp_path: Path, peers: dict[str, ScriptedPeer]) -> None:
    """After its time an operation is gone, and nothing of it is left."""
    with daemon_with(tmp_path, peers, operations={"keep_minutes": 0.02}) as running:
        later = start(running, "get?backend=good", QUERY, MULTIPART)
        wait_until(lambda: later.get().status == 404, "it has expired")
        wait_until(lambda: not left_on_disk(running), "nothing is left")
        assert_no_fault(running)


@pytest.mark.root
def test_a_full_disk(tmp_path: Path, peers: dict[str, ScriptedPeer]) -> None:
    """507, at once or as what came of the operation; when there is room again, all goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={4 * COUNT * OBJECT_BYTES}", "tmpfs", str(disk)], check=True)
    try:
        with daemon_with(tmp_path / "host", peers, storage={"options": {"path": str(disk)}}) as running:
            filler = disk / "filler"
            # Room for the instances, which come first, and for half of the result.
            filler.write_bytes(bytes(free_bytes(disk) - COUNT * OBJECT_BYTES * 3 // 2))
            later = start(running, "get?backend=good", QUERY, MULTIPART)
            state = later.end()
            assert (state["state"], state["problem"]["status"]) == ("failed", 507)
            assert (later.get("/result").status, later.folder.exists()) == (507, True)
            with (disk / "rest").open("wb", buffering=0) as rest:
                rest.write(bytes(free_bytes(disk)))
            full = asked(running, "/dicom/find?backend=good")
            assert full.status == 507, full.body
            (disk / "rest").unlink()
            filler.unlink()
            assert start(running, "get?backend=good", QUERY, MULTIPART).end()["state"] == "complete"
            assert_no_fault(running)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def free_bytes(disk: Path) -> int:
    """What a file system has room for."""
    space = os.statvfs(disk)
    return space.f_bavail * space.f_frsize


def test_a_crash(tmp_path: Path, peers: dict[str, ScriptedPeer]) -> None:
    """After kill -9 the ids of before are 410 with the reason, however often harmonyd starts; results are not kept."""
    running = daemon_with(tmp_path, peers)
    with running:
        done = start(running, "get?backend=good", QUERY, MULTIPART)
        assert done.end()["state"] == "complete"
        removed = start(running, "find?backend=good", QUERY)
        removed.end()
        removed.delete()
        hanging = start(running, "get?backend=hanging", QUERY)
        running.kill9()
        running.assert_nothing_left()
        for _ in range(2):
            running.start()
            for later in (done, hanging):
                for below in ("", "/events", "/result"):
                    answer = later.get(below)
                    assert (answer.status, answer.headers["Content-Type"]) == (410, "application/problem+json")
                    assert "restarted" in answer.json()["detail"]
                assert later.delete().status == 410
                assert running.http("GET", later.path.replace("/dicom", "/other")).status == 404
                assert [path.name for path in later.folder.iterdir()] == ["operation.json"]
            assert removed.get().status == 404
            assert running.http("GET", "/dicom/operations/" + 32 * "a").status == 404
            running.stop()
        running.start()
        assert_no_fault(running)


def test_a_second_daemon_removes_nothing(tmp_path: Path, peers: dict[str, ScriptedPeer]) -> None:
    """One that does not start, as another one has the storage path, leaves the results of that one alone."""
    with daemon_with(tmp_path, peers) as running:
        later = start(running, "find?backend=good", QUERY)
        later.end()
        other = subprocess.run(
            [*COMMAND, "--config", str(running.config)], check=False, capture_output=True, stdin=subprocess.DEVNULL
        )
        assert other.returncode != 0
        assert later.get("/result").status == 200


def test_a_stop(tmp_path: Path, peers: dict[str, ScriptedPeer]) -> None:
    """SIGTERM ends a retrieve at once, its watchers are told, and the stop does not wait for anybody."""
    running = daemon_with(tmp_path, peers, supervision={"stop_grace_secs": 60})
    with running:
        later = start(running, "get?backend=hanging", QUERY)
        with ExitStack() as stack:
            watchers = [stack.enter_context(later.watching()) for _ in range(3)]
            for events in watchers:
                next(events)
            os.kill(running.pid, signal.SIGTERM)
            for events in watchers:
                *_, (_, name, state) = events
                assert name == "cancelled"
                assert "shutting down" in state["problem"]["detail"]
        assert running.wait_exit() == 0
        running.assert_nothing_left()
        assert not list((storage(running) / "operations").glob("*/result"))


def test_a_reload(tmp_path: Path, peers: dict[str, ScriptedPeer]) -> None:
    """An operation goes on through a reload; when its endpoint is removed it is cancelled."""
    both = {"http": http("/dicom"), "other": http("/other")}
    given = {"backends": backends(peers), "sections": {"operations": {"max_running": 9}}}
    with Host(tmp_path, endpoints=both, **given) as host:
        running = host.daemon
        hanging = peers["hanging"]
        cancels, hung = len(hanging.events("cancel")), len(hanging.events("hanging"))
        mine = start(running, "get?backend=hanging", QUERY)
        others = Later(running, running.http("POST", "/other/get?backend=hanging", json=QUERY, headers=ASYNC))
        hanging.wait_for("hanging", hung + 2)
        with others.watching() as events:
            next(events)
            host.reload(endpoints={"http": http("/dicom")}, **given)
            *_, (_, name, state) = events
        assert (name, "removed from the configuration" in state["problem"]["detail"]) == ("cancelled", True)
        hanging.wait_for("cancel", cancels + 1)
        assert others.get().status == 404
        assert mine.state["state"] == "running"
        fewer = {"backends": {"good": backends(peers)["good"]}, "sections": {"operations": {"max_running": 1}}}
        host.reload(endpoints={"http": http("/dicom")}, **fewer)
        assert mine.state["state"] == "running"
        assert asked(running).status == 503
        assert mine.delete().json()["state"] == "cancelled"
        assert start(running, "find", QUERY).end()["state"] == "complete"
        host.reload(endpoints=both, **given)
        assert others.get("/result").status == 410
        assert_no_fault(running)


def test_a_store_is_finished_before_a_stop(tmp_path: Path) -> None:
    """What a PACS is being given it gets, if the grace is long enough; a retrieve that nobody could fetch is not."""
    gate = tmp_path / "gate"
    with SlowStore(gate) as store:
        backend = {"pacs": {"aet": "STORE", "host": "127.0.0.1", "port": store.port, "engine": "native"}}
        config = write_config(
            tmp_path, http_port=free_port(), backends=backend, sections={"supervision": {"stop_grace_secs": 60}}
        )
        with RunningDaemon(config) as running:
            sent = multipart([ct_bytes(tmp_path, number) for number in range(3)])
            sent["headers"] |= ASYNC
            later = Later(running, running.http("POST", "/dicom/store", **sent))
            wait_until(lambda: store.asked, "the first object is there")
            with later.watching() as events:
                next(events)
                os.kill(running.pid, signal.SIGTERM)
                wait_until(lambda: "is stopping" in running.log, "it stops")
                gate.touch()
                *_, (_, name, state) = events
            assert (name, state["instances"]) == ("complete", 3)
            assert running.wait_exit() == 0
            running.assert_nothing_left()
        assert store.asked == 3


class SlowStore:
    """A storage SCP that answers when there is a file ``gate``."""

    def __init__(self, gate: Path) -> None:
        self.gate = gate
        self.asked = 0
        self.port = free_port()

    def __enter__(self) -> SlowStore:
        node = AE("STORE")
        node.supported_contexts = AllStoragePresentationContexts
        handlers: list[Any] = [(evt.EVT_C_STORE, self._store)]
        self._server = node.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        return self

    def __exit__(self, *error: object) -> None:
        self.gate.touch()
        self._server.shutdown()

    def _store(self, _event: Any) -> int:
        self.asked += 1
        wait_until(self.gate.exists, "the gate is open", 60)
        return 0x0000
