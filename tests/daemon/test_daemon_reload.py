"""Reloads one after the other: what is read, what is told, what ``apply`` does, and the end in the middle of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from harmonyd.config import ConfigError
from harmonyd.config.errors import Problem
from harmonyd.config.model import Config, LimitsConfig, StorageConfig
from harmonyd.control.api import Action, Changes, GroupActive, GroupRunning, UnknownGroup
from harmonyd.daemon.reload import ConfigReloader
from harmonyd.daemon.takeover import NotStarted
from harmonyd.errors import HarmonydError, Unavailable

LIMITS = "settings:limits"


def config(connections: int = 500, storage: str = "/srv") -> Config:
    """A configuration with nothing in it, and one setting to tell them apart by."""
    return Config(
        Path("/etc/c.toml"), "test", {}, StorageConfig(Path(storage)), {}, {}, {}, {},
        limits=LimitsConfig(max_connections=connections),
    )  # fmt: skip


@dataclass
class Stage:
    """A reloader with all it needs. ``taking`` holds up taking over until it is fired."""

    reactor: Any
    files: Config | Exception = field(default_factory=config)
    running: Config = field(default_factory=config)
    taking: Deferred[None] | None = None
    failure: Exception | None = None
    told: list[tuple[str, bool] | str] = field(default_factory=list)
    reads: int = 0
    begun: list[int] = field(default_factory=list)
    restarts: int = 0

    def __post_init__(self) -> None:
        self.reloader = ConfigReloader(self.reactor, self.load, lambda: self.running, self.take, self.restart, self)

    def load(self) -> Config:
        self.reads += 1
        if isinstance(self.files, Exception):
            raise self.files
        return self.files

    async def take(self, new: Config) -> None:
        self.begun.append(new.limits.max_connections)
        if self.taking is not None:
            await self.taking
        if isinstance(self.failure, NotStarted) or self.failure is None:
            self.running = new
        if self.failure is not None:
            raise self.failure

    def restart(self) -> None:
        self.restarts += 1

    def reloading(self) -> None:
        self.told.append("reloading")

    def reloaded(self, problem: str = "", *, in_force: bool = False) -> None:
        self.told.append((problem, in_force))

    @property
    def connections(self) -> int:
        return self.running.limits.max_connections


@pytest.fixture
def stage(started_reactor: Any) -> Stage:
    """A reloader that is open."""
    made = Stage(started_reactor)
    made.reloader.open()
    return made


def invalid() -> ConfigError:
    return ConfigError([Problem(Path("/etc/c.toml"), "proxy", "id", "missing")])


@pytest_twisted.ensureDeferred
async def test_sighup_takes_over_what_the_files_say(stage: Stage) -> None:
    """Begin and end are told."""
    stage.files = config(7)
    await stage.reloader.reload()
    assert stage.connections == 7
    assert stage.told == ["reloading", ("", False)]


@pytest_twisted.ensureDeferred
async def test_a_mistake_is_told_and_nothing_taken_over(stage: Stage) -> None:
    """Invalid files, and what needs a restart."""
    for files, words in ((invalid(), "[proxy] id: missing"), (config(storage="/elsewhere"), "restart harmonyd")):
        stage.files = files
        await stage.reloader.reload()
        problem, in_force = stage.told[-1]
        assert words in problem
        assert in_force is False
    assert stage.begun == []


@pytest_twisted.ensureDeferred
async def test_what_is_in_force_but_does_not_run(stage: Stage) -> None:
    """It is told as such: neither well nor as it was."""
    stage.files, stage.failure = config(7), NotStarted("storescp:a: no room")
    await stage.reloader.reload()
    assert stage.told[-1] == ("storescp:a: no room", True)


@pytest_twisted.ensureDeferred
async def test_reloads_wait_for_each_other(stage: Stage) -> None:
    """However many are asked for while one is under way, one more follows, and it reads anew."""
    stage.taking = Deferred()
    stage.files = config(1)
    first = Deferred.fromCoroutine(stage.reloader.reload())
    while not stage.begun:
        await _turn(stage)
    stage.files = config(2)
    others = [Deferred.fromCoroutine(stage.reloader.reload()) for _ in range(5)]
    assert (stage.begun, stage.reads) == ([1], 1)
    stage.taking.callback(None)
    for each in (first, *others):
        await each
    assert (stage.begun, stage.connections, stage.reads) == ([1, 2], 2, 2)


@pytest_twisted.ensureDeferred
async def test_a_reload_during_the_start_waits(started_reactor: Any) -> None:
    """Until the daemon says that it has started."""
    stage = Stage(started_reactor, files=config(7))
    reload = Deferred.fromCoroutine(stage.reloader.reload())
    await _turn(stage)
    assert stage.reads == 0
    stage.reloader.open()
    await reload
    assert stage.connections == 7


@pytest_twisted.ensureDeferred
async def test_reread_changes_nothing(stage: Stage) -> None:
    """It tells the names only, and of mistakes every one."""
    stage.files = config(7)
    assert await stage.reloader.reread() == Changes(changed=(LIMITS,))
    assert (stage.begun, stage.told) == ([], [])
    stage.files = invalid()
    with pytest.raises(ConfigError, match="missing"):
        await stage.reloader.reread()
    stage.files = config(storage="/elsewhere")
    with pytest.raises(ConfigError, match="restart harmonyd"):
        await stage.reloader.reread()


@pytest_twisted.ensureDeferred
async def test_the_first_name_takes_all_over(stage: Stage) -> None:
    """What reread has read, even if the files are different by then; the other names find it done."""
    stage.files = config(7)
    await stage.reloader.reread()
    stage.files = config(8)
    await stage.reloader.apply(LIMITS, Action.REMOVE)
    assert stage.connections == 7
    await stage.reloader.apply(LIMITS, Action.ADD)
    assert stage.begun == [7]
    assert stage.told == ["reloading", ("", False)]


@pytest_twisted.ensureDeferred
async def test_two_who_update_at_the_same_time(stage: Stage) -> None:
    """A reread of one between the names of the other does not take these away."""
    stage.files = config(7)
    await stage.reloader.reread()
    await stage.reloader.apply(LIMITS, Action.REMOVE)
    assert await stage.reloader.reread() == Changes()
    await stage.reloader.apply(LIMITS, Action.ADD)
    assert stage.begun == [7]


@pytest_twisted.ensureDeferred
async def test_an_older_reading_does_not_come_back(stage: Stage) -> None:
    """After SIGHUP has taken over something newer, the names of an older reread are done with."""
    stage.files = config(7)
    await stage.reloader.reread()
    stage.files = config(8)
    await stage.reloader.reload()
    await stage.reloader.apply(LIMITS, Action.REMOVE)
    assert stage.connections == 8


@pytest_twisted.ensureDeferred
async def test_names_that_nobody_gave(stage: Stage) -> None:
    """Unknown ones, and those of things that are there and have not changed."""
    with pytest.raises(UnknownGroup):
        await stage.reloader.apply("storescp:x", Action.ADD)
    with pytest.raises(GroupActive):
        await stage.reloader.apply(LIMITS, Action.ADD)
    with pytest.raises(GroupRunning):
        await stage.reloader.apply(LIMITS, Action.REMOVE)


@pytest_twisted.ensureDeferred
async def test_a_failed_apply_is_told_and_can_be_tried_again(stage: Stage) -> None:
    """The caller gets the reason; the name is still due."""
    stage.files, stage.failure = config(7), HarmonydError("the port is taken")
    await stage.reloader.reread()
    with pytest.raises(HarmonydError, match="taken"):
        await stage.reloader.apply(LIMITS, Action.REMOVE)
    assert stage.told[-1] == ("the port is taken", False)
    stage.failure = None
    await stage.reloader.apply(LIMITS, Action.REMOVE)
    assert stage.connections == 7


@pytest_twisted.ensureDeferred
async def test_a_restart_needs_a_valid_configuration(stage: Stage) -> None:
    """With it the restart begins, also for what no reload takes over."""
    stage.files = invalid()
    with pytest.raises(ConfigError):
        await stage.reloader.restart()
    assert stage.restarts == 0
    stage.files = replace(config(), storage=StorageConfig(Path("/elsewhere")))
    await stage.reloader.restart()
    assert stage.restarts == 1


@pytest_twisted.ensureDeferred
async def test_the_daemon_stops_in_the_middle(stage: Stage) -> None:
    """The reload is ended before ``close`` returns, who waits for it is told, and no other begins."""
    stage.taking = Deferred()
    stage.files = config(7)
    await stage.reloader.reread()
    applying = Deferred.fromCoroutine(stage.reloader.apply(LIMITS, Action.REMOVE))
    while not stage.begun:
        await _turn(stage)
    await stage.reloader.close()
    assert stage.taking.called
    with pytest.raises(Unavailable, match="shutting down"):
        await applying
    await stage.reloader.reload()
    assert stage.begun == [7]


async def _turn(stage: Stage) -> None:
    turn: Deferred[None] = Deferred()
    stage.reactor.callLater(0.001, turn.callback, None)
    await turn
