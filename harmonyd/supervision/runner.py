"""``ProcessSupervisor``: all children of the daemon."""

from __future__ import annotations

import dataclasses
import random as _random
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from harmonyd import landlock
from harmonyd.config.daemon import SupervisionConfig
from harmonyd.supervision import leftovers
from harmonyd.supervision.api import ExitRecord, KeptChild, KeptSpec, OnceSpec
from harmonyd.supervision.errors import SpawnError
from harmonyd.supervision.guard import Guard
from harmonyd.supervision.kept import Kept
from harmonyd.supervision.logs import ChildLog, RotatedFile, log_file_name
from harmonyd.supervision.once import Once
from harmonyd.supervision.probe import c_echo
from harmonyd.supervision.process import ChildProcess, in_thread
from harmonyd.supervision.readiness import ProbeFunction
from harmonyd.supervision.states import State
from harmonyd.telemetry.ring import RingBuffer

ONCE_STOP_GRACE_SECS = 2.0
"""SCU tools end at once on TERM; what does not has hung."""
KEPT_EXIT_RECORDS = 100
KEPT_OUTPUT_BYTES = 4096


class ProcessSupervisor:
    """Implements ``api.Supervisor``. One for a daemon; made, used and stopped on the reactor's thread.

    ``log_dir`` gets a rotated file for each kept child, ``run_dir`` the record of kept children that the next run reads
    in ``start``. ``probe`` and ``random`` are arguments for tests.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        config: SupervisionConfig,
        log_dir: Path,
        run_dir: Path,
        probe: ProbeFunction = c_echo,
        random: Callable[[], float] = _random.random,
        once_stop_grace_secs: float = ONCE_STOP_GRACE_SECS,
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._log_dir = log_dir
        self._record_path = run_dir / leftovers.FILE_NAME
        self._probe = probe
        self._random = random
        self._once_grace_secs = once_stop_grace_secs
        self._guard = Guard(reactor)
        self._kept: dict[str, Kept] = {}
        self._entries: dict[int, leftovers.Entry] = {}
        self._once: set[Once] = set()
        self._closed = False
        self.on_change: Callable[[], None] = lambda: None
        """Called after each change of the state of a kept child."""
        self.exit_records: deque[tuple[str, ExitRecord]] = deque(maxlen=KEPT_EXIT_RECORDS)
        """Name and end of the latest once-children, oldest first, with the end of their output only."""

    async def start(self) -> None:
        """End what a crashed run left behind, and start the watcher. Call it before the first child is started."""
        await self.end_leftovers()
        self._guard.start()
        self._say_what_confines()

    def _say_what_confines(self) -> None:
        if not self._config.confine_children:
            self.log.warn("children may do all that harmonyd may: confine_children in [supervision] is false")
        elif not landlock.abi():
            self.log.warn("children are held by limits only: the kernel offers no Landlock, or harmonyd may not use it")
        else:
            self.log.info("children are confined with Landlock, version {version}", version=landlock.abi())

    async def end_leftovers(self) -> list[str]:
        """KILL kept children of a run that crashed, if they still match its record; return their names."""
        try:
            ended = await in_thread(self._reactor, leftovers.end_leftovers, self._record_path)
        except leftovers.OwnerAlive as owner:
            self.log.warn(
                "the record {path} belongs to a daemon that is still running ({owner}): give each its own",
                path=str(self._record_path), owner=str(owner),
            )  # fmt: skip
            return []
        except (OSError, ValueError) as error:
            self.log.error("cannot read {path}: {error}", path=str(self._record_path), error=str(error))
            return []
        for entry in ended:
            self.log.warn(
                "{child} of an earlier run was still there; it was ended",
                child=entry.name, pid=entry.pid,
            )  # fmt: skip
        return [entry.name for entry in ended]

    def run_once(self, spec: OnceSpec) -> Once:
        """Start a once-child. Raises ``SpawnError`` when it cannot be started."""
        self._refuse_when_closed(spec.name)
        child = Once(self._reactor, spec, self._once_grace_secs, self._once_gone)
        self._once.add(child)
        try:
            self._start(child.process, spec)
        except SpawnError:
            self._once.discard(child)
            raise
        return child

    def keep(self, spec: KeptSpec) -> Kept:
        """Start and keep a child. A STOPPED child of the same name is replaced.

        Raises ``ValueError`` when the name is taken, ``SpawnError`` after ``stop_all``; whatever else is wrong shows in
        the child's state.
        """
        name = f"{spec.group}:{spec.name}"
        self._refuse_when_closed(name)
        earlier = self._kept.get(name)
        if earlier is not None and earlier.state != State.STOPPED.value:
            raise ValueError(f"there is a child {name} already ({earlier.state}): stop it first, or use another name")
        if earlier is not None:
            earlier.output.close()
        child = Kept(
            self._reactor, spec, self._config, self._child_log(spec),
            probe=self._probe, random=self._random, launch=self._launch_kept,
        )  # fmt: skip
        child.on_change = lambda: self.on_change()
        self._kept[name] = child
        child.start()
        return child

    def drop(self, child: KeptChild) -> None:
        """Forget a kept child for good; what is forgotten already may be dropped again. Raises ``ValueError``."""
        name = f"{child.spec.group}:{child.spec.name}"
        kept = self._kept.get(name)
        if kept is None or kept is not child:
            return
        if kept.state != State.STOPPED.value:
            raise ValueError(f"{name} is {kept.state}: stop it first")
        del self._kept[name]
        kept.output.close()
        self.on_change()

    def configure(self, config: SupervisionConfig) -> None:
        """Go by other settings, also for the children that run: timings from the next timer on."""
        self._config = config
        for kept in self._kept.values():
            kept.configure(config)

    def children(self) -> list[Kept]:
        """The kept children, stopped ones too."""
        return list(self._kept.values())

    def once_children(self) -> list[Once]:
        """The once-children that run, or of whose group something is left."""
        return list(self._once)

    @property
    def is_closed(self) -> bool:
        """Whether ``stop_all`` was called."""
        return self._closed

    async def stop_all(self) -> None:
        """End every child, then the watcher; afterwards nothing can be started. Returns when no process is left."""
        self._closed = True
        stops: list[Deferred[Any]] = [Deferred.fromCoroutine(once.stop()) for once in self.once_children()]
        stops += [Deferred.fromCoroutine(kept.stop()) for kept in self.children()]
        await gatherResults(stops)
        await self._guard.stop()
        for kept in self.children():
            kept.output.close()

    def _refuse_when_closed(self, name: str) -> None:
        if self._closed:
            raise SpawnError(f"{name} is not started: harmonyd is stopping")

    def _child_log(self, spec: KeptSpec) -> ChildLog:
        config = self._config
        path = self._log_dir / log_file_name(spec.group, spec.name)
        file = RotatedFile(path, config.log_max_bytes, config.log_backups, self._reactor.seconds)
        return ChildLog(f"{spec.group}:{spec.name}", RingBuffer(config.ring_buffer_bytes), file)

    def _start(self, process: ChildProcess, spec: OnceSpec | KeptSpec) -> None:
        self._guard.start()
        rights = spec.rights if self._config.confine_children else None
        if isinstance(spec, OnceSpec):
            process.start(spec.argv, spec.env, stdin=spec.stdin, log_pipe=spec.log_pipe, rights=rights)
        else:
            process.start(spec.argv, spec.env, rights=rights)
        if not process.gone:
            self._guard.add(process.pid, process.start_ticks)
            process.forget = partial(self._guard.remove, process.pid)

    def _launch_kept(self, child: Kept, process: ChildProcess) -> None:
        self._start(process, child.spec)
        if not process.gone:
            pid, start = process.pid, process.start_ticks
            self._entries[pid] = leftovers.Entry(child.full_name, pid, start, child.spec.argv)
            self._save_record()
            process.forget = partial(self._forget, pid)

    def _forget(self, pid: int) -> None:
        self._guard.remove(pid)
        del self._entries[pid]
        self._save_record()

    def _save_record(self) -> None:
        try:
            self._record_path.parent.mkdir(parents=True, exist_ok=True)
            leftovers.save(self._record_path, self._entries.values())
        except OSError as error:
            self.log.error(
                "cannot write {path}: {error}; after a crash the next start could not end what is left",
                path=str(self._record_path), error=str(error),
            )  # fmt: skip

    def _once_gone(self, child: Once) -> None:
        self._once.discard(child)
        record = child.process.exit_record()
        short = dataclasses.replace(record, output=record.output[-KEPT_OUTPUT_BYTES:])
        self.exit_records.append((child.spec.name, short))
