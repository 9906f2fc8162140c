"""DICOMweb endpoints among the other parts: Harmony's bridge, and the backend that they need."""

from __future__ import annotations

from harmonyd.config.middleware import BRIDGES
from harmonyd.config.model import (
    ASKED_SERVICES,
    DicomBackendOptions,
    DicomwebEndpointOptions,
    EndpointConfig,
    PipelineConfig,
)
from harmonyd.config.pipelines import Parts


def settle(parts: Parts) -> None:
    """Make DICOMweb endpoints of the http endpoints beside a bridge; note each whose backends are not dicom ones."""
    for item in parts.pipelines.values():
        _apply_bridge(parts, item)
        _check_backend(parts, item)


def _apply_bridge(parts: Parts, item: PipelineConfig) -> None:
    links = (parts.middleware.get(name) for name in item.middleware)
    bridge = next((link for link in links if link is not None and link.type in BRIDGES), None)
    if bridge is None:
        return
    bridged = False
    for endpoint, options in parts.http_endpoints(item):
        if endpoint.service == "http":
            section = parts.tables["endpoints"][endpoint.name].table("options")
            if options.methods:
                section.problem("methods", "a DICOMweb endpoint decides by itself", "remove the key")
            made = DicomwebEndpointOptions(options.path_prefix, backend_header=options.backend_header)
            parts.endpoints[endpoint.name] = EndpointConfig(endpoint.name, "dicomweb", made)
        bridged = bridged or endpoint.service in ("http", "dicomweb")
    if not bridged:
        where = parts.tables["pipelines"][item.name]
        where.problem(
            "middleware", f'"{bridge.name}" has no http endpoint to make DICOMweb of', "add one, or remove it"
        )


def _check_backend(parts: Parts, item: PipelineConfig) -> None:
    """A question may go to any backend of the pipeline, so that each must understand it."""
    names = [endpoint.name for endpoint, _ in parts.http_endpoints(item) if endpoint.service == "dicomweb"]
    if not names:
        return
    section = parts.tables["pipelines"][item.name]
    others = [n for n in item.backends if n in parts.backends and parts.backends[n].service not in ASKED_SERVICES]
    if others:
        what = f'endpoint "{names[0]}" is DICOMweb, and backend "{others[0]}" is neither dicom nor dicomweb'
        section.problem("backends", what, "give it a pipeline of its own")
    elif not item.backends:
        what = f'endpoint "{names[0]}" is DICOMweb, and the pipeline has no dicom backend'
        section.problem("backends", what, 'add a backend with service = "dicom"')
    for name in item.backends:
        _check_model(parts, name)
    for name in item.middleware:
        _check_transform(parts, item, name, names[0])


def _check_transform(parts: Parts, item: PipelineConfig, name: str, endpoint: str) -> None:
    """A DICOMweb answer is made of the records of several questions, which therefore have to stay records."""
    link = parts.middleware.get(name)
    if link is None or link.type != "transform" or link.options["apply"] == "left" or link.options["per_record"]:
        return
    what = f'"{name}" transforms whole answers, and endpoint "{endpoint}" needs the single records'
    remedy = 'set its per_record = true, or apply = "left"'
    parts.tables["pipelines"][item.name].problem("middleware", what, remedy)


def _check_model(parts: Parts, name: str) -> None:
    options = parts.backends[name].options if name in parts.backends else None
    if isinstance(options, DicomBackendOptions) and options.query_model == "patient":
        section = parts.tables["backends"][name].table("options")
        what = "DICOMweb's resources have no patient above them: they are asked for in the Study Root model"
        section.problem("query_model", what, "remove it, or use a backend of its own")
