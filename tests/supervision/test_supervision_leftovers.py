"""The record of kept children, and what the next run does with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_twisted

from harmonyd.supervision import leftovers
from harmonyd.supervision.api import KeptSpec
from harmonyd.supervision.leftovers import Entry, OwnerAlive
from harmonyd.supervision.runner import ProcessSupervisor
from harmonyd.supervision.watcher import members, read_stat
from harmonyd.testing.processes import wait_until

SLEEP = ("/bin/sleep", "100")


@pytest.fixture
def sleeper() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start processes in sessions of their own."""
    with ExitStack() as stack:

        def start(argv: tuple[str, ...] = SLEEP) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(argv, start_new_session=True, stdout=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            # It is there a moment before the kernel tells what it runs.
            wait_until(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes(), "its command line")
            return process

        yield start


def entry(process: subprocess.Popen[bytes], argv: tuple[str, ...] = SLEEP, start_offset: int = 0) -> Entry:
    stat = read_stat(process.pid)
    assert stat is not None
    return Entry("storescp:x", process.pid, stat.start + start_offset, argv)


def test_what_matches_is_ended(sleeper: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    """A process with the recorded pid, start time and command line is KILLed."""
    process = sleeper()
    leftovers.save(tmp_path / "children", [entry(process)])
    assert [ended.pid for ended in leftovers.end_leftovers(tmp_path / "children")] == [process.pid]
    assert process.wait() == -9


def test_a_script_matches_by_the_end_of_its_command_line(
    sleeper: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """The kernel puts an interpreter, and we put setpriv, before what was recorded."""
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nread line < /dev/zero\n")
    script.chmod(0o755)
    process = sleeper((str(script), "arg"))
    leftovers.save(tmp_path / "children", [entry(process, (str(script), "arg"))])
    assert leftovers.end_leftovers(tmp_path / "children")


def test_strangers_are_left_alone(sleeper: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    """Another start time, or another command line, is another process."""
    process = sleeper()
    strangers = [entry(process, start_offset=1), entry(process, argv=("/usr/bin/storescp", "100"))]
    leftovers.save(tmp_path / "children", strangers)
    assert leftovers.end_leftovers(tmp_path / "children") == []
    assert process.poll() is None


def test_grandchildren_of_a_dead_leader_are_ended(tmp_path: Path) -> None:
    """What a dead child left in its session is ended, when the command line matches."""
    argv = (sys.executable, "-c", "import os, time\nif os.fork(): os._exit(0)\ntime.sleep(100)")
    process = subprocess.Popen(argv, start_new_session=True)
    stat = read_stat(process.pid)
    assert stat is not None
    process.wait()
    assert len(members(process.pid)) == 1
    leftovers.save(tmp_path / "children", [Entry("storescp:x", process.pid, stat.start, argv)])
    assert len(leftovers.end_leftovers(tmp_path / "children")) == 1
    assert members(process.pid) == []


def test_a_record_of_another_boot_is_void(sleeper: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    """Pids and start times mean nothing after a reboot."""
    path = tmp_path / "children"
    leftovers.save(path, [entry(sleeper())])
    first, second = path.read_text().splitlines()
    path.write_text(json.dumps({**json.loads(first), "boot": "another"}) + "\n" + second + "\n")
    assert leftovers.load(path) == []


def test_nothing_is_touched_while_the_other_daemon_lives(
    sleeper: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """The children of a running daemon are not left-overs."""
    path, daemon, child = tmp_path / "children", sleeper(), sleeper()
    leftovers.save(path, [entry(child)])
    first, second = path.read_text().splitlines()
    owner = {**json.loads(first), "owner": daemon.pid, "start": entry(daemon).start}
    path.write_text(json.dumps(owner) + "\n" + second + "\n")
    with pytest.raises(OwnerAlive):
        leftovers.end_leftovers(path)
    assert child.poll() is None


@pytest_twisted.ensureDeferred
async def test_the_supervisor_ends_them_at_its_start(
    supervise: Callable[..., ProcessSupervisor], sleeper: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """``start`` ends what an earlier run left in the same folder."""
    (tmp_path / "run").mkdir()
    process = sleeper()
    leftovers.save(tmp_path / "run" / leftovers.FILE_NAME, [entry(process)])
    await supervise().start()
    assert process.wait() == -9


@pytest.mark.parametrize("text", ["", "nonsense", "[]\n", '{"boot": "%s", "owner": 1, "start": 0}\n{}\n'])
@pytest_twisted.ensureDeferred
async def test_a_broken_record_stops_nothing(
    supervise: Callable[..., ProcessSupervisor], tmp_path: Path, text: str
) -> None:
    """A record that cannot be read is no reason not to start."""
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / leftovers.FILE_NAME
    path.write_text(text.replace("%s", leftovers.boot_id()))
    assert await supervise().end_leftovers() == []


@pytest_twisted.ensureDeferred
async def test_an_unwritable_record_stops_nothing(
    supervise: Callable[..., ProcessSupervisor], storescp: Callable[..., KeptSpec], tmp_path: Path
) -> None:
    """Where the record cannot be written children run all the same."""
    (tmp_path / "run").write_text("in the way")
    await supervise().keep(storescp()).when_ready()
