"""Spans for OpenTelemetry: imported only when the configuration asks for them.

Spans wait in a bounded queue and are sent by a thread of the SDK (OTLP over HTTP). A collector that is away or hangs
costs spans, never a request.
"""

from __future__ import annotations

import threading
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace.span import TraceState

from harmonyd import __version__
from harmonyd.config.daemon import TracingConfig
from harmonyd.tracing import Attribute, Trace

__all__ = ["OtelTracer"]

_QUEUE = 4096
_BATCH = 512
_EVERY_MS = 2000
_EXPORT_SECS = 5
_MAX_CHARS = 256
_NOTHING = Context()


class OtelTracer:
    """Implements ``Tracer``. ``close`` it once."""

    def __init__(self, config: TracingConfig, service_id: str, exporter: SpanExporter | None = None) -> None:
        """``exporter``: for tests; by default OTLP over HTTP."""
        exporter = exporter or OTLPSpanExporter(endpoint=config.endpoint or None, timeout=_EXPORT_SECS)
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(config.sample_ratio)),
            resource=Resource.create(
                {SERVICE_NAME: "harmonyd", SERVICE_VERSION: __version__, SERVICE_INSTANCE_ID: service_id}
            ),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter, max_queue_size=_QUEUE, max_export_batch_size=_BATCH, schedule_delay_millis=_EVERY_MS
            )
        )
        self._tracer = self._provider.get_tracer("harmonyd", __version__)

    def begin(self, name: str, parent: Trace | None, kind: str, attributes: dict[str, Attribute]) -> _Span:
        """See ``Tracer``."""
        context = _NOTHING if parent is None else _context(parent)
        span = self._tracer.start_span(name, context, kind=SpanKind[kind.upper()], attributes=_fit(attributes))
        return _Span(span, parent)

    def close(self, timeout_secs: float) -> None:
        """Send what waits, for so long at most. Blocking; what a hanging collector leaves behind is dropped."""
        # The SDK's own shutdown waits for the request that is under way.
        closing = threading.Thread(target=self._provider.shutdown, name="spans-close", daemon=True)
        closing.start()
        closing.join(timeout_secs)


class _Span:
    """Implements ``tracing.Span``."""

    def __init__(self, span: Any, parent: Trace | None) -> None:
        self._span = span
        self.is_recorded = True
        found = span.get_span_context()
        state = "" if parent is None else parent.state
        self.trace: Trace | None = Trace(
            f"{found.trace_id:032x}", f"{found.span_id:016x}", int(found.trace_flags) & 1, state
        )

    def set(self, **attributes: Attribute) -> None:
        """See ``Span``."""
        self._span.set_attributes(_fit(attributes))

    def end(self, error: str = "", **attributes: Attribute) -> None:
        """See ``Span``."""
        span, self._span = self._span, NonRecordingSpan(self._span.get_span_context())
        span.set_attributes(_fit(attributes))
        if error:
            span.set_status(Status(StatusCode.ERROR, error[:_MAX_CHARS]))
        span.end()


def _context(parent: Trace) -> Context:
    given = SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(parent.flags),
        trace_state=TraceState.from_header([parent.state]) if parent.state else None,
    )
    return set_span_in_context(NonRecordingSpan(given), _NOTHING)


def _fit(attributes: dict[str, Attribute]) -> dict[str, str | int | float | bool]:
    return {
        name.replace("__", "."): value[:_MAX_CHARS] if isinstance(value, str) else value
        for name, value in attributes.items()
        if value is not None and value != ""
    }
