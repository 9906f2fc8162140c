"""The command ``harmonyd doctor``: its table, exit status, choice of backends, and work beside a running daemon."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from doctor_kit import Doctor

from harmonyd import cli
from harmonyd.config import load
from harmonyd.daemon.build import Folders
from harmonyd.daemon.lock import LOCK_NAME
from harmonyd.doctor.output import clean
from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port


def test_a_table_without_a_terminal(doctor_of: Doctor, peer: Callable[..., ScriptedPeer]) -> None:
    """A line a step, what to change below it, no colours."""
    node = peer("reject", reject=(1, 1, 3))
    lines = doctor_of.table(port=node.port)
    assert doctor_of.status == 1
    assert lines[0] == f"backend pacs: PEER at 127.0.0.1:{node.port}, as HARMONY_SCU (dcmtk engine)"
    assert any(line.startswith("error    association  PEER@127.0.0.1") for line in lines)
    assert any(line.strip().startswith("-> PACS: Add our AE title HARMONY_SCU") for line in lines)
    assert lines[-1] == "1 of 1 backends with an error: pacs"
    assert all(line == clean(line) for line in lines)


def test_all_backends_or_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All dicom ones in their order, or the one that is named."""
    given = {name: {"aet": "A", "host": "127.0.0.1", "port": free_port()} for name in ("b", "a")}
    for number, one in enumerate(given.values()):
        one["incoming_store_port"] = 11300 + number
    kept = {"disk": {"service": "storage", "path": str(tmp_path / "disk")}}
    config = write_config(tmp_path, http_port=free_port(), backends={**given, **kept})
    assert cli.main(["doctor", "--config", str(config), "--json"]) == 1
    assert [one["backend"] for one in json.loads(capsys.readouterr().out)["backends"]] == ["b", "a"]
    assert cli.main(["doctor", "a", "--config", str(config), "--json"]) == 1
    assert [one["backend"] for one in json.loads(capsys.readouterr().out)["backends"]] == ["a"]
    for name in ("disk", "nobody"):
        assert cli.main(["doctor", name, "--config", str(config)]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert f"no dicom backend '{name}'; there are: b, a" in printed.err


def test_a_wrong_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told on standard error; status 2."""
    assert cli.main(["doctor", "--json", "--config", str(tmp_path / "none.toml")]) == 2
    printed = capsys.readouterr()
    assert (printed.out, "no such file" in printed.err) == ("", True)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon"])
def test_a_timeout_that_is_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused."""
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--timeout", text])
    assert "is not a number of seconds" in capsys.readouterr().err


def test_beside_a_running_daemon(
    daemon: Callable[..., RunningDaemon], peer: Callable[..., ScriptedPeer]
) -> None:
    """The daemon's own port is seen, a PACS that reaches it is told as that, and the daemon goes on."""
    port = free_port()
    node = peer("serve", count=0, destinations={"HARMONY_MOVE": port})
    backend = {
        "aet": node.aet,
        "host": "127.0.0.1",
        "port": node.port,
        "engine": "native",
        "incoming_store_port": port,
        "move_destination_aet": "HARMONY_MOVE",
        "dimse_retrieve_mode": "move",
    }
    running = daemon(backends={"pacs": backend})
    command = [sys.executable, "-m", "harmonyd", "doctor", "--json", "--config", str(running.config)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    document = json.loads(ended.stdout)
    assert document["result"] == "ok", ended.stdout
    steps = {step["step"]: step for step in document["backends"][0]["steps"]}
    assert steps["receiver"]["text"] == f"port {port} is that of the harmonyd that runs (pid {running.pid})"
    assert steps["move"]["details"]["known"] is True
    assert running.http("GET", "/readyz").status == 200


@contextmanager
def lock_held(path: Path) -> Iterator[int]:
    """By a process that has no ports and no children; its pid."""
    program = (
        "import sys; from pathlib import Path; from harmonyd.daemon.lock import RunLock; "
        "lock = RunLock(Path(sys.argv[1])); lock.take(); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        try:
            yield process.pid
        finally:
            process.kill()


def test_a_port_that_another_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], peer: Callable[..., ScriptedPeer]
) -> None:
    """With a harmonyd that runs and does not have its port, no C-MOVE can be delivered: an error, with the holder."""
    node, other = peer("serve"), peer("silent")
    backend = {"aet": node.aet, "host": "127.0.0.1", "port": node.port, "dimse_retrieve_mode": "move"}
    found = {}
    for name, port in (("taken", other.port), ("down", free_port())):
        config = write_config(
            tmp_path / name, http_port=free_port(), backends={"pacs": {**backend, "incoming_store_port": port}}
        )
        with lock_held(Folders(load(config).storage.path).run / LOCK_NAME) as pid:
            assert cli.main(["doctor", "--json", "--config", str(config)]) == 1
        steps = json.loads(capsys.readouterr().out)["backends"][0]["steps"]
        [found[name]] = [step for step in steps if step["step"] == "receiver"]
    assert [step["result"] for step in found.values()] == ["error", "error"]
    assert "harmonyd.testing.peer" in found["taken"]["text"]
    assert f"(pid {pid}) does not listen on port" in found["down"]["text"]
