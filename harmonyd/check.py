"""``harmonyd check``: everything that can be known to be wrong before a start."""

from __future__ import annotations

import errno
import math
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from harmonyd import config as configuration
from harmonyd.config.archive_model import DicomwebBackendOptions
from harmonyd.config.model import (
    Config,
    DicomBackendOptions,
    DicomEndpointOptions,
    DicomwebEndpointOptions,
    StorageBackendOptions,
)
from harmonyd.daemon.build import Folders
from harmonyd.daemon.certificates import DAY_SECS, day
from harmonyd.daemon.engines import NATIVE, needs_dcmtk
from harmonyd.daemon.lock import LOCK_NAME, RunLock
from harmonyd.daemon.named import asked_backends
from harmonyd.daemon.process import EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK
from harmonyd.dimse.dcmtk.tools import Tool, find_tools
from harmonyd.dimse.native.ping import ping
from harmonyd.errors import HarmonydError
from harmonyd.metrics.certificates import certificate_files, certificates_in
from harmonyd.services.dicom.node import remote_node
from harmonyd.services.dicomweb.codecs import INSTALL, lacking
from harmonyd.supervision.ports import holder, holder_text

_PROBE_SECS = 10.0
MOST_CERTIFICATES = 5
"""In a file; of more only the first to expire is told."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    ok: bool
    text: str


def check(config_path: Path, *, probe: bool) -> int:
    """Print what was found, one line each; return the exit status."""
    try:
        config = configuration.load(config_path)
    except configuration.ConfigError as error:
        for problem in error.problems:
            print(f"error    {problem}")
        count = len(error.problems)
        print(f"{count} error{'s' * (count != 1)} in the configuration")
        return EXIT_CONFIGURATION
    for warning in config.warnings:
        print(f"warning  {warning}")
    for warning in _codecs(config):
        print(f"warning  {warning}")
    findings = []
    for finding in _findings(config, probe=probe):
        findings.append(finding)
        print(f"{'ok' if finding.ok else 'error':<8} {finding.text}", flush=True)
    wrong = sum(not finding.ok for finding in findings)
    print("all is well" if not wrong else f"{wrong} of {len(findings)} checks found an error")
    return EXIT_FAILED if wrong else EXIT_OK


def _findings(config: Config, *, probe: bool) -> Iterator[Finding]:
    pipelines = len(config.pipelines)
    yield Finding(True, f"configuration {config.path}: {pipelines} pipeline{'s' * (pipelines != 1)}")
    tools: dict[str, Tool] | None = None
    if needs_dcmtk(config):
        try:
            tools = find_tools()
            yield Finding(True, "; ".join(f"{tool.name} {tool.version_text} ({tool.path})" for tool in tools.values()))
        except HarmonydError as error:
            yield Finding(False, f"{error.detail}; {error.hint}")
    yield from _folders(config)
    yield from certificates(config)
    yield from ports(config, RunLock(Folders(config.storage.path).run / LOCK_NAME).holder())
    if probe:
        yield from _probes(config, tools)


def _codecs(config: Config) -> Iterator[str]:
    packages = lacking()
    for name in _used(config, "endpoints"):
        if packages and isinstance(config.endpoints[name].options, DicomwebEndpointOptions):
            yield (
                f"endpoint {name}: not installed: {', '.join(packages)}; pictures, thumbnails, and frames that have to "
                f"be decoded will be 406, all else works; {INSTALL}"
            )


def _folders(config: Config) -> Iterator[Finding]:
    folders = {config.storage.path: "storage path"}
    if config.logging.file is not None:
        folders[config.logging.file.parent] = "log folder"
    if config.audit.enabled and config.audit.file is not None:
        yield _audit_file(config.audit.file)
    for kind, configured in (("backend", config.backends), ("endpoint", config.endpoints)):
        for name in _used(config, f"{kind}s"):
            options = configured[name].options
            if isinstance(options, DicomwebBackendOptions):
                options = options.node
            if isinstance(options, DicomBackendOptions | DicomEndpointOptions) and options.storage_dir is not None:
                folders[options.storage_dir] = f"storage_dir of {kind} {name}"
            elif isinstance(options, StorageBackendOptions):
                folders[options.path] = f"path of {kind} {name}"
    for folder, what in folders.items():
        existing = next(parent for parent in (folder, *folder.parents) if _exists(parent))
        if not existing.is_dir():
            yield Finding(False, f"{what} {folder}: {existing} is no folder")
        elif not os.access(existing, os.W_OK | os.X_OK):
            yield Finding(False, f"{what} {folder}: this user may not write to {existing}")
        else:
            yield Finding(True, f"{what} {folder} is writable" + ("" if existing == folder else " (will be made)"))


def _audit_file(file: Path) -> Finding:
    """Its folder is not made: a trail in a place that nobody thought of is one that nobody looks at."""
    what = f"[audit] file {file}"
    if not _exists(file.parent):
        return Finding(False, f"{what}: there is no folder {file.parent}; make it, writable for this user")
    if _exists(file) and not (file.is_file() and os.access(file, os.W_OK)):
        return Finding(False, f"{what}: it cannot be appended to by this user")
    if not _exists(file) and not os.access(file.parent, os.W_OK | os.X_OK):
        return Finding(False, f"{what}: this user may not write to {file.parent}")
    return Finding(True, f"{what} can be written to")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return False  # below a folder that we may not enter, and which is then the one to name


def certificates(config: Config) -> Iterator[Finding]:
    """Each certificate that the configuration names, and when it expires; of many authorities the first that does."""
    now = time.time()
    for file in certificate_files(config):
        found = sorted(certificates_in(file.path), key=lambda each: each.expires)
        rest = f" (the first of {len(found)})" if len(found) > MOST_CERTIFICATES else ""
        for known in found[: 1 if rest else None]:
            left_days = math.floor((known.expires - now) / DAY_SECS)
            when = f"expires on {day(known.expires)}, in {left_days} days" if left_days >= 0 else "has expired"
            yield Finding(True, f"{file.where} {file.name}, {file.key} {file.path}: {known.subject} {when}{rest}")


def ports(config: Config, daemon: int | None = None) -> Iterator[Finding]:
    """Every port that a daemon with this configuration listens on; one that is taken is told with its holder.

    ``daemon``: the pid of the one that runs: what that and its children have is well.
    """
    for name, network in config.networks.items():
        if network.http is not None and not network.http.bind_address.startswith("systemd:"):
            yield free_port(f"network {name}, HTTP", network.http.bind_address, network.http.bind_port, daemon)
    if config.control.bind_address is not None:
        yield free_port("control interface", config.control.bind_address, config.control.bind_port, daemon)
    for name in _used(config, "endpoints"):
        endpoint = config.endpoints[name].options
        if isinstance(endpoint, DicomEndpointOptions):
            yield free_port(f"endpoint {name}, DICOM", endpoint.bind_addr, endpoint.port, daemon)
    receivers = {
        options.incoming_store_port: name
        for name in sorted(asked_backends(config))
        if isinstance(options := config.backends[name].options, DicomBackendOptions)
    }
    for port, name in receivers.items():
        yield free_port(f"backend {name}, incoming C-STORE", "0.0.0.0", port, daemon)


def free_port(what: str, address: str, port: int, daemon: int | None = None) -> Finding:
    """Whether we could listen there, or ``daemon`` does; if not, who does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
            sock.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and daemon is not None and is_of(holder(port), daemon):
                return Finding(True, f"{what}: {address} port {port} is that of the harmonyd that runs (pid {daemon})")
            why = holder_text(port) if error.errno == errno.EADDRINUSE else error.strerror
            return Finding(False, f"{what}: cannot listen on {address} port {port}: {why}")
    return Finding(True, f"{what}: {address} port {port} is free")


def is_of(pid: int | None, daemon: int) -> bool:
    """Whether a process is the daemon, or was started by it."""
    try:
        return pid is not None and daemon in (pid, *(parent.pid for parent in psutil.Process(pid).parents()))
    except psutil.Error:
        return False


def _probes(config: Config, tools: dict[str, Tool] | None) -> Iterator[Finding]:
    for name in _used(config, "backends"):
        options = config.backends[name].options
        # echoscu does not look whose certificate it is shown.
        if isinstance(options, DicomBackendOptions) and (options.engine == NATIVE or options.tls is not None):
            yield _native_probe(name, options)
        elif isinstance(options, DicomBackendOptions) and tools is not None:
            yield _probe(name, options, tools)
        elif isinstance(options, DicomwebBackendOptions):
            yield _archive_probe(name, options)


def _archive_probe(name: str, options: DicomwebBackendOptions) -> Finding:
    from harmonyd.doctor.archive import echo  # with Twisted's HTTP client, which takes its time

    try:
        echo(name, options, min(options.node.connect_timeout_secs, _PROBE_SECS))
    except HarmonydError as error:
        return Finding(False, f"backend {name}: {options.url} did not answer a search: {error.detail}; {error.hint}")
    return Finding(True, f"backend {name}: {options.url} answered a search")


def _native_probe(name: str, options: DicomBackendOptions) -> Finding:
    where = f"{options.aet} at {options.host}:{options.port}"
    remote = replace(
        remote_node(name, options),
        connect_timeout_secs=min(options.connect_timeout_secs, _PROBE_SECS),
        association_timeout_secs=min(options.association_timeout_secs, _PROBE_SECS),
    )
    try:
        ping(remote)
    except HarmonydError as error:
        return Finding(False, f"backend {name}: {where} did not answer a C-ECHO: {error.detail}; {error.hint}")
    return Finding(True, f"backend {name}: {where} answered a C-ECHO")


def _probe(name: str, options: DicomBackendOptions, tools: dict[str, Tool]) -> Finding:
    where = f"{options.aet} at {options.host}:{options.port}"
    seconds = str(max(1, round(min(options.connect_timeout_secs, _PROBE_SECS))))
    command = [
        *(str(tools["echoscu"].path), "-v"),
        *("-to", seconds, "-ta", seconds, "-td", seconds),
        *("-aet", options.local_aet, "-aec", options.aet, options.host, str(options.port)),
    ]
    env = {"PATH": "/usr/bin:/bin", "TCP_NODELAY": "1"}
    try:
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=env, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return Finding(False, f"backend {name}: {where} did not answer a C-ECHO within 60 s")
    lines = (ran.stdout + ran.stderr).decode("utf-8", "replace").splitlines()
    # echoscu exits with 0 whatever the status in the answer is.
    if any("Received Echo Response (Success)" in line for line in lines):
        return Finding(True, f"backend {name}: {where} answered a C-ECHO")
    telling = [line for line in lines if not line.startswith("I: ") or "Received Echo Response" in line]
    said = " ".join(line.strip() for line in telling) or "no reason given"
    return Finding(False, f"backend {name}: {where} did not answer a C-ECHO: {said}")


def _used(config: Config, kind: str) -> list[str]:
    return list(dict.fromkeys(name for pipeline in config.pipelines.values() for name in getattr(pipeline, kind)))
