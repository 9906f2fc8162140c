"""Which service types there are. A new one is one module and one line here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from harmonyd.cache.cache import SeriesCache
from harmonyd.config.archive_model import DicomwebBackendOptions
from harmonyd.config.model import (
    BackendConfig,
    DicomBackendOptions,
    DicomwebEndpointOptions,
    EndpointConfig,
    HttpBackendOptions,
    HttpEndpointOptions,
    StorageBackendOptions,
)
from harmonyd.dimse.engine import EnginesByName
from harmonyd.services.base import AskingEndpoint, Backend, HttpEndpoint
from harmonyd.services.dicom.auditing import Witness
from harmonyd.services.dicom.backend import DicomBackend
from harmonyd.services.dicom.commitments import Commitments
from harmonyd.services.dicom.metering import UNMETERED, Meter
from harmonyd.services.echo import EchoBackend, EchoEndpoint
from harmonyd.services.http.endpoint import HttpServiceEndpoint
from harmonyd.services.storage import StorageBackend


@dataclass(frozen=True, slots=True)
class Resources:
    """What backends are built from."""

    reactor: Any
    engines: EnginesByName
    """Those that the configuration needs."""
    storage: Path
    asked_backends: frozenset[str]
    """Names of backends that somebody can ask."""
    in_thread: Callable[..., Awaitable[Any]]
    """Runs blocking work in the reactor's thread pool."""
    cache: SeriesCache | None = None
    meter: Meter = UNMETERED
    witness: Witness = Witness()  # noqa: RUF009 - it is frozen
    returned: Callable[[str], None] = lambda name: None
    """Told the name of a dicom backend whose node answers again."""
    commitments: Commitments | None = None


@dataclass(frozen=True, slots=True)
class EndpointResources:
    """What endpoints for HTTP clients are built from."""

    seconds: Callable[[], float]
    """The reactor's clock."""
    codecs: Callable[[], Any]
    """The processes that decode pixels (``dicomweb.codec_pool.Codecs``); made when somebody asks for them."""


def _http_endpoint(config: EndpointConfig, _resources: EndpointResources) -> HttpEndpoint:
    return HttpServiceEndpoint(config.name, cast(HttpEndpointOptions, config.options))


def _echo_endpoint(config: EndpointConfig, _resources: EndpointResources) -> HttpEndpoint:
    return EchoEndpoint(config.name, cast(HttpEndpointOptions, config.options))


def _dicomweb_endpoint(config: EndpointConfig, resources: EndpointResources) -> AskingEndpoint:
    from harmonyd.services.dicomweb.endpoint import DicomwebEndpoint  # with pydicom's readers, which take their time

    options = cast(DicomwebEndpointOptions, config.options)
    return DicomwebEndpoint(config.name, options, resources.seconds, resources.codecs())


def _dicom_backend(config: BackendConfig, resources: Resources) -> Backend:
    options = cast(DicomBackendOptions, config.options)
    return DicomBackend(
        config.name,
        options,
        resources.engines[options.engine],
        resources.reactor,
        resources.storage,
        has_retrievers=config.name in resources.asked_backends,
        cache=resources.cache,
        meter=resources.meter,
        witness=resources.witness,
        returned=resources.returned,
        commitments=resources.commitments,
    )


def _dicomweb_backend(config: BackendConfig, resources: Resources) -> Backend:
    from harmonyd.services.archive.backend import DicomwebBackend  # with Twisted's HTTP client, which takes its time

    return DicomwebBackend(
        config.name,
        cast(DicomwebBackendOptions, config.options),
        resources.reactor,
        resources.storage,
        cache=resources.cache,
        meter=resources.meter,
        witness=resources.witness,
        returned=resources.returned,
    )


def _http_backend(config: BackendConfig, resources: Resources) -> Backend:
    from harmonyd.services.http.backend import HttpBackend  # with Twisted's HTTP client, which takes its time

    return HttpBackend(config.name, cast(HttpBackendOptions, config.options), resources.reactor)


def _storage_backend(config: BackendConfig, resources: Resources) -> Backend:
    folder = cast(StorageBackendOptions, config.options).path
    return StorageBackend(config.name, folder, resources.in_thread, resources.witness)


def _echo_backend(config: BackendConfig, _resources: Resources) -> Backend:
    return EchoBackend(config.name)


HTTP_ENDPOINTS: Mapping[str, Callable[[EndpointConfig, EndpointResources], HttpEndpoint | AskingEndpoint]] = {
    "http": _http_endpoint,
    "dicomweb": _dicomweb_endpoint,
    "echo": _echo_endpoint,
}
"""Endpoints that HTTP clients reach; ``dicom`` ones listen for associations (``services.dicom.inbound``)."""

BACKENDS: Mapping[str, Callable[[BackendConfig, Resources], Backend]] = {
    "dicom": _dicom_backend,
    "dicomweb": _dicomweb_backend,
    "http": _http_backend,
    "storage": _storage_backend,
    "echo": _echo_backend,
}
