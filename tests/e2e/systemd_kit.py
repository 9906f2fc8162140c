"""harmonyd as ``make install`` installs it, in a box with a real systemd."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harmonyd.testing.processes import wait_until
from harmonyd.testing.systemd import SystemdBox

ROOT = Path(__file__).parents[2]
UNIT = "harmonyd.service"
SOCKET = "harmonyd.socket"
UNITS = "/usr/local/lib/systemd/system"
URL = "http://127.0.0.1:8080"
DROP_INS = "/run/systemd/system/harmonyd.service.d"
ENVIRONMENT = "/usr/local/lib/harmonyd"
PYTHON = f"{ENVIRONMENT}/bin/python"


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in the checkout."""
    return subprocess.run(["make", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)


def installed(stage: Path, *arguments: str) -> Path:
    """A staging folder, filled by ``make install``."""
    done = make("install", f"DESTDIR={stage}", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return stage


class Host:
    """A machine on which an administrator has installed harmonyd."""

    def __init__(self, box: SystemdBox) -> None:
        self.box = box

    def set_up(self) -> None:
        """What the guide tells an administrator to do after ``make install``."""
        self.box.run("systemd-sysusers")
        self.box.run("systemd-tmpfiles", "--create")
        self.box.run("systemctl", "daemon-reload")
        self.systemctl("enable", "--now", SOCKET, UNIT)

    def systemctl(self, *arguments: str) -> None:
        """Run systemctl, which must succeed."""
        done = self.box.run("systemctl", *arguments, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{self.log()}"

    def show(self, name: str) -> str:
        """One property of the service."""
        return self.box.show(UNIT, name)[name]

    @property
    def pid(self) -> int:
        """The daemon's, as it is in the box; 0: it does not run."""
        return int(self.show("MainPID"))

    def processes(self) -> dict[int, str]:
        """pid and command line of every process of the service."""
        cgroup = self.box.path("/sys/fs/cgroup/system.slice") / UNIT / "cgroup.procs"
        listing = self.box.run("cat", f"/sys/fs/cgroup/system.slice/{UNIT}/cgroup.procs", check=False)
        if listing.returncode != 0:
            assert not cgroup.exists()
        found = {}
        for pid in map(int, listing.stdout.split()):
            command = self.box.run("cat", f"/proc/{pid}/cmdline", check=False).stdout
            found[pid] = command.replace("\0", " ").strip()
        return found

    def child(self) -> int:
        """pid of the storescp."""
        return next(pid for pid, command in self.processes().items() if command.startswith("/usr/bin/storescp"))

    def status(self) -> str:
        """What the daemon says of itself."""
        return self.show("StatusText")

    def get(self, path: str) -> str:
        """The body of an answer of 200."""
        return self.box.run("curl", "--silent", "--show-error", "--fail", "--max-time", "30", URL + path).stdout

    def is_ready(self) -> bool:
        """Whether ``/readyz`` says so."""
        asked = self.box.run("curl", "--silent", "--fail", "--max-time", "5", f"{URL}/readyz", check=False)
        return asked.returncode == 0

    def ask(self, operation: str, **identifier: str) -> Any:
        """One operation of the ``/dicom`` endpoint; the JSON it answers with 200."""
        sent = ["--header", "Content-Type: application/json", "--header", "Accept: application/json"]
        body = ["--data", json.dumps(identifier)]
        command = ["curl", "--silent", "--show-error", "--max-time", "30", "--fail-with-body"]
        return json.loads(self.box.run(*command, *sent, *body, f"{URL}/dicom/{operation}").stdout)

    def store(self, *files: Path, port: int = 11112) -> subprocess.CompletedProcess[str]:
        """Send files with DCMTK's storescu."""
        names = map(self.put, files)
        return self.box.run("storescu", "-v", "-aec", "HARMONY_SCP", "127.0.0.1", str(port), *names, check=False)

    def put(self, file: Path) -> str:
        """Copy a file into the box; its path there."""
        name = f"/tmp/{file.parent.name}-{file.name}"
        self.box.path(name).write_bytes(file.read_bytes())
        return name

    def received(self) -> list[str]:
        """What has arrived for the installed pipeline, and was put where it belongs."""
        listing = self.box.run("find", "/var/lib/harmonyd/received", "-type", "f", check=False).stdout
        return sorted(listing.split())

    def log(self) -> str:
        """What the journal has of the service, and of systemd about it."""
        self.box.run("journalctl", "--sync")
        return self.box.run("journalctl", "--unit", UNIT, "--output=cat").stdout

    def wait(self, states: str, timeout_secs: float = 30.0) -> None:
        """Wait until the service is in one of these states (``active``, ``failed`` …)."""

        def reached() -> bool:
            return self.show("ActiveState") in states.split()

        try:
            wait_until(reached, f"the service is {states}", timeout_secs)
        except TimeoutError as error:
            raise AssertionError(f"{error}; it is {self.show('ActiveState')}:\n{self.log()}") from None

    @contextmanager
    def drop_in(self, text: str) -> Iterator[None]:
        """Change the unit for a while. The caller restarts the service; afterwards it is as it was, and restarted."""
        path = f"{DROP_INS}/test.conf"
        self.box.run("mkdir", "-p", DROP_INS)
        self.box.path(path).write_text(text)
        self.systemctl("daemon-reload")
        try:
            yield
        finally:
            self.box.path(path).unlink()
            self.systemctl("daemon-reload")
            self.systemctl("reset-failed")
            self.systemctl("restart", UNIT)

    @contextmanager
    def added(self, name: str, text: str) -> Iterator[None]:
        """Serve one more pipeline file for a while."""
        file = self.box.path(f"/etc/harmonyd/pipelines/{name}")
        file.write_text(text)
        self.systemctl("restart", UNIT)
        try:
            yield
        finally:
            file.unlink()
            self.systemctl("restart", UNIT)

    @contextmanager
    def edited(self, path: str, old: str, new: str) -> Iterator[None]:
        """Change a configuration file for a while; afterwards it is as it was, and the service restarted."""
        file = self.box.path(path)
        before = file.read_text()
        assert old in before
        file.write_text(before.replace(old, new))
        try:
            yield
        finally:
            file.write_text(before)
            self.systemctl("reset-failed")
            self.systemctl("restart", SOCKET, UNIT)


def exposure(report: str) -> float:
    """The figure at the end of what ``systemd-analyze security`` prints."""
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", report)
    assert found, report
    return float(found[1])
