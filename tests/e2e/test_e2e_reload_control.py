"""Reload as operators ask for it: supervisorctl reread, update, add, remove and reload; and what systemd is told."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from reload_kit import Host, http, scp
from retrieve_kit import NATIVE
from supervisorctl_kit import Ctl

from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port, port_is_free, wait_until


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Start a daemon: ``hosts(**arguments of write_config)``."""
    with ExitStack() as stack:
        yield lambda **arguments: stack.enter_context(Host(tmp_path / "host", **arguments))


def ctl_of(host: Host) -> Ctl:
    return Ctl(f"unix://{host.socket}")


def test_reread_shows_and_update_applies(hosts: Callable[..., Host]) -> None:
    """Nothing changes before ``update``; then all does, each name is told, and a second time there is nothing to do."""
    old, stays = free_port(), free_port()
    host = hosts(endpoints={"http": http("/old"), "changes": scp(old), "goes": scp(free_port()), "stays": scp(stays)})
    ctl, before, changing = ctl_of(host), host.receiver(stays), host.receiver(old)
    new = {"changes": scp(free_port()), "comes": scp(free_port()), "stays": scp(stays)}
    host.write(endpoints={"http": http("/new"), **new})
    assert sorted(ctl("reread").lines) == [
        "pipeline:test: changed",
        "storescp:changes: changed",
        "storescp:comes: available",
        "storescp:goes: disappeared",
    ]
    assert host.receiver(old) == changing
    assert "storescp:comes" in ctl("avail").output
    assert (host.status("/old/x"), host.status("/new/x")) == (200, 404)
    updated = ctl("update")
    assert (updated.code, sorted(updated.lines)) == (0, [
        "pipeline:test: stopped",
        "pipeline:test: updated process group",
        "storescp:changes: stopped",
        "storescp:changes: updated process group",
        "storescp:comes: added process group",
        "storescp:goes: removed process group",
        "storescp:goes: stopped",
    ])  # fmt: skip
    assert host.status("/new/x") == 200
    assert set(host.children()) == (set() if NATIVE else {f"storescp:{name}" for name in new})
    assert all(host.receiver(endpoint["port"]) for endpoint in new.values())
    assert host.receiver(stays) == before
    assert port_is_free(old)
    assert host.daemon.log.count("the configuration was read again") == 1
    assert ctl("update").output == ""
    assert ctl("reread").output == "No config updates to processes\n"


def test_what_reread_has_shown_is_applied(hosts: Callable[..., Host]) -> None:
    """``add`` and ``remove`` after ``reread`` take that reading over, whatever the files say by then."""
    host = hosts()
    ctl = ctl_of(host)
    port = free_port()
    host.write(endpoints={"http": http("/dicom"), "receive": scp(port)})
    ctl("reread")
    text = host.daemon.config.read_text()
    host.daemon.config.write_text("nonsense")
    assert ctl("add", "storescp:receive").output == "storescp:receive: added process group\n"
    host.daemon.config.write_text(text)
    assert host.receiver(port)
    assert ctl("add", "storescp:receive").output == "ERROR: process group already active\n"
    assert ctl("remove", "storescp:receive").output == "ERROR: process/group still running: storescp:receive\n"
    assert ctl("remove", "storescp:other").output == "ERROR: no such process/group: storescp:other\n"


def test_an_update_that_cannot_be(hosts: Callable[..., Host]) -> None:
    """With a mistake, something that needs a restart or a port that is taken, update fails and nothing is stopped."""
    port = free_port()
    host = hosts(endpoints={"receive": scp(port)})
    ctl, receiver = ctl_of(host), host.receiver(port)
    host.write(endpoints={"receive": scp(0)})
    assert "[endpoints.receive.options] port = 0" in ctl("reread").output
    host.write(endpoints={"receive": scp(free_port())}, sections={"storage": {"options": {"path": "./new"}}})
    assert "restart harmonyd to use this" in ctl("reread").output
    with ScriptedPeer("silent") as stranger:
        host.write(endpoints={"receive": scp(stranger.port)})
        failed = ctl("update")
        assert failed.code == 1
        assert f"port {stranger.port} is held by pid" in failed.output
    assert host.receiver(port) == receiver


def test_sighup_between_reread_and_update(hosts: Callable[..., Host]) -> None:
    """What is in force already is not done again, and not undone."""
    host = hosts()
    ctl = ctl_of(host)
    host.write(endpoints={"http": http("/first"), "receive": scp(free_port())})
    ctl("reread")
    port = free_port()
    host.reload(endpoints={"http": http("/second"), "receive": scp(port)})
    receiver = host.receiver(port)
    assert ctl("add", "storescp:receive").output == "storescp:receive: added process group\n"
    assert host.status("/second/x") == 200
    assert host.receiver(port) == receiver


def test_reload_restarts_in_place(hosts: Callable[..., Host]) -> None:
    """All is new but the process: also what no reload could change."""
    old, new = free_port(), free_port()
    host = hosts(endpoints={"http": http("/old"), "receive": scp(old)})
    ctl, daemon_pid = ctl_of(host), host.daemon.pid
    host.write(endpoints={"http": http("no slash"), "receive": scp(free_port())})
    assert ctl("reload").code == 1
    assert host.status("/old/x") == 200
    sections = {"control": {"mode": "0600"}}
    host.write(endpoints={"http": http("/new"), "receive": scp(new)}, sections=sections)
    assert ctl("reload").output == "Restarted supervisord\n"
    wait_until(lambda: _answers(host, "/new/x"), "it is back")
    assert ctl("pid").output == f"{daemon_pid}\n"
    wait_until(lambda: NATIVE or host.children()["storescp:receive"][0] == "RUNNING", "its child runs")
    assert host.receiver(new)
    assert port_is_free(old)
    assert host.socket.stat().st_mode & 0o777 == 0o600
    names = {process.name() for process in host.daemon.children()}
    assert len(host.daemon.children()) == (1 if NATIVE else 2), names


def test_what_systemd_is_told(hosts: Callable[..., Host], tmp_path: Path) -> None:
    """RELOADING with a time, then READY; of a refused configuration the status tells why. So it is for a restart."""
    told = Notified(tmp_path / "notify")
    with told.socket:
        host = hosts(env={"NOTIFY_SOCKET": str(told.path)})
        told.until("READY=1")
        host.reload(endpoints={"http": http("/new")})
        assert "MONOTONIC_USEC=" in told.until("RELOADING=1")
        assert "STATUS=Serving" in told.until("READY=1")
        host.refuse(endpoints={"http": http("no slash")})
        told.until("RELOADING=1")
        assert "STATUS=The new configuration was refused: " in told.until("READY=1")
        host.write(endpoints={"http": http("/again")})
        ctl_of(host)("reload")
        told.until("RELOADING=1")
        told.until("READY=1")
        assert host.status("/again/x") == 200
        assert not any("STOPPING=1" in message for message in told.messages)
        host.daemon.stop()
        told.until("STOPPING=1")


class Notified:
    """The socket of a service manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[str] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(30)

    def until(self, wanted: str) -> str:
        """The next message that holds this."""
        while True:
            self.messages.append(self.socket.recv(65536).decode())
            if wanted in self.messages[-1].splitlines():
                return self.messages[-1]


def _answers(host: Any, path: str) -> bool:
    try:
        return bool(host.status(path) == 200)
    except OSError:
        return False
