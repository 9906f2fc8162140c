"""`supervisorctl status` against supervisord with the same children.

    python bench/supervisorctl.py [--children 10] [--rounds 200]

Both run the same store SCPs. Measured are what the command does on the wire (getVersion and getAllProcessInfo on one
connection), and the whole command, most of which is the start of Python.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path

from supervisor.xmlrpc import SupervisorTransport

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.processes import dcmtk, free_port, wait_until


def status(socket: Path) -> float:
    """Milliseconds for the calls of `supervisorctl status`, with a new connection."""
    began_at = time.perf_counter()
    transport = SupervisorTransport(None, None, f"unix://{socket}")
    supervisor = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor
    supervisor.getVersion()
    supervisor.getAllProcessInfo()
    transport.close()
    return (time.perf_counter() - began_at) * 1000


def command(socket: Path) -> float:
    """Milliseconds for the whole command."""
    began_at = time.perf_counter()
    argv = [sys.executable, "-m", "supervisor.supervisorctl", "-s", f"unix://{socket}", "status"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - began_at) * 1000


def measure(name: str, socket: Path, rounds: int) -> None:
    """Print median and 95th percentile of both."""
    for what, function, count in (("calls", status, rounds), ("command", command, max(5, rounds // 10))):
        function(socket)
        times = sorted(function(socket) for _ in range(count))
        median, late = statistics.median(times), times[int(0.95 * len(times))]
        print(f"{name:<12} {what:<8} median {median:8.2f} ms   p95 {late:8.2f} ms   ({count} rounds)")


def with_harmonyd(folder: Path, children: int, run: Callable[[Path], None]) -> None:
    """Run it against harmonyd."""
    endpoints = {f"in{number}": {"service": "dicom", "port": free_port()} for number in range(children)}
    pipelines = {name: {"networks": [], "endpoints": [name], "backends": []} for name in endpoints}
    config = write_config(folder, http_port=free_port(), backends={}, endpoints=endpoints, pipelines=pipelines)
    with RunningDaemon(config):
        run(folder / "tmp/run/control.sock")


def with_supervisord(folder: Path, children: int, run: Callable[[Path], None]) -> None:
    """Run it against supervisord."""
    socket = folder / "supervisor.sock"
    programs = "".join(
        f"[program:in{number}]\ncommand={dcmtk('storescp')} -v -od {folder} {free_port()}\nredirect_stderr=true\n"
        for number in range(children)
    )
    config = folder / "supervisord.conf"
    config.write_text(
        f"[unix_http_server]\nfile={socket}\n[supervisord]\nnodaemon=true\nlogfile={folder}/log\npidfile={folder}/pid\n"
        f"childlogdir={folder}\n[rpcinterface:supervisor]\n"
        f"supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n{programs}"
    )
    argv = [sys.executable, "-m", "supervisor.supervisord", "-c", str(config)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
        wait_until(socket.exists, "supervisord listens")
        time.sleep(2)  # until its children count as running
        run(socket)
        process.terminate()


def main() -> None:
    """Measure one, then the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--children", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    for name, serve in (("supervisord", with_supervisord), ("harmonyd", with_harmonyd)):
        folder = Path(tempfile.mkdtemp(prefix="hd"))
        try:
            serve(folder, arguments.children, lambda socket, name=name: measure(name, socket, arguments.rounds))
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
