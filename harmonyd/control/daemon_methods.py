"""The methods of ``supervisor.*`` about the daemon, its configuration and the logs; and ``system.*``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from supervisor.rpcinterface import API_VERSION
from supervisor.states import SupervisorStates, getSupervisorStateDescription
from supervisor.xmlrpc import Faults, RPCError

from harmonyd import __version__
from harmonyd.control.api import (
    Action,
    Child,
    Controlled,
    GroupActive,
    GroupError,
    GroupRunning,
    LogView,
    UnknownGroup,
)
from harmonyd.control.methods import Method, changes
from harmonyd.control.names import full_name, in_order, one
from harmonyd.control.processes import Known
from harmonyd.control.reading import from_end, from_offset, last_bytes
from harmonyd.control.text import shown

MAX_CALLS = 1000
"""In one multicall."""
_GROUP_FAULTS = {
    UnknownGroup: Faults.BAD_NAME,
    GroupActive: Faults.ALREADY_ADDED,
    GroupRunning: Faults.STILL_RUNNING,
}


class DaemonMethods:
    """A part of the namespace ``supervisor``."""

    def __init__(self, daemon: Controlled, known: Known) -> None:
        self._daemon = daemon
        self._known = known

    def getAPIVersion(self) -> str:
        """Version of supervisor's API that is served; ``supervisorctl`` asks before most commands."""
        return str(API_VERSION)

    getVersion = getAPIVersion  # noqa: N815 - the older name, which supervisorctl uses

    def getSupervisorVersion(self) -> str:
        """Version of harmonyd."""
        return __version__

    def getIdentification(self) -> str:
        """The ``id`` of the configuration."""
        return self._daemon.id

    def getState(self) -> dict[str, Any]:
        """Whether it runs or is about to end."""
        code = SupervisorStates.SHUTDOWN if self._daemon.is_stopping else SupervisorStates.RUNNING
        return {"statecode": code, "statename": getSupervisorStateDescription(code)}

    def getPID(self) -> int:
        """Process id of the daemon."""
        return os.getpid()

    @changes
    def shutdown(self) -> bool:
        """Stop the daemon and all it has started."""
        self._refuse_when_stopping()
        self._daemon.shutdown()
        return True

    @changes
    async def restart(self) -> bool:
        """Stop everything and start again with the configuration read anew; if it is not valid, change nothing."""
        self._refuse_when_stopping()
        await self._daemon.reloader.restart()
        return True

    @changes
    async def reloadConfig(self) -> list[Any]:
        """Read the configuration, change nothing; return [[added, changed, removed]]."""
        self._refuse_when_stopping()
        found = self._known.changes = await self._daemon.reloader.reread()
        return [[list(found.added), list(found.changed), list(found.removed)]]

    @changes
    async def addProcessGroup(self, name: str) -> bool:
        """Take over something that ``reloadConfig`` found to be added, or changed and removed since."""
        return await self._apply(name, Action.ADD)

    @changes
    async def removeProcessGroup(self, name: str) -> bool:
        """Give up something that was stopped."""
        return await self._apply(name, Action.REMOVE)

    async def _apply(self, name: str, action: Action) -> bool:
        self._refuse_when_stopping()
        try:
            await self._daemon.reloader.apply(name, action)
        except GroupError as error:
            raise RPCError(_GROUP_FAULTS[type(error)], name) from None
        return True

    def _refuse_when_stopping(self) -> None:
        if self._daemon.is_stopping:
            raise RPCError(Faults.SHUTDOWN_STATE)


class LogMethods:
    """A part of the namespace ``supervisor``. Children say everything on one stream, which is called stdout here."""

    def __init__(self, daemon: Controlled, reactor: Any) -> None:
        self._daemon = daemon
        self._reactor = reactor

    async def readLog(self, offset: int, length: int) -> str:
        """Read the daemon's log: from an offset on, or (negative) its end."""
        return await self._read(self._daemon.main_log, offset, length)

    readMainLog = readLog  # noqa: N815 - the older name

    @changes
    def clearLog(self) -> bool:
        """Clear the daemon's log."""
        _clear(self._daemon.main_log, "the main log")
        return True

    async def readProcessStdoutLog(self, name: str, offset: int, length: int) -> str:
        """Read the log of a process: from an offset on, or (negative) its end."""
        return await self._read(self._child(name).log, offset, length)

    readProcessLog = readProcessStdoutLog  # noqa: N815 - the older name

    def readProcessStderrLog(self, name: str, offset: int, length: int) -> str:
        """Refuse, as supervisord does with redirect_stderr: both streams are in one log."""
        raise RPCError(Faults.NO_FILE, full_name(self._child(name)))

    async def tailProcessStdoutLog(self, name: str, offset: int, length: int) -> list[Any]:
        """Return [text, new offset, was there more] of what was said after an offset."""
        data, end, has_more = await from_end(self._reactor, self._child(name).log, offset, length)
        return [shown(data), end, has_more]

    tailProcessLog = tailProcessStdoutLog  # noqa: N815 - the older name

    def tailProcessStderrLog(self, name: str, offset: int, length: int) -> list[Any]:
        """Nothing: both streams are in one log."""
        self._child(name)
        return ["", 0, False]

    @changes
    def clearProcessLogs(self, name: str) -> bool:
        """Clear the log of a process."""
        child = self._child(name)
        _clear(child.log, full_name(child))
        return True

    clearProcessLog = clearProcessLogs  # noqa: N815 - the older name

    @changes
    def clearAllProcessLogs(self) -> list[dict[str, Any]]:
        """Clear the log of every process."""
        return [_cleared(child) for child in in_order(self._daemon.children())]

    def _child(self, name: str) -> Child:
        return one(self._daemon.children(), name)

    async def _read(self, log: LogView, offset: int, length: int) -> str:
        if length < 0 or (offset < 0 and length):
            raise RPCError(Faults.BAD_ARGUMENTS)
        if offset < 0:
            return shown(await last_bytes(self._reactor, log, -offset))
        return shown(await from_offset(self._reactor, log, offset, length))


def _clear(log: LogView, name: str) -> None:
    try:
        log.clear()
    except OSError as error:
        raise RPCError(Faults.FAILED, f"{name}: {error.strerror}") from None


def _cleared(child: Child) -> dict[str, Any]:
    status, text = Faults.SUCCESS, "OK"
    try:
        _clear(child.log, full_name(child))
    except RPCError as error:
        status, text = error.code, error.text
    return {"name": child.name, "group": child.group, "status": status, "description": text}


class SystemMethods:
    """The namespace ``system``."""

    def __init__(self, methods: Mapping[str, Method], call: Callable[..., Any]) -> None:
        """``call(name, parameters)`` calls any of ``methods``, which may be filled later."""
        self._methods = methods
        self._call = call

    def listMethods(self) -> list[str]:
        """The names of all methods."""
        return sorted(self._methods)

    def methodHelp(self, name: str) -> str:
        """What a method does."""
        return self._method(name).help

    def methodSignature(self, name: str) -> list[str]:
        """The types of result and parameters."""
        return self._method(name).xml_types

    async def multicall(self, calls: list[Any]) -> list[Any]:
        """Several calls, one after the other: structs {methodName, params}; results, or structs of faults."""
        if len(calls) > MAX_CALLS:
            raise RPCError(Faults.INCORRECT_PARAMETERS, f"more than {MAX_CALLS} calls")
        return [await self._one_of_many(call) for call in calls]

    async def _one_of_many(self, call: Any) -> Any:
        try:
            name, parameters = _call_of(call)
            return await self._call(name, parameters)
        except RPCError as error:
            return {"faultCode": error.code, "faultString": error.text}

    def _method(self, name: str) -> Method:
        try:
            return self._methods[name]
        except KeyError:
            raise RPCError(Faults.SIGNATURE_UNSUPPORTED) from None


def _call_of(call: Any) -> tuple[str, tuple[Any, ...]]:
    name = call.get("methodName") if isinstance(call, dict) else None
    parameters = call.get("params", []) if isinstance(call, dict) else None
    if not isinstance(name, str) or not isinstance(parameters, list):
        raise RPCError(Faults.INCORRECT_PARAMETERS, "a call is a struct with methodName and params")
    if name == "system.multicall":
        raise RPCError(Faults.INCORRECT_PARAMETERS, "Recursive system.multicall forbidden")
    return name, tuple(parameters)
