"""Children that run to their end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater

from harmonyd.supervision.api import OnceSpec
from harmonyd.supervision.errors import SpawnError
from harmonyd.supervision.runner import ProcessSupervisor
from harmonyd.supervision.watcher import members

Supervise = Callable[..., ProcessSupervisor]


def shell(script: str, **fields: object) -> OnceSpec:
    return OnceSpec("sh", ("/bin/sh", "-c", script), **fields)  # type: ignore[arg-type]


@pytest_twisted.ensureDeferred
async def test_the_exit_record_tells_how_it_ended(supervise: Supervise) -> None:
    """Code, output of both streams, and running time."""
    record = await supervise().run_once(shell("echo out; echo err >&2; exit 3")).exited
    assert (record.exit_code, record.signal) == (3, None)
    assert sorted(record.output.splitlines()) == [b"err", b"out"]
    assert record.runtime_secs > 0


@pytest_twisted.ensureDeferred
async def test_a_signal_is_recorded_as_such(supervise: Supervise) -> None:
    """A child that a signal ended has no exit code."""
    record = await supervise().run_once(shell("kill -SEGV $$")).exited
    assert (record.exit_code, record.signal) == (None, 11)


@pytest_twisted.ensureDeferred
async def test_lines_arrive_while_it_runs(supervise: Supervise) -> None:
    """Each line reaches the handler, the last one also without its newline."""
    lines: list[bytes] = []
    await supervise().run_once(shell("printf 'I: a\\nI: '; printf 'b\\nrest'", on_line=lines.append)).exited
    assert lines == [b"I: a", b"I: b", b"rest"]


@pytest_twisted.ensureDeferred
async def test_lines_of_the_log_pipe_count_as_output(supervise: Supervise) -> None:
    """A program that has closed its standard streams is still heard, to its last byte, and its exit noticed."""
    lines: list[bytes] = []
    script = "exec 1>&- 2>&-; echo '@INFO|a' >/dev/fd/3; printf '@INFO|b' >&3; exit 4"
    record = await supervise().run_once(shell(script, on_line=lines.append, log_pipe=True)).exited
    assert lines == [b"@INFO|a", b"@INFO|b"]
    assert (record.exit_code, record.output) == (4, b"@INFO|a\n@INFO|b\n")


@pytest_twisted.ensureDeferred
async def test_lines_of_different_pipes_are_not_mixed(supervise: Supervise) -> None:
    """A line that is begun on one pipe is not continued by another."""
    script = "printf one; printf two >&2; printf three >&3; echo; echo >&2; echo >&3"
    record = await supervise().run_once(shell(script, log_pipe=True)).exited
    assert sorted(record.output.splitlines()) == [b"one", b"three", b"two"]


@pytest_twisted.ensureDeferred
async def test_ten_thousand_lines_arrive_in_order(supervise: Supervise) -> None:
    """The output of a large query is complete, and only the record is capped."""
    lines: list[bytes] = []
    spec = shell("seq 1 10000", on_line=lines.append, max_output_bytes=100)
    record = await supervise().run_once(spec).exited
    assert lines == [b"%d" % n for n in range(1, 10001)]
    assert len(record.output) == 100 and record.output.startswith(b"1\n2\n")


@pytest_twisted.ensureDeferred
async def test_a_broken_handler_does_not_stop_the_reader(supervise: Supervise, logged_failures: object) -> None:
    """What a line handler raises is logged once; later lines still reach it."""
    lines: list[bytes] = []

    def broken(line: bytes) -> None:
        lines.append(line)
        raise ZeroDivisionError

    record = await supervise().run_once(shell("echo a; echo b", on_line=broken)).exited
    assert lines == [b"a", b"b"]
    assert record.output == b"a\nb\n"
    assert len(logged_failures.flush(ZeroDivisionError)) == 1  # type: ignore[attr-defined]


@pytest_twisted.ensureDeferred
async def test_the_exit_counts_not_the_end_of_the_pipe(supervise: Supervise, until: Callable) -> None:
    """A grandchild that holds the pipe, and ignores TERM, delays the record by the drain only, and is ended too."""
    supervisor = supervise(once_stop_grace_secs=1.0)
    child = supervisor.run_once(shell("trap '' TERM; (while :; do sleep 100; done) & echo done"))
    record = await child.exited
    assert (record.exit_code, record.output) == (0, b"done\n")
    assert members(child.pid), "the grandchild outlives the record"
    await until(lambda: not supervisor.once_children())
    assert not members(child.pid)


@pytest_twisted.ensureDeferred
async def test_all_output_before_the_exit_is_kept(supervise: Supervise) -> None:
    """Output that fills the pipe, and a grandchild that keeps it open, lose nothing."""
    child = supervise().run_once(shell("sleep 100 & seq 1 20000; exit 0", max_output_bytes=1_000_000))
    assert (await child.exited).output.split()[-1] == b"20000"
    await child.stop()


@pytest_twisted.ensureDeferred
async def test_stop_ends_a_child_at_once(supervise: Supervise) -> None:
    """TERM is enough for a tool that listens to it."""
    child = supervise().run_once(shell("exec sleep 100"))
    record = await child.stop()
    assert (record.exit_code, record.signal) == (None, 15)
    assert not psutil.pid_exists(child.pid)


@pytest_twisted.ensureDeferred
async def test_stop_kills_what_ignores_term(supervise: Supervise) -> None:
    """After the grace the whole group is KILLed, grandchildren too."""
    lines: list[bytes] = []
    supervisor = supervise(once_stop_grace_secs=0.3)
    child = supervisor.run_once(
        shell("trap '' TERM; sleep 100 & echo up; while :; do sleep 100; done", on_line=lines.append)
    )
    while not lines:
        await deferLater(supervisor._reactor, 0.01)
    record = await child.stop()
    assert record.signal == 9
    assert not members(child.pid)


@pytest_twisted.ensureDeferred
async def test_stop_may_be_called_at_any_time_and_often(supervise: Supervise) -> None:
    """Stopping twice, or after the end, returns the same record."""
    child = supervise().run_once(shell("exec sleep 100"))
    first = child.stop()
    second = await child.stop()
    assert await first == second == await child.stop() == await child.exited


@pytest_twisted.ensureDeferred
async def test_cancelling_a_wait_does_nothing_to_the_child(supervise: Supervise) -> None:
    """A holder of ``exited`` may go away; the child runs on, and others still get the record."""
    child = supervise().run_once(shell("sleep 0.2; echo on"))
    waiting = child.exited
    waiting.cancel()
    with pytest.raises(CancelledError):
        await waiting
    assert (await child.exited).output == b"on\n"
    assert (await child.exited).output == b"on\n"


@pytest_twisted.ensureDeferred
async def test_children_are_visible_while_they_run(supervise: Supervise) -> None:
    """A running once-child is on the list with its state; afterwards its exit is on record."""
    supervisor = supervise()
    child = supervisor.run_once(shell("exec sleep 100"))
    assert [(known.spec.name, known.state) for known in supervisor.once_children()] == [("sh", "RUNNING")]
    await child.stop()
    assert supervisor.once_children() == []
    assert child.state == "EXITED"
    assert supervisor.exit_records[-1][1].pid == child.pid


def open_files() -> int:
    return psutil.Process().num_fds()


@pytest_twisted.ensureDeferred
async def test_many_children_at_once(supervise: Supervise, tmp_path: Path) -> None:
    """Forty children end with forty records and no file left open."""
    supervisor = supervise()
    await supervisor.start()
    before = open_files()
    children = [supervisor.run_once(shell(f"exit {n}")) for n in range(40)]
    assert [(await child.exited).exit_code for child in children] == list(range(40))
    assert open_files() == before


@pytest_twisted.ensureDeferred
async def test_nothing_starts_after_stop_all(supervise: Supervise) -> None:
    """``stop_all`` ends every child, and refuses new ones."""
    supervisor = supervise()
    child = supervisor.run_once(shell("exec sleep 100"))
    await supervisor.stop_all()
    assert not psutil.pid_exists(child.pid)
    with pytest.raises(SpawnError, match="stopping"):
        supervisor.run_once(shell("true"))
