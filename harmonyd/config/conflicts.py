"""What no table sees alone: ports and paths that two of them claim, and defaults an endpoint takes from a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from harmonyd.config.daemon import ControlConfig
from harmonyd.config.dicom import ANY_ADDRESS, NATIVE, PER_ASSOCIATION, settle_receiver
from harmonyd.config.fields import Section
from harmonyd.config.model import (
    DicomBackendOptions,
    DicomDefaults,
    DicomEndpointOptions,
    PipelineConfig,
    StorageBackendOptions,
)
from harmonyd.config.pipelines import Parts
from harmonyd.tls import TlsServer

BUILT_IN_PATHS = ("/livez", "/readyz", "/metrics", "/openapi.json", "/docs")
_OWN_FOLDERS = ("spool", "quarantine", "run", "log", "operations", "cache")
_ANY_ADDRESS = ("0.0.0.0", "::")
_DEFAULTS = (("local_aet", "aet"), ("bind_addr", "bind_address"), ("port", "bind_port"))
"""Key of a dicom endpoint, and the key of ``[network.NAME.dicom]`` that is its default."""


def apply_network_defaults(parts: Parts) -> None:
    """Fill in what a dicom endpoint leaves open from ``[network.NAME.dicom]`` of the pipelines that name it."""
    for name, options in parts.dicom_endpoints().items():
        section = parts.tables["endpoints"][name]
        networks = _networks_of(name, parts)
        changes: dict[str, Any] = {}
        for key, default_key in _DEFAULTS:
            if key not in section.table("options"):
                values = {network: getattr(dicom, default_key) for network, dicom in networks.items()}
                value = _one_default(section, key, default_key, values)
                if value is not None:
                    changes[key] = value
        endpoint = parts.endpoints[name]
        if changes:
            changed = settle_receiver(section.table("options"), replace(options, **changes))
            parts.endpoints[name] = replace(endpoint, options=changed)


def _networks_of(endpoint: str, parts: Parts) -> Mapping[str, DicomDefaults]:
    pipelines = [item for item in parts.pipelines.values() if endpoint in item.endpoints]
    names = {name for item in pipelines for name in item.networks if name in parts.networks}
    return {name: parts.networks[name].dicom for name in sorted(names)}


def _one_default(section: Section, key: str, default_key: str, values: Mapping[str, object]) -> object:
    given = {network: value for network, value in values.items() if value is not None}
    if len(set(given.values())) > 1:
        places = ", ".join(f"[network.{network}.dicom] {default_key} = {value}" for network, value in given.items())
        section.table("options").problem(key, f"missing, and its networks differ: {places}", "set it here")
        return None
    return next(iter(given.values()), None)


@dataclass(frozen=True, slots=True)
class _Claim:
    """A TCP port somebody listens on; 0: the passed socket that ``address`` names."""

    section: Section
    key: str
    port: int
    address: str
    receiver_mode: str | None = None
    """``store_scp`` of a dicom backend, or of an endpoint that can share: such claims share a port when they agree."""
    aet: str = ""
    """What an endpoint that can share answers to."""
    tls: TlsServer | None = None
    """Claims that share a port agree on it."""

    def clashes(self, other: _Claim) -> bool:
        if self.port != other.port:
            return False
        if self.receiver_mode is not None and self.shares(other):
            same_aet = bool(self.aet and self.aet == other.aet)
            return self.receiver_mode != other.receiver_mode or same_aet or self.tls != other.tls
        return self.address == other.address or self.address in _ANY_ADDRESS or other.address in _ANY_ADDRESS

    def shares(self, other: _Claim) -> bool:
        """Whether one socket could be that of both."""
        return None not in (self.receiver_mode, other.receiver_mode) and self.address == other.address


def check_ports(parts: Parts, control_section: Section, control: ControlConfig) -> None:
    """Note every two that would listen on the same port."""
    claims = list(_claims(parts))
    if control.bind_address is not None:
        claims.append(_Claim(control_section, "bind_port", control.bind_port, control.bind_address))
    for one, two in combinations(claims, 2):
        if one.clashes(two):
            if one.aet and one.aet == two.aet:
                what = f"[{one.section.name}] answers to {one.aet} on port {one.port} already"
                remedy = "give one of them another port, or another AE title"
            elif one.receiver_mode and two.receiver_mode and one.address != two.address:
                what = f"port {one.port} is shared with [{one.section.name}], which has it on {one.address}"
                remedy = "who shares a port listens on the same address; or give one of them another port"
            elif one.receiver_mode and one.receiver_mode == two.receiver_mode:
                what = f"port {one.port} is shared with [{one.section.name}], and TLS there is not the same"
                remedy = "a port has one certificate for all: give the same tables for TLS, or another port"
            elif one.receiver_mode and two.receiver_mode:
                what = f'store_scp is "{two.receiver_mode}", and "{one.receiver_mode}" in [{one.section.name}]'
                remedy = f"backends that share port {one.port} share one receiver: use one mode, or two ports"
            else:
                place = f"port {one.port}" if one.port else one.address
                what = f"{place} is that of [{one.section.name}] {one.key} in {one.section.file}"
                remedy = "give one of them another"
            two.section.problem(two.key, what, remedy)


def _claims(parts: Parts) -> Iterator[_Claim]:
    for name, network in parts.networks.items():
        if network.http is not None:
            section = parts.tables["network"][name].table("http")
            key = "bind_port" if network.http.bind_port else "bind_address"
            yield _Claim(section, key, network.http.bind_port, network.http.bind_address)
    for name, endpoint in parts.dicom_endpoints().items():
        options = parts.tables["endpoints"][name].table("options")
        shares = endpoint.store_scp in (PER_ASSOCIATION, NATIVE)
        how = (endpoint.store_scp, endpoint.local_aet, endpoint.tls) if shares else ()
        yield _Claim(options, "port", endpoint.port, endpoint.bind_addr, *how)
    for name, backend in _receiving_backends(parts).items():
        options = parts.tables["backends"][name].table("options")
        yield _Claim(
            options, "incoming_store_port", backend.incoming_store_port, ANY_ADDRESS, backend.store_scp,
            tls=backend.incoming_store_tls,
        )  # fmt: skip


def _receiving_backends(parts: Parts) -> dict[str, DicomBackendOptions]:
    """The dicom backends that are asked for something; no other ever moves, so no other listens."""
    reached = (name for item in parts.pipelines.values() if parts.is_asked(item) for name in item.backends)
    found = ((name, parts.backends[name].options) for name in dict.fromkeys(reached) if name in parts.backends)
    return {name: options for name, options in found if isinstance(options, DicomBackendOptions)}


def check_paths(parts: Parts, management: Section, management_base: str) -> None:
    """Note every endpoint whose path is a built-in one, or that of another endpoint on the same network."""
    if management_base in BUILT_IN_PATHS:
        management.problem("base_path", "a built-in path", "choose another path")
    owners: dict[tuple[str, str], str] = {}
    told: set[tuple[str, str]] = set()
    for endpoint, prefix, network in _served_paths(parts):
        section = parts.tables["endpoints"][endpoint].table("options")
        owner = owners.setdefault((network, prefix), endpoint)
        if owner != endpoint and (owner, endpoint) not in told:
            told.add((owner, endpoint))
            other = parts.tables["endpoints"][owner]
            what = f'endpoints "{owner}" (in {other.file}) and "{endpoint}" have the same path on network "{network}"'
            section.problem("path_prefix", what, "give one of them another path")
    for endpoint, prefix in {name: prefix for name, prefix, _ in _served_paths(parts)}.items():
        _check_built_in(parts.tables["endpoints"][endpoint].table("options"), prefix, management_base)


def _served_paths(parts: Parts) -> Iterator[tuple[str, str, str]]:
    """(endpoint, prefix, network) of all that is served, each once or more."""
    for item in parts.pipelines.values():
        for endpoint, options in parts.http_endpoints(item):
            yield from ((endpoint.name, options.path_prefix, network) for network in item.networks)


def _check_built_in(section: Section, prefix: str, management_base: str) -> None:
    if prefix in BUILT_IN_PATHS:
        section.problem("path_prefix", "a built-in path", "choose another path")
    elif prefix == management_base:
        what = "the path of the management API ([management] base_path)"
        section.problem("path_prefix", what, "choose another path, or another base_path")


def check_folders(parts: Parts, storage: Path) -> None:
    """Objects are not kept among what harmonyd looks after by itself."""
    for kind, key, name, folder in _kept_folders(parts):
        for own in _OWN_FOLDERS:
            if folder.is_relative_to(storage / own):
                what = f'"{own}" below the storage path is harmonyd\'s own'
                parts.tables[kind][name].table("options").problem(key, what, "choose a folder beside it")


def _kept_folders(parts: Parts) -> Iterator[tuple[str, str, str, Path]]:
    for name, backend in parts.backends.items():
        if isinstance(backend.options, StorageBackendOptions):
            yield "backends", "path", name, backend.options.path
    for name, endpoint in parts.endpoints.items():
        if isinstance(endpoint.options, DicomEndpointOptions) and endpoint.options.storage_dir is not None:
            yield "endpoints", "storage_dir", name, endpoint.options.storage_dir


def check_once(parts: Parts) -> None:
    """An endpoint that two pipelines name on one network (or a dicom endpoint at all) would have two owners."""
    owners: dict[tuple[str, str], PipelineConfig] = {}
    for item in parts.pipelines.values():
        for name in item.endpoints:
            is_dicom = name in parts.endpoints and isinstance(parts.endpoints[name].options, DicomEndpointOptions)
            for network in [""] if is_dicom else item.networks:
                owner = owners.setdefault((name, network), item)
                if owner is not item:
                    what = f'endpoint "{name}" is used by pipeline "{owner.name}" too'
                    section = parts.tables["pipelines"][item.name]
                    section.problem("endpoints", what, "an endpoint belongs to one pipeline: define a second endpoint")
                    break
