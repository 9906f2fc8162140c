"""What the daemon knows of itself, read when somebody asks. Nothing here waits or blocks."""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harmonyd import __version__
from harmonyd.audit.api import AuditFigures
from harmonyd.control.api import Child
from harmonyd.metrics.families import Found
from harmonyd.services.dicom.breaker import State as BreakerState
from harmonyd.spool.api import Summary
from harmonyd.supervision.states import State

__all__ = ["Sources", "add_spool", "add_state"]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where to look; all but ``spool`` answer at once."""

    children: Callable[[], Sequence[Child]]
    spool: Callable[[], Awaitable[Summary]]
    cache: Callable[[], Mapping[str, Any]]
    cache_answers: Callable[[], Mapping[str, int]]
    operations: Callable[[], Mapping[str, int]]
    http: Callable[[], tuple[int, int]]
    """Requests that are being answered, open connections."""
    is_ready: Callable[[], bool]
    audit: Callable[[], AuditFigures]
    nodes: Callable[[], Mapping[str, Mapping[str, Any]]] = dict
    """DICOM backends by name, as ``services.dicom.backend.DicomBackend.figures`` tells them."""
    refused: Callable[[], Mapping[tuple[str, str], int]] = dict
    """Requests that middleware for identity refused, by its type and a reason; both are words of ours."""


def add_state(found: Found, sources: Sources, now: float) -> None:
    """All that is known at once. ``now``: seconds since the epoch."""
    found.add("harmonyd_build_info", 1, __version__, platform.python_version())
    found.add("harmonyd_ready", sources.is_ready())
    requests, connections = sources.http()
    found.add("harmonyd_http_requests_in_flight", requests)
    found.add("harmonyd_http_connections", connections)
    _add_children(found, sources.children())
    _add_cache(found, sources.cache(), sources.cache_answers())
    _add_nodes(found, sources.nodes())
    for (kind, reason), count in sources.refused().items():
        found.add("harmonyd_auth_refusals_total", count, kind, reason)
    later = sources.operations()
    found.add("harmonyd_async_operations_running", later["running"])
    found.add("harmonyd_async_operations_kept", later["kept"])
    found.add("harmonyd_async_result_bytes", later["bytes"])
    found.add("harmonyd_async_watchers", later["watchers"])
    _add_audit(found, sources.audit(), now)


def _add_audit(found: Found, audit: AuditFigures, now: float) -> None:
    found.add("harmonyd_audit_messages_total", audit.written)
    found.add("harmonyd_audit_delivered_total", audit.delivered)
    for where, count in audit.dropped.items():
        found.add("harmonyd_audit_dropped_total", count, where)
    found.add("harmonyd_audit_backlog_messages", audit.waiting)
    found.add("harmonyd_audit_backlog_bytes", audit.waiting_bytes)
    age = 0.0 if audit.oldest_at is None else max(0.0, now - audit.oldest_at)
    found.add("harmonyd_audit_oldest_age_seconds", age)
    found.add("harmonyd_audit_last_delivery_timestamp_seconds", audit.delivered_at)
    found.add("harmonyd_audit_connected", audit.connected)


def _add_children(found: Found, children: Iterable[Child]) -> None:
    programs: dict[str, int] = {}
    for child in children:
        if not child.is_kept:  # its name holds the id of an operation
            programs[child.group] = programs.get(child.group, 0) + 1
            continue
        name = f"{child.group}:{child.name}"
        for state in State:
            found.add("harmonyd_child_state", child.state == state, name, state)
        found.add("harmonyd_child_restarts_total", max(0, child.starts - 1), name)
        figures = child.figures
        if figures is not None:
            found.add("harmonyd_child_resident_memory_bytes", figures.rss_bytes, name)
            found.add("harmonyd_child_cpu_seconds_total", figures.cpu_secs, name)
    for program, count in programs.items():
        found.add("harmonyd_tool_processes", count, program)


def _add_nodes(found: Found, nodes: Mapping[str, Mapping[str, Any]]) -> None:
    for name, node in nodes.items():
        for state in BreakerState:
            found.add("harmonyd_backend_breaker_state", node["state"] == state, name, state)
        found.add("harmonyd_backend_breaker_trips_total", node["trips"], name)
        for reason, count in node["refused"].items():
            found.add("harmonyd_backend_refused_total", count, name, reason)
        found.add("harmonyd_backend_permitted", all(node["permitted"].values()), name)
        echo = node["last_echo"]
        found.add("harmonyd_backend_echo_ok", echo and echo["ok"], name)
        found.add("harmonyd_backend_echo_seconds", echo and echo["latency_ms"] / 1000, name)
        found.add("harmonyd_backend_echo_timestamp_seconds", echo and echo["at"], name)


def _add_cache(found: Found, cache: Mapping[str, Any], answers: Mapping[str, int]) -> None:
    found.add("harmonyd_cache_series", cache["entries"])
    found.add("harmonyd_cache_instances", cache["instances"])
    found.add("harmonyd_cache_bytes", cache["bytes"])
    found.add("harmonyd_cache_limit_bytes", cache["max_bytes"])
    found.add("harmonyd_cache_retrieving", cache["retrieving"])
    for source, count in answers.items():
        found.add("harmonyd_cache_answers_total", count, source)


def add_spool(found: Found, summary: Summary, now: float) -> None:
    """``now``: seconds since the epoch."""
    found.add("harmonyd_spool_objects", summary.entries)
    found.add("harmonyd_spool_bytes", summary.bytes)
    found.add("harmonyd_spool_damaged_objects", summary.damaged)
    found.add("harmonyd_spool_refusing", summary.refusal is not None)
    for each in summary.backends:
        queue = each.endpoint, each.backend
        found.add("harmonyd_spool_waiting_objects", each.waiting, *queue)
        found.add("harmonyd_spool_quarantined_objects", each.quarantined, *queue)
        age = 0.0 if each.oldest_received_at is None else max(0.0, now - each.oldest_received_at)
        found.add("harmonyd_spool_oldest_age_seconds", age, *queue)
        found.add("harmonyd_spool_backend_away", bool(each.away_reason), *queue)
    found.add("harmonyd_quarantine_folder_objects", summary.set_aside.files)
    found.add("harmonyd_quarantine_folder_bytes", summary.set_aside.bytes)
