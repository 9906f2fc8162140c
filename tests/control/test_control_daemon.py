"""supervisor's methods about the daemon and its configuration, and system.*."""

from __future__ import annotations

import os

import pytest
import pytest_twisted
from supervisor.xmlrpc import Faults

from harmonyd import __version__
from harmonyd.config.errors import ConfigError, Problem
from harmonyd.control.api import Action, Changes, GroupActive, GroupRunning
from harmonyd.testing.control import FakeChild

MUST_BE_THERE = {
    *("getAPIVersion", "getVersion", "getSupervisorVersion", "getIdentification", "getState", "getPID", "readLog"),
    *("readMainLog", "clearLog", "shutdown", "restart", "reloadConfig", "addProcessGroup", "removeProcessGroup"),
    *("startProcess", "startProcessGroup", "startAllProcesses", "stopProcess", "stopProcessGroup", "stopAllProcesses"),
    *("signalProcess", "signalProcessGroup", "signalAllProcesses", "getAllConfigInfo", "getProcessInfo"),
    *("getAllProcessInfo", "readProcessStdoutLog", "readProcessLog", "readProcessStderrLog", "tailProcessStdoutLog"),
    *("tailProcessLog", "tailProcessStderrLog", "clearProcessLogs", "clearProcessLog", "clearAllProcessLogs"),
    "sendProcessStdin",
}


@pytest_twisted.ensureDeferred
async def test_what_it_says_about_itself(serve) -> None:
    """Version of the API, our version, id, pid and state."""
    client = await serve()
    assert await client.call("supervisor.getVersion") == "3.0"
    assert await client.call("supervisor.getSupervisorVersion") == __version__
    assert await client.call("supervisor.getIdentification") == "fake"
    assert await client.call("supervisor.getPID") == os.getpid()
    assert await client.call("supervisor.getState") == {"statecode": 1, "statename": "RUNNING"}


@pytest_twisted.ensureDeferred
async def test_while_stopping(serve, daemon_in_memory) -> None:
    """Nothing can be changed any more, and everything can still be looked at."""
    daemon_in_memory.members = [FakeChild(state="STOPPING")]
    client = await serve()
    assert await client.call("supervisor.shutdown") is True
    assert daemon_in_memory.is_stopping
    for call in [
        *(("shutdown",), ("restart",), ("reloadConfig",), ("addProcessGroup", "x"), ("removeProcessGroup", "x")),
        *(("startProcess", "storescp:incoming"), ("stopProcess", "storescp:incoming")),
        *(("startAllProcesses",), ("stopAllProcesses",), ("startProcessGroup", "x"), ("stopProcessGroup", "x")),
    ]:
        fault = await client.fault(f"supervisor.{call[0]}", *call[1:])
        assert fault == (Faults.SHUTDOWN_STATE, "SHUTDOWN_STATE")
    assert (await client.call("supervisor.getState"))["statename"] == "SHUTDOWN"
    assert (await client.call("supervisor.getAllProcessInfo"))[0]["statename"] == "STOPPING"


@pytest_twisted.ensureDeferred
async def test_reread_and_update(serve, daemon_in_memory) -> None:
    """The changes are told; what update calls then reaches the reloader, which also decides how things are stopped."""
    daemon_in_memory.members = [a, b] = [FakeChild(name="a"), FakeChild(name="b")]
    reloader = daemon_in_memory.reloader
    reloader.changes = Changes(("storescp:new",), ("storescp:a", "routes"), ("storescp:b",))
    client = await serve()
    assert await client.call("supervisor.reloadConfig") == [
        [["storescp:new"], ["storescp:a", "routes"], ["storescp:b"]]
    ]
    assert await client.call("supervisor.stopProcessGroup", "storescp:b") == []
    assert await client.call("supervisor.stopProcessGroup", "routes") == []
    assert (a.state, b.state) == ("RUNNING", "RUNNING")
    assert await client.call("supervisor.removeProcessGroup", "storescp:b") is True
    assert await client.call("supervisor.addProcessGroup", "storescp:new") is True
    assert reloader.applied == [("storescp:b", Action.REMOVE), ("storescp:new", Action.ADD)]


@pytest_twisted.ensureDeferred
async def test_a_configuration_with_mistakes(serve, daemon_in_memory, tmp_path) -> None:
    """Each mistake is told, with CANT_REREAD, by reread and by restart."""
    file = tmp_path / "c.toml"
    problems = [Problem(file, "proxy", "id", "missing"), Problem(file, "x", None, "wrong")]
    daemon_in_memory.reloader.error = ConfigError(problems)
    client = await serve()
    for method in ("reloadConfig", "restart"):
        code, text = await client.fault(f"supervisor.{method}")
        assert code == Faults.CANT_REREAD
        assert "[proxy] id: missing" in text
        assert "[x]: wrong" in text
    assert daemon_in_memory.reloader.restarts == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GroupActive("x"), Faults.ALREADY_ADDED),
        (GroupRunning("x"), Faults.STILL_RUNNING),
        (None, Faults.BAD_NAME),
        (ZeroDivisionError("secret"), Faults.FAILED),
    ],
)
@pytest_twisted.ensureDeferred
async def test_groups_that_cannot_be_applied(serve, daemon_in_memory, logged_failures, error, code) -> None:
    """Each refusal has supervisord's fault; our own defect is logged and not shown."""
    daemon_in_memory.reloader.error = error
    fault = await (await serve()).fault("supervisor.addProcessGroup", "x")
    assert fault[0] == code
    assert "secret" not in fault[1]
    logged_failures.flush(ZeroDivisionError)


@pytest_twisted.ensureDeferred
async def test_restart(serve, daemon_in_memory) -> None:
    """``reload`` of supervisorctl."""
    assert await (await serve()).call("supervisor.restart") is True
    assert daemon_in_memory.reloader.restarts == 1


@pytest_twisted.ensureDeferred
async def test_introspection(serve) -> None:
    """Every method of supervisord's is listed, explained, and has a signature."""
    client = await serve()
    listed = await client.call("system.listMethods")
    assert {f"supervisor.{name}" for name in MUST_BE_THERE} <= set(listed)
    assert {name.split(".")[1] for name in listed if name.startswith("system.")} == {
        *("listMethods", "methodHelp", "methodSignature", "multicall")
    }
    for name in listed:
        assert await client.call("system.methodHelp", name)
        assert (await client.call("system.methodSignature", name))[0] in ("string", "int", "boolean", "array", "struct")
    signature = await client.call("system.methodSignature", "supervisor.readLog")
    assert signature == ["string", "int", "int"]
    assert (await client.fault("system.methodHelp", "nope"))[0] == Faults.SIGNATURE_UNSUPPORTED


@pytest_twisted.ensureDeferred
async def test_multicall(serve, daemon_in_memory) -> None:
    """Results and faults in the order of the calls; no recursion."""
    daemon_in_memory.members = [FakeChild()]
    results = await (await serve()).call(
        "system.multicall",
        [
            {"methodName": "supervisor.getVersion", "params": []},
            {"methodName": "supervisor.stopProcess", "params": ["storescp:incoming"]},
            {"methodName": "supervisor.stopProcess", "params": ["nope"]},
            {"methodName": "system.multicall", "params": [[]]},
            {"methodName": "supervisor.getState"},
            {"params": []},
            "nonsense",
            {"methodName": "supervisor._x", "params": []},
        ],
    )
    assert results[:2] == ["3.0", True]
    assert results[2] == {"faultCode": Faults.BAD_NAME, "faultString": "BAD_NAME: nope"}
    assert results[4]["statename"] == "RUNNING"
    codes = [results[index]["faultCode"] for index in (3, 5, 6, 7)]
    assert codes == [Faults.INCORRECT_PARAMETERS] * 3 + [Faults.UNKNOWN_METHOD]
