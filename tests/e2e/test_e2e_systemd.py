"""The installed harmonyd under a real systemd, hardened as it is shipped."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator

import pytest
from systemd_kit import ENVIRONMENT, PYTHON, ROOT, SOCKET, UNIT, UNITS, Host, exposure, installed

from harmonyd.landlock import abi
from harmonyd.testing.data import demo_files
from harmonyd.testing.processes import wait_until
from harmonyd.testing.systemd import SystemdBox

pytestmark = pytest.mark.root

# Opens connection after connection until standard input ends; prints how many were answered, and what went wrong.
CLIENT = """
import http.client, json, sys, threading

stop, counts, wrong = threading.Event(), [], []

def ask():
    count = 0
    while not stop.is_set():
        try:
            connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=60)
            connection.request("GET", "/livez")
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                wrong.append(f"status {answer.status}")
            connection.close()
        except OSError as error:
            wrong.append(repr(error))
        except http.client.HTTPException as error:
            wrong.append(repr(error))
        count += 1
    counts.append(count)

threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads:
    thread.start()
sys.stdin.read()
stop.set()
for thread in threads:
    thread.join()
print(json.dumps({"asked": sum(counts), "wrong": wrong[:20]}))
"""


# A PACS with one study of two objects; it knows us as C-MOVE's default destination. Ends with its standard input.
PACS = """
import sys
from pathlib import Path
from pydicom import dcmread
from harmonyd.testing.data import demo_files
from harmonyd.testing.pacs import RunningPacs

studies = {}
for file in demo_files():
    studies.setdefault(dcmread(file, stop_before_pixels=True).StudyInstanceUID, []).append(file)
study, files = next((study, files) for study, files in studies.items() if len(files) >= 2)
Path("/tmp/pacs").mkdir()
with RunningPacs(Path("/tmp/pacs"), files=files[:2], destinations={"HARMONY_SCU": 11123}, port=4242):
    print(study, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One machine for all tests here; each leaves harmonyd running as it was installed."""
    stage = installed(tmp_path_factory.mktemp("stage"))
    with SystemdBox(tmp_path_factory.mktemp("box"), layers=[stage]) as box:
        host = Host(box)
        host.set_up()
        yield host


@pytest.fixture(autouse=True)
def running(host: Host) -> None:
    """Each test begins with a harmonyd that serves."""
    host.systemctl("start", UNIT)
    wait_until(host.is_ready, "it serves", 30.0)


# --- as it is installed -----------------------------------------------------------------------------------------------


def test_it_serves_as_installed(host: Host) -> None:
    """HTTP on 8080 is ready, and one store SCP receives: as its own user, readable for nobody else."""
    assert json.loads(host.get("/readyz"))["status"] == "ready"
    sent = host.store(*demo_files()[:2])
    assert sent.returncode == 0, sent.stdout + sent.stderr
    wait_until(lambda: len(host.received()) == 2, "both objects are kept")
    for name in host.received():
        mode = host.box.run("stat", "--format=%U:%G %a", name).stdout.strip()
        assert mode == "harmonyd:harmonyd 640"
    assert host.box.run("stat", "--format=%U:%G %a", "/etc/harmonyd").stdout.strip() == "root:harmonyd 750"


def test_it_is_hardened(host: Host) -> None:
    """The unit scores 1.5 at most, and this very service runs so; systemd finds nothing wrong with the units."""
    assert exposure(host.box.run("systemd-analyze", "security", "--no-pager", UNIT).stdout) <= 1.5
    verified = host.box.run("systemd-analyze", "verify", "--man=no", *(f"{UNITS}/{name}" for name in (UNIT, SOCKET)))
    assert verified.stdout + verified.stderr == ""
    shown = host.box.show(UNIT, "Type", "WatchdogUSec", "RestartUSec", "KillMode", "NotifyAccess")
    assert shown == {
        "Type": "notify", "WatchdogUSec": "20s", "RestartUSec": "2s", "KillMode": "mixed", "NotifyAccess": "main",
    }  # fmt: skip


def test_every_operation_works_hardened(host: Host) -> None:
    """The pipeline of the installed README, against a real PACS: echo, find, get and move succeed in the sandbox."""
    host.box.path("/tmp/pacs.py").write_text(PACS)
    readme = host.box.path("/etc/harmonyd/pipelines/README").read_text()
    pipeline = "\n".join(line[4:] for line in readme.splitlines() if line.startswith("    "))
    for old, new in (("ORTHANC", "QRSCP"), ("pacs.example.org", "127.0.0.1"), ("port = 104", "port = 4242")):
        assert old in pipeline
        pipeline = pipeline.replace(old, new)
    with host.box.popen(PYTHON, "/tmp/pacs.py", stdin=True) as pacs, host.added("pacs.toml", pipeline):
        assert pacs.stdout is not None
        study = pacs.stdout.readline().strip()
        assert study, pacs.communicate("")
        assert host.ask("echo")["success"]
        assert study in json.dumps(host.ask("find", StudyInstanceUID=study, query_level="STUDY"))
        for operation in ("get", "move"):
            answer = host.ask(operation, StudyInstanceUID=study)
            assert (answer["complete"], len(answer["instances"])) == (True, 2), answer
        pacs.communicate("")


def test_children_inherit_nothing_of_the_service(host: Host) -> None:
    """No variable of systemd reaches a child, nor does a listening socket; it cannot speak in the daemon's name."""
    for pid, command in host.processes().items():
        if pid == host.pid:
            continue
        names = {line.split("=")[0] for line in host.box.run("cat", f"/proc/{pid}/environ").stdout.split("\0")}
        assert names <= {"", "PATH", "LANG", "TCP_NODELAY"}, command
    child = host.box.path(f"/proc/{host.child()}/fd")
    files = [str(descriptor.readlink()) for descriptor in child.iterdir()]
    assert sum(name.startswith("socket:") for name in files) == 1  # its own listener


def test_children_are_confined_hardened(host: Host) -> None:
    """The unit leaves harmonyd the means to hold its children: limits, and Landlock where the kernel has it."""
    limits = host.box.run("cat", f"/proc/{host.child()}/limits").stdout
    found = {line[:26].strip(): line[26:].split()[0] for line in limits.splitlines()[1:]}
    assert (found["Max core file size"], found["Max open files"], found["Max processes"]) == ("0", "1024", "0")
    told = "children are confined with Landlock" if abi() else "children are held by limits only"
    assert told in host.log()


def test_the_journal_has_priorities(host: Host) -> None:
    """Lines have the priority of their level, and no trace of the mark that carried it."""
    host.box.run("kill", "-KILL", str(host.child()))
    wait_until(lambda: "ended by SIGKILL" in host.log(), "the end of the child is logged")
    lines = host.box.journal(UNIT)
    assert not [text for _, text in lines if text.startswith("<")]
    by_level = {level: {p for p, text in lines if f" {level} " in text[:40]} for level in ("INFO", "WARN")}
    assert by_level == {"INFO": {6}, "WARN": {4}}


# --- start and status -------------------------------------------------------------------------------------------------


def test_it_is_active_only_when_ready(host: Host) -> None:
    """While the port of the store SCP is somebody else's the start goes on, and the status says whose it is."""
    host.systemctl("stop", UNIT)
    listen = "import socket, sys; s = socket.create_server(('', 11112)); print('held', flush=True); sys.stdin.read()"
    host.box.path("/tmp/stranger.py").write_text(listen)
    with host.box.popen(PYTHON, "/tmp/stranger.py", stdin=True) as stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "held\n"
        host.systemctl("start", "--no-block", UNIT)
        wait_until(lambda: "port 11112 is held by" in host.status(), "the status says who is in the way")
        assert host.status().startswith("Starting: 0 of 1 children running; storescp:incoming")
        assert host.show("ActiveState") == "activating"
        host.get("/livez")  # it listens already; that alone is not ready
        stranger.communicate("")
    host.wait("active")
    wait_until(lambda: host.status() == "Serving: 1 of 1 children running", "it serves")


def test_the_status_follows_the_children(host: Host) -> None:
    """A store SCP that was killed is told, and its return, too; the daemon is the same all the time."""
    pid = host.pid
    host.box.run("kill", "-KILL", str(host.child()))
    wait_until(
        lambda: host.status().startswith("Degraded: 0 of 1 children running; storescp:incoming BACKOFF: ended by SIG"),
        "the status says that it ended",
    )
    wait_until(lambda: host.status() == "Serving: 1 of 1 children running", "it is back")
    assert host.pid == pid


def test_reload_does_not_disturb(host: Host) -> None:
    """``systemctl reload`` reaches the daemon; it and its child stay, and it is ready afterwards."""
    pids = (host.pid, host.child())
    host.systemctl("reload", UNIT)
    host.wait("active")
    assert (host.pid, host.child()) == pids
    assert json.loads(host.get("/readyz"))["status"] == "ready"


def test_a_wrong_configuration_is_not_tried_again(host: Host) -> None:
    """It is told in the journal as an error and in the status; the unit is failed, and starts once it was mended."""
    with host.edited("/etc/harmonyd/config.toml", 'format = "text"', 'format = "txet"'):
        host.systemctl("stop", SOCKET, UNIT)
        failed = host.box.run("systemctl", "start", UNIT, check=False)
        assert failed.returncode != 0
        assert host.box.show(UNIT, "ActiveState", "ExecMainStatus") == {"ActiveState": "failed", "ExecMainStatus": "2"}
        assert "[logging] format" in host.status()
        assert [priority for priority, text in host.box.journal(UNIT) if '"txet"' in text] == [3]
    host.wait("active")


# --- stop and restart -------------------------------------------------------------------------------------------------


def test_stop_lets_an_association_end_and_leaves_nothing(host: Host) -> None:
    """An association that is open is not cut; then every process is gone, and all that was acknowledged is there."""
    before = len(host.received())
    files = [host.put(file) for file in demo_files()[2:30]]
    # Without TCP_NODELAY each object takes storescu about 40 ms: the stop comes in the midst of it.
    sending = host.box.popen("storescu", "-v", "-aec", "HARMONY_SCP", "127.0.0.1", "11112", *files)
    assert sending.stdout is not None
    for line in sending.stdout:
        if "Received Store Response" in line:
            break
    host.systemctl("stop", UNIT)
    said, _ = sending.communicate()
    assert sending.returncode == 0, said
    assert host.processes() == {}
    assert host.box.show(UNIT, "ActiveState", "Result", "StatusText") == {
        "ActiveState": "inactive", "Result": "success", "StatusText": "Stopped",
    }  # fmt: skip
    host.systemctl("start", UNIT)
    wait_until(lambda: len(host.received()) == before + len(files), "all that was acknowledged is there")


def test_no_client_is_refused_during_a_restart(host: Host) -> None:
    """Clients that connect all the time, across two restarts, get 200 every time."""
    host.box.path("/tmp/client.py").write_text(CLIENT)
    with host.box.popen(PYTHON, "/tmp/client.py", stdin=True) as client:
        pids = {host.pid}
        for _ in range(2):
            host.systemctl("restart", UNIT)
            pids.add(host.pid)
        said, _ = client.communicate("")
    found = json.loads(said)
    assert found["wrong"] == []
    assert found["asked"] > 50
    assert len(pids) == 3


def test_a_killed_daemon_is_started_again(host: Host) -> None:
    """``kill -9`` takes its children with it, and after RestartSec there is a new one that serves."""
    before = host.processes()
    host.box.run("kill", "-KILL", str(host.pid))
    wait_until(lambda: host.pid not in (0, *before), "there is another daemon")
    host.wait("active")
    assert not set(before) & set(host.processes())
    assert host.show("NRestarts") != "0"
    wait_until(lambda: host.status() == "Serving: 1 of 1 children running", "it serves")


def test_the_watchdog_restarts_a_daemon_that_hangs(host: Host) -> None:
    """A main process that is stopped gives no sign of life: it is ended, says where it was, and is replaced."""
    with host.drop_in("[Service]\nWatchdogSec=2\nTimeoutAbortSec=5\n"):
        host.systemctl("restart", UNIT)
        pid = host.pid
        host.box.run("kill", "-STOP", str(pid))
        wait_until(lambda: host.pid not in (0, pid), "there is another daemon")
        host.wait("active")
    log = host.log()
    assert "Fatal Python error: Aborted" in log
    assert "Watchdog timeout" in log


def test_signs_of_life_keep_it_running(host: Host) -> None:
    """A daemon that works outlives its watchdog's limit many times."""
    with host.drop_in("[Service]\nWatchdogSec=300ms\n"):
        host.systemctl("restart", UNIT)
        pid = host.pid
        stamps = {host.show("WatchdogTimestampMonotonic")}
        wait_until(lambda: stamps.add(host.show("WatchdogTimestampMonotonic")) or len(stamps) > 5, "five signs of life")
        assert host.pid == pid


# --- what the guide says ----------------------------------------------------------------------------------------------


def test_dicom_on_port_104(host: Host) -> None:
    """The two units of the guide pass the port on to the store SCP."""
    _, _, section = (ROOT / "systemd/README.md").read_text().partition("\n## DICOM on port 104\n")
    for name, unit in re.findall(r"`(/etc/systemd/system/[^`]+)`:\n\n```ini\n(.*?)```", section, re.DOTALL):
        host.box.path(name).write_text(unit)
    host.systemctl("daemon-reload")
    host.systemctl("enable", "--now", "dicom-104.socket")
    sent = host.store(demo_files()[0], port=104)
    assert sent.returncode == 0, sent.stdout + sent.stderr


def test_check_as_the_guide_runs_it(host: Host) -> None:
    """``harmonyd check`` works for the service's user, and finds who holds the port: the daemon that runs."""
    checked = host.box.run("runuser", "-u", "harmonyd", "--", "/usr/local/bin/harmonyd", "check", check=False)
    assert checked.stderr == ""
    assert "port 11112 is held by a process of user harmonyd" in checked.stdout
    assert "ok       storage path /var/lib/harmonyd is writable" in checked.stdout


def test_supervisorctl_as_the_guide_runs_it(host: Host) -> None:
    """The stock client of the environment shows the child to the service's group; others may not ask."""
    command = [f"{ENVIRONMENT}/bin/supervisorctl", "-c", "/etc/harmonyd/supervisord.conf", "status"]
    shown = host.box.run("runuser", "-u", "nobody", "-g", "harmonyd", "--", *command)
    assert re.match(r"storescp:incoming +RUNNING +pid \d+", shown.stdout)
    refused = host.box.run("runuser", "-u", "nobody", "-g", "nogroup", "--", *command, check=False)
    assert "RUNNING" not in refused.stdout


def test_nothing_of_the_checkout_is_in_use(host: Host) -> None:
    """Every file the daemon has mapped is the system's, its own environment's, or lies in its state directory."""
    maps = host.box.path(f"/proc/{host.pid}/maps").read_text()
    files = {line.split(maxsplit=5)[5] for line in maps.splitlines() if " /" in line}
    assert {name for name in files if not name.startswith(("/usr/", "/lib", "/var/lib/harmonyd/"))} == set()
    mode = host.box.path("/usr/local/lib/harmonyd/bin/harmonyd").stat().st_mode
    assert stat.S_IMODE(mode) == 0o755
