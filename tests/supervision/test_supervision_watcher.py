"""The watcher: no child outlives the daemon, however it dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_twisted

from harmonyd.supervision import watcher
from harmonyd.supervision.api import KeptSpec, OnceSpec
from harmonyd.supervision.guard import Guard
from harmonyd.supervision.runner import ProcessSupervisor
from harmonyd.supervision.watcher import end_sessions, members, read_children, read_stat

ROOT = Path(watcher.__file__).parents[2]
DAEMON = """
import json, sys
from pathlib import Path
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from harmonyd.config.daemon import SupervisionConfig
from harmonyd.supervision.api import KeptSpec, OnceSpec
from harmonyd.supervision.runner import ProcessSupervisor

async def run():
    order = json.load(sys.stdin)
    supervisor = ProcessSupervisor(reactor, SupervisionConfig(), Path(order["dir"]), Path(order["dir"]))
    await supervisor.start()
    kept = [supervisor.keep(KeptSpec(**spec)) for spec in order["kept"]]
    for child in kept:
        await child.when_ready()
    once = supervisor.run_once(OnceSpec("sleep", ("/bin/sleep", "100")))
    pids = [*[child.pid for child in kept], once.pid]
    print(json.dumps({"children": pids, "watcher": supervisor._guard.pid}), flush=True)

Deferred.fromCoroutine(run()).addErrback(lambda failure: (failure.printTraceback(), reactor.stop()))
reactor.run()
"""


class Daemon:
    """A process that supervises real children."""

    def __init__(self, specs: list[KeptSpec], folder: Path) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", DAEMON], stdin=pipe, stdout=pipe, env=env)
        kept = [
            {"group": s.group, "name": s.name, "argv": s.argv, "port": s.port, "called_aet": s.called_aet}
            for s in specs
        ]
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"dir": str(folder), "kept": kept}).encode())
        self.process.stdin.close()
        told = json.loads(self.process.stdout.readline())
        self.process.stdout.close()
        self.children: list[int] = told["children"]
        self.watcher: int = told["watcher"]

    def everything(self) -> list[psutil.Process]:
        """All that runs; dcmqrscp reaps the fork that served the readiness probe only when the next one comes."""
        return alive(psutil.Process(self.process.pid).children(recursive=True))


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest_twisted.ensureDeferred
async def test_no_process_outlives_a_killed_daemon(
    storescp: Callable[..., KeptSpec],
    dcmqrscp: Callable[..., KeptSpec],
    association: Callable[[int, str], socket.socket],
    until: Callable[[Callable[[], object]], Awaitable[None]],
    tmp_path: Path,
) -> None:
    """``kill -9`` with a forked grandchild serving an association leaves nothing, and the watcher goes too."""
    pacs = dcmqrscp()
    daemon = Daemon([storescp(), pacs], tmp_path)
    association(pacs.port, "QRSCP")
    await until(lambda: len(members(daemon.children[1])) == 2)
    everything = daemon.everything()
    assert len(everything) == 5, "storescp, dcmqrscp and its fork, sleep, the watcher"
    daemon.process.kill()
    daemon.process.wait()
    await until(lambda: not alive(everything))


@pytest_twisted.ensureDeferred
async def test_the_next_run_ends_what_even_the_watcher_missed(
    dcmqrscp: Callable[..., KeptSpec],
    association: Callable[[int, str], socket.socket],
    supervise: Callable[..., ProcessSupervisor],
    until: Callable[[Callable[[], object]], Awaitable[None]],
    tmp_path: Path,
) -> None:
    """With daemon and watcher both killed, a grandchild holds the port; the next start ends it and takes the port."""
    pacs = dcmqrscp()
    daemon = Daemon([pacs], tmp_path / "run")
    association(pacs.port, "QRSCP")
    await until(lambda: len(members(daemon.children[0])) == 2)
    os.kill(daemon.watcher, signal.SIGSTOP)
    os.kill(daemon.process.pid, signal.SIGSTOP)
    os.kill(daemon.watcher, signal.SIGKILL)
    daemon.process.kill()
    daemon.process.wait()
    await until(lambda: len(members(daemon.children[0])) == 1)
    supervisor = supervise()
    await supervisor.start()
    assert members(daemon.children[0]) == []
    await supervisor.keep(pacs).when_ready()


@pytest_twisted.ensureDeferred
async def test_a_dead_watcher_is_replaced_and_told_everything(
    started_reactor: Any,
    supervise: Callable[..., ProcessSupervisor],
    until: Callable[[Callable[[], object]], Awaitable[None]],
) -> None:
    """A watcher that dies is started again, and knows the children that run."""
    supervisor = supervise()
    await supervisor.start()
    child = supervisor.run_once(OnceSpec("sleep", ("/bin/sleep", "100")))
    guard = supervisor._guard
    first = guard.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: guard.pid not in (None, first))
    assert set(guard.children) == {child.pid}
    # Seen from outside: at the end of its pipe the new watcher ends the child.
    guard._close_pipe()
    assert (await child.exited).signal == signal.SIGKILL


@pytest_twisted.ensureDeferred
async def test_a_watcher_that_does_not_read_is_replaced(
    started_reactor: Any, until: Callable[[Callable[[], object]], Awaitable[None]]
) -> None:
    """A stopped watcher fills its pipe; it is KILLed, and the next one gets the list."""
    guard = Guard(started_reactor)
    guard.start()
    first = guard.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    while psutil.pid_exists(first) and psutil.Process(first).status() != psutil.STATUS_ZOMBIE:
        guard.add(2**22 + 1, 1)
        guard.remove(2**22 + 1)
    await until(lambda: guard.pid not in (None, first))
    await guard.stop()


@pytest_twisted.ensureDeferred
async def test_a_watcher_that_cannot_start_is_tried_again(started_reactor: Any) -> None:
    """Without a watcher children still run; the trouble is logged, and stopping ends the tries."""
    guard = Guard(started_reactor, command=("/nowhere/python",))
    guard.start()
    guard.add(2**22 + 1, 1)
    assert guard.pid is None
    await guard.stop()


def test_the_watcher_is_quick_and_imports_little() -> None:
    """It starts without Twisted, without site packages, in the session of nobody else."""
    script = "import sys, runpy; runpy.run_path(sys.argv[1], run_name='x'); print(*sys.modules)"
    argv = [sys.executable, "-I", "-S", "-c", script, watcher.__file__]
    loaded = subprocess.run(argv, capture_output=True, check=True, text=True).stdout.split()
    assert not {"twisted", "psutil", "harmonyd", "asyncio", "socket"} & set(loaded)


def test_reports_are_followed() -> None:
    """``+`` adds, ``-`` removes, anything else is passed over."""
    assert read_children([b"+ 1 10\n", b"+ 2 20\n", b"- 1\n", b"- 9\n", b"?\n", b"+ 3\n"]) == {2: 20}


@pytest.fixture
def sleeper() -> Any:
    """A process that leads its own session."""
    with subprocess.Popen(["/bin/sleep", "100"], start_new_session=True) as process:
        yield process
        process.kill()


def test_a_process_with_another_start_time_is_a_stranger(sleeper: subprocess.Popen[bytes]) -> None:
    """A reused pid is never killed; the right one is."""
    stat = read_stat(sleeper.pid)
    assert stat is not None
    end_sessions([(sleeper.pid, stat.start + 1)])
    assert sleeper.poll() is None
    end_sessions([(sleeper.pid, stat.start)])
    assert sleeper.wait() == -9


def test_a_child_that_does_not_lead_its_session_yet_is_ended() -> None:
    """Between spawn and setsid a child is known by pid and start time only; its neighbours are spared."""
    with subprocess.Popen(["/bin/sleep", "100"]) as child, subprocess.Popen(["/bin/sleep", "100"]) as neighbour:
        stat = read_stat(child.pid)
        assert stat is not None
        end_sessions([(child.pid, stat.start)])
        assert child.wait() == -9
        assert neighbour.poll() is None
        neighbour.kill()


def test_stat_survives_odd_process_names(tmp_path: Path) -> None:
    """A name with spaces and parentheses does not shift the fields."""
    odd = tmp_path / ") R 1 (x"
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([odd, "100"], start_new_session=True) as process:
        stat = read_stat(process.pid)
        process.kill()
    assert stat is not None and stat.session == process.pid
    assert read_stat(2**22 + 1) is None
