"""The running daemon: start in order, stop in reverse, and what goes on beside requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from harmonyd.config.model import Config
from harmonyd.daemon.build import Folders, active_operations, build
from harmonyd.daemon.lock import RunLock
from harmonyd.dimse.dcmtk import artifacts
from harmonyd.dimse.dcmtk.tools import Tool
from harmonyd.supervision.runner import ProcessSupervisor
from harmonyd.telemetry.health import CheckResult, DiskWritable, Health

RETENTION_INTERVAL_SECS = 600.0


class Daemon:
    """One daemon, from a validated configuration. ``tools`` is None when the configuration has no DICOM in it."""

    _log = Logger()

    def __init__(self, config: Config, reactor: Any, tools: Mapping[str, Tool] | None) -> None:
        self.config = config
        folders = Folders(config.storage.path)
        self._reactor = reactor
        self._lock = RunLock(folders.run / "harmonyd.lock")
        self.supervisor = ProcessSupervisor(reactor, config.supervision, folders.log, folders.run)
        self.health = Health()
        self._parts = build(config, reactor, self.supervisor, tools, self.health)
        self._disk = DiskWritable(reactor, config.storage.path)
        self.health.add_check("storage", self._disk)
        self.health.add_check("children", self._children)
        self._retention = LoopingCall(lambda: Deferred.fromCoroutine(self._clean_artifacts()))
        self._retention.clock = reactor
        self._stopping: Deferred[None] | None = None

    async def start(self) -> None:
        """Take the lock, end what a crashed run left, start children and backends, then listen.

        Raises a ``HarmonydError`` that says what is in the way; call ``stop`` then, too.
        """
        self._lock.take()
        await self.supervisor.start()
        await self._disk.start()
        if self._parts.engine is not None:
            await self._parts.engine.start()
        for backend in self._parts.backends.values():
            await backend.start()
        for endpoint in self._parts.dicom_endpoints:
            await endpoint.start()
        for front_end in self._parts.front_ends:
            await front_end.start()
        self._retention.start(RETENTION_INTERVAL_SECS).addErrback(
            lambda failure: self._log.failure("retention of artifacts stopped", failure=failure)
        )
        self._log.info("{id} is up", id=self.config.id)

    def stop(self) -> Deferred[None]:
        """Not ready first, no new work, then requests, receivers, children. Every call returns the same end."""
        if self._stopping is None:
            self._stopping = Deferred.fromCoroutine(self._stop())
        return self._stopping

    async def _stop(self) -> None:
        self._log.info("{id} is stopping", id=self.config.id)
        self.health.begin_shutdown()
        if self._retention.running:
            self._retention.stop()
        parts = self._parts
        await self._all(front_end.stop for front_end in parts.front_ends)
        await self._all(endpoint.stop for endpoint in parts.dicom_endpoints)
        await self._all(backend.stop for backend in parts.backends.values())
        await self._all([self.supervisor.stop_all, self._disk.stop])
        if parts.engine is not None:
            parts.engine.close()
        self._lock.release()
        self._log.info("{id} has stopped", id=self.config.id)

    async def _all(self, stops: Iterable[Callable[[], Coroutine[Any, Any, None]]]) -> None:
        """Run these together. One that fails is logged, and keeps nothing else from being stopped."""

        async def run(stop: Callable[[], Coroutine[Any, Any, None]]) -> None:
            try:
                await stop()
            except Exception:  # noqa: BLE001 - at the end everything gets its turn
                self._log.failure("a part of {id} did not stop as it should", id=self.config.id)

        await gatherResults([Deferred.fromCoroutine(run(stop)) for stop in stops])

    def _children(self) -> CheckResult:
        waiting = [child for child in self.supervisor.children() if child.state != "RUNNING"]
        if waiting:
            return CheckResult(False, "; ".join(f"{child.full_name} {child.description}" for child in waiting))
        return CheckResult(True, f"{len(self.supervisor.children())} running")

    async def _clean_artifacts(self) -> None:
        storage = self.config.storage
        folders = {storage.path: frozenset[str](), **active_operations(self._parts.backends)}
        for folder, in_use in folders.items():
            try:
                removed = await deferToThreadPool(
                    self._reactor, self._reactor.getThreadPool(), self._clean_folder, folder, in_use
                )
            except OSError as error:
                self._log.error("retention: {folder} cannot be cleaned: {error}", folder=str(folder), error=error)
                continue
            if removed:
                self._log.info("removed {count} old artifact folders", count=len(removed))

    def _clean_folder(self, folder: Any, in_use: frozenset[str]) -> list[Any]:
        storage = self.config.storage
        return artifacts.clean(
            folder,
            now=time.time(),
            max_age_secs=storage.retention_max_age_secs,
            max_bytes=storage.retention_max_bytes,
            in_use=in_use,
        )
