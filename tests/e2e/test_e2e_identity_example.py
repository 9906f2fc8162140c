"""``examples/secured`` from its first line on: passwords are made, it loads without a warning, and it is closed."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from identity_kit import basic

from harmonyd.config import ConfigError, load
from harmonyd.passwords import digest_of_key, parse
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.processes import free_port, wait_until

ROOT = Path(__file__).parents[2]
HASH = [sys.executable, "-m", "harmonyd", "hash-password"]
PASSWORD = "pa:ß wörd"


def run(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HASH, *arguments], input=given, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningDaemon, str, int]]:
    """The example as its comments say, on other ports; its key, and the port for operators."""
    folder = tmp_path_factory.mktemp("secured") / "a" / "secured"
    shutil.copytree(ROOT / "examples/secured", folder)
    with pytest.raises(ConfigError, match="users cannot be read"):
        load(folder / "config.toml")
    hashed = run(given=PASSWORD + "\n").stdout.strip()
    users = f"ann:{hashed}:radiologist\nops:{hashed}:operator\n"
    key, digest = (line.split()[1] for line in run("--api-key").stdout.splitlines())
    for name, text in (("users", users), ("keys", f"robot:{digest}:researcher\n")):
        (folder / name).write_text(text, "utf-8")
        (folder / name).chmod(0o600)
    assert load(folder / "config.toml").warnings == ()
    config, operators = folder / "config.toml", free_port()
    text = config.read_text("utf-8").replace("8080", str(free_port())).replace("8081", str(operators))
    config.write_text(text.replace('[telemetry]\nnetwork = "operators"', "[telemetry]"), "utf-8")
    with RunningDaemon(config) as daemon:
        yield daemon, key, operators


def test_the_example(example: tuple[RunningDaemon, str, int]) -> None:
    """Each of its three gets what its rules say, and nobody else gets anything."""
    daemon, key, operators = example
    ann, ops, robot = basic("ann", PASSWORD), basic("ops", PASSWORD), {"X-API-Key": key}

    def status(who: dict[str, str], operation: str = "find") -> int:
        return daemon.http("POST", f"/dicom/{operation}", json={"level": "STUDY"}, headers=who).status

    assert (status({}), status(basic("ann", "wrong")), status(ops)) == (401, 401, 403)
    assert (status(ann), status(robot)) == (502, 502), "there is no PACS"
    assert status(robot, "store") == 403
    port, daemon.port = daemon.port, operators
    try:
        for path in ("/metrics", "/admin/info", "/docs"):
            found = [daemon.http("GET", path, headers=who).status for who in ({}, ann, robot, ops)]
            assert found == [401, 403, 401, 200], path
        metrics = daemon.http("GET", "/metrics", headers=ops).body.decode()
    finally:
        daemon.port = port
    assert 'harmonyd_auth_refusals_total{reason="password",type="basic_auth"} 1.0' in metrics
    assert PASSWORD not in daemon.log
    assert key not in daemon.log


def test_users_change_with_a_reload(example: tuple[RunningDaemon, str, int]) -> None:
    """Who is written into the file gets in after a reload, and who was removed does not, however lately known."""
    daemon, _, operators = example
    users = daemon.config.parent / "users"
    text = users.read_text("utf-8")
    ann, eve = basic("ann", PASSWORD), basic("eve", PASSWORD)

    def statuses() -> tuple[int, ...]:
        return tuple(daemon.http("POST", "/dicom/store", json={}, headers=who).status for who in (ann, eve))

    assert statuses() == (415, 401)
    users.write_text(text.replace("ann:", "eve:").replace("operator", "operator,janitor"), "utf-8")
    os.kill(daemon.pid, signal.SIGHUP)
    wait_until(lambda: statuses() == (401, 415), "the users are read again")
    port, daemon.port = daemon.port, operators
    try:
        assert daemon.http("GET", "/admin/info", headers=eve).status == 403
        assert daemon.http("GET", "/admin/info", headers=basic("ops", PASSWORD)).status == 200
    finally:
        daemon.port = port


def test_a_password_is_read_and_never_an_argument() -> None:
    """From standard input, or twice from a terminal, which does not show it."""
    assert parse(run(given="secret\r\nmore\n").stdout.strip()).matches("secret")
    for wrong in ("", "\n", "x" * 2000):
        failed = run(given=wrong)
        assert (failed.returncode, failed.stdout) == (1, "")
    assert run("secret").returncode == 2
    ours, theirs = pty.openpty()
    with subprocess.Popen(HASH, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        assert process.stdout is not None
        for _ in range(2):
            shown = b""
            while not shown.endswith(b": "):
                shown += os.read(ours, 100)
            os.write(ours, b"typed\n")
        line = process.stdout.read().decode().strip()
    os.close(ours)
    assert parse(line).matches("typed")
    assert b"typed" not in shown


def test_a_key_is_made_or_read() -> None:
    """A short one is refused."""
    made = dict(line.split(":", 1) for line in run("--api-key").stdout.splitlines())
    assert len(made["key"].strip()) > 40
    assert digest_of_key(made["key"].strip()) == made["sha256"].strip()
    again = run("--api-key", "--stdin", given=made["key"].strip() + "\n")
    assert again.stdout.split() == ["sha256:", made["sha256"].strip()]
    assert run("--api-key", "--stdin", given="short\n").returncode == 1
