"""From a configuration to the parts of a daemon, wired but not started; for a first start, and for each reload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from harmonyd.cache.cache import SeriesCache
from harmonyd.commitment.books import Books
from harmonyd.config.model import (
    Config,
    EndpointConfig,
    HttpListener,
    MiddlewareConfig,
    NetworkConfig,
    PipelineConfig,
)
from harmonyd.control.management import Document, Resource
from harmonyd.daemon.engines import DCMTK, NATIVE, Engines, engines_in
from harmonyd.daemon.named import LONG_RUNNING, asked_backends, dicom_endpoints, is_dimse, listeners, origins
from harmonyd.describe import Description
from harmonyd.dimse.dcmtk.engine import DcmtkEngine
from harmonyd.dimse.dcmtk.tools import find_tools
from harmonyd.dimse.native.engine import NativeEngine
from harmonyd.metrics.endpoint import metrics_route
from harmonyd.metrics.metrics import Metrics
from harmonyd.middleware import registry as middleware_registry
from harmonyd.middleware.auth.guard import Guard
from harmonyd.middleware.base import Middleware
from harmonyd.middleware.limiting import LimitState
from harmonyd.operations.describing import with_operations
from harmonyd.operations.endpoint import LongRunningEndpoint
from harmonyd.operations.registry import Operations
from harmonyd.pipeline.pipeline import Pipeline
from harmonyd.services import registry
from harmonyd.services.base import Backend
from harmonyd.services.describing import described
from harmonyd.services.dicom.auditing import Witness
from harmonyd.services.dicom.commitments import Commitments
from harmonyd.services.dicom.committing import CommitmentMeans
from harmonyd.services.dicom.fan_out import FanOut
from harmonyd.services.dicom.inbound import DicomEndpoint
from harmonyd.services.securing import fields_of, in_part, secured
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

_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
_MANAGE = "manage"
KEPT = "received"
"""Name of the backend that keeps the objects of a pipeline without one."""




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
        witness: Witness,
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
        self._witness = witness
        self._limits = LimitState(reactor.seconds, metrics.limited)
        books = Books(folders.storage, self._in_thread)
        self.commitment = CommitmentMeans(reactor, books, Commitments(reactor, self._in_thread))
        self.guard = Guard(reactor, self._in_thread, witness.audit)
        self._endpoint_resources = registry.EndpointResources(reactor.seconds, self._codecs)
        self._made_codecs: Any = None

    def _codecs(self) -> Any:
        if self._made_codecs is None:
            from harmonyd.services.dicomweb.codec_pool import Codecs  # with pydicom, which takes its time

            self._made_codecs = Codecs(self._in_thread)
        return self._made_codecs

    async def _decoded(self, source: Path) -> Path:
        path: Path = await self._codecs().transcoded(source, (_EXPLICIT_LITTLE_ENDIAN,))
        return path

    async def stop(self) -> None:
        """End what was made for all endpoints together."""
        if self._made_codecs is not None:
            await self._made_codecs.close()

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
        told = self._witness.refused
        return DcmtkEngine(
            self._reactor, self._supervisor, find_tools(), storage=storage, scratch=scratch, on_refusal=told
        )

    def _native(self) -> NativeEngine:
        storage, told = self._folders.storage, self._witness.refused
        return NativeEngine(self._reactor, storage=storage, why=problem_text, on_refusal=told)

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
            self._witness,
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
            self._reactor,
            self._in_thread,
            self._witness.audit,
            self.guard,
            self._folders.storage,
            self._decoded,
            self._limits,
        )
        return [middleware_registry.build(config.middleware[name], resources) for name in names]

    def endpoint(
        self, config: Config, name: str, engines: Engines, pipelines: Mapping[str, Pipeline]
    ) -> DicomEndpoint:
        """A dicom endpoint."""
        options, _ = dicom_endpoints(config)[name]
        pipeline, own = self.inbound_pipeline(config, name, pipelines)
        return DicomEndpoint(
            name, options, engines, pipeline, self._spool, self._in_thread, own, self._witness, self.commitment
        )

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
        routes, health = self.routes(config, network.name, pipelines), self.open_health_on(config, network.name)
        told = partial(self._witness.no_tls, network.name)
        return HttpFrontEnd(self._reactor, network, routes, config.limits, health, self._metrics.requests, told)

    def routes(self, config: Config, network: str, pipelines: Mapping[str, Pipeline]) -> list[Route]:
        """What is served on a network, behind its middleware."""
        chain = tuple(self._chain(config, config.networks[network].middleware))
        routes = self._routes(config, network, pipelines)
        if chain and (health := self.health_on(config, network)) is not None:
            routes += health_routes(health, is_guarded=True).values()
        return [replace(route, chain=chain) for route in routes]

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
        links = [config.middleware[name] for name in config.networks[network].middleware]
        shown = fields_of(links)
        routes = [
            replace(each, described=each.described and secured(each.described, links), shown=each.shown + shown)
            for each in routes
        ]
        documents = self._documentation(config, network, routes, links) if config.web.documentation else []
        return routes + [replace(each, action=_MANAGE, shown=shown) for each in documents]

    def _documentation(
        self, config: Config, network: str, routes: Sequence[Route], links: Sequence[MiddlewareConfig]
    ) -> list[Route]:
        def behind(found: Description) -> Description:
            return secured(found, links)

        health = self.health_on(config, network)
        probes = health_routes(health, is_guarded=bool(links)).values() if health is not None else ()
        told = [replace(each, described=each.described and in_part(each.described, links)) for each in probes]
        found = origins(config, network)
        return documentation(
            config.id, [*routes, *told], found, compresses=config.web.compression, secured=behind
        )

    def _route(self, config: Config, item: PipelineConfig, endpoint: EndpointConfig, pipeline: Pipeline) -> Route:
        links = [config.middleware[name] for name in item.middleware]
        route = Route(
            registry.HTTP_ENDPOINTS[endpoint.service](endpoint, self._endpoint_resources),
            pipeline.handle,
            compresses=config.web.compression,
            described=secured(described(config, item, endpoint), links),
            identify=pipeline.identify,
            shown=fields_of(links),
        )
        if endpoint.service not in LONG_RUNNING or not is_dimse(config, item):
            return route
        return replace(
            route,
            endpoint=LongRunningEndpoint(route, self.operations),
            described=secured(with_operations(described(config, item, endpoint)), links),
        )

    def health_on(self, config: Config, network: str) -> Health | None:
        """What /livez and /readyz of a network tell; None where they are not served."""
        return self._health if config.telemetry.network in (None, network) else None

    def open_health_on(self, config: Config, network: str) -> Health | None:
        """The same, for a network that has no middleware: one that has serves them among its routes."""
        return None if config.networks[network].middleware else self.health_on(config, network)
