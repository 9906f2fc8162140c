"""Reading the configuration again while the daemon runs: SIGHUP, and ``supervisorctl`` reread, update and reload."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.logger import Logger

from harmonyd.config.errors import ConfigError
from harmonyd.config.model import Config
from harmonyd.control.api import Action, Changes, GroupActive, GroupRunning, UnknownGroup
from harmonyd.daemon import diff
from harmonyd.daemon.engines import needs_dcmtk
from harmonyd.daemon.takeover import NotStarted
from harmonyd.dimse.dcmtk.tools import find_tools
from harmonyd.errors import HarmonydError, Unavailable
from harmonyd.supervision.process import in_thread

_OUR_FAULT = "an error inside harmonyd; its log says more"


class Told(Protocol):
    """Who is told that a reload begins and how it ends (``daemon.manager.ServiceManager``)."""

    def reloading(self) -> None: ...

    def reloaded(self, problem: str = "", *, in_force: bool = False) -> None: ...


@dataclass(slots=True)
class Pending:
    """A configuration that was read to be looked at."""

    config: Config
    taken_over: bool = False
    """It is in force, or a newer one is."""


class ConfigReloader:
    """Implements ``control.api.Reloader``. Reloads never overlap: one waits for the other.

    ``load`` blocks. ``running`` is the configuration in force. ``take_over`` makes another the one in force, wholly or
    (when it raises) not at all, with ``NotStarted`` as the exception. ``begin_restart`` returns at once.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        load: Callable[[], Config],
        running: Callable[[], Config],
        take_over: Callable[[Config], Coroutine[Any, Any, None]],
        begin_restart: Callable[[], None],
        told: Told,
    ) -> None:
        self._reactor = reactor
        self._load = load
        self._running = running
        self._take_over = take_over
        self._begin_restart = begin_restart
        self._told = told
        self._turn = DeferredLock()
        self._turn.acquire()  # until ``open``
        self._is_queued = False
        self._current: Deferred[None] | None = None
        self._closed = False
        self._due: dict[tuple[str, Action], Pending] = {}
        """What ``apply`` may be asked for."""

    def open(self) -> None:
        """The daemon has started: reloads that were asked for meanwhile, and later ones, may begin."""
        self._turn.release()

    async def close(self) -> None:
        """Begin no reload any more, and end the one that is under way; returns when it has ended."""
        self._closed = True
        current = self._current
        if current is not None:
            current.cancel()
            await current

    # --- SIGHUP

    async def reload(self) -> None:
        """Read the configuration and take it over, or log why that cannot be.

        While another call waits for its turn this one does nothing: that one will read what is there then.
        """
        if self._is_queued:
            return
        self._is_queued = True
        async with self._turn:
            self._is_queued = False
            try:
                await self._uninterrupted(None)
            except NotStarted as error:
                self._log.error("the configuration is in force, but not all of it runs: {problem}", problem=str(error))
            except (HarmonydError, OSError) as error:
                for line in str(error).splitlines():
                    self._log.error("the configuration stays as it was: {problem}", problem=line)

    # --- control.api.Reloader

    async def reread(self) -> Changes:
        """See ``control.api.Reloader``. Raises ``ConfigError``, for what needs a restart, too."""
        found = await self._read()
        changes = diff.changes(self._running(), found)
        pending = Pending(found)
        # What was taken over may be asked for by somebody who is not done with all names yet.
        self._due = {key: earlier for key, earlier in self._due.items() if earlier.taken_over}
        self._due |= dict.fromkeys([(name, Action.REMOVE) for name in (*changes.removed, *changes.changed)], pending)
        self._due |= dict.fromkeys([(name, Action.ADD) for name in (*changes.added, *changes.changed)], pending)
        return changes

    async def apply(self, name: str, action: Action) -> None:
        """See ``control.api.Reloader``. The first name takes the whole configuration over that ``reread`` has read.

        Then there is nothing left to do for the other names. Raises ``HarmonydError`` when that cannot be.
        """
        pending = self._due.get((name, action))
        if pending is None:
            raise self._unknown(name, action)
        async with self._turn:
            if not pending.taken_over:
                await self._uninterrupted(pending.config)
        self._due.pop((name, action), None)

    async def restart(self) -> None:
        """See ``control.api.Reloader``."""
        config = await in_thread(self._reactor, self._load)
        if needs_dcmtk(config):
            await in_thread(self._reactor, find_tools)
        self._log.info("harmonyd restarts in place")
        self._begin_restart()

    def _unknown(self, name: str, action: Action) -> HarmonydError:
        if not diff.has_name(self._running(), name):
            return UnknownGroup(f"Neither the configuration nor a change of it has {name}.")
        if action is Action.ADD:
            return GroupActive(f"{name} is there already, and reread found no change of it.")
        return GroupRunning(f"{name} is in the configuration: remove it there, then update.")

    # --- one reload

    async def _uninterrupted(self, config: Config | None) -> None:
        """Change to a configuration; None: to what the files say now. Only ``close`` interrupts it."""
        if self._closed:
            raise Unavailable("harmonyd is shutting down.")
        self._current = Deferred.fromCoroutine(self._change(config))
        try:
            await self._current
        except CancelledError:
            raise Unavailable("harmonyd is shutting down.") from None
        finally:
            self._current = None

    async def _change(self, config: Config | None) -> None:
        problem, in_force = _OUR_FAULT, False
        self._told.reloading()
        try:
            await self._take(config or await self._read())
            problem = ""
        except (HarmonydError, OSError) as error:
            problem, in_force = str(error), isinstance(error, NotStarted)
            raise
        except CancelledError:
            problem = "harmonyd is shutting down"
            raise
        finally:
            self._told.reloaded(problem, in_force=in_force)

    async def _read(self) -> Config:
        found: Config = await in_thread(self._reactor, self._load)
        problems = diff.refused(self._running(), found)
        if problems:
            raise ConfigError(problems)
        return found

    async def _take(self, config: Config) -> None:
        changes = diff.changes(self._running(), config)
        for warning in config.warnings:
            self._log.warn("{warning}", warning=warning)
        try:
            await self._take_over(config)
        finally:
            if self._running() is config:
                self._is_in_force(changes)

    def _is_in_force(self, changes: Changes) -> None:
        for pending in self._due.values():
            pending.taken_over = True
        said = [
            f"{what} {', '.join(names)}"
            for what, names in (("added", changes.added), ("changed", changes.changed), ("removed", changes.removed))
            if names
        ]
        self._log.info("the configuration was read again: {changes}", changes="; ".join(said) or "nothing has changed")
