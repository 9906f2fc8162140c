"""The table of all metrics. docs/metrics.md, the dashboard and the alert rules are held against it by tests.

Labels come from the configuration or from a fixed set, never from a request: their number is bounded, and nothing in
them is about a patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
LAGS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_AT = ("backend", "operation")
_QUEUE = ("endpoint", "backend")
_FILE = ("where", "name", "file")


@dataclass(frozen=True, slots=True)
class Family:
    """A metric. Names follow Prometheus's conventions: base units, and counters end in ``_total``."""

    name: str
    kind: str
    """gauge, counter or histogram."""
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = SECONDS


_ALL = (
    Family("harmonyd_build_info", "gauge", "1; the labels say what runs.", ("version", "python")),
    # operations
    Family("harmonyd_operations_total", "counter", "Operations that have ended.", (*_AT, "outcome")),
    Family("harmonyd_operations_in_flight", "gauge", "Operations that have not ended.", _AT),
    Family("harmonyd_operation_queue_seconds", "histogram", "Waiting for a free association.", _AT),
    Family("harmonyd_operation_association_seconds", "histogram", "From there to an association (native only).", _AT),
    Family("harmonyd_operation_first_result_seconds", "histogram", "From the begin to the first result.", _AT),
    Family("harmonyd_operation_seconds", "histogram", "From the begin to the end.", _AT),
    Family("harmonyd_operation_results_total", "counter", "Matches, instances received, instances stored.", _AT),
    Family("harmonyd_operation_bytes_total", "counter", "Size of matches (as JSON) and of instances received.", _AT),
    # nodes
    Family("harmonyd_backend_breaker_state", "gauge", "1 for the state of its circuit breaker.", ("backend", "state")),
    Family("harmonyd_backend_breaker_trips_total", "counter", "Times its circuit breaker opened.", ("backend",)),
    Family("harmonyd_backend_refused_total", "counter", "Operations that were not begun.", ("backend", "reason")),
    Family("harmonyd_backend_permitted", "gauge", "0 outside of its permitted hours.", ("backend",)),
    Family("harmonyd_backend_echo_ok", "gauge", "1 when the last C-ECHO of ours was answered.", ("backend",)),
    Family("harmonyd_backend_echo_seconds", "gauge", "How long that took.", ("backend",)),
    Family("harmonyd_backend_echo_timestamp_seconds", "gauge", "When that was.", ("backend",)),
    # children
    Family("harmonyd_child_state", "gauge", "1 for the state that the child is in.", ("child", "state")),
    Family("harmonyd_child_restarts_total", "counter", "Times it was started again.", ("child",)),
    Family("harmonyd_child_resident_memory_bytes", "gauge", "Memory of the child itself.", ("child",)),
    Family("harmonyd_child_cpu_seconds_total", "counter", "CPU time of its present process.", ("child",)),
    Family("harmonyd_tool_processes", "gauge", "Programs that run for one operation.", ("program",)),
    # spool
    Family("harmonyd_spool_objects", "gauge", "Objects in the spool."),
    Family("harmonyd_spool_bytes", "gauge", "Their size."),
    Family("harmonyd_spool_damaged_objects", "gauge", "Objects that arrived damaged."),
    Family("harmonyd_spool_waiting_objects", "gauge", "Deliveries that wait.", _QUEUE),
    Family("harmonyd_spool_quarantined_objects", "gauge", "Deliveries that were given up.", _QUEUE),
    Family("harmonyd_spool_oldest_age_seconds", "gauge", "Age of the oldest that waits.", _QUEUE),
    Family("harmonyd_spool_backend_away", "gauge", "1 while the backend cannot be reached or used.", _QUEUE),
    Family("harmonyd_spool_refusing", "gauge", "1 while nothing more is accepted."),
    Family("harmonyd_quarantine_folder_objects", "gauge", "Objects that a PACS delivered and nobody had asked for."),
    Family("harmonyd_quarantine_folder_bytes", "gauge", "Their size."),
    # cache and answers that come later
    Family("harmonyd_cache_series", "gauge", "Series, studies and instances that are kept."),
    Family("harmonyd_cache_instances", "gauge", "Instances in them."),
    Family("harmonyd_cache_bytes", "gauge", "Their size."),
    Family("harmonyd_cache_limit_bytes", "gauge", "Their largest size."),
    Family("harmonyd_cache_retrieving", "gauge", "Retrieves that fill the cache now."),
    Family("harmonyd_cache_answers_total", "counter", "Retrieves by where the answer came from.", ("source",)),
    Family("harmonyd_async_operations_running", "gauge", "Started with respond-async, and not ended."),
    Family("harmonyd_async_operations_kept", "gauge", "Ended, waiting for their result to be fetched."),
    Family("harmonyd_async_result_bytes", "gauge", "Size of their results on disk."),
    Family("harmonyd_async_watchers", "gauge", "Open event streams."),
    # audit
    Family("harmonyd_audit_messages_total", "counter", "Audit messages written."),
    Family("harmonyd_audit_delivered_total", "counter", "Audit messages that the collector has."),
    Family("harmonyd_audit_dropped_total", "counter", "Audit messages that there was no room for.", ("where",)),
    Family("harmonyd_audit_backlog_messages", "gauge", "Audit messages that wait on disk for the collector."),
    Family("harmonyd_audit_backlog_bytes", "gauge", "Their size."),
    Family("harmonyd_audit_oldest_age_seconds", "gauge", "Age of the oldest of them."),
    Family("harmonyd_audit_last_delivery_timestamp_seconds", "gauge", "When the collector took the last."),
    Family("harmonyd_audit_connected", "gauge", "1 while there is a connection to the collector."),
    # certificates
    Family("harmonyd_certificate_expiry_timestamp_seconds", "gauge", "When the first in the file expires.", _FILE),
    Family("harmonyd_certificate_unreadable", "gauge", "1 when there is nothing usable in the file.", _FILE),
    # HTTP and the process
    Family("harmonyd_http_requests_total", "counter", "Requests that were answered.", ("endpoint", "status")),
    Family("harmonyd_http_request_seconds", "histogram", "From the request to the end of its answer.", ("endpoint",)),
    Family("harmonyd_limited_requests_total", "counter", "Refused by a limit of the caller.", ("middleware",)),
    Family("harmonyd_http_requests_in_flight", "gauge", "Requests that are being answered."),
    Family("harmonyd_http_connections", "gauge", "Open connections."),
    Family("harmonyd_auth_refusals_total", "counter", "Requests refused for who asked.", ("type", "reason")),
    Family("harmonyd_event_loop_lag_seconds", "histogram", "How late timers are: the reactor was busy.", (), LAGS),
    Family("harmonyd_ready", "gauge", "1 while /readyz says ready."),
    Family("harmonyd_scrape_ok", "gauge", "0 when a part of this could not be read in time.", ("part",)),
)
FAMILIES: Mapping[str, Family] = {family.name: family for family in _ALL}


def counter(name: str, registry: CollectorRegistry) -> Counter:
    """A counter of the table that is counted as things happen."""
    family = FAMILIES[name]
    return Counter(name, family.text, family.labels, registry=registry)


def gauge(name: str, registry: CollectorRegistry) -> Gauge:
    """A gauge of the table that follows what happens."""
    family = FAMILIES[name]
    return Gauge(name, family.text, family.labels, registry=registry)


def histogram(name: str, registry: CollectorRegistry) -> Histogram:
    """A histogram of the table."""
    family = FAMILIES[name]
    return Histogram(name, family.text, family.labels, buckets=family.buckets, registry=registry)


class Found:
    """What is read when somebody asks: values of the table's gauges and counters."""

    def __init__(self) -> None:
        self._families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}

    def add(self, name: str, value: float | None, *labels: str) -> None:
        """Take one value; None: it is not known, and nothing is said."""
        family = FAMILIES[name]
        if name not in self._families:
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            self._families[name] = kind(name, family.text, labels=family.labels)
        if value is not None:
            self._families[name].add_metric(labels, value)

    @property
    def families(self) -> Sequence[GaugeMetricFamily | CounterMetricFamily]:
        """For prometheus_client."""
        return list(self._families.values())
