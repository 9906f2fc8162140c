"""A daemon whose configuration is changed while it runs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xmlrpc.client import ServerProxy

import psutil
from supervisor.xmlrpc import SupervisorTransport

from harmonyd.testing.config_files import Table, write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.processes import free_port, wait_until

TAKEN_OVER = "the configuration was read again: "
REFUSED = "the configuration stays as it was: "
ECHO: Table = {"answer": {"service": "echo"}}
FAST: Table = {"stop_grace_secs": 2, "probe_interval_secs": 0.5}


def http(prefix: str) -> dict[str, Any]:
    """An HTTP endpoint."""
    return {"service": "http", "path_prefix": prefix}


def scp(port: int, **options: Any) -> dict[str, Any]:
    """An endpoint that receives."""
    return {"service": "dicom", "local_aet": "RECEIVER", "port": port, **options}


class Host:
    """A daemon and the files that configure it. A context manager, like the daemon."""

    def __init__(self, folder: Path, *, env: Mapping[str, str] | None = None, **arguments: Any) -> None:
        """``arguments`` are those of ``write_config``; a port for HTTP is found."""
        self.folder = folder
        self.http_port = free_port()
        self.write(**arguments)
        self.daemon = RunningDaemon(folder, env=env)

    def __enter__(self) -> Host:
        self.daemon.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.daemon.__exit__(*error)

    # --- changing the configuration

    def write(self, **arguments: Any) -> None:
        """Write the configuration."""
        sections = {"supervision": FAST, **arguments.pop("sections", {})}
        given = {"http_port": self.http_port, "backends": ECHO, **arguments}
        write_config(self.folder, sections=sections, **given)

    def hang_up(self) -> None:
        """SIGHUP."""
        os.kill(self.daemon.pid, signal.SIGHUP)

    def reload(self, **arguments: Any) -> str:
        """Write a configuration and have it taken over; what the log says has changed."""
        self.write(**arguments)
        return self.until_told(TAKEN_OVER, self.hang_up)

    def refuse(self, **arguments: Any) -> str:
        """Write a configuration that must be refused; the reason in the log."""
        self.write(**arguments)
        return self.until_told(REFUSED, self.hang_up)

    def until_told(self, what: str, act: Any) -> str:
        """Do something, and wait for the line in the log that tells of its end; the rest of that line."""
        before = len(self._told())
        act()
        kind, rest = wait_until(lambda: self._told()[before:], f"the reload ends:\n{self.daemon.log}", 30.0)[0]
        assert kind == what, f"{kind}{rest}"
        return rest

    def _told(self) -> list[tuple[str, str]]:
        found = re.findall(f"({TAKEN_OVER}|{REFUSED})(.*)", self.daemon.log)
        return [(kind, re.sub('["} ]*$', "", rest)) for kind, rest in found]

    # --- looking

    def status(self, path: str) -> int:
        """The HTTP status that a path answers with."""
        return self.daemon.http("GET", path).status

    @property
    def socket(self) -> Path:
        return self.folder / "tmp" / "run" / "control.sock"

    def children(self) -> dict[str, tuple[str, int]]:
        """Name to state and pid, as the control interface tells them."""
        transport = SupervisorTransport(None, None, f"unix://{self.socket}")
        proxy = ServerProxy("http://127.0.0.1", transport=transport)
        try:
            found: Any = proxy.supervisor.getAllProcessInfo()
        finally:
            transport.close()
        return {f"{item['group']}:{item['name']}": (item["statename"], item["pid"]) for item in found}

    def pid(self, name: str) -> int:
        """The pid of a child that must be running."""
        state, pid = self.children()[name]
        assert state == "RUNNING"
        return pid

    def receiver(self, port: int) -> str:
        """Which socket listens on a port, where one must; whoever replaces its owner has another one."""
        lines = Path(f"/proc/{self.daemon.pid}/net/tcp").read_text().splitlines()[1:]
        found = [(int(local.rpartition(":")[2], 16), state, inode)
                 for _, local, _, state, _, _, _, _, _, inode, *_ in map(str.split, lines)]  # fmt: skip
        listening = [inode for number, state, inode in found if (number, state) == (port, "0A")]
        assert listening, f"nobody listens on port {port}"
        return listening[0]

    def descriptors(self) -> list[str]:
        """What the daemon has open, by name; numbers that differ from run to run left out."""
        folder = Path(f"/proc/{self.daemon.pid}/fd")
        names = []
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                names.append(re.sub(r"\d+", "", path.readlink().name))
        return sorted(names)

    def processes(self) -> list[str]:
        """Names of the processes below the daemon."""
        return sorted(process.name() for process in psutil.Process(self.daemon.pid).children(recursive=True))
