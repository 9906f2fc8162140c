"""A daemon whose machine treats it badly: no descriptors, a clock that jumps, children killed, an open umask."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from endpoint_kit import associate, endpoint, send, status_of, wait_delivered
from retrieve_kit import by_study, pacs_backend, peer_backend, post, storage, together
from torture_kit import LAST, connected, echoed, statuses, target, throw

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import COMMAND, RunningDaemon
from harmonyd.testing.data import demo_files, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port, wait_until

OPEN_UMASK = ("/bin/sh", "-c", 'umask 0; exec "$@"', "sh", *COMMAND)
YEAR_SECS = 365 * 24 * 3600
JUMPING = f"""
import signal, sys, time
real, offset = time.time, [0.0]
time.time = lambda: real() + offset[0]
def jump(number, _frame):
    offset[0] = {YEAR_SECS}.0 if number == signal.SIGUSR1 else -{YEAR_SECS}.0
    print("the clock jumps by", offset[0], file=sys.stderr, flush=True)
signal.signal(signal.SIGUSR1, jump)
signal.signal(signal.SIGUSR2, jump)
from harmonyd.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.dcmtk
def test_nothing_is_for_others(pacs: RunningPacs, tmp_path: Path) -> None:
    """Whatever the umask was: no file, folder or socket that a run leaves may be read by everybody."""
    port = free_port()
    config = write_config(
        tmp_path / "host",
        http_port=free_port(),
        endpoints={
            **endpoint(port, store_scp="per-association"),
            "http": {"service": "http", "path_prefix": "/dicom"},
            "web": {"service": "dicomweb", "path_prefix": "/web"},
        },
        backends={"pacs": pacs_backend(pacs, engine="dcmtk"), "kept": {"service": "storage", "path": "./kept"}},
        pipelines={
            "in": {"networks": ["default"], "endpoints": ["inbound"], "middleware": [], "backends": ["kept"]},
            "out": {"networks": ["default"], "endpoints": ["http", "web"], "middleware": [], "backends": ["pacs"]},
        },
        sections={"logging": {"log_file_path": "./harmonyd.log"}},
    )
    (made,) = make_study(tmp_path / "made", 1).files
    with RunningDaemon(config, command=OPEN_UMASK) as running:
        send(port, made)
        wait_delivered(running)
        study = next(iter(by_study(demo_files())))
        for operation in ("find", "get", "move"):
            assert post(running, operation, {"StudyInstanceUID": study}).status == 200
        assert running.http("GET", f"/web/studies/{study}/metadata").status == 200
        left = [*_all_below(storage(running)), *_all_below(config.parent / "kept"), config.parent / "harmonyd.log"]
        modes = {os.fspath(path): stat.S_IMODE(path.lstat().st_mode) for path in left}
    assert any(name.endswith("journal.sqlite3") for name in modes)
    assert any(name.endswith("control.sock") for name in modes)
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o007} == {}


def _all_below(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folder.rglob("*")


def test_a_clock_that_jumps(tmp_path: Path) -> None:
    """A year ahead ends nothing that is under way, and back again stops no timer: what waits is delivered at once."""
    port = free_port()
    config = write_config(
        tmp_path / "host",
        http_port=free_port(),
        endpoints=endpoint(port, association_timeout_ms=20_000),
        backends={"kept": {"service": "storage", "path": "./kept"}},
        sections={"supervision": {"probe_interval_secs": 1}},
    )
    objects = make_study(tmp_path / "made", 3).files
    with RunningDaemon(config, command=(sys.executable, "-c", JUMPING, "run")) as running:
        children = [child.pid for child in running.children()]
        kept = running.connect()
        assert running.send(kept, "GET", "/livez").read()
        assoc = associate(port)
        assert status_of(assoc, objects[0]) == 0
        for path, number in zip(objects[1:], (signal.SIGUSR1, signal.SIGUSR2), strict=True):
            before = running.log.count("the clock jumps")
            os.kill(running.pid, number)
            wait_until(lambda before=before: running.log.count("the clock jumps") > before, "the clock has jumped")
            assert status_of(assoc, path) == 0
            wait_delivered(running)
            assert running.send(kept, "GET", "/livez").read()
            assert running.http("GET", "/readyz").status == 200
        assoc.release()
        kept.close()
        assert [child.pid for child in running.children()] == children
        assert len(list((config.parent / "kept").rglob("*.dcm"))) == 3


@pytest.mark.dcmtk
def test_a_child_is_killed_for_its_memory(peer: Callable[..., ScriptedPeer], daemon: Callable[..., Any]) -> None:
    """SIGKILL out of nothing, as the kernel sends it: that request is told, counted, and the next one is served."""
    node = peer(count=3, after=1)
    gateway = daemon(backends={"peer": peer_backend(node, engine="dcmtk")})

    def ask(number: int) -> Any:
        if number == 0:
            return post(gateway, "find", {"PatientID": "X"})
        victim = wait_until(lambda: _named(gateway, "findscu"), "the program runs")
        node.wait_for("hanging")
        os.kill(victim, signal.SIGKILL)
        return None

    answer = together(2, ask)[0]
    assert answer.status in (500, 502) or not answer.json().get("complete", True), answer.body
    assert b"SIGKILL" in answer.body or b"signal" in answer.body, answer.body
    assert b'backend="peer"' in gateway.http("GET", "/metrics").body
    assert gateway.http("GET", "/livez").status == 200


def _named(daemon: RunningDaemon, name: str) -> int | None:
    return next((child.pid for child in daemon.children() if child.name() == name), None)


@pytest.mark.dcmtk
def test_no_descriptors(tmp_path: Path) -> None:
    """Clients that take all there are: it says so, does not spin, and serves everybody when they have gone."""
    with target(tmp_path, ("prlimit", "--nofile=128:128", *COMMAND)) as made, ExitStack() as stack:
        process = psutil.Process(made.daemon.pid)
        for _ in range(200):
            stack.enter_context(connected(made.http))
        wait_until(lambda: process.num_fds() >= 120 or "EMFILE" in made.daemon.log, "all descriptors are taken")
        wait_until(lambda: "open files" in made.daemon.log or "EMFILE" in made.daemon.log, "it says so")
        before = sum(process.cpu_times()[:2])
        with pytest.raises(TimeoutError):
            wait_until(lambda: False, "nothing", 1.0)
        assert sum(process.cpu_times()[:2]) - before < 0.8
        stack.close()
        wait_until(lambda: statuses(throw(made.http, LAST, half_close=False)) == [200], "it serves again", 30)
        wait_until(lambda: all(map(echoed, made.dicom.values())), "and receives", 30)
        made.assert_unharmed()
