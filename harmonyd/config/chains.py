"""Whether chains of middleware for identity keep out whom they should: what no middleware sees alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from harmonyd.config import checks
from harmonyd.config.auth import IDENTITY_TYPES, TYPES
from harmonyd.config.errors import listing
from harmonyd.config.fields import Section
from harmonyd.config.model import DicomEndpointOptions, MiddlewareConfig, PipelineConfig
from harmonyd.config.pipelines import Parts
from harmonyd.permit import ANONYMOUS
from harmonyd.tls import TlsServer

_CERTIFICATE = "client_certificate"
_OVER_HTTP = tuple(kind for kind in TYPES if kind not in ("calling_aet", _CERTIFICATE))
_AUTHORIZE = "authorize"
_OF_NETWORKS = (*IDENTITY_TYPES, "rate_limit", "concurrency")


def settle(parts: Parts) -> frozenset[str]:
    """Return the networks whose middleware lets nobody manage who has not said who it is; note what cannot work."""
    for name, network in parts.networks.items():
        section = parts.tables["network"][name]
        for link in _links(parts, network.middleware):
            if link.type not in _OF_NETWORKS:
                what = f'"{link.name}" is of the type {link.type}, which is for pipelines'
                section.problem("middleware", what, f"a network can have: {listing(_OF_NETWORKS)}")
        _require_certificates(section, _links(parts, network.middleware), {f"network {name}": network.tls})
        if complaint := _complaint(_links(parts, network.middleware)):
            section.warn("middleware", complaint)
    for name, item in parts.pipelines.items():
        section = parts.tables["pipelines"][name]
        if complaint := _complaint(_links(parts, item.middleware)):
            section.warn("middleware", complaint)
        _require_certificates(section, _links(parts, item.middleware), _ways_to(parts, item))
        if _receives(parts, item):
            for link in _links(parts, item.middleware):
                if link.type in _OVER_HTTP and not link.options["optional"]:
                    what = f'"{link.name}" asks for credentials that no DICOM sender has, so no object would pass'
                    remedy = "give it optional = true and let authorize decide, or give the endpoint another pipeline"
                    section.problem("middleware", what, remedy)
    _tell_open(parts)
    return frozenset(name for name, network in parts.networks.items() if _guards(_links(parts, network.middleware)))


def _ways_to(parts: Parts, item: PipelineConfig) -> dict[str, TlsServer | None]:
    """Where requests of a pipeline come from, and the TLS there."""
    named = item.networks if parts.http_endpoints(item) else ()
    ways = {f"network {name}": parts.networks[name].tls for name in named if name in parts.networks}
    for name in item.endpoints:
        options = parts.endpoints[name].options if name in parts.endpoints else None
        if isinstance(options, DicomEndpointOptions):
            ways[f"endpoint {name}"] = options.tls
    return ways


def _require_certificates(
    section: Section, links: Iterable[MiddlewareConfig], ways: Mapping[str, TlsServer | None]
) -> None:
    """Nobody is asked for a certificate where ``tls`` has no ``ca_file``."""
    without = [way for way, tls in ways.items() if tls is None or tls.ca_file is None]
    for link in links:
        if link.type != _CERTIFICATE or not without or (link.options["optional"] and len(without) < len(ways)):
            continue
        what = f'"{link.name}" is about certificates, and {without[0]} asks nobody for one'
        section.problem("middleware", what, "give it a table tls with ca_file, or remove the middleware")


def _tell_open(parts: Parts) -> None:
    """Others than this machine reach a pipeline, and nothing asks who they are."""
    for name, network in parts.networks.items():
        address = network.http.bind_address if network.http is not None else ""
        is_local = not checks.is_ip_address(address) or checks.is_loopback(address)
        if is_local or _asks(parts, network.middleware):
            continue
        is_open = [
            item.name
            for item in parts.pipelines.values()
            if name in item.networks and parts.http_endpoints(item) and not _asks(parts, item.middleware)
        ]
        if is_open:
            what = f"whoever reaches {address} may use {listing(is_open)}: no middleware asks who it is"
            parts.tables["network"][name].warn(None, what)


def _asks(parts: Parts, names: Iterable[str]) -> bool:
    return any(link.type in IDENTITY_TYPES for link in _links(parts, names))


def _links(parts: Parts, names: Iterable[str]) -> list[MiddlewareConfig]:
    return [parts.middleware[name] for name in names if name in parts.middleware]


def _receives(parts: Parts, item: PipelineConfig) -> bool:
    found = (parts.endpoints.get(name) for name in item.endpoints)
    return any(each is not None and isinstance(each.options, DicomEndpointOptions) for each in found)


def _guards(links: list[MiddlewareConfig]) -> bool:
    requires = any(link.type in TYPES and not link.options["optional"] for link in links)
    return requires or any(link.type == _AUTHORIZE and not _lets_anybody_manage(link) for link in links)


def _lets_anybody_manage(link: MiddlewareConfig) -> bool:
    return any(ANONYMOUS in rule.roles and "manage" in rule.allow for rule in link.options["rules"])


def _complaint(links: list[MiddlewareConfig]) -> str:
    """What is there and keeps nobody out."""
    kinds = [link.type for link in links]
    order = [number for number, kind in enumerate(kinds) if kind in TYPES]
    if _AUTHORIZE in kinds:
        late = [links[number].name for number in order if number > kinds.index(_AUTHORIZE)]
        return f'"{late[0]}" comes after authorize, which then knows nobody yet: put it before' if late else ""
    if order and all(links[number].options["optional"] for number in order):
        return "all that ask for credentials are optional and no authorize follows, so that everybody passes"
    return ""
