"""The running daemon: start in order, stop in reverse, and what goes on beside requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from harmonyd import config as configuration
from harmonyd.cache.cache import SeriesCache
from harmonyd.config.model import Config
from harmonyd.control.backends import BackendsResource
from harmonyd.control.cache import CacheMethods, CacheResource
from harmonyd.control.management import Management, Resource
from harmonyd.control.server import ControlServer
from harmonyd.control.spool import SpoolResource
from harmonyd.daemon.audited import DaemonAudit
from harmonyd.daemon.backends import OperatedBackends
from harmonyd.daemon.build import Builder, Folders
from harmonyd.daemon.certificates import CertificateWatch
from harmonyd.daemon.draining import associations_end
from harmonyd.daemon.lock import LOCK_NAME, RunLock
from harmonyd.daemon.manager import ServiceManager
from harmonyd.daemon.named import active_operations, dicom_endpoints, long_running, operations_by_backend
from harmonyd.daemon.operated import Operated
from harmonyd.daemon.reload import ConfigReloader
from harmonyd.daemon.spans import Spans
from harmonyd.daemon.takeover import Takeover
from harmonyd.dimse import artifacts
from harmonyd.dimse.accepting import Answered
from harmonyd.metrics.metrics import Metrics
from harmonyd.metrics.state import Sources
from harmonyd.operations.registry import Operations
from harmonyd.privacy import Privacy
from harmonyd.services.dicom.auditing import Witness
from harmonyd.spool.spool import DurableSpool
from harmonyd.supervision.process import in_thread
from harmonyd.supervision.runner import ProcessSupervisor
from harmonyd.telemetry.health import CheckResult, DiskWritable, Health
from harmonyd.telemetry.notify import Notifier

RETENTION_INTERVAL_SECS = 600.0
SETTLE_SECS = 5.0
SETTLE_POLL_SECS = 0.05
STOP_MARGIN_SECS = 45.0
"""How long a stop may take on top of the graces: cancelled requests, drained pipes, killed groups."""


class Daemon:
    """One daemon, from a validated configuration.

    ``load`` reads the configuration again, by default from where it came from. ``notifier`` tells the service manager
    how it is; without one nobody is told.
    """

    _log = Logger()

    def __init__(
        self,
        config: Config,
        reactor: Any,
        load: Callable[[], Config] | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        self.config = config
        Privacy.names = frozenset(config.backends)
        self.restarting = False
        """It stops in order to start again in place."""
        folders = Folders(config.storage.path)
        self._reactor = reactor
        self._lock = RunLock(folders.run / LOCK_NAME)
        self.supervisor = ProcessSupervisor(reactor, config.supervision, folders.log, folders.run)
        self.manager = ServiceManager(
            reactor, notifier or Notifier(None), self.supervisor, config.supervision.startup_deadline_secs
        )
        self.health = Health(reactor.seconds)
        load = load or partial(configuration.load, config.path)
        self._reloader = ConfigReloader(
            reactor, load, lambda: self.config, self._take_over, self._begin_restart, self.manager
        )
        self.operated = Operated(config, reactor, self.supervisor, self._reloader)
        self.cache = SeriesCache(reactor, config.storage.path, config.cache, partial(in_thread, reactor))
        self.operations = Operations(reactor, config.storage.path, config.operations, self.cache.give_way)
        self._control = ControlServer(reactor, config.control, self.operated, CacheMethods(self.cache))
        self._management = Management(
            config,
            self.operated,
            self.operated.sampler.refresh,
            self._operations,
            reactor.seconds,
            lambda: self.operations.running_ids,
        )
        self.spool = DurableSpool(reactor, config.storage.path, config.spool)
        self._backends = OperatedBackends(reactor, lambda: self._parts.backends)
        resources: dict[str, Resource] = {
            "backends": BackendsResource(self._backends),
            "spool": SpoolResource(self.spool, reactor.seconds),
            "cache": CacheResource(self.cache),
        }
        documents = self._management.documents
        self._audit = DaemonAudit(reactor, config)
        self._metrics = Metrics(reactor, config, self._sources())
        self._builder = Builder(
            reactor,
            self.supervisor,
            self.health,
            folders,
            self.spool,
            self.operations,
            documents,
            resources,
            self.cache,
            self._metrics,
            Witness(self._audit.trail, self._audit.batches),
        )
        self._parts = self._builder.all(config)
        self._disk = DiskWritable(reactor, config.storage.path)
        self.health.add_check("storage", self._disk)
        self.health.add_check("children", self._children)
        self.health.add_check("receiving", self._receiving)
        self._spans = Spans(partial(in_thread, reactor))
        self._retention = LoopingCall(lambda: Deferred.fromCoroutine(self._clean_artifacts()))
        self._retention.clock = reactor
        self._certificates = CertificateWatch(reactor, lambda: self.config)
        self._stopping: Deferred[None] | None = None

    async def start(self) -> None:
        """Take the lock, end what a crashed run left, start children and backends, then listen.

        Raises a ``HarmonydError`` that says what is in the way; call ``stop`` then, too.
        """
        self.manager.starting()
        self._lock.take()
        await self._audit.start()
        await self._spans.configure(self.config)
        await self._control.start()
        await self.supervisor.start()
        self.operated.sampler.start()
        self._metrics.start()
        await self._disk.start()
        if self._parts.endpoints or self.spool.exists:
            await self.spool.start()
        await self.operations.start()
        await self._parts.engines.start()
        await self.cache.start()
        for backend in self._parts.backends.values():
            await backend.start()
        for endpoint in self._parts.dicom_endpoints:
            await endpoint.start()
        await self._look_for_untaken()
        self.health.watch(self._reactor)
        for front_end in self._parts.front_ends:
            await front_end.start()
        self._retention.start(RETENTION_INTERVAL_SECS).addErrback(
            lambda failure: self._log.failure("retention of artifacts stopped", failure=failure)
        )
        self._certificates.start()
        self.manager.listening()
        self._reloader.open()
        self._audit.up(self.config, self._parts.all_backends)
        self._log.info("{id} is up", id=self.config.id)

    async def reload(self) -> None:
        """Read the configuration again (SIGHUP)."""
        await self._reloader.reload()

    async def _take_over(self, new: Config) -> None:
        if dicom_endpoints(new):
            await self.spool.start()
        takeover = Takeover(self._reactor, self._builder, self._parts, self.config, new, self._grace)
        await takeover.prepare()
        takeover.commit()
        self.config = self.operated.config = self._management.config = new
        self.supervisor.configure(new.supervision)
        self.spool.configure(new.spool)
        self.operations.configure(new.operations, long_running(new))
        self.cache.configure(new.cache)
        self._metrics.configure(new)
        Privacy.names = frozenset(new.backends)
        await self._spans.configure(new)
        self._audit.configure(new)
        try:
            await takeover.finish()
        finally:
            await self._look_for_untaken()
            await self._certificates.look()
        await self._children_settle()

    async def _look_for_untaken(self) -> None:
        try:
            await self.spool.untaken.look()
        except OSError as error:
            self._log.error("what was received earlier cannot be looked for: {error}", error=error)

    async def _grace(self, ending: Collection[Answered]) -> None:
        grace_secs = self.config.supervision.stop_grace_secs
        await associations_end(self._reactor, self.supervisor, self._parts.engines, grace_secs, ending)

    async def _children_settle(self) -> None:
        """Who waits for the reload wants to find its children running; one that does not come up is not waited for."""
        until = self._reactor.seconds() + SETTLE_SECS
        while self._reactor.seconds() < until and any(c.state == "STARTING" for c in self.supervisor.children()):
            await deferLater(self._reactor, SETTLE_POLL_SECS)

    def _begin_restart(self) -> None:
        self.restarting = True
        self.operated.shutdown()

    def stop(self) -> Deferred[None]:
        """Not ready first, no new work, then requests, receivers, children. Every call returns the same end."""
        if self._stopping is None:
            self._stopping = Deferred.fromCoroutine(self._stop())
        return self._stopping

    async def _stop(self) -> None:
        grace_secs = self.config.supervision.stop_grace_secs
        self.manager.stopping(2 * grace_secs + STOP_MARGIN_SECS, to_restart=self.restarting)
        self._log.info("{id} is stopping", id=self.config.id)
        self.health.begin_shutdown()
        self.operated.is_stopping = True
        await self._reloader.close()
        if self._retention.running:
            self._retention.stop()
        self._certificates.stop()
        parts = self._parts
        self.manager.step(f"requests and inbound associations have up to {grace_secs:g} s to end")
        front_ends = [front_end.stop for front_end in parts.front_ends]
        operations = partial(self.operations.stop, grace_secs)
        await self._all([*front_ends, operations, partial(self._associations_end, grace_secs)])
        await self._all([self.cache.stop])
        self.manager.step("receivers hand on what they have")
        await self._all(endpoint.stop for endpoint in parts.dicom_endpoints)
        await self._all([self.spool.stop, self._builder.commitment.books.close])
        await self._all(backend.stop for backend in parts.all_backends)
        self.manager.step("the last processes are ended")
        await self._all([self.supervisor.stop_all, self._disk.stop, self.operated.sampler.stop])
        self._metrics.stop()
        self.health.unwatch()
        await self._all([self.operations.close, self._builder.stop])
        await self._all([parts.engines.close, self._control.stop, self._spans.stop])
        await self._audit.stop(self.config, parts.all_backends)
        self.manager.close()
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

    async def _associations_end(self, grace_secs: float) -> None:
        engines = self._parts.engines
        engines.accept_no_more()
        left = await associations_end(self._reactor, self.supervisor, engines, grace_secs)
        if left:
            said = "{count} inbound associations were still open after {grace:g} s; they are aborted"
            self._log.warn(said, count=left, grace=grace_secs)

    def _operations(self) -> Mapping[str, frozenset[str]]:
        return operations_by_backend(self._parts.all_backends)

    def _sources(self) -> Sources:
        return Sources(
            self.operated.children,
            self.spool.summary,
            self.cache.figures,
            lambda: self.cache.answers,
            self.operations.figures,
            self._http_load,
            lambda: self.health.ready()[0],
            self._audit.trail.figures,
            self._backends.nodes,
            lambda: self._builder.guard.alarms.refused,
        )

    def _http_load(self) -> tuple[int, int]:
        loads = [front_end.load for front_end in self._parts.front_ends]
        return sum(requests for requests, _ in loads), sum(connections for _, connections in loads)

    def _children(self) -> CheckResult:
        waiting = [child for child in self.supervisor.children() if child.state != "RUNNING"]
        if waiting:
            return CheckResult(False, "; ".join(f"{child.full_name} {child.description}" for child in waiting))
        return CheckResult(True, f"{len(self.supervisor.children())} running")

    def _receiving(self) -> CheckResult:
        refusal = self.spool.admission.refusal() if self._parts.endpoints else None
        left = "".join(f"; nothing takes what {name} has received" for name in self.spool.untaken.found)
        return CheckResult(refusal is None, (refusal or "objects are accepted") + left)

    async def _clean_artifacts(self) -> None:
        self.cache.sweep()
        storage = self.config.storage
        folders = {storage.path: frozenset[str](), **active_operations(self._parts.all_backends)}
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
            now=min(time.time(), self._reactor.seconds()),  # a clock that was set makes nothing older
            max_age_secs=storage.retention_max_age_secs,
            max_bytes=storage.retention_max_bytes,
            in_use=in_use,
        )
