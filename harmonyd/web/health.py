"""``/livez`` and ``/readyz`` as routes like any other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from harmonyd.bodies import BytesBody
from harmonyd.describe import Answer, Description, Operation, Parameter, Schema
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.services.base import HttpAnswer, HttpRequest
from harmonyd.telemetry.health import Health
from harmonyd.web.route import Route

__all__ = ["health_routes"]

_SINCE: Schema = {"type": "string", "format": "date-time", "description": "Only with ?verbose."}
_DETAIL: Schema = {"type": "string", "description": "On a network with middleware only with ?verbose."}
_CHECK: Schema = {
    "type": "object",
    "required": ["ok"],
    "properties": {"ok": {"type": "boolean"}, "detail": _DETAIL, "since": _SINCE},
}
_REPORT: Schema = {
    "type": "object",
    "required": ["status", "checks"],
    "properties": {
        "status": {"enum": ["ready", "not ready"]},
        "checks": {"type": "object", "additionalProperties": _CHECK},
        "since": _SINCE,
    },
}
_NO = ["0", "false"]
_VERBOSE = Parameter("verbose", "Say since when, too; anything but 0 and false is yes.", {"type": "string"})
OPERATIONS = (
    Operation(
        "GET",
        "/livez",
        "live",
        "Whether the process works",
        {200: Answer("It does.", {"application/json": _REPORT})},
        parameters=(_VERBOSE,),
    ),
    Operation(
        "GET",
        "/readyz",
        "ready",
        "Whether all is there that requests need",
        {
            200: Answer("It is.", {"application/json": _REPORT}),
            503: Answer("Something is missing; the checks say what.", {"application/json": _REPORT}),
        },
        parameters=(_VERBOSE,),
    ),
)


class HealthEndpoint:
    """Serves the JSON that a health report is."""

    methods: tuple[str, ...] = ("GET", "HEAD")

    def __init__(self, path: str) -> None:
        self.name = path.strip("/")
        self.path_prefix = path

    def request(self, request: HttpRequest) -> RequestEnvelope:
        """Make an envelope; a health report depends on nothing in it."""
        return RequestEnvelope(
            protocol="http",
            method=request.method,
            uri=request.uri,
            path=request.path,
            query=request.query,
            body=request.body,
            id=request.id,
        )

    async def answer(self, request: RequestEnvelope, response: ResponseEnvelope) -> HttpAnswer:
        """Pass the report on."""
        body = response.body
        assert body is not None
        return HttpAnswer(response.status, dict(response.headers), body.chunks(), body.length)


def health_routes(health: Health, *, is_guarded: bool = False) -> dict[str, Route]:
    """Return the built-in paths and what serves them.

    ``is_guarded``: on a network with middleware. A probe gets to know what is well there, and with ``?verbose`` who may
    manage what it is.
    """
    reports = {"/livez": health.live, "/readyz": health.ready}
    return {
        path: Route(
            HealthEndpoint(path),
            _reporter(report, is_guarded=is_guarded),
            is_probe=True,
            is_exact=True,
            described=_description(path),
            action="manage" if is_guarded else "",
            is_open=lambda request: not _is_verbose(request.query),
        )
        for path, report in reports.items()
    }


def _is_verbose(query: Mapping[str, list[str]]) -> bool:
    return query.get(_VERBOSE.name, _NO)[-1] not in _NO


def _description(path: str) -> Description:
    operations = tuple(item for item in OPERATIONS if item.path == path)
    # The path is the prefix of its endpoint.
    return Description("health", "For probes.", tuple(replace(item, path="") for item in operations))


def _reporter(
    report: Callable[..., tuple[bool, dict[str, Any]]], *, is_guarded: bool
) -> Callable[[RequestEnvelope], Any]:
    async def handle(request: RequestEnvelope) -> ResponseEnvelope:
        is_verbose = _is_verbose(request.query)
        ok, members = report(verbose=is_verbose)
        if is_guarded and not is_verbose:
            members["checks"] = {name: {"ok": check["ok"]} for name, check in members["checks"].items()}
        return ResponseEnvelope(
            status=200 if ok else 503,
            headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
            body=BytesBody(json.dumps(members).encode() + b"\n"),
        )

    return handle
