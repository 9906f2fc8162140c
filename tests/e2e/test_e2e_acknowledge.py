"""acknowledge = "pipeline": a sender is told what became of its object, with real senders, PACS and middleware."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from endpoint_kit import (
    AET,
    WebServer,
    acknowledged,
    assert_kept,
    associate,
    endpoint,
    entries,
    receiving,
    senders,
    spooled,
    status_of,
    wait_more,
)
from pydicom import dcmread
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage
from reload_kit import Host
from retrieve_kit import peer_backend, storage

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import MadeStudy, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import dcmtk, free_port, wait_until

FILTER = {"filter": {"type": "path_filter", "rules": ["/nothing"]}}


def deciding(port: int, **options: Any) -> dict[str, Any]:
    """An endpoint that answers with the outcome of its pipeline."""
    return endpoint(port, engine="native", acknowledge="pipeline", **options)


def started(folder: Path, port: int, backends: Any, **arguments: Any) -> RunningDaemon:
    """A daemon with such an endpoint, to be started by ``with``."""
    arguments = {"endpoints": deciding(port), **arguments}
    return RunningDaemon(write_config(folder, http_port=free_port(), backends=backends, **arguments), ready_secs=60)


def statuses(port: int, *paths: Path) -> list[int | None]:
    """Of files that are sent over one association."""
    assoc = associate(port)
    found = [status_of(assoc, path) for path in paths]
    assoc.release()
    return found


def storescu(port: int, *paths: Path) -> list[str]:
    """Send files; what storescu says of each answer."""
    argv = [dcmtk("storescu"), "-v", "-nh", "-aet", "MODALITY", "-aec", AET, "127.0.0.1", str(port), *map(str, paths)]
    done = subprocess.run(argv, check=False, capture_output=True, stdin=subprocess.DEVNULL)
    return re.findall(r"Received Store Response \(([^)]*)\)", (done.stdout + done.stderr).decode())


@pytest.fixture
def study(tmp_path: Path) -> MadeStudy:
    return make_study(tmp_path / "made", 3)


def test_a_real_pacs(tmp_path: Path, study: MadeStudy) -> None:
    """When storescu has its Success, dcmqrscp has the object; when the PACS is down, it is told, and sends again."""
    port = free_port()
    with RunningPacs(tmp_path / "pacs", files=[]) as pacs:
        backend = {"aet": pacs.aet, "host": "127.0.0.1", "port": pacs.port, "engine": "native"}
        with started(tmp_path, port, {"pacs": backend}) as running:
            assert storescu(port, *study.files[:2]) == ["Success"] * 2
            there = {dcmread(path).SOPInstanceUID for path in pacs.layout.area.glob("*.dcm")}
            assert there == set(study.sop_uids[:2])
            pacs.stop()
            assert storescu(port, study.files[2]) == ["Refused: OutOfResources"]
            assert not spooled(running) and not entries(running)
            log = running.log
    assert f"delivered {study.sop_uids[0]} from inbound to pacs" in log
    assert re.search(rf"{study.sop_uids[2]} from MODALITY .* is not taken: pacs: .*Connection refused", log)


def test_what_a_pacs_answers(tmp_path: Path, peer: Any, study: MadeStudy) -> None:
    """The PACS's own refusal is the answer; with a warning it has the object. A reload may choose another answer."""
    node, port = peer(store_statuses=(0xC123, 0xA900, 0xB000)), free_port()
    parts = {"backends": {"pacs": peer_backend(node, engine="native")}}
    with Host(tmp_path, endpoints=deciding(port), **parts) as host:
        assert statuses(port, *study.files, study.files[0]) == [0xC123, 0xA900, 0x0000, 0xC123]
        host.reload(endpoints=deciding(port, acknowledge_status={"failed": 0xC456}), **parts)
        assert statuses(port, study.files[1]) == [0xC456]
        host.reload(endpoints=endpoint(port, engine="native"), **parts)
        assert statuses(port, study.files[2]) == [0x0000]


def test_a_pacs_that_does_not_answer(tmp_path: Path, peer: Any, study: MadeStudy) -> None:
    """A PACS that hangs, refuses or hangs up has its status, in bounded time, and the sender goes on."""
    expected = {"silent": 0xA722, "reject": 0xA711, "close": 0xC111, "no-contexts": 0xC111}
    ports = {script: free_port() for script in expected}
    named = {"failed": 0xC111, "away": 0xA711, "deadline": 0xA722}
    patience = {script: 1000 if script == "silent" else 60_000 for script in expected}
    endpoints = {
        script: deciding(port, acknowledge_status=named, acknowledge_timeout_ms=patience[script])["inbound"]
        for script, port in ports.items()
    }
    pipelines = {
        script: {"networks": ["default"], "endpoints": [script], "backends": [f"to-{script}"]} for script in expected
    }
    backends = {f"to-{script}": peer_backend(peer(script), engine="native") for script in expected}
    with started(tmp_path, 0, backends, endpoints=endpoints, pipelines=pipelines) as running:
        for script, port in ports.items():
            assert statuses(port, *study.files[:2]) == [expected[script]] * 2, script
            assert not receiving(running, script)
        assert not entries(running)


def test_a_pacs_that_hangs_with_the_object(tmp_path: Path, study: MadeStudy) -> None:
    """At the deadline the sender is told, and the association to the PACS, which has the object, is aborted."""
    answer, aborted, port = Event(), Event(), free_port()

    def store(_: evt.Event) -> int:
        answer.wait(60)
        return 0x0000

    node = AE("PACS")
    node.add_supported_context(CTImageStorage)
    handlers: list[Any] = [(evt.EVT_C_STORE, store), (evt.EVT_ABORTED, lambda _: aborted.set())]
    handlers.append((evt.EVT_CONN_CLOSE, lambda _: aborted.set()))
    pacs: Any = node.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    backend = {"aet": "PACS", "host": "127.0.0.1", "port": pacs.server_address[1], "engine": "native"}
    endpoints = deciding(port, acknowledge_timeout_ms=3000)
    try:
        with started(tmp_path, port, {"pacs": backend}, endpoints=endpoints) as running:
            assert storescu(port, study.files[0]) == ["Refused: OutOfResources"]
            answer.set()
            assert aborted.wait(30)
            assert not receiving(running) and not entries(running)
            assert "not delivered within 3 s" in running.log
    finally:
        answer.set()
        pacs.shutdown()


def test_middleware_that_refuses(tmp_path: Path, peer: Any, study: MadeStudy) -> None:
    """The sender is told that it may not, and no backend sees the object."""
    node, port = peer(), free_port()
    with started(tmp_path, port, {"pacs": peer_backend(node, engine="native")}, middleware=FILTER) as running:
        assert statuses(port, study.files[0]) == [0x0124]
        assert not receiving(running) and not entries(running)
    assert not node.events("association")


def test_several_backends_and_a_folder(tmp_path: Path, study: MadeStudy) -> None:
    """Success needs all of them. What a backend has it keeps, and gets again when the sender sends again."""
    port = free_port()
    with WebServer((422, 201)) as web:
        backends = {"kept": {"service": "storage", "path": "kept"}, "web": web.backend}
        with started(tmp_path, port, backends) as running:
            assoc = associate(port)
            assert status_of(assoc, study.files[0]) == 0x0110
            assert_kept(tmp_path / "kept", {study.sop_uids[0]: study.files[0]}, study.sop_uids)
            assert status_of(assoc, study.files[0]) == 0x0000
            assoc.release()
            log = running.log
    assert len(web.received) == 2
    assert f"{study.sop_uids[0]} from inbound was delivered to kept, and not to all" in log


def test_a_stop_under_way(tmp_path: Path, study: MadeStudy) -> None:
    """A daemon that stops tells the sender that waits for a hanging backend, and leaves nothing."""
    port = free_port()
    with WebServer() as web:
        web.gate.clear()
        sections = {"supervision": {"stop_grace_secs": 1}}
        running = started(tmp_path, port, {"web": web.backend}, sections=sections).start()
        argv = [dcmtk("storescu"), "-v", "-aec", AET, "127.0.0.1", str(port), str(study.files[0])]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as sender:
            assert web.waiting.wait(30)
            running.stop()
            said = sender.communicate(timeout=30)[0].decode()
        assert "Received Store Response (Refused: OutOfResources)" in said
        assert not receiving(running) and not entries(running)


@pytest.mark.deadline(120)
def test_a_crash(tmp_path: Path) -> None:
    """Killed under load, again and again: each acknowledged object is where it belongs, and nothing waits for it."""
    port, made = free_port(), tmp_path / "made"
    running = started(tmp_path, port, {"kept": {"service": "storage", "path": "kept"}})
    with senders(made, lambda: port) as both:
        for _ in range(2):
            running.start()
            wait_more(both, 5)
            running.kill9()
            running.assert_nothing_left()
            assert_kept(tmp_path / "kept", acknowledged(both), [uid for sender in both for uid in sender.sent.copy()])
    with running:
        wait_until(lambda: not receiving(running), "what was cut off is removed")
        assert not entries(running)
        assert not list((storage(running) / "quarantine").glob("*"))
