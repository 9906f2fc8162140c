"""The configuration after validation: one frozen model. Everything else in harmonyd reads only this.

Units are in the names; paths are absolute; names have been resolved and exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harmonyd.acknowledge import PipelineAnswers
from harmonyd.config.asking import MoveDestination
from harmonyd.config.sparing import BreakerOptions, SelectivityOptions
from harmonyd.hours import Hours
from harmonyd.identity import Credentials
from harmonyd.tls import TlsClient, TlsServer


@dataclass(frozen=True, slots=True)
class HttpListener:
    """Where a network listens for HTTP. ``bind_address``: IPv4, IPv6, or ``systemd:NAME`` for a passed socket.

    ``bind_port`` is 0 for a passed socket: its unit has the port.
    """

    bind_address: str
    bind_port: int


@dataclass(frozen=True, slots=True)
class DicomDefaults:
    """``[network.N.dicom]``: defaults for the dicom endpoints of the pipelines on that network."""

    bind_address: str | None = None
    bind_port: int | None = None
    aet: str | None = None


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    name: str
    http: HttpListener | None
    dicom: DicomDefaults = DicomDefaults()
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and CIDR blocks whose X-Forwarded-For is believed."""
    middleware: tuple[str, ...] = ()
    """What each HTTP request passes first, but for those to ``/livez`` and ``/readyz``."""


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


@dataclass(frozen=True, slots=True)
class LoggingConfig:
    level: str = "info"
    format: str = "text"
    """"text" or "json" (lines)."""
    file: Path | None = None
    """Log file; None: standard error."""
    patient_identifiers: bool = False
    """Whether the log may hold what identifies patients."""


@dataclass(frozen=True, slots=True)
class SupervisionConfig:
    """``[supervision]``: defaults for children (design: supervision)."""

    startup_deadline_secs: float = 30.0
    probe_interval_secs: float = 10.0
    probe_timeout_secs: float = 3.0
    probe_misses: int = 2
    stop_grace_secs: float = 10.0
    stable_after_secs: float = 60.0
    backoff_initial_secs: float = 1.0
    backoff_max_secs: float = 60.0
    fatal_after_failures: int = 5
    fatal_retry_secs: float = 300.0
    log_max_bytes: int = 10_000_000
    log_backups: int = 3
    ring_buffer_bytes: int = 256_000
    memory_limit_mb: int = 0
    """Resident memory (10⁶ bytes) above which a child is ended; 0: no limit."""


@dataclass(frozen=True, slots=True)
class SpoolConfig:
    """``[spool]``: what was received and is not delivered yet. It is never cleaned by retention."""

    min_free_bytes: int = 1000 * 1000**2
    """Less free space under the storage path than this, and nothing more is accepted."""
    ballast_bytes: int = 64 * 1000**2
    """A file that is given up when space runs out under way, so that what is being received still fits; 0: none."""
    max_waiting: int = 1_000_000
    """Objects in the spool, those in quarantine too; from then on nothing more is accepted."""
    max_waiting_bytes: int = 0
    """Their size; 0: only the free space limits it."""
    max_attempts: int = 30
    """How often a backend that answers may refuse an object before it is put in quarantine: about a day."""
    give_up_after_secs: float = 7 * 24 * 3600.0
    """How long an object is tried at all, whatever the reason is that it does not arrive."""
    retry_max_secs: float = 300.0
    """Longest wait before an object, or a backend that is away, is tried again."""
    max_unasked_bytes: int = 1000**3
    """Quarantine for what a PACS delivered and nobody had asked for; above that it is refused."""


@dataclass(frozen=True, slots=True)
class OperationsConfig:
    """``[operations]``: what clients started with ``Prefer: respond-async``."""

    max_running: int = 50
    """That have not ended; one more is refused."""
    max_kept: int = 1000
    """Those that have ended, and wait for their result to be fetched, included."""
    max_watchers: int = 100
    """Open event streams, of all operations together."""
    keep_secs: float = 3600.0
    """How long state and result are kept after the end."""
    max_bytes: int = 10 * 1000**3
    """Of all results on disk."""


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """``[cache]``: what DICOMweb endpoints have retrieved, kept for the next who asks."""

    enabled: bool = True
    max_bytes: int = 5 * 1000**3
    """Above that the least recently used goes."""
    max_age_secs: float = 600.0
    """Since the PACS was asked. It may have changed meanwhile, and does not tell."""
    max_series_bytes: int = 2 * 1000**3
    """A larger series, or study that was asked for as a whole, is not kept, and not retrieved ahead."""
    min_free_bytes: int = 2000 * 1000**2
    """With less free space than this below the storage path nothing is kept."""
    max_prefetches: int = 2
    """Series retrieved at once that nobody waits for; 0: none is."""


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """``[control]``: where ``supervisorctl`` connects. Without an address there is no TCP port."""

    socket: Path | None = None
    """None: no unix socket."""
    mode: int = 0o660
    bind_address: str | None = None
    bind_port: int = 0
    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class ManagementConfig:
    """``[management]``. When enabled, ``network`` names one that only this machine reaches."""

    enabled: bool = False
    base_path: str = "/admin"
    network: str | None = None


@dataclass(frozen=True, slots=True)
class TracingConfig:
    """``[telemetry.tracing]``: spans for OpenTelemetry; None in its place: none are made."""

    endpoint: str = ""
    """Where OTLP/HTTP goes; empty: as OTEL_EXPORTER_OTLP_ENDPOINT says, or the SDK's own default."""
    sample_ratio: float = 1.0
    """Of the traces that begin here; what a caller has begun is recorded as the caller says."""


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """``network``: where /livez, /readyz and /metrics are served; None: on every HTTP network."""

    network: str | None = None
    metrics: bool = True
    """Serve /metrics."""
    tracing: TracingConfig | None = None


@dataclass(frozen=True, slots=True)
class WebConfig:
    """``[web]``: what all HTTP networks have in common."""

    documentation: bool = True
    """Serve /openapi.json and /docs."""
    compression: bool = True
    """Send text in gzip to clients that take it."""


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
BackendOptions = DicomBackendOptions | HttpBackendOptions | StorageBackendOptions | EchoOptions


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
    limits: LimitsConfig = LimitsConfig()
    logging: LoggingConfig = LoggingConfig()
    supervision: SupervisionConfig = SupervisionConfig()
    spool: SpoolConfig = SpoolConfig()
    operations: OperationsConfig = OperationsConfig()
    cache: CacheConfig = CacheConfig()
    control: ControlConfig = ControlConfig()
    management: ManagementConfig = ManagementConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    web: WebConfig = WebConfig()
    warnings: tuple[str, ...] = field(default=())
    """For the operator: keys that are accepted and mean nothing here, defaults that were chosen."""
