"""Spans for OpenTelemetry: what they hold, and a collector that takes them, refuses them, or hangs."""

from __future__ import annotations

import threading

from collector_kit import collector
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from harmonyd import tracing
from harmonyd.config.daemon import TracingConfig
from harmonyd.telemetry.spans import OtelTracer
from harmonyd.tracing import Trace

PARENT = Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", 1, "a=1")


def test_spans_are_children_of_the_caller() -> None:
    """Ids, kind, attributes and status; a second end changes nothing; the state is passed on."""
    exporter = InMemorySpanExporter()
    tracer = OtelTracer(TracingConfig(), "me", exporter)
    outer = tracer.begin("outer", PARENT, "server", {"http__route": "/x", "nothing": None})
    inner = tracer.begin("inner", outer.trace, "client", {})
    inner.set(harmonyd__count=3)
    inner.end("status 502", harmonyd__outcome="busy")
    inner.end("again")
    outer.end()
    tracer.close(5)
    second, first = exporter.get_finished_spans()
    assert (first.name, first.kind, dict(first.attributes or {})) == ("outer", SpanKind.SERVER, {"http.route": "/x"})
    assert first.context.trace_id == int(PARENT.trace_id, 16)
    assert first.parent is not None
    assert first.parent.span_id == int(PARENT.span_id, 16)
    assert second.parent is not None
    assert second.parent.span_id == first.context.span_id
    assert dict(second.attributes or {}) == {"harmonyd.count": 3, "harmonyd.outcome": "busy"}
    assert (second.status.status_code, second.status.description) == (StatusCode.ERROR, "status 502")
    assert outer.trace is not None
    assert (outer.trace.state, outer.trace.is_sampled) == ("a=1", True)


def test_what_is_sampled() -> None:
    """The caller decides about its own traces, the ratio about those that begin here."""
    exporter = InMemorySpanExporter()
    tracer = OtelTracer(TracingConfig(sample_ratio=0.0), "me", exporter)
    ours = tracer.begin("ours", None, "internal", {})
    theirs = tracer.begin("theirs", PARENT, "internal", {})
    assert ours.trace is not None
    assert not ours.trace.is_sampled
    ours.end()
    theirs.end()
    tracer.close(5)
    assert [span.name for span in exporter.get_finished_spans()] == ["theirs"]


def test_a_collector_gets_them() -> None:
    """Over HTTP, from a thread of its own."""
    with collector() as (url, taken):
        tracer = OtelTracer(TracingConfig(url), "the-id")
        tracing.install(tracer)
        try:
            tracing.begin("sent", PARENT, "server", harmonyd__backend="pacs").end()
        finally:
            tracing.install(None)
        tracer.close(10)
    resource = taken[0].resource_spans[0]
    found = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert found["service.name"] == "harmonyd"
    assert found["service.instance.id"] == "the-id"
    assert resource.scope_spans[0].spans[0].name == "sent"


def test_a_collector_that_hangs_costs_spans_only() -> None:
    """More spans than the queue holds are taken at once, and closing does not wait for it."""
    released = threading.Event()
    with collector(released) as (url, _):
        tracer = OtelTracer(TracingConfig(url), "me")
        for _ in range(6000):
            tracer.begin("lost", None, "internal", {}).end()
        tracer.close(0.2)
        released.set()
        # The thread that closes is left behind, and ends with the collector's answer.
        for thread in [each for each in threading.enumerate() if each.name == "spans-close"]:
            thread.join(30)
            assert not thread.is_alive()
