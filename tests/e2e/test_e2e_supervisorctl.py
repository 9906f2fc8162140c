"""The stock supervisorctl, every command, against a real daemon with real store SCPs."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from supervisorctl_kit import Ctl, receiving_config

from harmonyd import __version__
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import dcmtk, free_port, wait_until

pytestmark = pytest.mark.dcmtk  # the children that it controls are DCMTK's programs

NAMES = ["storescp:in0", "storescp:in1", "storescp:in2"]
RUNNING = re.compile(r"storescp:in\d +RUNNING +pid \d+, uptime \d+:\d\d:\d\d(, \w.*)?")
CONTROL_PORT = free_port()


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A folder whose path is short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="hd"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def running(home: Path) -> Iterator[RunningDaemon]:
    """Three store SCPs, and a backend at a PACS that hangs after its first answer."""
    with ExitStack() as stack:
        peer = stack.enter_context(ScriptedPeer("serve", after=1, then="hang"))
        (home / "password").write_text("correct horse\n")
        control = {"bind_address": "127.0.0.1", "bind_port": CONTROL_PORT, "username": "operator"}
        config = receiving_config(
            home,
            3,
            backends={"pacs": {"aet": peer.aet, "host": "127.0.0.1", "port": peer.port}},
            endpoints={"http": {"service": "http", "path_prefix": "/dicom"}},
            pipelines={"ask": {"networks": ["default"], "endpoints": ["http"], "backends": ["pacs"]}},
            sections={
                "control": {**control, "password": "file:password"},
                "management": {"enabled": True, "network": "default"},
            },
        )
        yield stack.enter_context(RunningDaemon(config))


@pytest.fixture
def ctl(running: RunningDaemon, home: Path) -> Iterator[Ctl]:
    """supervisorctl at its unix socket; after each test all children run again."""
    ctl = Ctl(f"unix://{home}/tmp/run/control.sock")
    yield ctl
    if not _all_run(running):
        ctl("start", "all")
        wait_until(lambda: _all_run(running), "all run again")


def _children(running: RunningDaemon) -> list[dict[str, Any]]:
    """What the management API says, which costs no process."""
    found: list[dict[str, Any]] = running.http("GET", "/admin/children").json()
    return [child for child in found if child["kind"] == "kept"]


def _all_run(running: RunningDaemon) -> bool:
    """False also while nobody answers."""
    try:
        return all(child["state"] == "RUNNING" for child in _children(running))
    except (OSError, http.client.HTTPException):
        return False


def _pids(running: RunningDaemon) -> list[int]:
    return [child["pid"] for child in _children(running)]


def test_status(ctl: Ctl, running: RunningDaemon) -> None:
    """Each child is a line as supervisord writes it; all run, so the exit code is 0."""
    shown = ctl("status")
    assert (shown.code, len(shown.lines)) == (0, 3)
    assert all(RUNNING.fullmatch(line) for line in shown.lines), shown.output
    assert ctl("status", "all").code == 0
    assert [line.split()[0] for line in ctl("status", "storescp:*").lines] == NAMES
    assert [line.split()[0] for line in ctl("status", "storescp:in1", "storescp:in0").lines] == NAMES[1::-1]


def test_status_of_unknown_names(ctl: Ctl) -> None:
    """Exit code 4, and the known ones are shown all the same."""
    shown = ctl("status", "nope", "storescp:in0", "nope:*")
    assert shown.code == 4
    assert shown.lines[:2] == ["nope: ERROR (no such process)", "nope: ERROR (no such group)"]
    assert shown.lines[2].startswith("storescp:in0 ")


def test_status_has_figures(ctl: Ctl) -> None:
    """What they use comes after supervisord's own words, once it is known."""

    def all_have_figures() -> bool:
        return all(re.search(r", \d+ MB(, \d+\.\d% CPU)?$", line) for line in ctl("status").lines)

    wait_until(all_have_figures, "figures are shown", 30.0)


def test_stop_and_start(ctl: Ctl) -> None:
    """A stopped child is STOPPED with the time, exit code 3; stopped or started twice is told, and no failure."""
    assert ctl("stop", "storescp:in0").output == "storescp:in0: stopped\n"
    again = ctl("stop", "storescp:in0")
    assert (again.code, again.output) == (0, "storescp:in0: ERROR (not running)\n")
    shown = ctl("status", "storescp:in0")
    assert shown.code == 3
    assert re.fullmatch(r"storescp:in0 +STOPPED +\w{3} \d\d \d\d:\d\d [AP]M\n", shown.output)
    pid = ctl("pid", "storescp:in0")
    assert (pid.code, pid.output) == (7, "0\n")
    assert ctl("start", "storescp:in0").output == "storescp:in0: started\n"
    again = ctl("start", "storescp:in0")
    assert (again.code, again.output) == (0, "storescp:in0: ERROR (already started)\n")
    assert ctl("status", "storescp:in0").code == 0


def test_groups_and_all(ctl: Ctl) -> None:
    """A group and all are stopped, started and restarted with a line for each."""
    assert sorted(ctl("stop", "storescp:*").lines) == [f"{name}: stopped" for name in NAMES]
    assert set(ctl.states().values()) == {"STOPPED"}
    assert sorted(ctl("start", "storescp:*").lines) == [f"{name}: started" for name in NAMES]
    assert sorted(ctl("stop", "all").lines) == [f"{name}: stopped" for name in NAMES]
    assert sorted(ctl("start", "all").lines) == [f"{name}: started" for name in NAMES]
    before = ctl("pid", "all").lines
    restarted = ctl("restart", "all")
    assert (restarted.code, len(restarted.lines)) == (0, 6)
    after = ctl("pid", "all").lines
    assert not set(before) & set(after)
    assert len(set(after)) == 3


def test_restart_of_one(ctl: Ctl) -> None:
    """It has a new process, and the others keep theirs."""
    before = ctl("pid", "all").lines
    assert ctl("restart", "storescp:in1").output == "storescp:in1: stopped\nstorescp:in1: started\n"
    after = ctl("pid", "all").lines
    assert (before[0], before[2]) == (after[0], after[2])
    assert before[1] != after[1]


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("start", "nope"), 1, "nope: ERROR (no such process)"),
        (("start", "nope:*"), 2, "nope: ERROR (no such group)"),
        (("stop", "storescp:nope"), 1, "storescp:nope: ERROR (no such process)"),
        (("stop", "nope:*"), 1, "nope: ERROR (no such group)"),
        (("restart", "nope"), 1, "nope: ERROR (no such process)"),
        (("signal", "HUP", "nope"), 1, "nope: ERROR (no such process)"),
        (("signal", "NOPE", "storescp:in0"), 1, "storescp:in0: ERROR (bad signal name)"),
        (("signal", "0", "storescp:in0"), 1, "storescp:in0: ERROR (bad signal name)"),
        (("tail", "nope"), 1, "nope: ERROR (no such process name)"),
        (("tail", "storescp:in0", "stderr"), 1, "storescp:in0: ERROR (no log file)"),
        (("clear", "nope"), 1, "nope: ERROR (no such process)"),
        (("pid", "nope"), 1, "No such process nope"),
        (("update", "nope"), 1, "ERROR: no such group: nope"),
        (("add", "nope"), 1, "ERROR: no such process/group: nope"),
        (("remove", "nope"), 1, "ERROR: no such process/group: nope"),
        (("start",), 2, "Error: start requires a process name"),
        (("nonsense",), 1, "*** Unknown syntax: nonsense"),
    ],
)
def test_errors(ctl: Ctl, running: RunningDaemon, command: tuple[str, ...], code: int, said: str) -> None:
    """Each mistake is told as with supervisord, and disturbs nothing."""
    before = _pids(running)
    result = ctl(*command)
    assert (result.code, result.lines[0]) == (code, said), result
    assert _pids(running) == before


def test_signal(ctl: Ctl, running: RunningDaemon) -> None:
    """A signal reaches the process: STOP stops it, CONT lets it go on; one that ends it is an unexpected exit."""
    pid = int(ctl("pid", "storescp:in2").output)
    assert ctl("signal", "STOP", "storescp:in2").output == "storescp:in2: signalled\n"
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "it is stopped")
    assert ctl("signal", "SIGCONT", "storescp:*").code == 0
    wait_until(lambda: psutil.Process(pid).status() != psutil.STATUS_STOPPED, "it goes on")
    assert sorted(ctl("signal", "18", "all").lines) == [f"{name}: signalled" for name in NAMES]
    assert ctl("signal", "KILL", "storescp:in2").code == 0
    wait_until(lambda: _pids(running)[2] not in (None, pid), "it was replaced")
    ctl("stop", "storescp:in2")
    assert ctl("signal", "HUP", "storescp:in2").output == "storescp:in2: ERROR (not running)\n"


def test_a_start_that_fails(ctl: Ctl, running: RunningDaemon) -> None:
    """A port that somebody else took: a spawn error, exit code 7, and the reason in its status."""
    port = _port(ctl, "storescp:in0")
    ctl("stop", "storescp:in0")
    with subprocess.Popen([dcmtk("storescp"), str(port)]) as stranger:
        wait_until(lambda: _listens(stranger.pid), "the stranger listens")
        failed = ctl("start", "storescp:in0")
        assert (failed.code, failed.output) == (7, "storescp:in0: ERROR (spawn error)\n")
        shown = ctl("status", "storescp:in0").output
        assert f"port {port} is held by pid {stranger.pid}" in shown
        assert re.search(r"BACKOFF|FATAL", shown)
        ctl("stop", "storescp:in0")
        assert ctl.states()["storescp:in0"] == "STOPPED"
        stranger.terminate()


def _port(ctl: Ctl, name: str) -> int:
    pid = int(ctl("pid", name).output)
    return int(psutil.Process(pid).cmdline()[-1])


def _listens(pid: int) -> bool:
    return any(connection.status == psutil.CONN_LISTEN for connection in psutil.Process(pid).net_connections())


def _echo(ctl: Ctl, name: str) -> None:
    subprocess.run([dcmtk("echoscu"), "127.0.0.1", str(_port(ctl, name))], check=True)


def test_tail_and_clear(ctl: Ctl) -> None:
    """The end of a log, in bytes; cleared, there is nothing until more is said."""
    _echo(ctl, "storescp:in0")
    wait_until(lambda: "Received Echo Request" in ctl("tail", "storescp:in0").output, "the echo is in the log")
    assert len(ctl("tail", "-20", "storescp:in0").output) == 20 + 1
    assert ctl("clear", "storescp:in0").output == "storescp:in0: cleared\n"
    assert len(ctl("tail", "-100000", "storescp:in0").output) < 1000
    cleared = ctl("clear", "all")
    assert (cleared.code, sorted(cleared.lines)) == (0, [f"{name}: cleared" for name in NAMES])


def test_tail_f(ctl: Ctl) -> None:
    """Lines are shown when they come, while the other children are chatty."""
    following = ctl.follow("tail", "-f", "storescp:in0")
    try:
        following.until(b"Press Ctrl-C")
        for number in range(5):
            for name in (*NAMES[1:], NAMES[0]):
                _echo(ctl, name)
            following.until(b"Received Echo Request")
            assert number or b"Received Echo Request" in following.output
    finally:
        following.close()


def test_tail_f_of_nobody(ctl: Ctl) -> None:
    """The client is told, and ends."""
    following = ctl.follow("tail", "-f", "nope")
    following.wait_exit()
    assert b"404" in following.output


def test_maintail(ctl: Ctl, running: RunningDaemon) -> None:
    """The daemon's own log, though it goes to standard error; -f follows it."""
    ctl("restart", "storescp:in1")
    assert "storescp:in1: STARTING -> RUNNING" in ctl("maintail", "-20000").output
    assert len(ctl("maintail", "-100").output) == 100 + 1
    following = ctl.follow("maintail", "-f")
    try:
        following.until(b"Press Ctrl-C")
        ctl("stop", "storescp:in1")
        following.until(b"storescp:in1: STOPPING -> STOPPED")
    finally:
        following.close()


def test_bytes_that_break_terminals(ctl: Ctl, home: Path) -> None:
    """Escape sequences, binary and damaged UTF-8 in a log break neither tail nor the client."""
    ctl("stop", "storescp:in0")
    ctl("clear", "storescp:in0")
    (home / "tmp/log/storescp-in0.log").write_bytes(b"\x1b[2J\x00\x01 caf\xc3\xa9 \xff\n" + b"x" * 100 + b"\n")
    shown = ctl("tail", "-100000", "storescp:in0")
    assert shown.code == 0
    assert " café \ufffd\n" in shown.output
    assert "\x1b" not in shown.output


def test_pid_avail_version(ctl: Ctl, running: RunningDaemon) -> None:
    """What the daemon says about itself."""
    assert ctl("pid").output == f"{running.pid}\n"
    assert len(ctl("pid", "all").lines) == 3
    assert ctl("version").output == f"{__version__}\n"
    assert [line.split()[:4] for line in ctl("avail").lines] == [[name, "in", "use", "auto"] for name in NAMES]


def test_reread_and_update(ctl: Ctl, running: RunningDaemon) -> None:
    """Unchanged, there is nothing to do; with mistakes each is told, and all goes on."""
    before = _pids(running)
    assert ctl("reread").output == "No config updates to processes\n"
    assert ctl("update").code == 0
    text = running.config.read_text()
    try:
        running.config.write_text(text.replace('"id" = "test"', '"id" = ""') + "\n[nonsense]\n")
        wrong = ctl("reread")
        assert wrong.code == 1
        assert "[proxy] id" in wrong.output
        assert "nonsense" in wrong.output
        assert ctl("update").code == 1
        assert ctl("reload").code == 1
    finally:
        running.config.write_text(text)
    assert _pids(running) == before


def test_reload(ctl: Ctl, running: RunningDaemon) -> None:
    """Everything starts again, in place: new children, the same pid."""
    before = set(_pids(running))
    assert ctl("reload").output == "Restarted supervisord\n"
    wait_until(lambda: _all_run(running) and not before & set(_pids(running)), "all run, with new processes", 30.0)
    assert len(_pids(running)) == 3
    assert ctl("pid").output == f"{running.pid}\n"


def test_an_operation_under_way(ctl: Ctl, running: RunningDaemon) -> None:
    """It is shown while it runs, with its output; it cannot be started, and stop ends it, with an answer."""
    answers: list[Any] = []
    asking = Thread(target=lambda: answers.append(_ask(running)))
    asking.start()
    name = wait_until(lambda: next((name for name in ctl.states() if name.startswith("findscu:")), ""), "it is shown")
    assert re.fullmatch(r"findscu:[0-9a-f]{32}", name)
    operation = running.http("GET", "/admin/operations").json()[0]
    assert (operation["operation"], operation["backend"], operation["child"]) == ("find", "pacs", name)
    assert ctl("start", name).output == f"{name}: ERROR (already started)\n"
    wait_until(lambda: "Find Response" in ctl("tail", "-9999", name).output, "its output is shown")
    following = ctl.follow("tail", "-f", name)
    following.until(b"Press Ctrl-C")
    ctl("stop", "all")
    assert ctl.states()[name] == "RUNNING"
    assert ctl("stop", name).output == f"{name}: stopped\n"
    assert following.wait_exit() == 0
    asking.join(20)
    assert answers
    assert name not in ctl.states()
    assert ctl("start", name).output == f"{name}: ERROR (no such process)\n"


def _ask(running: RunningDaemon) -> object:
    try:
        return running.http("POST", "/dicom/find", json={"patient_id": "*"}).status
    except http.client.HTTPException as cut:
        return cut


def test_management(ctl: Ctl, running: RunningDaemon) -> None:
    """The same children in JSON, with what they use."""
    children = running.http("GET", "/admin/children").json()
    assert [child["name"] for child in children] == NAMES
    child = children[0]
    assert (child["state"], child["pid"]) == ("RUNNING", int(ctl("pid", NAMES[0]).output))
    assert child["rss_bytes"] > 1_000_000
    assert child["fds"] >= 3
    assert running.http("GET", "/admin/info").json()["pid"] == running.pid
    assert running.http("GET", "/admin/children", headers={"Host": "evil.example"}).status == 403


def test_tcp(running: RunningDaemon, ctl: Ctl) -> None:
    """With the password everything works, tail -f too; without it the client is told."""
    url = f"http://127.0.0.1:{CONTROL_PORT}"
    with_password = Ctl(url, options=("-u", "operator", "-p", "correct horse"))
    assert with_password("status").code == 0
    following = with_password.follow("maintail", "-f")
    following.until(b"\n")
    following.close()
    for options in ((), ("-u", "operator", "-p", "wrong")):
        refused = Ctl(url, options=options)("stop", "all")
        assert (refused.code, refused.lines[0]) == (1, "Server requires authentication")
    assert set(ctl.states().values()) == {"RUNNING"}


def test_plain_supervisorctl_from_a_checkout(home: Path) -> None:
    """etc/supervisord.conf leads to the socket in tmp/, and shutdown ends the daemon as SIGTERM does."""
    checkout = home / "checkout"
    (checkout / "etc").mkdir(parents=True)
    shutil.copy(Path(__file__).parents[2] / "etc/supervisord.conf", checkout / "etc")
    ctl = Ctl(None, cwd=checkout)
    assert "no such file" in ctl("status").output
    daemon = RunningDaemon(receiving_config(checkout, 1))
    with daemon:
        assert [line.split()[:2] for line in ctl("status").lines] == [["storescp:in0", "RUNNING"]]
        daemon.children()
        assert ctl("shutdown").output == "Shut down\n"
        assert daemon.wait_exit() == 0
        daemon.assert_nothing_left()
    assert not (checkout / "tmp/run/control.sock").exists()


def test_while_it_stops(home: Path) -> None:
    """A stop that takes its time can be watched; a second shutdown is told that it is on its way."""
    with ScriptedPeer("serve", after=0, then="hang") as peer:
        folder = home / "slow"
        config = receiving_config(
            folder,
            1,
            backends={"pacs": {"aet": peer.aet, "host": "127.0.0.1", "port": peer.port}},
            endpoints={"http": {"service": "http", "path_prefix": "/dicom"}},
            pipelines={"ask": {"networks": ["default"], "endpoints": ["http"], "backends": ["pacs"]}},
        )
        ctl = Ctl(f"unix://{folder}/tmp/run/control.sock")
        with RunningDaemon(config) as daemon:
            asking = Thread(target=_ask, args=(daemon,))
            asking.start()
            wait_until(lambda: len(ctl.states()) == 2, "the operation is shown")
            daemon.children()
            os.kill(daemon.pid, signal.SIGTERM)
            wait_until(lambda: "shutting down" in ctl("shutdown").output, "a second stop is told")
            assert "storescp:in0" in ctl.states()
            assert daemon.wait_exit() == 0
            asking.join(20)
            daemon.assert_nothing_left()


def test_the_socket_survives_a_crash(home: Path) -> None:
    """After kill -9 the next start takes the socket over."""
    folder = home / "crash"
    ctl = Ctl(f"unix://{folder}/tmp/run/control.sock")
    daemon = RunningDaemon(receiving_config(folder, 1)).start()
    daemon.kill9()
    assert "refused connection" in ctl("status").output
    with daemon:
        assert ctl("status").code == 0
