"""Signals in the instant in which a restart in place executes the daemon anew; the process sends them to itself."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from reload_kit import Host, scp
from supervisorctl_kit import Ctl

from harmonyd.testing.processes import free_port, wait_until

# Python runs a module of this name at its start. The first run leaves a file, so that the next one knows what it is.
SITECUSTOMIZE = """
import os, pathlib, signal, sys

def send():
    pathlib.Path({mark!r}).touch()
    os.kill(os.getpid(), signal.{signal})

def audit(event, args):
    if event == "os.exec" and not os.path.exists({mark!r}):
        if {when!r} == "last thing before":
            send()
        pathlib.Path({mark!r}).touch()

if "harmonyd" in sys.orig_argv:
    if not os.path.exists({mark!r}):
        sys.addaudithook(audit)
    elif {when!r} == "first thing after":
        send()
"""
BOTH = pytest.mark.parametrize("when", ["last thing before", "first thing after"])


def host_that_signals(folder: Path, when: str, signum: signal.Signals) -> Host:
    """A daemon that signals itself when it is restarted in place."""
    text = SITECUSTOMIZE.format(mark=str(folder / "executed"), when=when, signal=signum.name)
    (folder / "sitecustomize.py").write_text(text)
    return Host(folder / "host", env={"PYTHONPATH": str(folder)}, endpoints={"receive": scp(free_port())})


@BOTH
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_wish_to_stop_is_not_lost(tmp_path: Path, when: str, signum: signal.Signals) -> None:
    """The new run stops in order as soon as it can, exits with 0 and leaves nothing."""
    with host_that_signals(tmp_path, when, signum) as host:
        host.daemon.children()
        Ctl(f"unix://{host.socket}")("reload")
        assert host.daemon.wait_exit() == 0
        assert (tmp_path / "executed").exists()
        assert host.daemon.log.count("has stopped") == 2
        assert "Traceback" not in host.daemon.log
        host.daemon.assert_nothing_left()


@BOTH
def test_a_reload_meanwhile_ends_nothing(tmp_path: Path, when: str) -> None:
    """SIGHUP in that instant does not end the daemon; its children hold back no signals."""
    with host_that_signals(tmp_path, when, signal.SIGHUP) as host:
        Ctl(f"unix://{host.socket}")("reload")
        wait_until(lambda: host.daemon.log.count(" is up") == 2, "it is back", 30.0)
        for process in [psutil.Process(host.daemon.pid), *host.daemon.children()]:
            assert _held(process.pid) == 0, process


def _held(pid: int) -> int:
    """The signals a process blocks, as bits (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:")), 16)


def test_a_mask_from_whoever_started_us(tmp_path: Path) -> None:
    """A daemon that is started with signals blocked takes them all the same."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        host = Host(tmp_path)
        host.daemon.launch()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    wait_until(lambda: " is up" in host.daemon.log, "it is up", 30.0)
    os.kill(host.daemon.pid, signal.SIGTERM)
    assert host.daemon.wait_exit() == 0


def test_sigterm_before_there_is_a_reactor(tmp_path: Path) -> None:
    """While it looks for DCMTK, SIGTERM ends the process at once, and nothing of it is left."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def audit(event, args):\n"
        "    if event == 'subprocess.Popen':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "if 'harmonyd' in sys.orig_argv:\n"
        "    sys.addaudithook(audit)\n"
    )
    host = Host(tmp_path / "host", env={"PYTHONPATH": str(tmp_path)}, endpoints={"receive": scp(free_port())})
    host.daemon.launch()
    assert host.daemon.wait_exit() == -signal.SIGTERM
    host.daemon.assert_nothing_left()
