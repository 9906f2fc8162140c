"""Of the configuration after validation: what concerns the daemon as a whole. Units are in the names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


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
    confine_children: bool = True
    """Let children do only what they need; False: all that harmonyd may."""


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
