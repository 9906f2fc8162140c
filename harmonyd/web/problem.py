"""Errors as HTTP answers: the one table from error class to status, and problem details (RFC 9457).

A class that is not in the table has the status of its nearest base class that is. What is not a ``HarmonydError`` is
our fault, and its text is never shown: it may hold anything.
"""

from __future__ import annotations

import errno
import json
import math
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from harmonyd.errors import (
    BadRequest,
    Conflict,
    DeadlinePassed,
    Fault,
    Forbidden,
    Gone,
    HarmonydError,
    HeadTooLarge,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    PayloadTooLarge,
    RangeNotSatisfiable,
    RemoteError,
    RequestTimeout,
    StorageFull,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
    UriTooLong,
)

__all__ = ["STATUS", "Problem", "problem", "status_of"]

Problem = tuple[int, dict[str, str], bytes]
"""Status, headers and body of an error answer."""

STATUS: Mapping[type[HarmonydError], int] = {
    BadRequest: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    MethodNotAllowed: 405,
    NotAcceptable: 406,
    RequestTimeout: 408,
    Conflict: 409,
    Gone: 410,
    PayloadTooLarge: 413,
    UriTooLong: 414,
    UnsupportedMediaType: 415,
    RangeNotSatisfiable: 416,
    TooManyRequests: 429,
    HeadTooLarge: 431,
    HarmonydError: 500,
    RemoteError: 502,
    Unavailable: 503,
    DeadlinePassed: 504,
    StorageFull: 507,
}

_DISK_IS_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_RETRY_AFTER_SECS = 5
_OURS = frozenset(
    {"type", "title", "status", "detail", "success", "error", "fault", "hint", "request_id", "allow"}
    | {"www_authenticate"}
)
_LATER = frozenset({HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS})


def status_of(kind: type[HarmonydError]) -> int:
    """Return the HTTP status of an error class."""
    return next(STATUS[base] for base in kind.__mro__ if base in STATUS)


def problem(exc: BaseException, *, request_id: str, operation: str | None) -> Problem:
    """Return status, headers and body that tell a client about ``exc``."""
    error = _as_ours(exc, request_id)
    kind = type(error)
    status = status_of(kind)
    name = "InternalError" if kind is HarmonydError else kind.__name__
    operation = operation or error.extra.get("operation")
    members: dict[str, Any] = {
        "type": f"urn:harmonyd:problem:{_kebab(name)}",
        "title": kind.title,
        "status": status,
        "detail": error.told,
        **({"operation": operation} if operation else {}),
        "success": False,
        "error": error.told,
        "fault": kind.fault.value,
        **({"hint": error.hint} if error.hint else {}),
        "request_id": request_id,
    }
    members.update((key, value) for key, value in error.extra.items() if key not in _OURS and key not in members)
    body = json.dumps(members, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace") + b"\n"
    return status, _headers(error, status), body


def _as_ours(exc: BaseException, request_id: str) -> HarmonydError:
    if isinstance(exc, HarmonydError):
        return exc
    if isinstance(exc, OSError) and exc.errno in _DISK_IS_FULL:
        return StorageFull("The disk is full.", hint="Free space below the storage path, or give it a larger disk.")
    return HarmonydError(
        "Something went wrong inside harmonyd.", hint=f"The log of harmonyd says what; look there for {request_id}."
    )


def _headers(error: HarmonydError, status: int) -> dict[str, str]:
    headers = {"Content-Type": "application/problem+json", "Cache-Control": "no-store"}
    if status in _LATER:
        headers["Retry-After"] = str(math.ceil(error.extra.get("retry_after_secs", _RETRY_AFTER_SECS)))
    if "allow" in error.extra:
        allow = error.extra["allow"]
        headers["Allow"] = allow if isinstance(allow, str) else ", ".join(allow)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = error.extra.get("www_authenticate", "Bearer")
    if "content_range" in error.extra:
        headers["Content-Range"] = error.extra["content_range"]
    return headers


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def is_ours(exc: BaseException) -> bool:
    """Tell whether ``exc`` is a defect or a broken installation, which belongs in the log with its traceback."""
    if isinstance(exc, HarmonydError):
        return status_of(type(exc)) == HTTPStatus.INTERNAL_SERVER_ERROR and exc.fault is Fault.OURS
    return not (isinstance(exc, OSError) and exc.errno in _DISK_IS_FULL)
