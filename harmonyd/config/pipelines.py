"""``[pipelines.*]``, and the names by which pipelines and middleware refer to what other tables define."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harmonyd.config.asking import are_asked
from harmonyd.config.errors import listing, nearest
from harmonyd.config.fields import Section, shown
from harmonyd.config.middleware import chosen_backends, named_backends
from harmonyd.config.model import (
    BackendConfig,
    DicomEndpointOptions,
    EndpointConfig,
    HttpEndpointOptions,
    MiddlewareConfig,
    NetworkConfig,
    PipelineConfig,
)


@dataclass(slots=True)
class Parts:
    """Everything that is named, each without mistakes of its own, and the tables it came from (with mistakes too)."""

    networks: dict[str, NetworkConfig]
    endpoints: dict[str, EndpointConfig]
    backends: dict[str, BackendConfig]
    middleware: dict[str, MiddlewareConfig]
    pipelines: dict[str, PipelineConfig]
    tables: Mapping[str, Mapping[str, Section]]
    """By kind (``network``, ``endpoints`` …) and name."""

    def http_endpoints(self, pipeline: PipelineConfig) -> list[tuple[EndpointConfig, HttpEndpointOptions]]:
        """The endpoints of a pipeline that HTTP clients reach."""
        found = (self.endpoints.get(name) for name in pipeline.endpoints)
        return [(item, item.options) for item in found if item and isinstance(item.options, HttpEndpointOptions)]

    def questioned(self, pipeline: PipelineConfig) -> list[EndpointConfig]:
        """The endpoints of a pipeline that callers ask for something with DICOM."""
        found = (self.endpoints.get(name) for name in pipeline.endpoints)
        return [
            item
            for item in found
            if item and isinstance(item.options, DicomEndpointOptions) and are_asked(item.options.services)
        ]

    def is_asked(self, pipeline: PipelineConfig) -> bool:
        """Whether somebody asks its backends for something, and does not only send."""
        return bool(self.http_endpoints(pipeline) or self.questioned(pipeline))

    def dicom_endpoints(self) -> dict[str, DicomEndpointOptions]:
        """The dicom endpoints that a pipeline names: those that are started."""
        named = {name for pipeline in self.pipelines.values() for name in pipeline.endpoints}
        return {
            name: item.options
            for name, item in self.endpoints.items()
            if name in named and isinstance(item.options, DicomEndpointOptions)
        }


def pipeline(name: str, section: Section) -> PipelineConfig:
    """``[pipelines.NAME]``."""
    section.require("endpoints")
    result = PipelineConfig(
        name,
        section.text("description"),
        section.strings("networks"),
        section.strings("endpoints"),
        section.strings("middleware"),
        section.strings("backends"),
        section.flag("fan_out", False),
        section.milliseconds("fan_out_timeout_ms", 20.0),
    )
    section.finish()
    if section.sound and not result.endpoints:
        section.warn("endpoints", "no endpoint, so no request ever reaches this pipeline")
    return result


def check_references(parts: Parts) -> None:
    """Every name a pipeline or a middleware gives must be defined, in whichever file."""
    for name, item in parts.pipelines.items():
        section = parts.tables["pipelines"][name]
        for key, kind, names in (
            ("networks", "network", item.networks),
            ("endpoints", "endpoints", item.endpoints),
            ("middleware", "middleware", item.middleware),
            ("backends", "backends", item.backends),
        ):
            _check_names(section, key, kind, names, parts.tables[kind])
        _check_reachable(section, item, parts)
        _check_answered(section, item, parts)
        for link in item.middleware:
            _check_chosen_backends(item, link, parts)
    _check_networks(parts)
    for name, link_config in parts.middleware.items():
        _check_known_backends(parts.tables["middleware"][name], link_config, parts)
    _tell_unused(parts)


def _check_names(section: Section, key: str, kind: str, names: Iterable[str], known: Mapping[str, Section]) -> None:
    for name in names:
        if name not in known:
            what = f"{shown(name)} is not defined"
            section.problem(key, what, f"[{kind}.…] has: {listing(known)}", nearest(name, known))


def _check_reachable(section: Section, item: PipelineConfig, parts: Parts) -> None:
    """An HTTP endpoint needs a network that listens for HTTP."""
    unknown = any(name not in parts.networks for name in item.networks)
    listening = [name for name in item.networks if name in parts.networks and parts.networks[name].http]
    for endpoint, _ in parts.http_endpoints(item):
        if not listening and not unknown:
            what = f'no network of this pipeline listens for HTTP, which its endpoint "{endpoint.name}" needs'
            section.problem("networks", what, "name a network that has [network.NAME.http]")
            return
    if parts.http_endpoints(item) and not item.backends:
        section.warn("backends", "no backend: a request that no middleware answers gets an error")


def _check_answered(section: Section, item: PipelineConfig, parts: Parts) -> None:
    """Questions that no backend answers are a mistake; an object would be kept."""
    for endpoint in parts.questioned(item):
        if not item.backends:
            what = f'no backend, which the questions that come to endpoint "{endpoint.name}" need'
            section.problem("backends", what, 'name one, or offer "store" only in its services')


def _check_networks(parts: Parts) -> None:
    for name, network in parts.networks.items():
        section = parts.tables["network"][name]
        _check_names(section, "middleware", "middleware", network.middleware, parts.tables["middleware"])


def _tell_unused(parts: Parts) -> None:
    for kind in ("endpoints", "backends", "middleware"):
        named = {name for item in parts.pipelines.values() for name in getattr(item, kind)}
        if kind == "middleware":
            named |= {name for network in parts.networks.values() for name in network.middleware}
        for name, section in parts.tables[kind].items():
            if name not in named:
                section.warn(None, "no pipeline names it, so it is not started")


def _check_known_backends(section: Section, link: MiddlewareConfig, parts: Parts) -> None:
    known = parts.tables["backends"]
    for key, chosen in named_backends(link):
        if chosen not in known:
            what = f"backend {shown(chosen)} is not defined"
            section.problem(key, what, f"[backends.…] has: {listing(known)}", nearest(chosen, known))


def _check_chosen_backends(item: PipelineConfig, link: str, parts: Parts) -> None:
    """Middleware may only choose among the backends of the pipeline it is used in."""
    names = [name for _, name in chosen_backends(parts.middleware[link])] if link in parts.middleware else []
    for chosen in dict.fromkeys(names):
        if chosen in parts.tables["backends"] and chosen not in item.backends:
            what = f'"{link}" chooses backend "{chosen}", which is not one of this pipeline'
            section = parts.tables["pipelines"][item.name]
            section.problem("middleware", what, f"add it to backends, which has: {listing(item.backends)}")
