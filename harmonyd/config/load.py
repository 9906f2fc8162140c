"""From files to one frozen, validated model; or to every mistake in them at once."""

from __future__ import annotations

from pathlib import Path

from harmonyd.config import (
    audit,
    chains,
    conflicts,
    control,
    dicomweb,
    fan_out,
    middleware,
    pipelines,
    sections,
    services,
)
from harmonyd.config.daemon import ControlConfig
from harmonyd.config.errors import ConfigError, Report
from harmonyd.config.fields import Section
from harmonyd.config.model import Config
from harmonyd.config.pipelines import Parts
from harmonyd.config.reader import Layers, read_layers


def load(path: Path) -> Config:
    """Read ``path`` (config.toml) and the pipeline files it points to, and validate everything.

    Nothing is started, created or connected to. Relative paths are taken from the folder of ``path``; those in the
    result are absolute. Raises ``ConfigError`` with all mistakes of all files.
    """
    report = Report()
    layers = read_layers(path, report)
    if layers is None:
        raise ConfigError(report.problems)
    config = _build(path, layers, report)
    if report.problems:
        raise ConfigError(sorted(report.problems, key=lambda problem: (problem.file != path, problem.file)))
    return config


def _build(path: Path, layers: Layers, report: Report) -> Config:
    """The model; only to be used when nothing was noted."""
    base = path.absolute().parent
    main = layers.main
    identity, level = sections.proxy(main.table("proxy"))
    parts = _parts(layers, base)
    known_networks = set(layers.definitions["network"])
    guarded = chains.settle(parts)
    management = sections.management(main.table("management"), parts.networks, known_networks, guarded)
    storage = sections.storage(main.table("storage"), base)
    controlled = control.control(main.table("control"), base, storage.path)
    _check_together(parts, main, management.base_path, controlled, storage.path)
    sections.registrations(layers.registrations, report)
    if not parts.pipelines and not report.problems:
        report.warnings.append(f"{path}: no pipeline is defined, so nothing is served")
    return Config(
        path=path.absolute(),
        id=identity,
        networks=parts.networks,
        storage=storage,
        pipelines=parts.pipelines,
        endpoints=parts.endpoints,
        backends=parts.backends,
        middleware=parts.middleware,
        limits=sections.limits(main.table("limits")),
        logging=sections.logging(main.table("logging"), base, level),
        supervision=sections.supervision(main.table("supervision")),
        spool=sections.spool(main.table("spool")),
        operations=sections.operations(main.table("operations")),
        cache=sections.cache(main.table("cache")),
        control=controlled,
        management=management,
        telemetry=sections.telemetry(main.table("telemetry"), parts.networks, known_networks),
        web=sections.web(main.table("web")),
        audit=audit.audit(main.table("audit"), base),
        warnings=tuple(report.warnings),
    )


def _parts(layers: Layers, base: Path) -> Parts:
    """Everything that has a name; what has mistakes of its own is left out, so that it causes no others."""
    tables = {kind: {n: s for n, s in found.items() if s.is_table} for kind, found in layers.definitions.items()}
    endpoints = {name: services.endpoint(name, section, base) for name, section in tables["endpoints"].items()}
    backends = {name: services.backend(name, section, base) for name, section in tables["backends"].items()}
    folders = (base / sections.transforms_folder(layers.main.table("proxy")), base)
    links = {name: middleware.middleware(name, section, folders) for name, section in tables["middleware"].items()}
    networks = {name: sections.network(name, section, base) for name, section in tables["network"].items()}
    items = {name: pipelines.pipeline(name, section) for name, section in tables["pipelines"].items()}
    return Parts(
        networks={name: network for name, network in networks.items() if tables["network"][name].sound},
        endpoints={name: endpoint for name, endpoint in endpoints.items() if endpoint is not None},
        backends={name: backend for name, backend in backends.items() if backend is not None},
        middleware={name: link for name, link in links.items() if link is not None},
        pipelines=items,
        tables=layers.definitions,
    )


def _check_together(
    parts: Parts, main: Section, management_base: str, controlled: ControlConfig, storage: Path
) -> None:
    pipelines.check_references(parts)
    dicomweb.settle(parts)
    fan_out.settle(parts)
    conflicts.apply_network_defaults(parts)
    conflicts.check_once(parts)
    conflicts.check_ports(parts, main.table("control"), controlled)
    conflicts.check_paths(parts, main.table("management"), management_base)
    conflicts.check_folders(parts, storage)
