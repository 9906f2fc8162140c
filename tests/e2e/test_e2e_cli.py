"""``harmonyd run``, ``check`` and ``version`` as processes: exit statuses, what they say, and what they leave."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_kit import COMMAND, example_in, harmonyd
from retrieve_kit import NATIVE

from harmonyd import __version__
from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.processes import free_port, port_is_free

Daemons = Callable[..., RunningDaemon]


def pacs_options(**options: object) -> dict[str, object]:
    """A backend whose PACS is not there; its receiver runs all the same."""
    return {"aet": "PACS", "host": "127.0.0.1", "port": free_port(), "incoming_store_port": free_port(), **options}


def without_override() -> tuple[str, ...]:
    """Root may read and write anything; give that up for a command (capabilities(7))."""
    return ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()


def test_version() -> None:
    """It says the version and exits 0."""
    ended = harmonyd("version")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"harmonyd {__version__}\n", "")


def test_the_example_passes_its_check(tmp_path: Path) -> None:
    """The configuration that ``make demo`` uses, on free ports: nothing is wrong, nothing is made."""
    example = example_in(tmp_path)
    ended = harmonyd("check", "--config", example.config)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "all is well" in ended.stdout
    assert not example.storage.exists()


def test_the_example_runs(tmp_path: Path) -> None:
    """Its daemon becomes ready without the PACS, receives for both, and SIGTERM ends it with 0 and leaves nothing."""
    example = example_in(tmp_path)
    with RunningDaemon(example.config) as daemon:
        names = {child.name() for child in daemon.children()}
        assert "storescp" in names
        assert not port_is_free(example.receiver_port)
        assert not port_is_free(example.endpoint_port)


def test_a_configuration_that_may_not_be_read(tmp_path: Path) -> None:
    """Its permissions are named as the reason, by run and check alike; status 2."""
    example = example_in(tmp_path)
    example.config.chmod(0o000)
    for command in ("run", "check"):
        ended = harmonyd(command, "--config", example.config, prefix=without_override())
        assert ended.returncode == 2
        assert f"{example.config}: cannot be read: Permission denied" in ended.stdout + ended.stderr


def test_a_taken_port_is_told_with_its_holder(tmp_path: Path) -> None:
    """Status 1, pid and command line, no child and no lock left; once it is free, the same command works."""
    port, options = free_port(), pacs_options()
    config = write_config(tmp_path, http_port=port, backends={"pacs": options})
    with socket.create_server(("127.0.0.1", port)):
        ended = harmonyd("run", "--config", config)
        assert ended.returncode == 1
        assert f"port {port} is taken by pid {os.getpid()} (" in ended.stderr
        assert "change bind_port" in ended.stderr
        assert "Traceback" not in ended.stderr
    assert port_is_free(int(str(options["incoming_store_port"])))
    with RunningDaemon(config) as daemon:
        assert daemon.http("GET", "/livez").status == 200


def test_two_daemons_do_not_share_a_storage_path(daemon: Daemons, tmp_path: Path) -> None:
    """The second says which pid has it, exits 1, and the first goes on."""
    first = daemon(backends={"pacs": pacs_options()})
    storage = {"options": {"path": str(first.config.parent / "tmp")}}
    echo = {"echo": {"service": "echo"}}
    second = write_config(tmp_path / "second", http_port=free_port(), backends=echo, sections={"storage": storage})
    ended = harmonyd("run", "--config", second)
    assert ended.returncode == 1
    assert f"in use by another harmonyd (pid {first.pid};" in ended.stderr
    assert first.http("GET", "/readyz").status == 200


def test_a_storage_path_that_cannot_be_written(tmp_path: Path) -> None:
    """Status 1, and the path is named."""
    (tmp_path / "closed").mkdir(mode=0o555)
    config = write_config(
        tmp_path / "conf",
        http_port=free_port(),
        backends={"pacs": pacs_options()},
        sections={"storage": {"options": {"path": str(tmp_path / "closed" / "tmp")}}},
    )
    ended = harmonyd("run", "--config", config, prefix=without_override())
    assert ended.returncode == 1
    assert str(tmp_path / "closed" / "tmp") in ended.stderr
    assert "Permission denied" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_any_time_ends_it(tmp_path: Path, number: signal.Signals) -> None:
    """Also one that comes while it is starting: status 0, nothing left, no traceback."""
    options = pacs_options()
    config = write_config(tmp_path, http_port=free_port(), backends={"pacs": options})
    with subprocess.Popen(
        [*COMMAND, "run", "--config", str(config)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = [next(process.stderr)]  # its log has begun, so its handlers are there or about to be
        while "STARTING" not in lines[-1] and not NATIVE:
            lines.append(next(process.stderr))
        process.send_signal(number)
        lines += process.stderr
        assert process.wait(20) == 0
    assert "Traceback" not in "".join(lines)
    assert port_is_free(int(str(options["incoming_store_port"])))


def test_the_log_goes_to_the_file_that_is_named(daemon: Daemons) -> None:
    """[logging] log_file_path: everything is there, nothing on standard error."""
    running = daemon(backends={"echo": {"service": "echo"}}, sections={"logging": {"log_file_path": "harmonyd.log"}})
    running.http("GET", "/livez")
    assert "GET /livez 200" in (running.config.parent / "harmonyd.log").read_text()
    assert running.log == ""
