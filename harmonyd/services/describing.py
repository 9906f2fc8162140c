"""What an endpoint offers: its service says so, or that of the backend behind it, and middleware takes some away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harmonyd.config.model import (
    ASKED_SERVICES,
    Config,
    EndpointConfig,
    HttpEndpointOptions,
    MiddlewareConfig,
    PipelineConfig,
)
from harmonyd.describe import Answer, Description, Media, Operation, Parameter, segments_of
from harmonyd.middleware.limits import LIMITS
from harmonyd.middleware.metadata import Metadata
from harmonyd.middleware.path_filter import PathFilter
from harmonyd.services.dicom import describing as dimse
from harmonyd.services.dicomweb import describing as dicomweb
from harmonyd.services.http import describing as http

_BY_BACKEND: Mapping[str, Callable[[str, Sequence[str]], Description]] = {
    "http": http.forwarding,
    "storage": http.keeping,
    "echo": http.echoing,
}


def described(config: Config, pipeline: PipelineConfig, endpoint: EndpointConfig) -> Description:
    """Return what ``endpoint`` of ``pipeline`` offers, by the configuration alone."""
    options = endpoint.options
    assert isinstance(options, HttpEndpointOptions), "only these are reached over HTTP"
    links = [config.middleware[name] for name in pipeline.middleware]
    fixed = _fixed(links)
    chosen = [name for name in fixed.get("backend", "").split(",") if name in pipeline.backends]
    backends = chosen or list(pipeline.backends)
    if not backends or fixed.get("skip_backends") == "true":
        return Description(endpoint.name, pipeline.description, ())
    found = _offered(endpoint, options, config.backends[backends[0]].service, fixed.get("dimse_op"))
    if endpoint.service == "http" and config.backends[backends[0]].service in ASKED_SERVICES and "dimse_op" in fixed:
        found = _at_every_path(found, links, options.methods)
    kept = _allowed(found, links, options.methods)
    for link in links:
        if link.type == "transform":
            kept = _reshaped(kept, link.options)
    if any(link.type in LIMITS for link in links):
        kept = kept.having(problems=[429])
    if len(backends) > 1:
        instead = "Instead of all" if pipeline.fan_out else f"Instead of {backends[0]}"
        which = [Parameter("backend", instead, {"enum": backends})]
        if options.backend_header:
            which.append(Parameter(options.backend_header, instead, {"enum": backends}, "header"))
        kept = kept.having(parameters=which, problems=[403])
    said = pipeline.description.strip().rstrip(".")
    return replace(kept, text=f"{said}. {found.text}" if said else found.text)


def _reshaped(found: Description, options: Mapping[str, Any]) -> Description:
    """What bodies look like that a specification makes, or reads, is for it to know."""
    operations = found.operations
    if options["apply"] in ("left", "both"):
        operations = tuple(item if item.body is None else replace(item, body=_open(item.body)) for item in operations)
    if options["apply"] in ("right", "both"):
        made: Media | None = None if options["per_record"] else {options["content_type"]: {}}
        operations = tuple(replace(item, answers=_answers(item.answers, made)) for item in operations)
    return replace(found, operations=operations)


def _answers(answers: Mapping[int, Answer], made: Media | None) -> dict[int, Answer]:
    """Answers of 2xx with the one form that is ``made``, or (None) with all their forms, of whatever shape."""
    return {
        status: replace(answer, media=made or _open(answer.media)) if answer.media and status < 300 else answer
        for status, answer in answers.items()
    }


def _open(media: Media) -> Media:
    return {name: {} for name in media}


def _offered(
    endpoint: EndpointConfig, options: HttpEndpointOptions, backend: str, operation: str | None
) -> Description:
    if endpoint.service == "dicomweb":
        return dicomweb.description(endpoint.name)
    if backend in ASKED_SERVICES:
        return dimse.description(endpoint.name, operation)
    return _BY_BACKEND[backend](endpoint.name, options.methods)


def _at_every_path(found: Description, links: Sequence[MiddlewareConfig], methods: Sequence[str]) -> Description:
    """An operation that middleware has fixed, at each path that filters name, and with each method that is allowed."""
    rules = [rule for link in links if link.type == "path_filter" for rule in link.options["rules"]]
    paths = dict.fromkeys(rule.rstrip("/") for rule in rules or [""])
    usual = [method for method in ("GET", "POST", "PUT") if method in methods] or ["POST"]
    at_each = (_moved(item, method, path) for item in found.operations for path in paths for method in usual)
    return replace(found, operations=tuple(at_each))


def _moved(item: Operation, method: str, path: str) -> Operation:
    """The same operation there. A GET has no body: middleware makes one of the query."""
    names = [segment[1:-1] for segment in segments_of(path) if segment.startswith("{") and segment.endswith("}")]
    variables = [Parameter(name, "Segment of the path", {"type": "string"}, "path") for name in names]
    body = None if method == "GET" else item.body
    return replace(item, method=method, path=path, body=body, parameters=(*item.parameters, *variables))


def _fixed(links: Sequence[MiddlewareConfig]) -> Mapping[str, str]:
    """Metadata that middleware sets, whatever the request is."""
    fixed: dict[str, str] = {}
    for link in links:
        if link.type == "metadata":
            fixed |= Metadata(link.name, link.options).entries
    return fixed


def _allowed(found: Description, links: Sequence[MiddlewareConfig], methods: Sequence[str]) -> Description:
    filters = [PathFilter(link.name, link.options["rules"]) for link in links if link.type == "path_filter"]
    kept = (
        item
        for item in found.operations
        if (not methods or item.method in methods) and all(each.allows(item.path or "/") for each in filters)
    )
    return replace(found, operations=tuple(kept))
