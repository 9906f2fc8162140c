"""What a changed configuration means for a daemon that runs: what it adds, changes and removes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from harmonyd.config.checks import SYSTEMD
from harmonyd.config.committing import ENDPOINT_KEYS
from harmonyd.config.errors import Problem
from harmonyd.config.model import (
    Config,
    DicomEndpointOptions,
    PipelineConfig,
)
from harmonyd.control.api import Changes
from harmonyd.daemon.named import asked_backends, dicom_endpoints, listeners, receiving_backends
from harmonyd.services.dicom.inbound import scp_config

_SETTINGS = (
    *("id", "storage", "limits", "logging", "supervision", "spool", "operations", "cache", "management", "telemetry"),
    *("web", "audit"),
)
_RESTART = "restart harmonyd to use this"


def changes(old: Config, new: Config) -> Changes:
    """Names of what differs.

    ``storescp:NAME`` is a child that is started, restarted or ended. Nothing that runs is ended on account of the
    others: ``network:NAME`` is an HTTP listener, ``pipeline:NAME`` the pipeline with its routes and middleware,
    ``backend:NAME`` where it leads, ``settings:NAME`` a table of its own.
    """
    before, after = _named(old), _named(new)
    return Changes(
        added=tuple(name for name in after if name not in before),
        changed=tuple(name for name in after if name in before and after[name] != before[name]),
        removed=tuple(name for name in before if name not in after),
    )


def refused(old: Config, new: Config) -> list[Problem]:
    """What only a daemon that starts anew can take over."""
    return [*_storage(old, new), *_control(old, new), *_passed_sockets(old, new), *_handed_over_ports(old, new)]


def has_name(config: Config, name: str) -> bool:
    """Is there something of this name, or a group of it?"""
    return any(name in (known, known.partition(":")[0]) for known in _named(config))


def _named(config: Config) -> dict[str, object]:
    """Everything by its name for the operator, as a value that is equal as long as nothing about it has changed."""
    asked = asked_backends(config)
    backends = {name: config.backends[name] for item in config.pipelines.values() for name in item.backends}
    return {
        **{f"storescp:{name}": scp_config(name, options) for name, (options, _) in dicom_endpoints(config).items()},
        **{f"storescp:incoming-{port}": aets for port, aets in _open_receivers(config).items()},
        **{f"network:{name}": (listener, *_over_http(config, name)) for listener, name in listeners(config).items()},
        **{f"backend:{name}": (backend, name in asked) for name, backend in backends.items()},
        **{f"pipeline:{name}": _pipeline(config, pipeline) for name, pipeline in config.pipelines.items()},
        **{f"settings:{name}": getattr(config, name) for name in _SETTINGS},
    }


def _over_http(config: Config, name: str) -> tuple[object, ...]:
    network = config.networks[name]
    hsts_secs = network.hsts_max_age_secs if network.tls is not None else 0
    return network.trusted_proxies, _links(config, name), network.tls, hsts_secs


def _links(config: Config, network: str) -> object:
    return [config.middleware[name] for name in config.networks[network].middleware]


def _pipeline(config: Config, pipeline: PipelineConfig) -> object:
    endpoints = [config.endpoints[name] for name in pipeline.endpoints]
    # What storescp gets to know is compared by itself.
    served = [
        (
            *(item.name, item.options.storage_dir, item.options.in_order, item.options.move_destinations),
            *(getattr(item.options, key) for key in ENDPOINT_KEYS),
        )
        if isinstance(item.options, DicomEndpointOptions)
        else item
        for item in endpoints
    ]
    return pipeline, served, [config.middleware[name] for name in pipeline.middleware]


def _open_receivers(config: Config) -> Mapping[int, frozenset[str]]:
    """Ports of the receivers for C-MOVE that start with the daemon, and the AE titles they stand for."""
    found: dict[int, frozenset[str]] = {}
    for options in receiving_backends(config):
        if options.incoming_store_port_set:
            port = options.incoming_store_port
            found[port] = found.get(port, frozenset()) | {options.move_destination_aet}
    return found


# --- what needs a restart


def _storage(old: Config, new: Config) -> Iterator[Problem]:
    if old.storage.path != new.storage.path:
        what = f"what is stored lies in {old.storage.path}, and a running daemon cannot move it"
        yield _problem(new, "storage.options", "path", what, new.storage.path)


def _control(old: Config, new: Config) -> Iterator[Problem]:
    for spec in fields(old.control):
        before, after = getattr(old.control, spec.name), getattr(new.control, spec.name)
        if before != after:
            # The value is not shown: it may be the password.
            yield _problem(new, "control", spec.name, "changed, and the control interface listens already")


def _passed_sockets(old: Config, new: Config) -> Iterator[Problem]:
    before, after = listeners(old), listeners(new)
    for listener in before.keys() ^ after.keys():
        if listener.bind_address.startswith(SYSTEMD):
            name = (before | after)[listener]
            what = f"systemd passes {listener.bind_address.removeprefix(SYSTEMD)} only when harmonyd starts"
            yield _problem(new, f"network.{name}.http", "bind_address", what)


def _handed_over_ports(old: Config, new: Config) -> Iterator[Problem]:
    """An HTTP listener is bound before anything is ended, and so cannot have a port from a storescp."""
    taken = {options.port: f"storescp:{name}" for name, (options, _) in dicom_endpoints(old).items()}
    receivers = (item.incoming_store_port for item in receiving_backends(old))
    taken |= {port: f"storescp:incoming-{port}" for port in receivers}
    for listener, name in listeners(new).items():
        if listener not in listeners(old) and listener.bind_port in taken:
            what = f"{taken[listener.bind_port]} has this port"
            yield _problem(new, f"network.{name}.http", "bind_port", what, listener.bind_port)


def _problem(config: Config, table: str, key: str, what: str, found: Any = None) -> Problem:
    return Problem(config.path, table, key, what, None if found is None else str(found), _RESTART)
