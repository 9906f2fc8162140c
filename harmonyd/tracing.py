"""Which trace a piece of work belongs to (W3C Trace Context, https://www.w3.org/TR/trace-context/), and its spans.

Spans go to the tracer that is installed; without one they cost nothing, and the context of the caller is passed on all
the same. Attributes hold names of the configuration, counts and ids, nothing that identifies a patient.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Protocol

__all__ = [
    *("NO_SPAN", "Span", "Trace", "Tracer", "begin", "install", "is_tracing", "note", "of_association", "parse"),
    "trace_of",
]

Attribute = str | int | float | bool | None
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_TRACESTATE = re.compile(r"[\x20-\x7e\t]{1,512}")
_NO_TRACE, _NO_PARENT = "0" * 32, "0" * 16
_MAX_NOTED = 10_000


@dataclass(frozen=True, slots=True)
class Trace:
    """The context of a span: ids in lower-case hex, flags (bit 0: sampled), and what vendors add."""

    trace_id: str
    span_id: str
    flags: int = 0
    state: str = ""

    @property
    def traceparent(self) -> str:
        """The header field (section 3.2)."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    @property
    def is_sampled(self) -> bool:
        """Whether the caller may have recorded it."""
        return bool(self.flags & 1)

    def child(self) -> Trace:
        """The same trace under a span id of our own (section 3.4: a parent-id is updated)."""
        return replace(self, span_id=os.urandom(8).hex())


def parse(traceparent: str, tracestate: str = "") -> Trace | None:
    """The caller's context; None where there is none, or it is invalid and to be ignored (section 3.2.2.3).

    A later version is read as far as this one goes; a ``tracestate`` that is invalid is left out.
    """
    found = _TRACEPARENT.fullmatch(traceparent.strip(" \t"))
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or trace_id == _NO_TRACE or span_id == _NO_PARENT:
        return None
    state = tracestate if _TRACESTATE.fullmatch(tracestate) else ""
    return Trace(trace_id, span_id, int(flags, 16) & 1, state)


def of_association(association_id: str) -> Trace | None:
    """All that came over one association is one trace, whose id is the association's, over restarts, too."""
    return parse(f"00-{association_id}-{association_id[:16]}-01") if is_tracing() else None


# --- the traces of requests, for the log

_noted: OrderedDict[str, str] = OrderedDict()


def note(request_id: str, trace_id: str) -> None:
    """Remember the trace of a request. Of two with one id neither is known any more. The latest are kept."""
    known = _noted.pop(request_id, trace_id)
    _noted[request_id] = trace_id if known == trace_id else ""
    if len(_noted) > _MAX_NOTED:
        _noted.popitem(last=False)


def trace_of(request_id: str) -> str:
    """The trace id of a request, or nothing."""
    return _noted.get(request_id, "")


# --- spans


class Span(Protocol):
    """A piece of work that has begun. All calls are cheap, never block and never raise."""

    trace: Trace | None
    """What work below it is part of."""
    is_recorded: bool

    def set(self, **attributes: Attribute) -> None:
        """Add attributes; ``__`` in a name stands for a dot."""
        ...

    def end(self, error: str = "", **attributes: Attribute) -> None:
        """It is over; ``error`` says in a few words of ours that it failed. Only the first call counts."""
        ...


class Tracer(Protocol):
    """Records spans."""

    def begin(self, name: str, parent: Trace | None, kind: str, attributes: dict[str, Attribute]) -> Span:
        """A span begins; ``kind`` is internal, server, client, producer or consumer."""
        ...


class _NoSpan:
    __slots__ = ("trace",)
    is_recorded = False

    def __init__(self, trace: Trace | None) -> None:
        self.trace = trace

    def set(self, **attributes: Attribute) -> None:
        pass

    def end(self, error: str = "", **attributes: Attribute) -> None:
        pass


NO_SPAN: Span = _NoSpan(None)
"""Nobody records it."""


class _Installed:
    tracer: Tracer | None = None


def install(tracer: Tracer | None) -> None:
    """Record spans with this one from now on; None: not at all."""
    _Installed.tracer = tracer


def is_tracing() -> bool:
    """Whether anybody records spans."""
    return _Installed.tracer is not None


def begin(name: str, parent: Trace | None, kind: str = "internal", **attributes: Attribute) -> Span:
    """Begin a span. Without a tracer its ``trace`` is the parent's."""
    tracer = _Installed.tracer
    if tracer is None:
        return NO_SPAN if parent is None else _NoSpan(parent)
    return tracer.begin(name, parent, kind, attributes)
