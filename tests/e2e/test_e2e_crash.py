"""kill -9 in the middle of everything: no process is left, no port held, nothing received lost, and it starts again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
from pynetdicom import AE
from retrieve_kit import (
    by_study,
    ct_bytes,
    multipart,
    pacs_backend,
    peer_backend,
    post,
    quarantined,
    scratch_files,
    storage,
    under_way,
)

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import demo_files, report_files
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import dcmtk, free_port, port_is_free, wait_until

Peers = Callable[..., ScriptedPeer]
Daemons = Callable[..., RunningDaemon]
DEMO = (sys.executable, "-m", "harmonyd", "demo")
QUERY = {"StudyInstanceUID": "1.2.826.0.1.1"}


@contextmanager
def asking(daemon: RunningDaemon, path: str, **request: Any) -> Iterator[HTTPConnection]:
    """A request that is under way; nobody reads its answer."""
    connection = daemon.connect()
    try:
        headers = {"Content-Type": "application/json", **request.get("headers", {})}
        body = request.get("body", b'{"StudyInstanceUID": "1.2.826.0.1.1"}')
        connection.request("POST", path, body=body, headers=headers)
        yield connection
    finally:
        connection.close()


@contextmanager
def victim(config: Path, **options: Any) -> Iterator[RunningDaemon]:
    """A daemon that is ready, and that the test kills."""
    running = RunningDaemon(config, **options)
    try:
        yield running.start()
    finally:
        running.kill9()


def send(port: int, path: Path, aet: str) -> None:
    """storescu, from somebody we do not know."""
    argv = [dcmtk("storescu"), "-aet", "SENDER", "-aec", aet, "127.0.0.1", str(port), str(path)]
    subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL)


@pytest.mark.dcmtk
def test_with_a_grandchild_that_serves(tmp_path: Path, peer: Peers) -> None:
    """kill -9 during a get, with a supervised dcmqrscp whose forked child serves an association: all are gone."""
    node = peer(count=5, after=2)
    pacs_port, incoming = free_port(), free_port()
    backends = {
        "pacs": {"aet": "DEMO", "host": "127.0.0.1", "port": pacs_port, "incoming_store_port": incoming},
        "peer": peer_backend(node, incoming_store_port=free_port()),
    }
    config = write_config(tmp_path, http_port=free_port(), backends=backends)
    client = AE(ae_title="TEST")
    client.add_requested_context("1.2.840.10008.1.1")
    with ExitStack() as stack:
        running = stack.enter_context(victim(config, command=DEMO, ready_secs=60))
        wait_until(lambda: "All four answers are right" in running.log, "the demo is through", 30)
        stack.enter_context(asking(running, "/dicom/get?backend=peer"))
        node.wait_for("hanging")
        association = client.associate("127.0.0.1", pacs_port, ae_title="DEMO")
        assert association.is_established

        def names() -> list[str]:
            return sorted(child.name() for child in running.children())

        wait_until(lambda: names().count("dcmqrscp") == 2, "a child of the PACS serves the association")
        assert {"getscu", "storescp"} < set(names())
        running.kill9()
        running.assert_nothing_left(5)
        wait_until(lambda: port_is_free(pacs_port), "the PACS's port is free")
        association.abort()
    with RunningDaemon(config, command=DEMO, ready_secs=60) as again:
        wait_until(lambda: again.log.count("All four answers are right") == 2, "the demo is through again", 30)


@pytest.mark.parametrize("operation", ["find", "get", "move"])
def test_in_the_middle_of(operation: str, tmp_path: Path, peer: Peers) -> None:
    """kill -9 while an operation hangs: its process is gone, the PACS sees the end, and it starts again at once."""
    node = peer(count=5, after=2, destinations={"HARMONY_MOVE": free_port()})
    config = write_config(tmp_path, http_port=free_port(), backends={"peer": peer_backend(node)})
    with victim(config) as running, asking(running, f"/dicom/{operation}"):
        hung = node.wait_for("hanging")
        assert under_way(running) == 1
        running.kill9()
        running.assert_nothing_left(5)
    wait_until(lambda: hung["id"] in [event["id"] for event in node.events("closed")], "the association is over")
    with RunningDaemon(config) as again:
        assert post(again, "echo").status == 200
        assert not scratch_files(again), "what the killed one left is gone"


def test_in_the_middle_of_a_store(tmp_path: Path, peer: Peers) -> None:
    """kill -9 while a store waits: it is over, and nothing stays in the scratch folder."""
    node = peer("silent")
    backend = {"aet": "PEER", "host": "127.0.0.1", "port": node.port}
    config = write_config(tmp_path, http_port=free_port(), backends={"peer": backend})
    with victim(config) as running, asking(running, "/dicom/store", **multipart([ct_bytes(tmp_path)])):
        node.wait_for("association")
        assert under_way(running) == 1
        running.kill9()
        running.assert_nothing_left(5)
    with RunningDaemon(config) as again:
        assert not scratch_files(again)


@pytest.mark.dcmtk
def test_what_had_arrived_is_kept(tmp_path: Path) -> None:
    """An object that storescp acknowledged, and the daemon had no time for, is in quarantine after the next start."""
    port = free_port()
    backend = {"aet": "NONE", "host": "127.0.0.1", "port": 104, "incoming_store_port": port}
    config = write_config(tmp_path, http_port=free_port(), backends={"pacs": backend})
    with victim(config) as running:
        os.kill(running.pid, signal.SIGSTOP)
        send(port, report_files()[0], "HARMONY_SCU")
        assert len(list((storage(running) / "incoming" / str(port)).iterdir())) == 1
        running.kill9()
        running.assert_nothing_left(5)
    with RunningDaemon(config) as again:
        (kept,) = wait_until(lambda: quarantined(again), "it is in quarantine")
        assert by_study([kept]).keys() == by_study(report_files()[:1]).keys()
        assert not list((storage(again) / "incoming" / str(port)).iterdir())


def test_while_a_move_is_delivered(tmp_path: Path) -> None:
    """kill -9 while dcmqrscp delivers: storescp is gone too, and after the next start the same move is whole."""
    ports = {"HARMONY_MOVE": free_port()}
    with RunningPacs(tmp_path / "pacs", files=demo_files(), destinations=ports) as archive:
        config = write_config(tmp_path, http_port=free_port(), backends={"pacs": pacs_backend(archive)})
        study, originals = max(by_study(demo_files()).items(), key=lambda item: len(item[1]))
        body = b'{"StudyInstanceUID": "%s"}' % study.encode()
        with victim(config) as running, asking(running, "/dicom/move", body=body):
            wait_until(lambda: list(storage(running).glob("dcmtk_move_*/*")), "the first instance is there")
            running.kill9()
            running.assert_nothing_left(5)
        with RunningDaemon(config) as again:
            told = post(again, "move", {"StudyInstanceUID": study}).json()
            assert told["complete"] is True
            assert {item["00080018"]["Value"][0] for item in told["instances"]} == set(originals)


def test_the_watcher_is_killed_as_well(tmp_path: Path, peer: Peers) -> None:
    """Even when the watcher dies with the daemon, children that lead their group are ended by the kernel."""
    node = peer(count=5, after=2)
    backend = peer_backend(node, incoming_store_port=free_port())
    config = write_config(tmp_path, http_port=free_port(), backends={"peer": backend})
    with victim(config) as running, asking(running, "/dicom/get"):
        node.wait_for("hanging")
        (watcher,) = [child for child in running.children() if child.cmdline()[-1].endswith("watcher.py")]
        os.kill(running.pid, signal.SIGSTOP)
        watcher.kill()
        running.kill9()
        running.assert_nothing_left(5)
    with RunningDaemon(config) as again:
        assert post(again, "echo").status == 200


@pytest.mark.dcmtk
def test_again_and_again(tmp_path: Path) -> None:
    """Killed three times in a row while it starts or runs, it comes up each time with the same configuration."""
    port = free_port()
    backend = {"aet": "NONE", "host": "127.0.0.1", "port": 104, "incoming_store_port": port}
    config = write_config(tmp_path, http_port=free_port(), backends={"pacs": backend})
    running = RunningDaemon(config)
    try:
        for _ in range(3):
            running.launch()
            wait_until(lambda: _has_storescp(running, port), "storescp runs", 30)
            running.kill9()
    finally:
        running.kill9()
    with RunningDaemon(config) as again:
        assert _has_storescp(again, port)
    running.assert_nothing_left(5)


def _has_storescp(running: RunningDaemon, port: int) -> bool:
    """Whether its storescp on a port runs; the programs it asks for their versions come and go meanwhile."""
    return any(_is_storescp(child, port) for child in running.children())


def _is_storescp(process: psutil.Process, port: int) -> bool:
    try:
        return bool(process.name() == "storescp" and process.cmdline()[-1:] == [str(port)])
    except psutil.NoSuchProcess:
        return False
