"""supervisor's methods about processes, called with supervisor's own transport."""

from __future__ import annotations

import signal

import pytest
import pytest_twisted
from supervisor.xmlrpc import Faults

from harmonyd.supervision.figures import Figures
from harmonyd.testing.control import FakeChild

INFO_KEYS = {
    *("name", "group", "start", "stop", "now", "state", "statename", "spawnerr", "exitstatus"),
    *("logfile", "stdout_logfile", "stderr_logfile", "pid", "description"),
}


@pytest_twisted.ensureDeferred
async def test_info_has_supervisors_keys(serve, daemon_in_memory) -> None:
    """A struct of exactly supervisord's keys; times are whole seconds since the epoch."""
    child = FakeChild(started_at=1_700_000_000.7, figures=Figures(14_000_000, 0.34, 9))
    daemon_in_memory.members = [child]
    client = await serve()
    info = await client.call("supervisor.getProcessInfo", "storescp:incoming")
    assert set(info) == INFO_KEYS
    assert (info["group"], info["name"], info["pid"], info["state"]) == ("storescp", "incoming", 4711, 20)
    assert info["start"] == 1_700_000_000
    assert info["description"].startswith("pid 4711, uptime ")
    assert info["description"].endswith(", 14 MB, 0.3% CPU")


@pytest_twisted.ensureDeferred
async def test_descriptions(serve, daemon_in_memory) -> None:
    """Each state says what supervisord says, or why it is as it is."""
    daemon_in_memory.members = [
        FakeChild(name="1", note="busy"),
        FakeChild(name="2", state="FATAL", pid=None, note="port 1 is held"),
        FakeChild(name="3", state="STOPPED", pid=None, started_at=0),
        FakeChild(name="4", state="STOPPED", pid=None, started_at=5, stopped_at=86400 * 40),
    ]
    client = await serve()
    infos = await client.call("supervisor.getAllProcessInfo")
    assert infos[0]["description"].endswith(", busy")
    assert (infos[1]["description"], infos[1]["spawnerr"]) == ("port 1 is held", "port 1 is held")
    assert infos[2]["description"] == "Not started"
    assert infos[3]["description"].startswith("Feb ")
    assert (infos[3]["exitstatus"], infos[2]["exitstatus"]) == (-1, 0)


@pytest_twisted.ensureDeferred
async def test_all_are_sorted_by_group_and_name(serve, daemon_in_memory) -> None:
    """As supervisord sorts them; once-children are among them."""
    names = [("storescp", "b"), ("findscu", "x"), ("storescp", "a")]
    daemon_in_memory.members = [FakeChild(group=group, name=name) for group, name in names]
    infos = await (await serve()).call("supervisor.getAllProcessInfo")
    assert [(info["group"], info["name"]) for info in infos] == sorted(names)


@pytest_twisted.ensureDeferred
async def test_start_and_stop(serve, daemon_in_memory) -> None:
    """A child stops and starts by name; doing it twice is a fault that supervisorctl knows."""
    child = FakeChild()
    daemon_in_memory.members = [child]
    client = await serve()
    assert await client.fault("supervisor.startProcess", "storescp:incoming") == (
        Faults.ALREADY_STARTED,
        "ALREADY_STARTED: storescp:incoming",
    )
    assert await client.call("supervisor.stopProcess", "storescp:incoming") is True
    assert child.state == "STOPPED"
    assert (await client.fault("supervisor.stopProcess", "storescp:incoming"))[0] == Faults.NOT_RUNNING
    assert await client.call("supervisor.startProcess", "storescp:incoming") is True
    assert child.state == "RUNNING"


@pytest_twisted.ensureDeferred
async def test_stop_ends_the_retries_of_a_fatal_child(serve, daemon_in_memory) -> None:
    """A child that is tried again every five minutes can be told not to."""
    daemon_in_memory.members = [child] = [FakeChild(state="FATAL", pid=None)]
    await (await serve()).call("supervisor.stopProcess", "storescp:incoming")
    assert child.state == "STOPPED"


@pytest.mark.parametrize(
    ("child", "code"),
    [
        (FakeChild(state="STOPPED", starts_to="BACKOFF"), Faults.SPAWN_ERROR),
        (FakeChild(state="STOPPED", starts_to="FATAL"), Faults.ABNORMAL_TERMINATION),
        (FakeChild(state="STOPPED", argv=("/no/such/program",)), Faults.NO_FILE),
        (FakeChild(state="STOPPED", argv=("/etc/passwd",)), Faults.NOT_EXECUTABLE),
        (FakeChild(group="findscu", is_kept=False, name="incoming"), Faults.ALREADY_STARTED),
    ],
)
@pytest_twisted.ensureDeferred
async def test_starts_that_fail(serve, daemon_in_memory, child, code) -> None:
    """Why a child cannot be started is told with the fault supervisord uses for it."""
    daemon_in_memory.members = [child]
    assert (await (await serve()).fault("supervisor.startProcess", f"{child.group}:incoming"))[0] == code


@pytest_twisted.ensureDeferred
async def test_groups_and_all(serve, daemon_in_memory) -> None:
    """A group is named by its name or as group:*; all means the kept children."""
    one, two = FakeChild(name="1"), FakeChild(name="2", state="STOPPED")
    once = FakeChild(group="findscu", name="abc", is_kept=False)
    daemon_in_memory.members = [one, two, once]
    client = await serve()
    stopped = await client.call("supervisor.stopProcess", "storescp:*")
    assert stopped == [{"name": "1", "group": "storescp", "status": Faults.SUCCESS, "description": "OK"}]
    started = await client.call("supervisor.startProcessGroup", "storescp")
    assert [result["name"] for result in started] == ["1", "2"]
    assert [result["name"] for result in await client.call("supervisor.stopAllProcesses")] == ["1", "2"]
    assert once.state == "RUNNING"
    assert len(await client.call("supervisor.startAllProcesses")) == 2
    assert len(await client.call("supervisor.stopProcessGroup", "findscu:*")) == 1
    assert once.state == "STOPPED"


@pytest_twisted.ensureDeferred
async def test_one_of_a_group_that_fails_does_not_hide_the_others(serve, daemon_in_memory) -> None:
    """Results of a group are told one by one."""
    daemon_in_memory.members = [
        FakeChild(name="1", state="STOPPED", starts_to="FATAL"),
        FakeChild(name="2", state="STOPPED"),
    ]
    results = await (await serve()).call("supervisor.startAllProcesses")
    assert [result["status"] for result in results] == [Faults.ABNORMAL_TERMINATION, Faults.SUCCESS]


@pytest_twisted.ensureDeferred
async def test_signals(serve, daemon_in_memory) -> None:
    """By name or number, to one, a group or all; a wrong one is BAD_SIGNAL and disturbs nobody."""
    child = FakeChild()
    daemon_in_memory.members = [child, FakeChild(name="stopped", state="STOPPED", pid=None)]
    client = await serve()
    await client.call("supervisor.signalProcess", "storescp:incoming", "HUP")
    await client.call("supervisor.signalProcess", "storescp:incoming", "10")
    assert len(await client.call("supervisor.signalProcessGroup", "storescp", "SIGUSR2")) == 1
    assert len(await client.call("supervisor.signalAllProcesses", 1)) == 1
    assert child.signals == [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP]
    for wrong in ("NOPE", "0", "9999", "-9", ""):
        assert (await client.fault("supervisor.signalProcess", "storescp:incoming", wrong))[0] == Faults.BAD_SIGNAL
    assert (await client.fault("supervisor.signalProcess", "storescp:stopped", "HUP"))[0] == Faults.NOT_RUNNING
    assert len(child.signals) == 4


@pytest.mark.parametrize("name", ["", "x", "storescp:x", "x:incoming", "storescp:", "*", ":", "a" * 5000, "\u202e:é"])
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("startProcess", ()),
        ("stopProcess", ()),
        ("signalProcess", ("HUP",)),
        ("getProcessInfo", ()),
        ("readProcessStdoutLog", (-10, 0)),
        ("readProcessStderrLog", (-10, 0)),
        ("clearProcessLogs", ()),
        ("sendProcessStdin", ("x",)),
    ],
)
@pytest_twisted.ensureDeferred
async def test_unknown_names(serve, daemon_in_memory, name, method, more) -> None:
    """Every method answers BAD_NAME for a name that is not there, and disturbs nothing."""
    daemon_in_memory.members = [child] = [FakeChild()]
    if name == "storescp:" and method in ("startProcess", "stopProcess", "signalProcess"):
        name = "incoming:"  # with supervisord, "storescp:" is the whole group
    assert (await (await serve()).fault(f"supervisor.{method}", name, *more))[0] == Faults.BAD_NAME
    assert (child.state, child.signals) == ("RUNNING", [])


@pytest_twisted.ensureDeferred
async def test_config_info_is_what_avail_shows(serve, daemon_in_memory) -> None:
    """Kept children are in use; what reread found to be added is available."""
    from harmonyd.control.api import Changes

    daemon_in_memory.members = [FakeChild(), FakeChild(group="findscu", is_kept=False)]
    daemon_in_memory.reloader.changes = Changes(added=("storescp:new",))
    client = await serve()
    await client.call("supervisor.reloadConfig")
    infos = await client.call("supervisor.getAllConfigInfo")
    assert [(info["group"], info["name"], info["inuse"]) for info in infos] == [
        ("storescp", "incoming", True),
        ("storescp", "new", False),
    ]
