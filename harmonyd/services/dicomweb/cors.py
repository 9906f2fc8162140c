"""Cross-origin requests of web pages, viewers above all (Fetch standard, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from harmonyd.services.base import HttpAnswer, HttpRequest

_MAX_AGE_SECS = 3600
_EXPOSED = (
    "Accept-Ranges, Allow, Content-Encoding, Content-Length, Content-Location, Content-Range, Content-Type, ETag, "
    "Location, Preference-Applied, Retry-After, Warning, X-Request-ID, X-Total-Count"
)
_ASKED = (
    "Accept, Authorization, Cache-Control, Content-Type, If-Match, If-None-Match, If-Range, Prefer, Range, "
    "X-API-Key, X-Request-ID"
)


def cors_headers(origin: str | None, allowed: Sequence[str]) -> dict[str, str]:
    """Return the fields that let a page of ``origin`` read an answer; ``Vary`` where that depends on the origin."""
    if not allowed:
        return {}
    if "*" in allowed:
        return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": _EXPOSED}
    if origin is None or origin not in allowed:
        return {"Vary": "Origin"}
    return {
        "Access-Control-Allow-Origin": origin,
        "Vary": "Origin",
        "Access-Control-Expose-Headers": _EXPOSED,
    }


def preflight(request: HttpRequest, methods: Sequence[str], backend_header: str = "") -> HttpAnswer:
    """Answer OPTIONS at a path that takes ``methods``. Who may read it is in the common fields."""
    always = _ASKED.lower().split(", ")
    more = [name for name in (backend_header, *request.shown) if name and name.lower() not in always]
    headers = {"Allow": ", ".join([*methods, "OPTIONS"])}
    if "access-control-request-method" in request.headers:
        headers |= {
            "Access-Control-Allow-Methods": ", ".join(methods),
            "Access-Control-Allow-Headers": ", ".join([_ASKED, *dict.fromkeys(more)]),
            "Access-Control-Max-Age": str(_MAX_AGE_SECS),
        }
    return HttpAnswer(204, headers)
