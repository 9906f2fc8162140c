"""What a configuration names: which endpoints, backends and receivers are there because of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harmonyd.config.asking import are_asked
from harmonyd.config.model import (
    ASKED_SERVICES,
    Config,
    DicomBackendOptions,
    DicomEndpointOptions,
    DicomwebEndpointOptions,
    EndpointConfig,
    HttpEndpointOptions,
    HttpListener,
    PipelineConfig,
)
from harmonyd.dimse.engine import MoveReceiver
from harmonyd.operations.operation import Owner
from harmonyd.services import registry
from harmonyd.services.base import Backend
from harmonyd.services.dicom.backend import DicomBackend
from harmonyd.services.dicom.node import move_receiver

LONG_RUNNING = ("http", "dicomweb")
"""Services whose requests may be answered later, where dicom backends answer them."""


def origins(config: Config, network: str) -> list[str]:
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
        if is_dimse(config, pipeline)
        for name in pipeline.endpoints
        if config.endpoints[name].service in LONG_RUNNING
        and isinstance(options := config.endpoints[name].options, HttpEndpointOptions)
    )


def is_dimse(config: Config, pipeline: PipelineConfig) -> bool:
    services = {config.backends[name].service for name in pipeline.backends}
    return bool(services & set(ASKED_SERVICES)) and services <= {*ASKED_SERVICES, "storage"}


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
