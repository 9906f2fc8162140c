"""Several backends behind one endpoint: pipelines that ask all of them, and endpoints whose clients name one."""

from __future__ import annotations

from dataclasses import replace

from harmonyd.config.fields import Section
from harmonyd.config.model import ASKED_SERVICES, EndpointConfig, HttpEndpointOptions, PipelineConfig
from harmonyd.config.pipelines import Parts

_SEGMENTS = frozenset(
    {"studies", "series", "instances", "operations", "echo", "find", "get", "move", "store", "retrieve"}
)
"""What the first segment after a prefix may mean already."""


def settle(parts: Parts) -> None:
    """Fill in which backends a path may name; note what cannot be."""
    for item in parts.pipelines.values():
        _check_pipeline(parts, item)
        for endpoint, options in parts.http_endpoints(item):
            _settle_endpoint(parts, item, endpoint, options)


def _check_pipeline(parts: Parts, item: PipelineConfig) -> None:
    section = parts.tables["pipelines"][item.name]
    if not item.fan_out:
        if "fan_out_timeout_ms" in section:
            what = "no question goes to all backends here"
            section.problem("fan_out_timeout_ms", what, "set fan_out = true, or remove the key")
        return
    known = [name for name in item.backends if name in parts.backends]
    others = [name for name in known if parts.backends[name].service not in ASKED_SERVICES]
    if others:
        what = f'backend "{others[0]}" is neither dicom nor dicomweb'
        section.problem("fan_out", what, "give it a pipeline of its own")
    elif len(item.backends) < 2:
        section.problem("fan_out", "there are no two backends to ask", "name them in backends, or remove fan_out")
    elif not parts.is_asked(item):
        section.problem("fan_out", "no endpoint asks anything here", "an object goes to all backends in any case")


def _settle_endpoint(
    parts: Parts, item: PipelineConfig, endpoint: EndpointConfig, options: HttpEndpointOptions
) -> None:
    section = _options(parts, endpoint)
    if section.raw("backend_in_path") is not True:
        return
    taken = sorted(_SEGMENTS.intersection(item.backends))
    if taken:
        what = f'backend "{taken[0]}" has the name of a resource or operation, which a path cannot tell from it'
        section.problem("backend_in_path", what, "rename the backend")
    names = dict.fromkeys((*options.path_backends, *item.backends))
    changed = replace(options, path_backends=tuple(names))
    parts.endpoints[endpoint.name] = replace(parts.endpoints[endpoint.name], options=changed)


def _options(parts: Parts, endpoint: EndpointConfig) -> Section:
    return parts.tables["endpoints"][endpoint.name].table("options")
