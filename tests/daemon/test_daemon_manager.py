"""When systemd is told what: ready, status, reload, stop, and the watchdog's signs of life."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.python.threadpool import ThreadPool

from harmonyd.daemon.manager import THREADS_SECS, ServiceManager
from harmonyd.telemetry.notify import Notifier


@dataclass
class Child:
    full_name: str
    state: str = "STARTING"
    note: str = "starting"
    attended: bool = True


@dataclass
class Supervisor:
    kept: list[Child]
    on_change: Callable[[], None] = lambda: None

    def children(self) -> list[Child]:
        return self.kept

    def becomes(self, child: Child, state: str, note: str = "") -> None:
        child.state, child.note = state, note
        self.on_change()


class Told(Notifier):
    """Keeps what would be sent."""

    def __init__(self, watchdog_secs: float | None = None) -> None:
        super().__init__("unused", watchdog_secs, monotonic_ns=lambda: 5000)
        self.messages: list[tuple[str, ...]] = []

    def _send(self, *lines: str) -> None:
        self.messages.append(lines)

    def take(self) -> list[tuple[str, ...]]:
        taken, self.messages = self.messages, []
        return taken


class Threads:
    """A thread pool whose threads answer when told to."""

    def __init__(self) -> None:
        self.hang = False
        self.waiting: list[Callable[[], None]] = []

    def callInThreadWithCallback(
        self, on_result: Callable[[bool, Any], None], function: Callable[..., Any]
    ) -> None:
        self.waiting.append(lambda: on_result(True, function()))
        if not self.hang:
            self.answer()

    def answer(self) -> None:
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            call()


class Reactor(Clock):
    """A clock with threads."""

    def __init__(self) -> None:
        super().__init__()
        self.threads = Threads()

    def getThreadPool(self) -> ThreadPool | Threads:
        return self.threads

    def callFromThread(self, function: Callable[..., Any], *args: Any) -> None:
        function(*args)


@dataclass
class Stage:
    children: list[Child]
    watchdog_secs: float | None = None
    reactor: Reactor = field(default_factory=Reactor)

    def __post_init__(self) -> None:
        self.supervisor = Supervisor(self.children)
        self.told = Told(self.watchdog_secs)
        self.manager = ServiceManager(self.reactor, self.told, self.supervisor, 30.0)

    def started(self) -> Stage:
        self.manager.starting()
        self.manager.listening()
        return self


def two() -> tuple[Child, Child]:
    return Child("storescp:a"), Child("storescp:b")


def ready(stage: Stage) -> bool:
    return any("READY=1" in message for message in stage.told.take())


def test_ready_comes_after_the_listeners() -> None:
    """Children that run are not enough: nobody could connect yet."""
    stage = Stage([Child("storescp:a", "RUNNING")])
    stage.manager.starting()
    assert not ready(stage)
    stage.manager.listening()
    assert stage.told.take() == [("READY=1", "STATUS=Serving: 1 of 1 children running")]


def test_ready_waits_for_every_child() -> None:
    """Listeners are not enough either: each child runs first, and the status counts them."""
    a, b = two()
    stage = Stage([a, b]).started()
    stage.told.take()
    stage.supervisor.becomes(a, "RUNNING")
    assert stage.told.take() == [("STATUS=Starting: 1 of 2 children running; storescp:b STARTING: starting",)]
    stage.supervisor.becomes(b, "BACKOFF", "exited with code 1")
    assert not ready(stage)
    stage.supervisor.becomes(b, "RUNNING")
    assert stage.told.take() == [("READY=1", "STATUS=Serving: 2 of 2 children running")]


def test_one_that_was_given_up_is_not_waited_for() -> None:
    """A FATAL child leaves the daemon ready and degraded, not in a restart loop."""
    a, b = two()
    stage = Stage([a, b]).started()
    stage.supervisor.becomes(a, "RUNNING")
    stage.told.take()
    stage.supervisor.becomes(b, "FATAL", "port 104 is held by pid 7")
    said = "STATUS=Degraded: 1 of 2 children running; storescp:b FATAL: port 104 is held by pid 7"
    assert stage.told.take() == [("READY=1", said)]


def test_ready_does_not_wait_for_ever() -> None:
    """A child that neither starts nor fails is waited for until the startup deadline."""
    stage = Stage([Child("storescp:a")]).started()
    stage.reactor.advance(29.9)
    assert not ready(stage)
    stage.reactor.advance(0.2)
    assert ready(stage)
    assert stage.reactor.getDelayedCalls() == []


def test_ready_is_told_once() -> None:
    """Later changes are a new status only, and a status that stays is not repeated."""
    a, _ = two()
    stage = Stage([a]).started()
    stage.supervisor.becomes(a, "RUNNING")
    stage.told.take()
    stage.supervisor.becomes(a, "BACKOFF", "ended by SIGKILL")
    stage.supervisor.becomes(a, "STARTING", "starting")
    stage.supervisor.becomes(a, "RUNNING")
    stage.supervisor.becomes(a, "RUNNING")
    assert stage.told.take() == [
        ("STATUS=Degraded: 0 of 1 children running; storescp:a BACKOFF: ended by SIGKILL",),
        ("STATUS=Degraded: 0 of 1 children running; storescp:a STARTING: starting",),
        ("STATUS=Serving: 1 of 1 children running",),
    ]
    assert stage.reactor.getDelayedCalls() == []


def test_a_start_asks_for_the_time_it_may_take() -> None:
    """systemd's own limit does not cut short what the configuration allows."""
    stage = Stage([])
    stage.manager.starting()
    assert stage.told.take()[0] == ("EXTEND_TIMEOUT_USEC=90000000",)


def test_a_reload_begins_and_ends() -> None:
    """Children that change meanwhile do not end it early, and the status afterwards is the present one."""
    child = Child("storescp:a", "RUNNING")
    stage = Stage([child]).started()
    stage.told.take()
    stage.manager.reloading()
    stage.supervisor.becomes(child, "STOPPING")
    stage.supervisor.becomes(child, "RUNNING")
    stage.manager.reloaded()
    assert stage.told.take() == [
        ("RELOADING=1", "MONOTONIC_USEC=5", "STATUS=Reloading the configuration"),
        ("READY=1", "STATUS=Serving: 1 of 1 children running"),
    ]


def test_a_refused_reload_says_why() -> None:
    """The old configuration stays in use, and the status tells what is wrong with the new one."""
    stage = Stage([]).started()
    stage.told.take()
    stage.manager.reloading()
    stage.manager.reloaded("port = 0: out of range")
    assert stage.told.take()[-1] == ("READY=1", "STATUS=The new configuration was refused: port = 0: out of range")


def test_a_reload_during_the_start_is_not_ready() -> None:
    """READY would be premature, and systemd knows of no reload before it."""
    stage = Stage([Child("storescp:a")]).started()
    stage.manager.reloading()
    stage.manager.reloaded()
    assert not any("READY=1" in message or "RELOADING=1" in message for message in stage.told.take())


def test_a_stop_is_announced_first_and_told_in_steps() -> None:
    """With the time it may take; children that end are no news then, and nothing waits any more."""
    child = Child("storescp:a")
    stage = Stage([child]).started()
    stage.told.take()
    stage.manager.stopping(65)
    stage.supervisor.becomes(child, "STOPPED")
    stage.manager.step("receivers are ended")
    stage.manager.close()
    assert stage.told.take() == [
        ("STOPPING=1", "STATUS=Stopping"),
        ("EXTEND_TIMEOUT_USEC=65000000",),
        ("STATUS=Stopping: receivers are ended",),
        ("STATUS=Stopped",),
    ]
    assert stage.reactor.getDelayedCalls() == []


def test_a_failed_start_is_told() -> None:
    """``systemctl status`` shows why."""
    stage = Stage([])
    stage.manager.failed("port 8080 is taken")
    assert stage.told.take() == [("STATUS=Cannot start: port 8080 is taken",)]


def alive(stage: Stage) -> int:
    return stage.told.take().count(("WATCHDOG=1",))


def test_signs_of_life_come_twice_as_often_as_they_are_due() -> None:
    """From the start on."""
    stage = Stage([], watchdog_secs=20.0).started()
    assert alive(stage) == 1
    stage.reactor.pump([5] * 8)
    assert alive(stage) == 4
    stage.manager.close()


def test_without_a_watchdog_there_are_none() -> None:
    """Nobody waits for them."""
    stage = Stage([]).started()
    stage.reactor.advance(100)
    assert alive(stage) == 0
    stage.manager.close()


def test_no_sign_of_life_when_a_child_is_forgotten() -> None:
    """A supervisor that no longer looks after a child is as dead as a reactor that hangs."""
    child = Child("storescp:a", "RUNNING")
    stage = Stage([child], watchdog_secs=20.0).started()
    stage.told.take()
    child.attended = False
    stage.reactor.advance(10)
    assert alive(stage) == 0
    child.attended = True
    stage.reactor.advance(10)
    assert alive(stage) == 1
    stage.manager.close()


@pytest.mark.parametrize(("hanging_secs", "expected"), [(THREADS_SECS - 20, 1), (THREADS_SECS + 20, 0)])
def test_no_sign_of_life_when_all_threads_hang(hanging_secs: float, expected: int) -> None:
    """Supervision reads /proc in threads: for a long time without any it is blind. A busy while is fine."""
    stage = Stage([], watchdog_secs=20.0).started()
    stage.reactor.threads.hang = True
    stage.reactor.pump([10] * int(hanging_secs / 10))
    stage.told.take()
    stage.reactor.advance(10)
    assert alive(stage) == expected
    stage.reactor.threads.answer()
    stage.reactor.advance(10)
    assert alive(stage) == 1
    stage.manager.close()
