"""Kept children: real receivers, and an hour of failures on a simulated clock."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from harmonyd.config.daemon import SupervisionConfig
from harmonyd.supervision import leftovers
from harmonyd.supervision.api import KeptSpec
from harmonyd.supervision.errors import ChildNotReady, ProbeFailed
from harmonyd.supervision.ports import owned_by_session
from harmonyd.supervision.probe import echo_rq
from harmonyd.supervision.runner import ProcessSupervisor
from harmonyd.supervision.states import IllegalTransition
from harmonyd.supervision.watcher import members
from harmonyd.testing.processes import free_port

Supervise = Callable[..., ProcessSupervisor]
Spec = Callable[..., KeptSpec]
Until = Callable[[Callable[[], object]], Awaitable[None]]
Association = Callable[[int, str], socket.socket]


def script(text: str, port: int = 0) -> KeptSpec:
    """A child that is no receiver."""
    return KeptSpec("test", "script", ("/bin/sh", "-c", text), port or free_port(), "ANY")


def blocked_port() -> tuple[socket.socket, int]:
    """A port that this test holds."""
    sock = socket.create_server(("0.0.0.0", 0))
    return sock, sock.getsockname()[1]


# --- real receivers


@pytest_twisted.ensureDeferred
async def test_running_means_ready(supervise: Supervise, storescp: Spec) -> None:
    """A storescp becomes RUNNING when it listens on its port itself and has answered a C-ECHO."""
    supervisor = supervise()
    child = supervisor.keep(storescp())
    assert child.state == "STARTING"
    assert child.pid is not None
    await child.when_ready()
    assert child.state == "RUNNING"
    assert owned_by_session(child.spec.port, child.pid)
    assert b"I: Received Echo Request" in child.output.ring.tail(10_000)
    assert child.description.startswith(f"pid {child.pid}, uptime 0:00:0")
    assert supervisor.children() == [child]


@pytest_twisted.ensureDeferred
async def test_its_output_goes_to_handler_file_and_ring(supervise: Supervise, storescp: Spec, tmp_path: Path) -> None:
    """Each line reaches the handler, the log file and the ring buffer."""
    lines: list[bytes] = []
    child = supervise().keep(storescp(on_line=lines.append))
    await child.when_ready()
    await child.stop()
    assert b"I: Association Received" in lines
    said = (tmp_path / "log" / "storescp-incoming.log").read_bytes()
    assert said == child.output.ring.tail(100_000) == b"\n".join(lines) + b"\n"


@pytest_twisted.ensureDeferred
async def test_a_killed_child_comes_back(supervise: Supervise, storescp: Spec, until: Until) -> None:
    """An unexpected exit is followed by a new process after the backoff, and its exit is on record."""
    child = supervise().keep(storescp())
    await child.when_ready()
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: child.state == "BACKOFF")
    assert child.description.startswith("ended by SIGKILL; next try in")
    await child.when_ready()
    assert child.pid not in (None, first)
    assert (child.exits[-1].pid, child.exits[-1].signal) == (first, 9)


@pytest_twisted.ensureDeferred
async def test_stop_ends_forked_grandchildren(
    supervise: Supervise, dcmqrscp: Spec, association: Association, until: Until
) -> None:
    """A dcmqrscp with an association open is ended with its fork, and its port is free at once."""
    supervisor = supervise()
    child = supervisor.keep(dcmqrscp())
    await child.when_ready()
    pid = child.pid
    assert pid is not None
    association(child.spec.port, "QRSCP")
    await until(lambda: len(members(pid)) == 2)
    await child.stop()
    assert (child.state, child.pid, members(pid)) == ("STOPPED", None, [])
    child.start()
    await child.when_ready()


@pytest_twisted.ensureDeferred
async def test_a_dead_leaders_grandchild_does_not_block_the_restart(
    supervise: Supervise, dcmqrscp: Spec, association: Association, until: Until
) -> None:
    """When only the parent dies, the fork that still holds the listening port is ended before the restart."""
    child = supervise().keep(dcmqrscp())
    await child.when_ready()
    first = child.pid
    assert first is not None
    association(child.spec.port, "QRSCP")
    await until(lambda: len(members(first)) == 2)
    os.kill(first, signal.SIGKILL)
    await until(lambda: child.state == "BACKOFF")
    await child.when_ready()
    assert members(first) == []


@pytest_twisted.ensureDeferred
async def test_a_hung_child_is_replaced(supervise: Supervise, storescp: Spec, until: Until) -> None:
    """A storescp that SIGSTOP froze misses its probes, is KILLed and started again."""
    child = supervise().keep(storescp())
    await child.when_ready()
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    await until(lambda: child.state == "BACKOFF")
    assert "hung: it is stopped by a signal" in child.description
    await child.when_ready()
    assert child.pid != first


@pytest_twisted.ensureDeferred
async def test_a_signal_without_a_name_is_an_exit_too(supervise: Supervise, storescp: Spec, until: Until) -> None:
    """A storescp that a real-time signal ended, for most of which there are no names, is started again."""
    child = supervise().keep(storescp())
    await child.when_ready()
    child.signal(signal.SIGRTMIN + 1)
    await until(lambda: child.state != "RUNNING")
    assert child.description.startswith(f"ended by signal {signal.SIGRTMIN + 1}")
    await child.when_ready()


@pytest_twisted.ensureDeferred
async def test_a_busy_child_is_left_alone(
    supervise: Supervise, storescp: Spec, association: Association, until: Until
) -> None:
    """A storescp that serves one silent association answers no probe, is shown as busy, and is not replaced."""
    child = supervise().keep(storescp())
    await child.when_ready()
    pid, probes = child.pid, child.output.ring.tail(10_000).count(b"Received Echo Request")
    sock = association(child.spec.port, "ANY")
    await until(lambda: child.description.endswith(", busy"))
    sock.close()
    # Ten answered probes later it is still the same process.
    await until(lambda: child.output.ring.tail(100_000).count(b"Received Echo Request") > probes + 10)
    assert (child.pid, child.state) == (pid, "RUNNING")
    assert not child.description.endswith("busy")


def never_first(answers: list[bool]) -> Any:
    """A probe that fails while ``answers`` is empty."""

    async def probe(*args: object) -> None:
        if not answers:
            raise ProbeFailed("somebody else was faster")

    return probe


@pytest_twisted.ensureDeferred
async def test_busy_from_the_start_is_left_alone(
    started_reactor: Any, supervise: Supervise, fast: SupervisionConfig, storescp: Spec, until: Until
) -> None:
    """A connection that comes before our first C-ECHO, and brings nothing, may stay beyond the startup deadline."""
    deadline_secs = 1.0
    answers: list[bool] = []
    supervisor = supervise(dataclasses.replace(fast, startup_deadline_secs=deadline_secs), probe=never_first(answers))
    child = supervisor.keep(storescp())
    await until(lambda: child.pid is not None and owned_by_session(child.spec.port, child.pid))
    with socket.create_connection(("127.0.0.1", child.spec.port)):
        pid, connected_at = child.pid, started_reactor.seconds()
        await until(lambda: started_reactor.seconds() - connected_at > 3 * deadline_secs)
        assert (child.pid, child.state, child.description) == (pid, "STARTING", "busy")
    answers.append(True)
    await child.when_ready()
    assert child.pid == pid


@pytest_twisted.ensureDeferred
async def test_one_that_serves_others_from_the_start_is_ready(
    supervise: Supervise, storescp: Spec, association: Association, until: Until
) -> None:
    """Senders that leave no gap for our C-ECHO show by their own answers that the child is ready."""
    child = supervise(probe=never_first([])).keep(storescp())
    await until(lambda: child.pid is not None and owned_by_session(child.spec.port, child.pid))
    sock = association(child.spec.port, "ANY")

    def asked_until_ready() -> bool:
        sock.sendall(echo_rq())
        return child.state == "RUNNING"

    await until(asked_until_ready)
    await until(lambda: child.description.endswith(", busy"))


@pytest_twisted.ensureDeferred
async def test_busy_for_too_long_is_hung(
    supervise: Supervise, storescp: Spec, association: Association, until: Until
) -> None:
    """When nothing about a busy child moves for the association timeout, it is replaced."""
    child = supervise().keep(storescp(association_timeout_secs=0.5))
    await child.when_ready()
    association(child.spec.port, "ANY")
    await until(lambda: child.state == "BACKOFF")
    assert "nothing about it moved" in child.description


@pytest_twisted.ensureDeferred
async def test_a_missed_echo_of_an_idle_child_counts(supervise: Supervise, storescp: Spec, until: Until) -> None:
    """A child that stops answering C-ECHO without any connection open is replaced, with the probe's words."""
    answers = True

    async def probe(*args: object) -> None:
        if not answers:
            raise ProbeFailed("it said nothing")

    child = supervise(probe=probe).keep(storescp())
    await child.when_ready()
    answers = False
    await until(lambda: child.state == "BACKOFF")
    assert "hung: C-ECHO failed: it said nothing" in child.description


@pytest_twisted.ensureDeferred
async def test_a_child_that_never_gets_ready_is_replaced(
    supervise: Supervise, fast: SupervisionConfig, until: Until
) -> None:
    """At the startup deadline the process is KILLed, and the description says what was missing."""
    config = dataclasses.replace(fast, startup_deadline_secs=0.3, fatal_after_failures=2)
    child = supervise(config).keep(script("exec sleep 100"))
    first = child.pid
    await until(lambda: child.state == "FATAL")
    assert "not ready after 0.3 s: it does not listen on port" in child.description
    await until(lambda: len(child.exits) == 2)
    assert child.exits[0].pid == first


# --- ports


@pytest_twisted.ensureDeferred
async def test_a_held_port_is_told_with_its_holder(supervise: Supervise, storescp: Spec, until: Until) -> None:
    """Nothing is started on a port that somebody holds; the holder is named; once it is free the child runs."""
    sock, port = blocked_port()
    with sock:
        child = supervise().keep(storescp(port=port))
        await until(lambda: child.state == "BACKOFF")
        assert child.pid is None
        assert f"port {port} is held by pid {os.getpid()} (" in child.description
    await child.when_ready()


@pytest_twisted.ensureDeferred
async def test_a_port_lost_between_look_and_listen_is_told_too(supervise: Supervise, until: Until) -> None:
    """A child that says "Address already in use" is described by who holds the port."""
    port = free_port()
    text = "sleep 0.2; echo 'E: cannot create network: Address already in use' >&2; exit 1"
    child = supervise().keep(script(text, port))
    with socket.create_server(("0.0.0.0", port)):
        await until(lambda: f"port {port} is held by pid {os.getpid()}" in child.description)


@pytest_twisted.ensureDeferred
async def test_a_stranger_on_the_port_is_not_readiness(
    supervise: Supervise, fast: SupervisionConfig, storescp: Spec
) -> None:
    """A receiver of somebody else that answers on the port makes no child RUNNING."""
    supervisor = supervise(dataclasses.replace(fast, startup_deadline_secs=1, fatal_after_failures=1))
    child = supervisor.keep(script("sleep 0.1; exec sleep 100"))
    stranger = supervisor.keep(storescp(port=child.spec.port))
    with pytest.raises(ChildNotReady, match="does not listen on port"):
        await child.when_ready()
    await stranger.stop()


# --- giving up


@pytest_twisted.ensureDeferred
async def test_the_last_words_of_a_talkative_child_are_told(
    supervise: Supervise, fast: SupervisionConfig, until: Until
) -> None:
    """Whatever it said before, its state tells the line before its end."""
    supervisor = supervise(dataclasses.replace(fast, backoff_initial_secs=60.0, backoff_max_secs=60.0))
    child = supervisor.keep(script("seq 5000; echo 'F: the disk is on fire'; exit 3"))
    await until(lambda: len(child.exits) == 1)
    assert "exited with code 3: F: the disk is on fire" in child.description


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("/nowhere/storescp",), "there is no program"),
        (("/usr/bin/storescp", "@/etc/hostname"), "starts with @"),
        (("/usr/bin/storescp", "--nonsense", "PORT"), "Unknown option --nonsense"),
        (("/usr/bin/storescp", "-ta", "x", "PORT"), "Invalid value for option"),
        (("BROKEN",), "exited with code 12[67]: .*broken"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_can_never_work_is_fatal_at_once(
    supervise: Supervise, tmp_path: Path, argv: tuple[str, ...], said: str
) -> None:
    """A wrong program or option is FATAL after one try, says why, and is not tried again by itself."""
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    port = free_port()
    full = tuple(arg.replace("PORT", str(port)).replace("BROKEN", str(broken)) for arg in argv)
    child = supervise().keep(KeptSpec("storescp", "x", full, port, "ANY"))
    with pytest.raises(ChildNotReady, match=said):
        await child.when_ready()
    assert child.state == "FATAL"
    assert "next try" not in child.description
    with pytest.raises(ChildNotReady, match="FATAL"):
        await child.when_ready()


@pytest_twisted.ensureDeferred
async def test_too_many_fast_failures_are_fatal_and_a_start_clears_it(supervise: Supervise, until: Until) -> None:
    """After five fast failures the child is FATAL with its last words; one ``start`` tries again."""
    child = supervise().keep(script("echo 'F: no such folder'; exit 1"))
    with capturedLogs() as events, pytest.raises(ChildNotReady, match="exited with code 1"):
        await child.when_ready()
    assert any("F: no such folder" in event.get("last", []) for event in events)
    await until(lambda: len(child.exits) == 5)
    assert "F: no such folder; next try in 300 s" in child.description
    child.start()
    assert child.state == "STARTING"
    await child.stop()


@pytest_twisted.ensureDeferred
async def test_a_given_up_child_is_tried_again(
    supervise: Supervise, fast: SupervisionConfig, storescp: Spec, until: Until
) -> None:
    """A port that was held for a while is no outage for ever: FATAL is retried, and leads to RUNNING."""
    sock, port = blocked_port()
    config = dataclasses.replace(fast, fatal_after_failures=2, fatal_retry_secs=0.2)
    with sock:
        child = supervise(config).keep(storescp(port=port))
        await until(lambda: child.state == "FATAL")
    await until(lambda: child.state == "RUNNING")


# --- stopping and waiting


@pytest_twisted.ensureDeferred
async def test_a_child_that_ignores_term_is_killed(supervise: Supervise, fast: SupervisionConfig, until: Until) -> None:
    """After the grace the group is KILLed, grandchildren too."""
    child = supervise(dataclasses.replace(fast, stop_grace_secs=0.3)).keep(
        script("trap '' TERM; sleep 100 & echo up; while :; do sleep 100; done")
    )
    await until(lambda: child.output.ring.total_bytes)
    pid = child.pid
    assert pid is not None
    await child.stop()
    assert members(pid) == []
    assert child.exits[-1].signal == 9


@pytest_twisted.ensureDeferred
async def test_stopping_in_any_state(supervise: Supervise, storescp: Spec, until: Until) -> None:
    """Stop works while starting, waiting for a retry, given up and stopped, and from several callers at once."""
    supervisor = supervise()
    starting = supervisor.keep(storescp(name="a"))
    failing = supervisor.keep(dataclasses.replace(script("exit 1"), name="b"))
    fatal = supervisor.keep(KeptSpec("x", "c", ("/nowhere",), free_port(), "ANY"))
    await until(lambda: failing.state == "BACKOFF")
    for child in (starting, failing, fatal):
        first = child.stop()
        await child.stop()
        await first
        await child.stop()
        assert child.state == "STOPPED"
        assert child.description == "stopped"


@pytest_twisted.ensureDeferred
async def test_stop_while_the_holder_of_the_port_is_looked_up(supervise: Supervise, storescp: Spec) -> None:
    """A stop that comes in the middle of bringing a child up leaves nothing running."""
    sock, port = blocked_port()
    with sock:
        child = supervise().keep(storescp(port=port))
        await child.stop()
    assert child.state == "STOPPED"


@pytest_twisted.ensureDeferred
async def test_those_who_wait_for_readiness(supervise: Supervise, storescp: Spec) -> None:
    """A wait can be cancelled without harm; stopping fails those who still wait."""
    child = supervise().keep(storescp())
    cancelled, waiting = child.when_ready(), child.when_ready()
    cancelled.cancel()
    with pytest.raises(CancelledError):
        await cancelled
    stopping = Deferred.fromCoroutine(child.stop())
    with pytest.raises(ChildNotReady, match="STOPPING"):
        await waiting
    await stopping
    with pytest.raises(ChildNotReady, match="STOPPED"):
        await child.when_ready()


@pytest_twisted.ensureDeferred
async def test_a_start_of_a_running_child_is_refused(supervise: Supervise, storescp: Spec) -> None:
    """An event that the state does not know raises and changes nothing."""
    child = supervise().keep(storescp())
    with pytest.raises(IllegalTransition, match="STARTING"):
        child.start()
    await child.when_ready()


@pytest_twisted.ensureDeferred
async def test_names_are_taken_until_stopped(supervise: Supervise, storescp: Spec) -> None:
    """Two children cannot have one name; a stopped one gives it free."""
    supervisor = supervise()
    first = supervisor.keep(storescp())
    with pytest.raises(ValueError, match="storescp:incoming"):
        supervisor.keep(storescp())
    await first.stop()
    second = supervisor.keep(storescp())
    assert supervisor.children() == [second]


@pytest_twisted.ensureDeferred
async def test_kept_children_are_on_record_while_they_run(supervise: Supervise, storescp: Spec, tmp_path: Path) -> None:
    """What the next run would need after a crash is on disk, and only while the child runs."""
    child = supervise().keep(storescp())
    path = tmp_path / "run" / leftovers.FILE_NAME
    assert [(entry.name, entry.pid) for entry in leftovers.load(path)] == [("storescp:incoming", child.pid)]
    await child.stop()
    assert leftovers.load(path) == []


@pytest_twisted.ensureDeferred
async def test_a_bug_in_the_probe_is_a_failure_of_the_child(
    supervise: Supervise, storescp: Spec, until: Until, logged_failures: Any
) -> None:
    """An unexpected exception is logged and leads to BACKOFF, never to a child that nobody watches."""

    async def probe(*args: object) -> None:
        raise ZeroDivisionError("oops")

    child = supervise(probe=probe).keep(storescp())
    await until(lambda: child.state == "BACKOFF")
    assert "internal error: oops" in child.description
    await child.stop()
    assert logged_failures.flush(ZeroDivisionError)


@pytest_twisted.ensureDeferred
async def test_a_broken_handler_of_a_kept_child(supervise: Supervise, storescp: Spec, logged_failures: Any) -> None:
    """What a line handler raises stops neither the reader nor the child."""

    def broken(line: bytes) -> None:
        raise ZeroDivisionError

    child = supervise().keep(storescp(on_line=broken))
    await child.when_ready()
    assert len(logged_failures.flush(ZeroDivisionError)) == 1


# --- an hour on a simulated clock


class DyingReactor(Clock):
    """A clock whose processes die as soon as they are started."""

    def __init__(self) -> None:
        super().__init__()
        self.spawned_at: list[float] = []
        self.pid = 2**22 + 1  # no process has such a number

    def spawnProcess(self, protocol: Any, *args: object, **options: object) -> Any:
        self.spawned_at.append(self.seconds())
        protocol.makeConnection(self)
        self.callLater(0.01, self._die, protocol)
        return self

    def _die(self, protocol: Any) -> None:
        reason = Failure(ProcessTerminated(exitCode=1))
        protocol.processExited(reason)
        protocol.processEnded(reason)


def test_an_hour_of_failures_is_no_storm(tmp_path: Path) -> None:
    """A child that dies at once is tried five times in a quarter minute, then every five minutes, for ever."""
    reactor = DyingReactor()
    supervisor = ProcessSupervisor(
        reactor, SupervisionConfig(), tmp_path / "log", tmp_path / "run", random=lambda: 0.5
    )
    supervisor._guard.start = lambda: None  # type: ignore[method-assign]
    child = supervisor.keep(script("exit 1"))
    for _ in range(36_000):
        reactor.advance(0.1)
    assert len(reactor.spawned_at) == 5 + 11
    assert reactor.spawned_at[4] < 16
    assert all(later - earlier >= 0.9 for earlier, later in pairwise(reactor.spawned_at))
    assert child.state == "FATAL"
