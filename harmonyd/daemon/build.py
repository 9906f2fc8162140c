"""From a configuration to the parts of a daemon, wired but not started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from twisted.internet.threads import deferToThreadPool

from harmonyd.config.model import Config, DicomEndpointOptions, PipelineConfig
from harmonyd.dimse.dcmtk.engine import DcmtkEngine
from harmonyd.dimse.dcmtk.tools import Tool
from harmonyd.middleware import registry as middleware_registry
from harmonyd.pipeline.pipeline import Pipeline
from harmonyd.services import registry
from harmonyd.services.base import Backend
from harmonyd.services.dicom.backend import DicomBackend
from harmonyd.services.dicom.inbound import DicomEndpoint
from harmonyd.supervision.api import Supervisor
from harmonyd.telemetry.health import Health
from harmonyd.web.front_end import HttpFrontEnd
from harmonyd.web.route import Route


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


@dataclass(frozen=True, slots=True)
class Parts:
    """What a daemon runs."""

    engine: DcmtkEngine | None
    backends: Mapping[str, Backend]
    dicom_endpoints: list[DicomEndpoint]
    front_ends: list[HttpFrontEnd]


def needs_dicom(config: Config) -> bool:
    """Does any pipeline use a dicom endpoint or backend?"""
    used = [
        *(config.endpoints[name].service for pipeline in config.pipelines.values() for name in pipeline.endpoints),
        *(config.backends[name].service for pipeline in config.pipelines.values() for name in pipeline.backends),
    ]
    return "dicom" in used


def build(
    config: Config, reactor: Any, supervisor: Supervisor, tools: Mapping[str, Tool] | None, health: Health
) -> Parts:
    """Build all parts. ``tools`` is None when ``needs_dicom`` says no."""
    folders = Folders(config.storage.path)
    engine = None
    if tools is not None:
        engine = DcmtkEngine(
            reactor, supervisor, tools, storage=folders.storage, scratch=folders.run / "dcmtk"
        )
    resources = registry.Resources(reactor, engine, folders.storage, asked_over_http(config))
    backends = {
        name: registry.BACKENDS[config.backends[name].service](config.backends[name], resources)
        for pipeline in config.pipelines.values()
        for name in pipeline.backends
    }
    pipelines = {name: _pipeline(config, pipeline, backends) for name, pipeline in config.pipelines.items()}
    inbound = _dicom_endpoints(config, pipelines, engine, reactor, folders.storage)
    return Parts(engine, backends, inbound, _front_ends(config, pipelines, reactor, health))


def asked_over_http(config: Config) -> frozenset[str]:
    """Names of the backends that an HTTP client can reach."""
    return frozenset(
        backend
        for pipeline in config.pipelines.values()
        if any(config.endpoints[name].service in registry.HTTP_ENDPOINTS for name in pipeline.endpoints)
        for backend in pipeline.backends
    )


def _pipeline(config: Config, pipeline: PipelineConfig, backends: Mapping[str, Backend]) -> Pipeline:
    chain = [middleware_registry.build(config.middleware[name]) for name in pipeline.middleware]
    return Pipeline(pipeline.name, chain, {name: backends[name] for name in pipeline.backends})


def _dicom_endpoints(
    config: Config, pipelines: Mapping[str, Pipeline], engine: DcmtkEngine | None, reactor: Any, storage: Path
) -> list[DicomEndpoint]:
    async def in_thread(function: Any, *args: Any) -> Any:
        return await deferToThreadPool(reactor, reactor.getThreadPool(), function, *args)

    found = []
    for pipeline in config.pipelines.values():
        for name in pipeline.endpoints:
            endpoint = config.endpoints[name]
            if endpoint.service == "dicom":
                assert engine is not None
                options = cast(DicomEndpointOptions, endpoint.options)
                found.append(DicomEndpoint(name, options, engine, pipelines[pipeline.name], storage, in_thread))
    return found


def _front_ends(config: Config, pipelines: Mapping[str, Pipeline], reactor: Any, health: Health) -> list[HttpFrontEnd]:
    found = []
    for network in config.networks.values():
        if network.http is None:
            continue
        routes = [
            Route(registry.HTTP_ENDPOINTS[endpoint.service](endpoint), pipelines[pipeline.name].handle)
            for pipeline in config.pipelines.values()
            if network.name in pipeline.networks
            for endpoint in map(config.endpoints.__getitem__, pipeline.endpoints)
            if endpoint.service in registry.HTTP_ENDPOINTS
        ]
        serves_health = config.telemetry.network in (None, network.name)
        found.append(HttpFrontEnd(reactor, network, routes, config.limits, health if serves_health else None))
    return found


def active_operations(backends: Mapping[str, Backend]) -> dict[Path, frozenset[str]]:
    """By folder of artifacts, the ids of operations that run."""
    active: dict[Path, frozenset[str]] = {}
    for backend in backends.values():
        if isinstance(backend, DicomBackend):
            active[backend.storage] = active.get(backend.storage, frozenset()) | backend.active
    return active
