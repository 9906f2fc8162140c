"""The configuration after validation: one frozen model. Everything else in harmonyd reads only this.

Units are in the names; paths are absolute; names have been resolved and exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harmonyd.acknowledge import PipelineAnswers
from harmonyd.config.archive_model import DicomwebBackendOptions
from harmonyd.config.asking import MoveDestination
from harmonyd.config.audit_model import AuditConfig
from harmonyd.config.daemon import (
    CacheConfig,
    ControlConfig,
    LoggingConfig,
    ManagementConfig,
    OperationsConfig,
    SpoolConfig,
    SupervisionConfig,
    TelemetryConfig,
    WebConfig,
)
from harmonyd.config.network import DicomDefaults as DicomDefaults
from harmonyd.config.network import HttpListener as HttpListener
from harmonyd.config.network import NetworkConfig as NetworkConfig
from harmonyd.config.sparing import BreakerOptions, SelectivityOptions
from harmonyd.hours import Hours
from harmonyd.identity import Credentials
from harmonyd.tls import TlsClient, TlsServer


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """``path`` holds artifacts, ``spool/`` and ``quarantine/``; retention touches artifacts only."""

    path: Path
    retention_max_age_secs: float = 24 * 3600.0
    retention_max_bytes: int = 5 * 1000**3


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """``[limits]``: bounds on what clients may send and hold."""

    max_json_bytes: int = 1_000_000
    """Largest JSON request body."""
    max_body_bytes: int = 4 * 1000**3
    """Largest request body of any other kind (store, http backend)."""
    max_connections: int = 500
    """Open HTTP connections per network."""
    request_timeout_secs: float = 60.0
    """Silence allowed while a client sends a request, or does not read its answer."""
    head_timeout_secs: float = 30.0
    """From the connection, or the first byte of a later request, to the end of the head; the TLS handshake counts."""
    min_bytes_per_sec: int = 240
    """What a client must send of a body, or read of an answer, in the mean of ``request_timeout_secs``; 0: anything."""
    max_head_bytes: int = 16 * 1024
    """Request line and header fields of a request together, and each line."""
    max_header_fields: int = 100

    @property
    def least_bytes(self) -> float:
        """What a client must send, or read, in ``request_timeout_secs``."""
        return max(self.min_bytes_per_sec * self.request_timeout_secs, 1)


@dataclass(frozen=True, slots=True)
class HttpEndpointOptions:
    """``path_prefix`` normalised: leading slash, no trailing one; "" is the root. Also used by ``echo`` endpoints."""

    path_prefix: str
    methods: tuple[str, ...] = ()
    """Allowed HTTP methods; empty: any."""
    path_backends: tuple[str, ...] = ()
    """Backends that the first segment after the prefix may name: those of the pipeline, or none."""
    backend_header: str = ""
    """Header field that may name a backend; empty: none."""


@dataclass(frozen=True, slots=True)
class DicomwebEndpointOptions(HttpEndpointOptions):
    """A DICOMweb server (PS3.18) over a dicom backend."""

    public_url: str = ""
    """What clients put before ``path_prefix``, for the URLs in answers; empty: http and the Host that they name."""
    max_results: int = 10000
    """Most results of one search that goes through several levels; the backend's own cap holds for each question."""
    search_timeout_secs: float = 60.0
    """For a whole search, with all its questions."""
    complete_attributes: bool = True
    """Ask below a study or series for the counts and modalities that the PACS leaves out."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may read answers; "*": any."""


@dataclass(frozen=True, slots=True)
class DicomEndpointOptions:
    """An SCP."""

    local_aet: str = "HARMONY_SCP"
    bind_addr: str = "0.0.0.0"
    port: int = 11112
    max_pdu: int = 65536
    engine: str = "dcmtk"
    store_scp: str = "persistent"
    """"persistent", "per-association" or "native"; the four below need one of the last two."""
    allowed_calling_aets: tuple[str, ...] = ()
    """Empty: any."""
    max_associations: int = 50
    max_associations_per_peer: int = 20
    association_timeout_secs: float = 300.0
    in_order: bool = False
    """Deliver the objects of a study in the order in which they arrived."""
    acknowledge: PipelineAnswers | None = None
    """None: Success as soon as the spool has it. engine = "native" only."""
    tls: TlsServer | None = None
    """None: not secured. engine = "native" only."""
    storage_dir: Path | None = None
    """Where objects are kept when the pipeline has no backend; None: ``<storage path>/received/<endpoint>``."""
    services: tuple[str, ...] = ("store",)
    """What is offered beside C-ECHO: "store", "find", "get", "move"; the last three with engine = "native" only."""

    move_destinations: Mapping[str, MoveDestination] = field(default_factory=dict)
    """By AE title; reports on storage commitment go there, too."""
    commit_wait_secs: float = 600.0
    """How long objects may be under way to the backends before they count as not committed."""
    commit_report_secs: float = 2 * 24 * 3600.0
    """How long it is tried to report."""
    commit_same_association: bool = True
    """Report over the association of the request while that is open."""


@dataclass(frozen=True, slots=True)
class DicomBackendOptions:
    """An SCU; see design: configuration, table ``dicom`` under ``[backends]``."""

    aet: str
    host: str
    port: int
    local_aet: str = "HARMONY_SCU"
    engine: str = "dcmtk"
    store_scp: str = "persistent"
    """"persistent" or "transient" (``persistent_store_scp`` true or false), "per-association" or "native"."""
    incoming_store_port: int = 11123
    incoming_store_port_set: bool = False
    """True when the file names it: the receiver then starts with the daemon, else with the first move."""
    incoming_store_tls: TlsServer | None = None
    """How what a C-MOVE brings is secured; None: not. engine = "native" only."""
    move_destination_aet: str = "HARMONY_SCU"
    dimse_retrieve_mode: str = "get"
    connect_timeout_secs: float = 30.0
    association_timeout_secs: float = 300.0
    operation_timeout_secs: float = 3600.0
    max_pdu: int = 65536
    max_associations: int = 10
    max_queue: int = 100
    """Requests that may wait for a free association; one more gets 503."""
    association_idle_secs: float = 5.0
    """engine = "native": how long an association stays open for the next request; 0: not at all."""
    max_results: int = 10000
    query_model: str | None = None
    """"study", "patient" or None: by level."""
    storage_dir: Path | None = None
    """Artifact folder for this backend; None: the storage path."""
    tls: TlsClient | None = None
    """None: not secured. engine = "native" only."""
    user_identity: Credentials | None = None
    """engine = "native" only."""
    breaker: BreakerOptions = field(default_factory=BreakerOptions)
    hours: Hours | None = None
    """When it may be asked; None: always."""
    health_echo_secs: float = 0.0
    """Between C-ECHOs that nobody asked for; 0: there are none."""
    selectivity: SelectivityOptions | None = None
    """None: any query is let through."""
    commit: str = "off"
    """"off" or "after_forwarding": ask for the commitment of what was sent. engine = "native" only."""
    release: str = "stored"
    """"stored" or "committed": when the spool lets go of an object."""
    commit_timeout_secs: float = 3600.0
    """For the node to report."""
    commit_hold_secs: float = 5.0
    """How long the association of the request stays open for the report."""


@dataclass(frozen=True, slots=True)
class HttpBackendOptions:
    base_url: str
    connect_timeout_secs: float = 10.0
    operation_timeout_secs: float = 3600.0


@dataclass(frozen=True, slots=True)
class StorageBackendOptions:
    """A folder that objects are kept in."""

    path: Path


@dataclass(frozen=True, slots=True)
class EchoOptions:
    """The echo backend has no options."""


EndpointOptions = HttpEndpointOptions | DicomEndpointOptions
BackendOptions = DicomBackendOptions | DicomwebBackendOptions | HttpBackendOptions | StorageBackendOptions | EchoOptions
ASKED_SERVICES = ("dicom", "dicomweb")
"""Services of backends that can be asked what DIMSE can: find, get, move, store, echo."""


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    name: str
    service: str
    options: EndpointOptions


@dataclass(frozen=True, slots=True)
class BackendConfig:
    name: str
    service: str
    options: BackendOptions


@dataclass(frozen=True, slots=True)
class RouteRule:
    """One rule of ``type = "route"``: all of ``when`` must match."""

    when: Mapping[str, tuple[str, ...]]
    """By metadata key, or tag as ``GGGGEEEE``: patterns, one of which must match."""
    backends: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MiddlewareConfig:
    """``options``: the validated keys of its type (see ``harmonyd.middleware``), keys of ``options`` merged in."""

    name: str
    type: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    name: str
    description: str
    networks: tuple[str, ...]
    endpoints: tuple[str, ...]
    middleware: tuple[str, ...]
    backends: tuple[str, ...]
    fan_out: bool = False
    """Ask all backends, where no single one is chosen."""
    fan_out_timeout_secs: float = 20.0
    """For each of them, to answer a query."""


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration. Only endpoints, backends and middleware that a pipeline names are started."""

    path: Path
    id: str
    networks: Mapping[str, NetworkConfig]
    storage: StorageConfig
    pipelines: Mapping[str, PipelineConfig]
    endpoints: Mapping[str, EndpointConfig]
    backends: Mapping[str, BackendConfig]
    middleware: Mapping[str, MiddlewareConfig]
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    spool: SpoolConfig = field(default_factory=SpoolConfig)
    operations: OperationsConfig = field(default_factory=OperationsConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    management: ManagementConfig = field(default_factory=ManagementConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    web: WebConfig = field(default_factory=WebConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    warnings: tuple[str, ...] = field(default=())
    """For the operator: keys that are accepted and mean nothing here, defaults that were chosen."""
