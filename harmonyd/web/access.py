"""What is said of each HTTP request once it is answered: its line in the log, and its span."""

from __future__ import annotations

from http import HTTPStatus

from twisted.logger import Logger, LogLevel

from harmonyd.privacy import path_without_values
from harmonyd.tracing import NO_SPAN, Span, begin, note
from harmonyd.web.request import Request

__all__ = ["begin_span", "end_span", "log_access"]

_log = Logger("harmonyd.web")


def log_access(request: Request, secs: float, operation: str | None) -> None:
    """One line; of probes that are answered well only at debug."""
    match = request.match
    # The path without its query: queries hold names and numbers of patients.
    path = request.uri.split(b"?", 1)[0].decode("latin-1")
    is_routine = match is not None and match.target.is_probe and request.code == HTTPStatus.OK
    _log.emit(
        LogLevel.debug if is_routine else LogLevel.info,
        "{http_method} {http_path} {http_status} {sent_bytes} bytes {ms} ms",
        http_method=request.method.decode("ascii"),
        http_path=path_without_values(path, match.prefix if match is not None else ""),
        http_status=request.code,
        sent_bytes=request.sentLength,
        ms=round(secs * 1000),
        request=request.id,
        operation=operation,
        endpoint=match.target.endpoint.name if match is not None else None,
        peer=request.caller().address,
    )


def begin_span(request: Request) -> Span:
    """The server's span, in the client's trace where it named one; what the request asks for is part of it."""
    match = request.match
    if match is None or match.target.is_probe:
        return NO_SPAN
    method, endpoint = request.method.decode("ascii"), match.target.endpoint
    span = begin(
        f"{method} {endpoint.path_prefix or '/'}",
        request.trace,
        "server",
        http__request__method=method,
        http__route=endpoint.path_prefix or "/",
        harmonyd__endpoint=endpoint.name,
        harmonyd__request=request.id,
    )
    if span.is_recorded and span.trace is not None:
        request.trace = span.trace
        note(request.id, span.trace.trace_id)
    return span


def end_span(span: Span, request: Request, operation: str | None) -> None:
    """It was answered, or cut off."""
    if request.gone:
        failed = "the answer did not reach its end"
    else:
        failed = f"status {request.code}" if request.code >= HTTPStatus.INTERNAL_SERVER_ERROR else ""
    span.end(
        failed,
        http__response__status_code=request.code,
        http__response__body__size=request.sentLength,
        harmonyd__operation=operation,
    )
