"""``[endpoints.*]`` and ``[backends.*]``: the service decides which options there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from harmonyd.config import archive, checks, dicom
from harmonyd.config.errors import listing, nearest
from harmonyd.config.fields import NOT_BUILT, Section
from harmonyd.config.model import (
    BackendConfig,
    BackendOptions,
    DicomwebEndpointOptions,
    EchoOptions,
    EndpointConfig,
    EndpointOptions,
    HttpBackendOptions,
    HttpEndpointOptions,
    StorageBackendOptions,
)

_T = TypeVar("_T")
_Parser = Callable[[Section, Path], _T]

_NOT_AVAILABLE = {
    "management": f"the management API is {NOT_BUILT}, and [management] will switch it on",
    "fhir": 'out of scope: service = "http" carries FHIR as it does any other media type',
    "jmix": "out of scope: harmonyd has no JMIX",
    "mock_dicom": 'out of scope: test against a real PACS, such as DCMTK\'s dcmqrscp, with service = "dicom"',
}


def endpoint(name: str, section: Section, base: Path) -> EndpointConfig | None:
    """``[endpoints.NAME]``; None when a mistake was noted."""
    service, options = _service(section, base, _ENDPOINTS)
    return EndpointConfig(name, service, options) if section.sound and options is not None else None


def backend(name: str, section: Section, base: Path) -> BackendConfig | None:
    """``[backends.NAME]``; None when a mistake was noted."""
    if "targets" in section:
        section.refuse("targets", "out of scope", "a pipeline sends to its backends: write one backend for each target")
    service, options = _service(section, base, _BACKENDS)
    return BackendConfig(name, service, options) if section.sound and options is not None else None


def _service(section: Section, base: Path, parsers: Mapping[str, _Parser[_T]]) -> tuple[str, _T | None]:
    section.require("service")
    service = section.text("service")
    options = section.table("options")
    section.finish()
    if service in parsers and options.is_table:
        return service, parsers[service](options, base)
    if service in _NOT_AVAILABLE:
        section.problem("service", _NOT_AVAILABLE[service], f"available: {listing(parsers)}")
    elif service not in parsers and isinstance(section.raw("service"), str):
        section.problem("service", "unknown service", f"available: {listing(parsers)}", nearest(service, parsers))
    return service, None


def _http_endpoint(section: Section, base: Path) -> EndpointOptions:
    section.require("path_prefix")
    section.flag("backend_in_path", False)  # see config.fan_out
    options = HttpEndpointOptions(
        section.text("path_prefix", "/", checks.path_prefix).rstrip("/"),
        section.strings("methods", checks.http_method),
        backend_header=section.text("backend_header", "", checks.header_name),
    )
    section.finish()
    return options


def _dicomweb_endpoint(section: Section, base: Path) -> EndpointOptions:
    section.require("path_prefix")
    section.flag("backend_in_path", False)
    options = DicomwebEndpointOptions(
        path_prefix=section.text("path_prefix", "/", checks.path_prefix).rstrip("/"),
        backend_header=section.text("backend_header", "", checks.header_name),
        public_url=section.text("public_url", "", checks.base_url).rstrip("/"),
        max_results=section.integer("max_results", 10000, 1, 1_000_000),
        search_timeout_secs=section.milliseconds("search_timeout_ms", 60.0),
        complete_attributes=section.flag("complete_attributes", True),
        cors_origins=section.strings("cors_origins", checks.origin),
    )
    section.finish()
    return options


def _http_backend(section: Section, base: Path) -> BackendOptions:
    section.require("base_url")
    base_url = section.text("base_url", "", checks.base_url)
    options = HttpBackendOptions(
        base_url,
        section.milliseconds("connect_timeout_ms", 10.0),
        section.milliseconds("operation_timeout_ms", 3600.0),
    )
    section.finish()
    return options


def _storage_backend(section: Section, base: Path) -> BackendOptions:
    section.require("path")
    folder = section.text("path", "", checks.path)
    section.finish()
    return StorageBackendOptions((base / folder).resolve())


def _echo_backend(section: Section, base: Path) -> BackendOptions:
    section.ignore(["path_prefix"], "an echo backend answers every path")
    section.finish()
    return EchoOptions()


_ENDPOINTS: Mapping[str, _Parser[EndpointOptions]] = {
    "http": _http_endpoint,
    "echo": _http_endpoint,
    "dicomweb": _dicomweb_endpoint,
    "dicom": dicom.endpoint_options,
}
_BACKENDS: Mapping[str, _Parser[BackendOptions]] = {
    "http": _http_backend,
    "storage": _storage_backend,
    "echo": _echo_backend,
    "dicom": dicom.backend_options,
    "dicomweb": archive.backend_options,
}
