"""How fast and how cheap supervision is, with real DCMTK programs and the settings that are the default.

    python bench/supervision.py start      [--rounds 9]      process start to READY=1, one kept storescp
    python bench/supervision.py phases                       where that time goes, in one start
    python bench/supervision.py crash      [--rounds 9]      kill -9 of a storescp to RUNNING again
    python bench/supervision.py hang       [--rounds 3]      SIGSTOP of a storescp to RUNNING again
    python bench/supervision.py logs       [--secs 60] [--lines 10000]   nothing lost, and /livez meanwhile
    python bench/supervision.py idle       [--secs 60] [--children 10]   CPU of the daemon and what it spawns

Modules are compiled, as they are after an installation.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from xmlrpc.client import ServerProxy

import psutil
from supervisor.xmlrpc import SupervisorTransport

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.processes import free_port, wait_until

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def configure(folder: Path, children: int) -> Path:
    """A configuration with so many store SCPs."""
    endpoints = {f"in{number}": {"service": "dicom", "port": free_port()} for number in range(children)}
    pipelines = {name: {"networks": [], "endpoints": [name], "backends": []} for name in endpoints}
    sections = {"proxy": {"log_level": "info"}}
    return write_config(
        folder, http_port=free_port(), backends={}, endpoints=endpoints, pipelines=pipelines, sections=sections
    )


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that is removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="hd"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def daemon(children: int) -> Iterator[RunningDaemon]:
    """A daemon that is ready."""
    with folder() as path, RunningDaemon(configure(path, children)) as running:
        wait_until(lambda: all(state == "RUNNING" for state, _ in states(running).values()), "all run", 30)
        yield running


def states(running: RunningDaemon) -> dict[str, tuple[str, int]]:
    """State and pid of each child, as supervisorctl shows them."""
    path = running.config.parent / "tmp/run/control.sock"
    transport = SupervisorTransport(None, None, f"unix://{path}")
    try:
        found = ServerProxy("http://127.0.0.1", transport=transport).supervisor.getAllProcessInfo()
    finally:
        transport.close()
    return {child["name"]: (child["statename"], child["pid"]) for child in found}  # type: ignore[union-attr,call-overload,index]


def told(what: str, values: Sequence[float], unit: str) -> None:
    """Print median and range."""
    print(f"{what}: median {statistics.median(values):.2f} {unit} ({min(values):.2f}–{max(values):.2f}, {len(values)})")


# --- start


def start_once(options: Sequence[str] = ()) -> tuple[float, str]:
    """Seconds from the start of the process until systemd would hear READY=1; and what it wrote to stderr."""
    with folder() as path, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path / "notify"))
        manager.settimeout(30)
        argv = [sys.executable, *options, "-m", "harmonyd", "run", "--config", str(configure(path, 1))]
        environ = {**os.environ, "NOTIFY_SOCKET": str(path / "notify")}
        with (path / "err").open("wb") as errors:
            began_at = time.perf_counter()
            process = subprocess.Popen(argv, env=environ, stderr=errors)
        while b"READY=1" not in manager.recv(65536).split(b"\n"):
            pass
        took_secs = time.perf_counter() - began_at
        process.terminate()
        process.wait(30)
        return took_secs, (path / "err").read_text()


def start(arguments: argparse.Namespace) -> None:
    """Start to READY, repeatedly; the first start compiles and does not count."""
    start_once()
    told("start to READY", [start_once()[0] for _ in range(arguments.rounds)], "s")


PARTS = {
    "interpreter": "import site",
    "and imports": "import gc; gc.disable(); import harmonyd.cli, harmonyd.daemon.process, twisted.internet.reactor",
    "and the search for DCMTK": "import gc; gc.disable(); import harmonyd.cli, harmonyd.daemon.process as p,"
    " twisted.internet.reactor; p.find_tools()",
}
"""What a start does first; the rest of it is the daemon's own start, and that of storescp."""


def phases(arguments: argparse.Namespace) -> None:
    """Medians of whole processes that do the first part of a start, then the whole start."""
    start_once()
    for what, code in PARTS.items():
        times = []
        for _ in range(arguments.rounds):
            began_at = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times.append(time.perf_counter() - began_at)
        told(f"{what:<25}", times, "s")
    told(f"{'and all the rest: READY':<25}", [start_once()[0] for _ in range(arguments.rounds)], "s")


# --- replacing


def replaced(running: RunningDaemon, signum: signal.Signals, timeout_secs: float) -> float:
    """Seconds from a signal to its child until another process is RUNNING."""
    pid = states(running)["in0"][1]
    began_at = time.perf_counter()
    os.kill(pid, signum)

    def is_replaced() -> bool:
        state, now_pid = states(running)["in0"]
        return state == "RUNNING" and now_pid != pid

    wait_until(is_replaced, "it is replaced", timeout_secs)
    return time.perf_counter() - began_at


def crash(arguments: argparse.Namespace) -> None:
    """A new daemon each round: the second crash in a row waits longer, on purpose."""
    times = []
    for _ in range(arguments.rounds):
        with daemon(1) as running:
            times.append(replaced(running, signal.SIGKILL, 30))
    told("kill -9 to RUNNING", times, "s")


def hang(arguments: argparse.Namespace) -> None:
    """The moment of the signal falls anywhere between two probes."""
    times = []
    for number in range(arguments.rounds):
        with daemon(1) as running:
            time.sleep(10.0 * number / arguments.rounds)
            times.append(replaced(running, signal.SIGSTOP, 90))
    told("SIGSTOP to RUNNING", times, "s")


# --- idle


def cpu_secs(pid: int) -> tuple[float, float]:
    """CPU time of a process and of what it has spawned and reaped; and that of its living descendants."""
    process = psutil.Process(pid)
    own = process.cpu_times()
    below = [child.cpu_times() for child in process.children(recursive=True)]
    return sum(own[:4]), sum(sum(times[:4]) for times in below)


def probes(running: RunningDaemon) -> int:
    """How many probes the children have told of: without them the CPU would mean nothing."""
    logs = (running.config.parent / "tmp/log").glob("*.log")
    return sum(log.read_bytes().count(b"Association Received") for log in logs)


def idle(arguments: argparse.Namespace) -> None:
    """CPU over some time in which nothing is asked."""
    with daemon(arguments.children) as running:
        time.sleep(5)
        before, probed = cpu_secs(running.pid), probes(running)
        time.sleep(arguments.secs)
        after, probed = cpu_secs(running.pid), probes(running) - probed
    for what, old, new in zip(("daemon", "watcher and children"), before, after, strict=True):
        print(f"{what}, {arguments.children} children: {100 * (new - old) / arguments.secs:.2f} % of one core")
    print(f"probes answered meanwhile: {probed}")


def main() -> None:
    """Run one measurement."""
    from log_load import logs  # beside this file

    commands = {"start": start, "phases": phases, "crash": crash, "hang": hang, "logs": logs, "idle": idle}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--secs", type=float, default=60.0)
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--children", type=int, default=10)
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (3 if arguments.command == "hang" else 9)
    commands[arguments.command](arguments)


if __name__ == "__main__":
    main()
