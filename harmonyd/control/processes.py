"""The methods of ``supervisor.*`` about processes: looking at them, starting, stopping and signalling them.

They do what supervisord's do, with these differences, each of them for the operator's sake. ``start`` of a child in
BACKOFF starts it at once, and of one that is STOPPING as soon as it has stopped. ``stop`` of a FATAL one ends its
retries. ``all`` means the kept children: operations under way are ended by name, or with ``stop findscu:*``.
"""

from __future__ import annotations

import os
import signal as signal_module
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from supervisor.datatypes import signal_number
from supervisor.states import SIGNALLABLE_STATES, STOPPED_STATES
from supervisor.xmlrpc import Faults, RPCError
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import Logger

from harmonyd.control.api import Changes, Child, Controlled
from harmonyd.control.info import config_info, config_info_of_name, process_info, state_code
from harmonyd.control.methods import changes
from harmonyd.control.names import full_name, group_of, in_order, one, resolve

POLL_SECS = 0.02
"""How often a start that somebody waits for is looked at."""
_STARTABLE = ("STOPPED", "BACKOFF", "EXITED", "FATAL")
Act = Callable[[Child], Awaitable[None]]


class Known:
    """What the methods share."""

    def __init__(self) -> None:
        self.changes = Changes()
        """What the latest ``reloadConfig`` found."""


class ProcessMethods:
    """A part of the namespace ``supervisor``."""

    _log = Logger("harmonyd.control")

    def __init__(self, daemon: Controlled, reactor: Any, known: Known) -> None:
        self._daemon = daemon
        self._reactor = reactor
        self._known = known

    # --- looking

    def getProcessInfo(self, name: str) -> dict[str, Any]:
        """What is known about one process."""
        return process_info(one(self._daemon.children(), name), self._reactor.seconds())

    def getAllProcessInfo(self) -> list[dict[str, Any]]:
        """What is known about every process, operations under way included; by group and name."""
        now = self._reactor.seconds()
        return [process_info(child, now) for child in in_order(self._daemon.children())]

    def getAllConfigInfo(self) -> list[dict[str, Any]]:
        """What is configured: the kept children, and what reread found to be added."""
        kept = [config_info(child) for child in in_order(self._kept())]
        return kept + [config_info_of_name(name) for name in self._known.changes.added]

    # --- starting

    @changes
    async def startProcess(self, name: str, wait: bool = True) -> Any:
        """Start a process (or all of ``group:*``); with ``wait``, return when it is RUNNING or has failed."""
        self._refuse_when_stopping()
        child = resolve(self._daemon.children(), name)
        if child is None:
            return await self.startProcessGroup(name, wait)
        await self._start(child, wait)
        return True

    @changes
    async def startProcessGroup(self, name: str, wait: bool = True) -> list[dict[str, Any]]:
        """Start all processes of a group."""
        self._refuse_when_stopping()
        return await self._start_all(group_of(self._daemon.children(), name), wait)

    @changes
    async def startAllProcesses(self, wait: bool = True) -> list[dict[str, Any]]:
        """Start all processes."""
        self._refuse_when_stopping()
        return await self._start_all(self._kept(), wait)

    async def _start_all(self, children: Sequence[Child], wait: bool) -> list[dict[str, Any]]:
        startable = [child for child in children if child.is_kept and child.state in _STARTABLE]
        return await _each(startable, lambda child: self._start(child, wait))

    async def _start(self, child: Child, wait: bool) -> None:
        name = full_name(child)
        if child.is_kept and child.state == "STOPPING":
            await child.stop()
        if not child.is_kept or child.state not in _STARTABLE:
            raise RPCError(Faults.ALREADY_STARTED, name)
        _check_program(child)
        starts = child.starts
        child.start()
        if wait:
            await self._started(child, starts)

    async def _started(self, child: Child, starts: int) -> None:
        while child.state == "STARTING":
            await deferLater(self._reactor, POLL_SECS)
        if child.state != "RUNNING":
            code = Faults.SPAWN_ERROR if child.starts == starts else Faults.ABNORMAL_TERMINATION
            raise RPCError(code, f"{full_name(child)}: {child.note}")

    # --- stopping

    @changes
    async def stopProcess(self, name: str, wait: bool = True) -> Any:
        """Stop a process (or all of ``group:*``); with ``wait``, return when nothing of it is left."""
        self._refuse_when_stopping()
        child = resolve(self._daemon.children(), name)
        if child is None:
            return await self.stopProcessGroup(name, wait)
        if child.state in ("STOPPED", "EXITED"):
            raise RPCError(Faults.NOT_RUNNING, name)
        await self._stop(child, wait)
        return True

    @changes
    async def stopProcessGroup(self, name: str, wait: bool = True) -> list[dict[str, Any]]:
        """Stop all processes of a group.

        Nothing is stopped for a name that reread gave: removeProcessGroup, which follows, gives it its grace, and only
        when the whole configuration can be taken over.
        """
        self._refuse_when_stopping()
        if name in (*self._known.changes.changed, *self._known.changes.removed):
            return []
        return await self._stop_all(group_of(self._daemon.children(), name), wait)

    @changes
    async def stopAllProcesses(self, wait: bool = True) -> list[dict[str, Any]]:
        """Stop all kept processes."""
        self._refuse_when_stopping()
        return await self._stop_all(self._kept(), wait)

    async def _stop_all(self, children: Sequence[Child], wait: bool) -> list[dict[str, Any]]:
        running = [child for child in children if child.state not in ("STOPPED", "EXITED")]
        return await _each(running, lambda child: self._stop(child, wait))

    async def _stop(self, child: Child, wait: bool) -> None:
        stopping = Deferred.fromCoroutine(child.stop())
        if wait:
            await stopping
        else:
            stopping.addErrback(lambda failure: self._log.failure("cannot stop a child", failure))

    # --- signalling

    @changes
    async def signalProcess(self, name: str, signal: str | int) -> Any:
        """Signal a process (or all of ``group:*``); ``signal`` is a name ("HUP") or a number ("1")."""
        child = resolve(self._daemon.children(), name)
        if child is None:
            return await self.signalProcessGroup(name, signal)
        await _signal(child, signal)
        return True

    @changes
    async def signalProcessGroup(self, name: str, signal: str | int) -> list[dict[str, Any]]:
        """Signal all processes of a group."""
        return await _signal_all(group_of(self._daemon.children(), name), signal)

    @changes
    async def signalAllProcesses(self, signal: str | int) -> list[dict[str, Any]]:
        """Signal all kept processes."""
        return await _signal_all(self._kept(), signal)

    @changes
    def sendProcessStdin(self, name: str, chars: str) -> bool:
        """Refuse: no child of harmonyd reads its standard input."""
        raise RPCError(Faults.NO_FILE, full_name(one(self._daemon.children(), name)))

    def _kept(self) -> list[Child]:
        return [child for child in in_order(self._daemon.children()) if child.is_kept]

    def _refuse_when_stopping(self) -> None:
        if self._daemon.is_stopping:
            raise RPCError(Faults.SHUTDOWN_STATE)


def _check_program(child: Child) -> None:
    """As supervisord does before it tries."""
    program = child.argv[0]
    if not os.path.exists(program):  # noqa: PTH110 - argv holds strings
        raise RPCError(Faults.NO_FILE, f"can't find command {program!r}")
    if not os.access(program, os.X_OK):
        raise RPCError(Faults.NOT_EXECUTABLE, f"command at {program!r} is not executable")


async def _signal(child: Child, signal: str | int) -> None:
    number = _signal_number(signal)
    if state_code(child) not in SIGNALLABLE_STATES or not child.pid:
        raise RPCError(Faults.NOT_RUNNING, full_name(child))
    child.signal(number)


async def _signal_all(children: Sequence[Child], signal: str | int) -> list[dict[str, Any]]:
    running = [child for child in children if state_code(child) not in STOPPED_STATES and child.pid]
    return await _each(running, lambda child: _signal(child, signal))


def _signal_number(name: str | int) -> int:
    try:
        number = int(signal_number(name))
    except ValueError:
        number = 0
    # supervisor's helper takes the constants SIG_DFL, SIG_BLOCK and so on for signals, too.
    if number not in signal_module.valid_signals():
        raise RPCError(Faults.BAD_SIGNAL, name)
    return number


async def _each(children: Sequence[Child], act: Act) -> list[dict[str, Any]]:
    """Do something with all of them at once; a result for each."""
    return list(await gatherResults([Deferred.fromCoroutine(_result(child, act)) for child in children]))


async def _result(child: Child, act: Act) -> dict[str, Any]:
    status, text = Faults.SUCCESS, "OK"
    try:
        await act(child)
    except RPCError as error:
        status, text = error.code, error.text
    return {"name": child.name, "group": child.group, "status": status, "description": text}
