"""What the management API tells: the configuration that runs, and everything that runs because of it.

Never a secret: of options only what is named here is shown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from harmonyd import __version__
from harmonyd.config.archive_model import DicomwebBackendOptions
from harmonyd.config.model import (
    BackendConfig,
    Config,
    DicomBackendOptions,
    DicomEndpointOptions,
    EndpointConfig,
    HttpBackendOptions,
    HttpEndpointOptions,
    PipelineConfig,
    StorageBackendOptions,
)
from harmonyd.control.api import Child, Controlled
from harmonyd.control.info import description
from harmonyd.control.names import full_name, in_order

Document = Callable[[], Awaitable[Any]]


class Resource(Protocol):
    """What has paths below its name, and methods of its own."""

    async def __call__(self, method: str, path: Sequence[str], query: Mapping[str, Sequence[str]]) -> Any:
        """The JSON-ready answer; ``path``: the segments below the name. HEAD comes as GET.

        Raises NotFound, MethodNotAllowed, BadRequest.
        """
        ...


class Management:
    """Makes the documents, each a JSON-ready value."""

    def __init__(
        self,
        config: Config,
        daemon: Controlled,
        refresh: Callable[[], Awaitable[None]],
        operations: Callable[[], Mapping[str, Collection[str]]],
        now: Callable[[], float],
        asynchronous: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        """``refresh`` brings the figures of children up to date; ``operations``: ids of what runs, by backend.

        ``asynchronous``: ids of those that do not end with their request.
        """
        self.config = config
        """The one in force; a reload sets it anew."""
        self._daemon = daemon
        self._refresh = refresh
        self._operations = operations
        self._now = now
        self._asynchronous = asynchronous
        self._started_at = now()

    @property
    def documents(self) -> Mapping[str, Document]:
        """By the last segment of their path."""
        return {
            "info": self.info,
            "pipelines": self.pipelines,
            "routes": self.routes,
            "children": self.children,
            "operations": self.operations,
        }

    async def info(self) -> dict[str, Any]:
        """The daemon itself."""
        return {
            "id": self.config.id,
            "version": __version__,
            "pid": os.getpid(),
            "state": "STOPPING" if self._daemon.is_stopping else "RUNNING",
            "started_at": utc(self._started_at),
            "uptime_secs": self._secs_since(self._started_at),
            "config": str(self.config.path),
            "storage": str(self.config.storage.path),
            "warnings": list(self.config.warnings),
        }

    async def pipelines(self) -> list[dict[str, Any]]:
        """What leads from where to where."""
        return [self._pipeline(pipeline) for pipeline in self.config.pipelines.values()]

    def _pipeline(self, pipeline: PipelineConfig) -> dict[str, Any]:
        config = self.config
        return {
            "name": pipeline.name,
            "description": pipeline.description,
            "networks": list(pipeline.networks),
            "endpoints": [_endpoint(config.endpoints[name]) for name in pipeline.endpoints],
            "middleware": [{"name": name, "type": config.middleware[name].type} for name in pipeline.middleware],
            "backends": [_backend(config.backends[name]) for name in pipeline.backends],
        }

    async def routes(self) -> list[dict[str, Any]]:
        """What is served over HTTP, and where."""
        return [
            {
                "network": network,
                "address": listener.bind_address,
                "port": listener.bind_port or None,
                "path": options.path_prefix or "/",
                "methods": list(options.methods),
                "endpoint": name,
                "pipeline": pipeline.name,
            }
            for pipeline in self.config.pipelines.values()
            for network in pipeline.networks
            if (listener := self.config.networks[network].http) is not None
            for name in pipeline.endpoints
            if isinstance(options := self.config.endpoints[name].options, HttpEndpointOptions)
        ]

    async def children(self) -> list[dict[str, Any]]:
        """Every child, with what it uses."""
        await self._refresh()
        return [self._child(child) for child in in_order(self._daemon.children())]

    def _child(self, child: Child) -> dict[str, Any]:
        figures = child.figures
        runs = child.pid is not None
        return {
            "name": full_name(child),
            "kind": "kept" if child.is_kept else "once",
            "state": child.state,
            "description": description(child, self._now()),
            "pid": child.pid,
            "started_at": utc(child.started_at),
            "stopped_at": utc(child.stopped_at),
            "uptime_secs": self._secs_since(child.started_at) if runs else None,
            "restarts": max(0, child.starts - 1),
            "last_exit_code": child.exit_code,
            "rss_bytes": figures.rss_bytes if figures else None,
            "cpu_percent": figures.cpu_percent if figures else None,
            "fds": figures.fds if figures else None,
            "log": str(child.log.path) if child.log.path else None,
        }

    async def operations(self) -> list[dict[str, Any]]:
        """DIMSE operations under way; ``operation`` and ``pid`` are null while one waits for a free association."""
        running = {child.name: child for child in self._daemon.children() if not child.is_kept}
        return [
            self._operation(identifier, backend, running.get(identifier))
            for backend, identifiers in self._operations().items()
            for identifier in sorted(identifiers)
        ]

    def _operation(self, identifier: str, backend: str, child: Child | None) -> dict[str, Any]:
        return {
            "id": identifier,
            "backend": backend,
            "operation": child.group.removesuffix("scu") if child else None,
            "child": full_name(child) if child else None,
            "pid": child.pid if child else None,
            "asynchronous": identifier in self._asynchronous(),
            "runs_since_secs": self._secs_since(child.started_at) if child else None,
        }

    def _secs_since(self, when: float) -> float:
        return round(max(0.0, self._now() - when), 1)


def utc(when: float | None) -> str | None:
    """Seconds since the epoch as text; None for never (0, None)."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when)) if when else None


def _endpoint(endpoint: EndpointConfig) -> dict[str, Any]:
    options = endpoint.options
    shown: dict[str, Any] = {"name": endpoint.name, "service": endpoint.service}
    if isinstance(options, DicomEndpointOptions):
        shown |= {"local_aet": options.local_aet, "bind_addr": options.bind_addr, "port": options.port}
    else:
        shown |= {"path": options.path_prefix or "/", "methods": list(options.methods)}
    return shown


def _backend(backend: BackendConfig) -> dict[str, Any]:
    options = backend.options
    shown: dict[str, Any] = {"name": backend.name, "service": backend.service}
    if isinstance(options, DicomBackendOptions):
        shown |= {"aet": options.aet, "host": options.host, "port": options.port, "local_aet": options.local_aet}
    elif isinstance(options, DicomwebBackendOptions):
        shown |= {"url": options.url}
    elif isinstance(options, HttpBackendOptions):
        shown |= {"base_url": options.base_url}
    elif isinstance(options, StorageBackendOptions):
        shown |= {"path": str(options.path)}
    return shown
