"""From a configuration to the parts of a daemon, wired but not started; for a first start, and for each reload."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from harmonyd.audit.api import no_audit
from harmonyd.cache.cache import SeriesCache
from harmonyd.commitment.books import Books
from harmonyd.config.asking import are_asked
from harmonyd.config.model import (
    Config,
    DicomBackendOptions,
    DicomEndpointOptions,
    DicomwebEndpointOptions,
    EndpointConfig,
    HttpEndpointOptions,
    HttpListener,
    NetworkConfig,
    PipelineConfig,
)
from harmonyd.control.management import Document, Resource
from harmonyd.daemon.engines import DCMTK, NATIVE, Engines, engines_in
from harmonyd.dimse.dcmtk.engine import DcmtkEngine
from harmonyd.dimse.dcmtk.tools import find_tools
from harmonyd.dimse.engine import MoveReceiver
from harmonyd.dimse.native.engine import NativeEngine
from harmonyd.metrics.endpoint import metrics_route
from harmonyd.metrics.metrics import Metrics
from harmonyd.middleware import registry as middleware_registry
from harmonyd.middleware.auth.guard import Guard
from harmonyd.middleware.base import Middleware
from harmonyd.middleware.limiting import LimitState
from harmonyd.operations.describing import with_operations
from harmonyd.operations.endpoint import LongRunningEndpoint
from harmonyd.operations.operation import Owner
from harmonyd.operations.registry import Operations
from harmonyd.pipeline.pipeline import Pipeline
from harmonyd.services import registry
from harmonyd.services.base import Backend
from harmonyd.services.describing import described
from harmonyd.services.dicom.backend import DicomBackend, move_receiver
from harmonyd.services.dicom.commitments import Commitments
from harmonyd.services.dicom.committing import CommitmentMeans
from harmonyd.services.dicom.fan_out import FanOut
from harmonyd.services.dicom.inbound import DicomEndpoint
from harmonyd.services.storage import StorageBackend
from harmonyd.spool.api import Spool
from harmonyd.supervision.api import Supervisor
from harmonyd.supervision.ports import problem_text
from harmonyd.telemetry.health import Health
from harmonyd.web.documentation import documentation
from harmonyd.web.front_end import HttpFrontEnd
from harmonyd.web.health import health_routes
from harmonyd.web.management import management_route
from harmonyd.web.route import Route

_MANAGE = "manage"
KEPT = "received"
"""Name of the backend that keeps the objects of a pipeline without one."""


LONG_RUNNING = ("http", "dicomweb")
"""Services whose requests may be answered later, where dicom backends answer them."""


@dataclass(frozen=True, slots=True)
class Folders:
    """Below the storage path."""

    storage: Path

    @property
    def run(self) -> Path:
        """Lock, record of children, files that live as long as one operation."""
        return self.storage / "run"

    @property
    def log(self) -> Path:
        """A file for each kept child."""
        return self.storage / "log"


@dataclass(slots=True)
class Leaving:
    """What a reload took out, until the work it has begun is done."""

    backends: list[Backend] = field(default_factory=list)
    endpoints: dict[str, DicomEndpoint] = field(default_factory=dict)
    handing_on: dict[str, Deferred[None]] = field(default_factory=dict)
    """The waiting for each of those endpoints to have handed on what it received."""
    front_ends: list[HttpFrontEnd] = field(default_factory=list)


@dataclass(slots=True)
class Parts:
    """What a daemon runs: what its configuration names, and what is leaving."""

    engines: Engines
    backends: dict[str, Backend]
    endpoints: dict[str, DicomEndpoint]
    """Those that receive with DICOM."""
    listeners: dict[HttpListener, HttpFrontEnd]
    leaving: Leaving = field(default_factory=Leaving)

    @property
    def all_backends(self) -> list[Backend]:
        return [*self.backends.values(), *self.leaving.backends]

    @property
    def dicom_endpoints(self) -> list[DicomEndpoint]:
        return [*self.endpoints.values(), *self.leaving.endpoints.values()]

    @property
    def front_ends(self) -> list[HttpFrontEnd]:
        return [*self.listeners.values(), *self.leaving.front_ends]


class Builder:
    """Makes parts, and starts none. ``documents``, ``resources``: the management API, where that is enabled."""

    def __init__(
        self,
        reactor: Any,
        supervisor: Supervisor,
        health: Health,
        folders: Folders,
        spool: Spool,
        operations: Operations,
        documents: Mapping[str, Document],
        resources: Mapping[str, Resource],
        cache: SeriesCache,
        metrics: Metrics,
    ) -> None:
        self._reactor = reactor
        self._supervisor = supervisor
        self._health = health
        self._folders = folders
        self._spool = spool
        self.operations = operations
        self._documents = documents
        self._resources = resources
        self._cache = cache
        self._metrics = metrics
        self._limits = LimitState(reactor.seconds, metrics.limited)
        self._audit = no_audit
        self.guard = Guard(reactor, self._in_thread, self._audit)
        books = Books(folders.storage, self._in_thread)
        self.commitment = CommitmentMeans(reactor, books, Commitments(reactor, self._in_thread))

    def all(self, config: Config) -> Parts:
        """Every part. Raises ``HarmonydError``, ``ToolMissing`` among them."""
        engines = self.engines()
        engines.require(engines_in(config))
        engines.limit_unasked(config.spool.max_unasked_bytes)
        backends = self.backends(config, engines, {})
        pipelines = self.pipelines(config, backends)
        endpoints = {name: self.endpoint(config, name, engines, pipelines) for name in dicom_endpoints(config)}
        front_ends = {
            listener: self.front_end(config, config.networks[name], pipelines)
            for listener, name in listeners(config).items()
        }
        return Parts(engines, backends, endpoints, front_ends)

    def engines(self) -> Engines:
        """What performs DIMSE operations; none is made yet."""
        return Engines({DCMTK: self._dcmtk, NATIVE: self._native})

    def _dcmtk(self) -> DcmtkEngine:
        storage, scratch = self._folders.storage, self._folders.run / "dcmtk"
        return DcmtkEngine(self._reactor, self._supervisor, find_tools(), storage=storage, scratch=scratch)

    def _native(self) -> NativeEngine:
        return NativeEngine(self._reactor, storage=self._folders.storage, why=problem_text)

    def backends(
        self, config: Config, engines: Engines, unchanged: Mapping[str, Backend]
    ) -> dict[str, Backend]:
        """By name. Those in ``unchanged`` go on. Raises ``HarmonydError``."""
        resources = registry.Resources(
            self._reactor,
            engines,
            self._folders.storage,
            asked_backends(config),
            self._in_thread,
            self._cache,
            self._metrics.operations,
            self._spool.returned,
            self.commitment.commitments,
        )
        names = dict.fromkeys(name for pipeline in config.pipelines.values() for name in pipeline.backends)
        return {
            name: unchanged.get(name)
            or registry.BACKENDS[config.backends[name].service](config.backends[name], resources)
            for name in names
        }

    def pipelines(self, config: Config, backends: Mapping[str, Backend]) -> dict[str, Pipeline]:
        """By name. Raises ``HarmonydError``."""
        return {
            name: Pipeline(
                name,
                self._chain(config, item.middleware),
                {backend: backends[backend] for backend in item.backends},
                FanOut(self._reactor, item.fan_out_timeout_secs) if item.fan_out else None,
            )
            for name, item in config.pipelines.items()
        }

    def _chain(self, config: Config, names: Sequence[str]) -> list[Middleware]:
        resources = middleware_registry.Resources(
            self._reactor, self._in_thread, self._audit, self.guard, self._limits
        )
        return [middleware_registry.build(config.middleware[name], resources) for name in names]

    def endpoint(
        self, config: Config, name: str, engines: Engines, pipelines: Mapping[str, Pipeline]
    ) -> DicomEndpoint:
        """A dicom endpoint."""
        options, _ = dicom_endpoints(config)[name]
        pipeline, own = self.inbound_pipeline(config, name, pipelines)
        return DicomEndpoint(name, options, engines, pipeline, self._spool, self._in_thread, own, self.commitment)

    def inbound_pipeline(
        self, config: Config, name: str, pipelines: Mapping[str, Pipeline]
    ) -> tuple[Pipeline, StorageBackend | None]:
        """The pipeline of a dicom endpoint; one that has no backend gets its own, a folder to keep objects in."""
        options, pipeline_name = dicom_endpoints(config)[name]
        pipeline = pipelines[pipeline_name]
        if pipeline.backends:
            return pipeline, None
        folder = options.storage_dir or self._folders.storage / "received" / name
        storage = StorageBackend(KEPT, folder, self._in_thread)
        return Pipeline(pipeline.name, pipeline.middleware, {KEPT: storage}), storage

    async def _in_thread(self, function: Any, *args: Any) -> Any:
        return await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *args)

    def front_end(self, config: Config, network: NetworkConfig, pipelines: Mapping[str, Pipeline]) -> HttpFrontEnd:
        """What serves an HTTP network."""
        routes, health = self.routes(config, network.name, pipelines), self.health_on(config, network.name)
        return HttpFrontEnd(self._reactor, network, routes, config.limits, health, self._metrics.requests)

    def routes(self, config: Config, network: str, pipelines: Mapping[str, Pipeline]) -> list[Route]:
        """What is served on a network, behind its middleware."""
        chain = tuple(self._chain(config, config.networks[network].middleware))
        return [replace(route, chain=chain) for route in self._routes(config, network, pipelines)]

    def _routes(self, config: Config, network: str, pipelines: Mapping[str, Pipeline]) -> list[Route]:
        routes = [
            self._route(config, pipeline, endpoint, pipelines[pipeline.name])
            for pipeline in config.pipelines.values()
            if network in pipeline.networks
            for endpoint in map(config.endpoints.__getitem__, pipeline.endpoints)
            if endpoint.service in registry.HTTP_ENDPOINTS
        ]
        if config.management.enabled and config.management.network == network:
            is_protected = bool(config.networks[network].middleware)
            managed = management_route(
                config.management.base_path, self._documents, self._resources, local_only=not is_protected
            )
            routes.append(replace(managed, compresses=config.web.compression, action=_MANAGE))
        if config.telemetry.metrics and self.health_on(config, network) is not None:
            routes.append(replace(metrics_route(self._metrics.text), action=_MANAGE))
        documents = self._documentation(config, network, routes) if config.web.documentation else []
        return routes + [replace(each, action=_MANAGE) for each in documents]

    def _documentation(self, config: Config, network: str, routes: Sequence[Route]) -> list[Route]:
        health = self.health_on(config, network)
        probes = health_routes(health).values() if health is not None else ()
        everything = [*routes, *probes]
        return documentation(config.id, everything, _origins(config, network), compresses=config.web.compression)

    def _route(self, config: Config, item: PipelineConfig, endpoint: EndpointConfig, pipeline: Pipeline) -> Route:
        route = Route(
            registry.HTTP_ENDPOINTS[endpoint.service](endpoint),
            pipeline.handle,
            compresses=config.web.compression,
            described=described(config, item, endpoint),
            identify=pipeline.identify,
        )
        if endpoint.service not in LONG_RUNNING or not _is_dimse(config, item):
            return route
        return replace(
            route,
            endpoint=LongRunningEndpoint(route, self.operations),
            described=with_operations(described(config, item, endpoint)),
        )

    def health_on(self, config: Config, network: str) -> Health | None:
        """What /livez and /readyz of a network tell; None where they are not served."""
        return self._health if config.telemetry.network in (None, network) else None


def _origins(config: Config, network: str) -> list[str]:
    """Whose pages may read what DICOMweb endpoints of a network answer."""
    named = (name for item in config.pipelines.values() if network in item.networks for name in item.endpoints)
    found = (config.endpoints[name].options for name in named)
    return sorted({each for item in found if isinstance(item, DicomwebEndpointOptions) for each in item.cors_origins})


def dicom_endpoints(config: Config) -> dict[str, tuple[DicomEndpointOptions, str]]:
    """Of each endpoint that receives with DICOM, by name: its options, and the pipeline it belongs to."""
    return {
        name: (options, pipeline.name)
        for pipeline in config.pipelines.values()
        for name in pipeline.endpoints
        if isinstance(options := config.endpoints[name].options, DicomEndpointOptions)
    }


def long_running(config: Config) -> frozenset[Owner]:
    """The endpoints whose requests may be answered later: what they ask for goes to dicom backends and nowhere else.

    An HTTP server behind a pipeline has paths and preferences of its own.
    """
    return frozenset(
        Owner(name, options.path_prefix)
        for pipeline in config.pipelines.values()
        if _is_dimse(config, pipeline)
        for name in pipeline.endpoints
        if config.endpoints[name].service in LONG_RUNNING
        and isinstance(options := config.endpoints[name].options, HttpEndpointOptions)
    )


def _is_dimse(config: Config, pipeline: PipelineConfig) -> bool:
    services = {config.backends[name].service for name in pipeline.backends}
    return "dicom" in services and services <= {"dicom", "storage"}


def asked_backends(config: Config) -> frozenset[str]:
    """Names of the backends that somebody can ask for something: over HTTP, or with C-FIND, C-GET or C-MOVE."""
    return frozenset(
        backend
        for pipeline in config.pipelines.values()
        if any(_asks(config.endpoints[name]) for name in pipeline.endpoints)
        for backend in pipeline.backends
    )


def _asks(endpoint: EndpointConfig) -> bool:
    options = endpoint.options
    if isinstance(options, DicomEndpointOptions):
        return are_asked(options.services)
    return endpoint.service in registry.HTTP_ENDPOINTS


def receiving_backends(config: Config) -> list[DicomBackendOptions]:
    """The backends that may have a kept receiver for C-MOVE."""
    found = (config.backends[name].options for name in sorted(asked_backends(config)))
    return [item for item in found if isinstance(item, DicomBackendOptions) and item.store_scp != "transient"]


def move_receivers(config: Config) -> dict[str, list[MoveReceiver]]:
    """By engine, the kept receivers for C-MOVE that there may be."""
    receivers: dict[str, list[MoveReceiver]] = {}
    for options in receiving_backends(config):
        receivers.setdefault(options.engine, []).append(move_receiver(options))
    return receivers


def listeners(config: Config) -> dict[HttpListener, str]:
    """Where HTTP is served, and the name of the network."""
    return {network.http: network.name for network in config.networks.values() if network.http is not None}


def operations_by_backend(backends: Iterable[Backend]) -> dict[str, frozenset[str]]:
    """By name of a backend, the ids of operations that run."""
    running: dict[str, frozenset[str]] = {}
    for backend in backends:
        if isinstance(backend, DicomBackend):
            running[backend.name] = running.get(backend.name, frozenset()) | backend.active
    return running


def active_operations(backends: Iterable[Backend]) -> dict[Path, frozenset[str]]:
    """By folder of artifacts, the ids of operations that run."""
    active: dict[Path, frozenset[str]] = {}
    for backend in backends:
        if isinstance(backend, DicomBackend):
            active[backend.storage] = active.get(backend.storage, frozenset()) | backend.active
    return active
