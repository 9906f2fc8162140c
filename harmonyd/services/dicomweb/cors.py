"""Cross-origin requests of web pages, viewers above all (Fetch standard, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from harmonyd.services.base import HttpAnswer, HttpRequest

_MAX_AGE_SECS = 3600
_EXPOSED = "Content-Type, Content-Location, Warning, X-Request-ID"


def cors_headers(origin: str | None, allowed: Sequence[str]) -> dict[str, str]:
    """Return the fields that let a page of ``origin`` read an answer; ``Vary`` where that depends on the origin."""
    if not allowed:
        return {}
    if "*" in allowed:
        return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": _EXPOSED}
    if origin is None or origin not in allowed:
        return {"Vary": "Origin, Accept-Encoding"}
    return {
        "Access-Control-Allow-Origin": origin,
        "Vary": "Origin, Accept-Encoding",
        "Access-Control-Expose-Headers": _EXPOSED,
    }


def preflight(request: HttpRequest, backend_header: str = "") -> HttpAnswer:
    """Answer OPTIONS. Who may read it is in the common fields."""
    headers = {"Allow": "GET, HEAD, POST, OPTIONS"}
    if "access-control-request-method" in request.headers:
        headers |= {
            "Access-Control-Allow-Methods": "GET, HEAD, POST",
            "Access-Control-Allow-Headers": "Accept, Authorization, Content-Type, X-Request-ID"
            + (f", {backend_header}" if backend_header else ""),
            "Access-Control-Max-Age": str(_MAX_AGE_SECS),
        }
    return HttpAnswer(204, headers)
