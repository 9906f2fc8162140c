"""What the demo takes from the configuration, and what it needs of the machine."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from harmonyd.check import Finding, free_port, ports
from harmonyd.config.dicom import NATIVE, PERSISTENT
from harmonyd.config.model import (
    BackendConfig,
    Config,
    DicomBackendOptions,
    DicomEndpointOptions,
    DicomwebEndpointOptions,
    EndpointConfig,
    HttpEndpointOptions,
    PipelineConfig,
)
from harmonyd.daemon.build import Folders
from harmonyd.errors import HarmonydError
from harmonyd.supervision.leftovers import FILE_NAME, OwnerAlive, end_leftovers
from harmonyd.testing.pacs import VERBOSE_VARIABLE, PacsLayout

PORTS_FREE_SECS = 2.0
"""How long an earlier demo, which is just ending, may still hold its ports."""

ServiceT = TypeVar("ServiceT", BackendConfig, EndpointConfig)
_LOCAL = ("127.0.0.1", "localhost")
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class DemoFailed(HarmonydError):
    """The demo cannot go on; the detail says why."""

    title = "The demo failed"


@dataclass(frozen=True, slots=True)
class Setting:
    """The places that the demo connects."""

    root_url: str
    """Of the network, without a slash at its end."""
    base_url: str
    """Of the operations: ``{base_url}/find``."""
    dicomweb_urls: tuple[str, ...]
    """Of DICOMweb over the same backend."""
    options: DicomBackendOptions
    layout: PacsLayout


def setting_of(config: Config) -> Setting:
    """The first pipeline with an http endpoint and a dicom backend on this machine. Raises ``DemoFailed``."""
    for pipeline in config.pipelines.values():
        backends = [config.backends[name] for name in pipeline.backends[:1]]
        endpoints = [config.endpoints[name] for name in pipeline.endpoints if config.endpoints[name].service == "http"]
        network = config.networks[pipeline.networks[0]].http
        if backends and backends[0].service == "dicom" and endpoints and network is not None and network.bind_port:
            address = _EVERYWHERE.get(network.bind_address, network.bind_address)
            root = f"http://{f'[{address}]' if ':' in address else address}:{network.bind_port}"
            prefix = cast(HttpEndpointOptions, endpoints[0].options).path_prefix
            options = cast(DicomBackendOptions, backends[0].options)
            dicomweb = tuple(root + path for path in _dicomweb_prefixes(config, pipeline))
            return Setting(root, root + prefix, dicomweb, options, _layout(config, options))
    raise DemoFailed(
        "The demo needs a pipeline with an http endpoint and a dicom backend.",
        hint="Try the configuration in examples/default.",
    )


def _dicomweb_prefixes(config: Config, like: PipelineConfig) -> Iterator[str]:
    """Where the same backend is a DICOMweb server on the same network."""
    for pipeline in config.pipelines.values():
        if (pipeline.networks[:1], pipeline.backends[:1]) == (like.networks[:1], like.backends[:1]):
            for name in pipeline.endpoints:
                options = config.endpoints[name].options
                if isinstance(options, DicomwebEndpointOptions):
                    yield options.path_prefix


def _layout(config: Config, options: DicomBackendOptions) -> PacsLayout:
    if options.host not in _LOCAL:
        raise DemoFailed(
            f"The demo brings its own PACS, but the backend is {options.aet} at {options.host}:{options.port}.",
            hint="Set its host to 127.0.0.1, or try the configuration in examples/default.",
        )
    destinations = {options.move_destination_aet: options.incoming_store_port}
    return PacsLayout(config.storage.path / "demo-pacs", options.port, options.aet, destinations)


def prepare(config: Config) -> Config:
    """Check that the demo can run, end what a killed one left, and send the log to a file. Blocks for some seconds.

    Raises ``DemoFailed``, which names who holds a port.
    """
    setting = setting_of(config)
    _end_leftovers(config)
    give_up = time.monotonic() + PORTS_FREE_SECS
    while taken := [finding.text for finding in _ports(config, setting) if not finding.ok]:
        if time.monotonic() > give_up:
            raise DemoFailed("\n".join(taken))
        time.sleep(0.05)
    return with_log_file(config)


def _ports(config: Config, setting: Setting) -> Iterator[Finding]:
    yield from ports(config)
    yield free_port("the demo's PACS", "0.0.0.0", setting.layout.port)


def _end_leftovers(config: Config) -> None:
    try:
        end_leftovers(Folders(config.storage.path).run / FILE_NAME)
    except (OwnerAlive, OSError, ValueError):
        return  # the daemon will say so when it matters


def with_engine(config: Config, engine: str) -> Config:
    """The same configuration with another DIMSE engine for all that is DICOM."""

    def changed(configured: Mapping[str, ServiceT]) -> dict[str, ServiceT]:
        return {name: _with_engine(item, engine) for name, item in configured.items()}

    return dataclasses.replace(
        config, backends=changed(config.backends), endpoints=changed(config.endpoints)
    )


def _with_engine(item: ServiceT, engine: str) -> ServiceT:
    options = item.options
    if not isinstance(options, DicomBackendOptions | DicomEndpointOptions) or options.engine == engine:
        return item
    mode = NATIVE if engine == NATIVE else PERSISTENT
    return dataclasses.replace(item, options=dataclasses.replace(options, engine=engine, store_scp=mode))


def with_log_file(config: Config) -> Config:
    """The log goes beside the children's, so that questions and answers stay readable; not when it was asked for."""
    if config.logging.file is not None or os.environ.get(VERBOSE_VARIABLE) == "1":
        return config
    folder = Folders(config.storage.path).log
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoFailed(f"Cannot use the storage path {config.storage.path}: {error.strerror}.") from error
    logging = dataclasses.replace(config.logging, file=folder / "harmonyd.log")
    return dataclasses.replace(config, logging=logging)


def shown_path(path: Path) -> str:
    """A path for people: relative to where they are, when it is below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
