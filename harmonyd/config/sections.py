"""The tables of ``config.toml`` that stand alone: who we are, where we listen, what we keep, how we log."""

from __future__ import annotations

from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path

from harmonyd.config import checks, tls
from harmonyd.config.daemon import (
    CacheConfig,
    LoggingConfig,
    ManagementConfig,
    OperationsConfig,
    SpoolConfig,
    SupervisionConfig,
    TelemetryConfig,
    TracingConfig,
    WebConfig,
)
from harmonyd.config.errors import Report, nearest
from harmonyd.config.fields import Section
from harmonyd.config.model import DicomDefaults, HttpListener, LimitsConfig, NetworkConfig, StorageConfig

_LEVELS = {level: level for level in ("debug", "info", "warning", "error")} | {"trace": "debug", "warn": "warning"}
_MINUTE_SECS = 60.0
_HOUR_SECS = 3600.0
_DAY_SECS = 24 * _HOUR_SECS
_MB = 1000**2
_GB = 1000**3


def proxy(section: Section) -> tuple[str, str]:
    """``[proxy]``: our id and log level. (The reader has used ``pipelines_path``.)"""
    section.require("id")
    identity = section.text("id", "", checks.plain_text)
    level = section.choice("log_level", "info", _LEVELS)
    if level == "trace":
        section.warn("log_level", '"trace" is taken as "debug", the most there is')
    section.raw("pipelines_path")
    transforms_folder(section)
    section.ignore(["store_dir"], "[storage.options] path says where files go")
    section.ignore(["jwks_cache_dir"], "key sets that are fetched are kept in memory")
    section.finish()
    return identity, _LEVELS[level]


def transforms_folder(section: Section) -> str:
    """``[proxy] transforms_path``: where specifications are, relative to the configuration file."""
    return section.text("transforms_path", "transforms", checks.path)


def network(name: str, section: Section, base: Path) -> NetworkConfig:
    """``[network.NAME]``; ``base`` is the folder of config.toml."""
    section.ignore(["enable_wireguard", "interface"], "harmonyd has no WireGuard; traffic takes the host's own routes")
    made = _http_network(name, section.table("http"), base) if "http" in section else NetworkConfig(name, None)
    dicom = _dicom_defaults(section.table("dicom"))
    section.raw("http")
    links = section.strings("middleware")
    section.finish()
    return replace(made, dicom=dicom, middleware=links)


def _http_network(name: str, section: Section, base: Path) -> NetworkConfig:
    secured = tls.server(section.table("tls"), base) if "tls" in section else None
    default = NetworkConfig(name, None).hsts_max_age_secs
    hsts_secs = section.integer("hsts_max_age_secs", default, 0, 10 * default)
    section.raw("tls")
    proxies = section.strings("trusted_proxies", checks.address_block)
    listener = _listener(section)
    if secured is None:
        _check_plain(section, listener)
    return NetworkConfig(name, listener, trusted_proxies=proxies, tls=secured, hsts_max_age_secs=hsts_secs)


def _check_plain(section: Section, listener: HttpListener) -> None:
    if "hsts_max_age_secs" in section:
        section.warn("hsts_max_age_secs", "it has no effect without a table tls")
    address = listener.bind_address
    if section.sound and checks.is_ip_address(address) and not checks.is_loopback(address):
        text = "what is asked and answered here crosses the network as it is: add a table tls, or use 127.0.0.1"
        section.warn("bind_address", text)


def _listener(section: Section) -> HttpListener:
    section.require("bind_address")
    address = section.text("bind_address", "127.0.0.1", checks.listen_address)
    port = 0
    if address.startswith(checks.SYSTEMD):
        section.ignore(["bind_port"], "the socket unit says which port")
    else:
        section.require("bind_port")
        port = section.port("bind_port", 8080)
    section.raw("trusted_proxies")
    section.finish()
    return HttpListener(address, port)


def _dicom_defaults(section: Section) -> DicomDefaults:
    defaults = DicomDefaults(
        section.text("bind_address", "0.0.0.0", checks.ip_address) if "bind_address" in section else None,
        section.port("bind_port", 11112) if "bind_port" in section else None,
        section.text("aet", "HARMONY_SCP", checks.ae_title) if "aet" in section else None,
    )
    for key in ("bind_address", "bind_port", "aet"):
        section.raw(key)
    section.finish()
    return defaults


def storage(section: Section, base: Path) -> StorageConfig:
    """``[storage]`` and ``[storage.options]``; ``base`` is the folder of config.toml."""
    section.choice("backend", "filesystem", ["filesystem"])
    options = section.table("options")
    path = base / options.text("path", "./tmp", checks.path)
    age_hours = options.number("retention_max_age_hours", 24.0, 0.01, 24 * 365 * 100)
    size_gb = options.number("retention_max_gb", 5.0, 0.001, 1_000_000)
    options.finish()
    section.finish()
    return StorageConfig(path.resolve(), age_hours * _HOUR_SECS, round(size_gb * _GB))


def limits(section: Section) -> LimitsConfig:
    """``[limits]``."""
    default = LimitsConfig()
    result = LimitsConfig(
        max_json_bytes=section.integer("max_json_bytes", default.max_json_bytes, 1_000, 100_000_000),
        max_body_bytes=section.integer("max_body_bytes", default.max_body_bytes, 1_000, 1_000 * _GB),
        max_connections=section.integer("max_connections", default.max_connections, 1, 100_000),
        request_timeout_secs=section.number("request_timeout_secs", default.request_timeout_secs, 1, _DAY_SECS),
        head_timeout_secs=section.number("head_timeout_secs", default.head_timeout_secs, 1, _HOUR_SECS),
        min_bytes_per_sec=section.integer("min_bytes_per_sec", default.min_bytes_per_sec, 0, 1_000_000),
        max_head_bytes=section.integer("max_head_bytes", default.max_head_bytes, 1_000, 1_000_000),
        max_header_fields=section.integer("max_header_fields", default.max_header_fields, 10, 10_000),
    )
    section.finish()
    return result


def logging(section: Section, base: Path, level: str) -> LoggingConfig:
    """``[logging]``; a path alone switches logging to the file on."""
    path = section.text("log_file_path", "", lambda value: checks.path(value) if value else None)
    to_file = section.flag("log_to_file", bool(path))
    if to_file and not path and section.sound:
        section.problem("log_to_file", "log_file_path is missing", "say which file")
    log_format = section.choice("format", "text", ["text", "json"])
    names_patients = section.flag("patient_identifiers", False)
    if names_patients:
        section.warn("patient_identifiers", "the log will hold what identifies patients; protect it like the images")
    section.finish()
    file = (base / path).resolve() if to_file and path else None
    return LoggingConfig(level, log_format, file, names_patients)


_SUPERVISION_RANGES: dict[str, tuple[float, float]] = {
    "startup_deadline_secs": (1, _HOUR_SECS),
    "probe_interval_secs": (0.1, _HOUR_SECS),
    "probe_timeout_secs": (0.1, _HOUR_SECS),
    "probe_misses": (1, 100),
    "stop_grace_secs": (0.1, _HOUR_SECS),
    "stable_after_secs": (0.1, _DAY_SECS),
    "backoff_initial_secs": (0.01, _HOUR_SECS),
    "backoff_max_secs": (0.01, _DAY_SECS),
    "fatal_after_failures": (1, 1000),
    "fatal_retry_secs": (1, _DAY_SECS),
    "log_max_bytes": (10_000, _GB),
    "log_backups": (0, 100),
    "ring_buffer_bytes": (1_000, 100_000_000),
    "memory_limit_mb": (0, 1_000_000),
}


def supervision(section: Section) -> SupervisionConfig:
    """``[supervision]``: keys and defaults are those of the model; a default that is whole stays a whole number."""
    defaults = SupervisionConfig()
    values: dict[str, float] = {}
    confine = section.flag("confine_children", defaults.confine_children)
    for spec in fields(SupervisionConfig):
        if spec.name == "confine_children":
            continue
        low, high = _SUPERVISION_RANGES[spec.name]
        default = getattr(defaults, spec.name)
        if isinstance(default, int):
            values[spec.name] = section.integer(spec.name, default, int(low), int(high))
        else:
            values[spec.name] = section.number(spec.name, default, low, high)
    if section.sound and values["backoff_initial_secs"] > values["backoff_max_secs"]:
        section.problem("backoff_initial_secs", "more than backoff_max_secs", "raise backoff_max_secs or lower this")
    section.finish()
    return SupervisionConfig(**values, confine_children=confine)  # type: ignore[arg-type]


def spool(section: Section) -> SpoolConfig:
    """``[spool]``; sizes are in 10⁶ and 10⁹ bytes."""
    default = SpoolConfig()
    hours = section.number("give_up_after_hours", default.give_up_after_secs / _HOUR_SECS, 0.01, 24 * 365)
    result = SpoolConfig(
        min_free_bytes=section.integer("min_free_mb", default.min_free_bytes // _MB, 1, 1_000_000_000) * _MB,
        ballast_bytes=section.integer("ballast_mb", default.ballast_bytes // _MB, 0, 1_000_000) * _MB,
        max_waiting=section.integer("max_waiting", default.max_waiting, 1, 1_000_000_000),
        max_waiting_bytes=round(section.number("max_waiting_gb", default.max_waiting_bytes / _GB, 0, 1_000_000) * _GB),
        max_attempts=section.integer("max_attempts", default.max_attempts, 1, 1_000_000),
        give_up_after_secs=hours * _HOUR_SECS,
        retry_max_secs=section.number("retry_max_secs", default.retry_max_secs, 1, _DAY_SECS),
        max_unasked_bytes=round(section.number("max_unasked_gb", default.max_unasked_bytes / _GB, 0, 1_000_000) * _GB),
    )
    section.finish()
    return result


def operations(section: Section) -> OperationsConfig:
    """``[operations]``; the size is in 10⁹ bytes."""
    default = OperationsConfig()
    minutes = section.number("keep_minutes", default.keep_secs / 60, 0.01, 7 * 24 * 60)
    result = OperationsConfig(
        max_running=section.integer("max_running", default.max_running, 1, 10_000),
        max_kept=section.integer("max_kept", default.max_kept, 1, 100_000),
        max_watchers=section.integer("max_watchers", default.max_watchers, 1, 100_000),
        keep_secs=minutes * 60,
        max_bytes=round(section.number("max_gb", default.max_bytes / _GB, 0.0001, 1_000_000) * _GB),
    )
    section.finish()
    return result


def cache(section: Section) -> CacheConfig:
    """``[cache]``; sizes are in 10⁶ and 10⁹ bytes."""
    default = CacheConfig()
    minutes = section.number("max_age_minutes", default.max_age_secs / _MINUTE_SECS, 0.01, 60 * 24 * 365)
    result = CacheConfig(
        enabled=section.flag("enabled", default.enabled),
        max_bytes=round(section.number("max_gb", default.max_bytes / _GB, 0.001, 1_000_000) * _GB),
        max_age_secs=minutes * _MINUTE_SECS,
        max_series_bytes=round(section.number("max_series_gb", default.max_series_bytes / _GB, 0.001, 1_000_000) * _GB),
        min_free_bytes=section.integer("min_free_mb", default.min_free_bytes // _MB, 1, 1_000_000_000) * _MB,
        max_prefetches=section.integer("max_prefetches", default.max_prefetches, 0, 100),
    )
    if section.sound and result.max_series_bytes > result.max_bytes:
        result = replace(result, max_series_bytes=result.max_bytes)
    section.finish()
    return result


def management(
    section: Section, networks: dict[str, NetworkConfig], known: set[str], guarded: frozenset[str] = frozenset()
) -> ManagementConfig:
    """``[management]``: on a network that nobody but this machine reaches, or on one of those in ``guarded``."""
    enabled = section.flag("enabled", False)
    base = section.text("base_path", "admin", _base_path)
    named = http_network(section, networks, known)
    if enabled and named is None:
        section.problem("enabled", "network is missing", "say on which network it is served")
    elif enabled and named in networks and named not in guarded:
        _check_local(section, networks[named])
    section.finish()
    return ManagementConfig(enabled, "/" + base.strip("/"), named)


def _check_local(section: Section, network: NetworkConfig) -> None:
    listener = network.http
    if listener is not None and not checks.is_loopback(listener.bind_address):
        what = f"this network listens on {listener.bind_address}, and nothing asks who it is that asks there"
        remedy = f"name one whose bind_address is 127.0.0.1 or ::1, or give [network.{network.name}] middleware"
        section.problem("network", what, remedy)


def _base_path(value: str) -> str | None:
    """Harmony writes it without a leading slash; the root is not a path that can be kept free."""
    return "empty" if not value.strip("/") else checks.path_prefix("/" + value.removeprefix("/"))


def telemetry(section: Section, networks: dict[str, NetworkConfig], known: set[str]) -> TelemetryConfig:
    """``[telemetry]``."""
    result = TelemetryConfig(
        http_network(section, networks, known),
        metrics=section.flag("metrics", TelemetryConfig().metrics),
        tracing=_tracing(section.table("tracing")),
    )
    section.finish()
    return result


def _tracing(section: Section) -> TracingConfig | None:
    """``[telemetry.tracing]``."""
    enabled = section.flag("enabled", False)
    default = TracingConfig()
    endpoint = section.text("endpoint", default.endpoint, lambda value: checks.base_url(value) if value else None)
    ratio = section.number("sample_ratio", default.sample_ratio, 0, 1)
    if enabled and not _has_opentelemetry():
        section.problem("enabled", "OpenTelemetry is not installed", "pip install harmonyd[tracing]")
    section.finish()
    return TracingConfig(endpoint, ratio) if enabled else None


def _has_opentelemetry() -> bool:
    try:
        return all(find_spec(name) for name in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"))
    except ModuleNotFoundError:
        return False


def web(section: Section) -> WebConfig:
    """``[web]``."""
    default = WebConfig()
    result = WebConfig(
        documentation=section.flag("documentation", default.documentation),
        compression=section.flag("compression", default.compression),
    )
    section.finish()
    return result


def http_network(section: Section, networks: dict[str, NetworkConfig], known: set[str]) -> str | None:
    """The ``network`` key: a network that listens for HTTP. ``known`` holds all names, those with mistakes too."""
    if "network" not in section:
        section.raw("network")
        return None
    name = section.text("network")
    if isinstance(section.raw("network"), str) and name not in known:
        section.problem("network", "no such network", "define it", nearest(name, known))
    elif name in networks and networks[name].http is None:
        section.problem("network", f"this network has no [network.{name}.http]", "add it, or name another network")
    return name


_SERVICES = ("http", "dicom", "echo", "dicomweb", "fhir", "jmix", "mock_dicom", "management")
_MIDDLEWARE_TYPES = (
    *("passthru", "path_filter", "metadata", "basic_auth", "jwt_auth", "jwtauth", "auth", "connect"),
    *("json_extractor", "json", "transform", "metadata_transform", "dicomweb_bridge", "dicomweb", "jmix_builder"),
    *("route", "rate_limit", "concurrency"),
    *("api_key", "client_certificate", "calling_aet", "authorize"),
)


def registrations(sections: list[Section], report: Report) -> None:
    """``[services.*]`` and ``[middleware_types.*]``: known names are accepted; ``module`` means nothing here."""
    for section in sections:
        known = _SERVICES if section.name == "services" else _MIDDLEWARE_TYPES
        with_module = []
        for name, entry in section.tables().items():
            if name not in known:
                section.problem(name, "unknown registration", "only built-in types exist", nearest(name, known))
            if entry.raw("module") is not None:
                with_module.append(name)
            entry.finish()
        if with_module:
            names = ", ".join(with_module)
            text = f"`module` is accepted, without effect: built-in types need no registration ({names})"
            report.warnings.append(f"{section.file}: [{section.name}]: {text}")
