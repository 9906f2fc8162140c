"""``/openapi.json`` and ``/docs``: what is served on a network, for programs and for people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence

from twisted.internet.threads import deferToThread

from harmonyd.bodies import BytesBody
from harmonyd.describe import Answer, Description, Operation
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import NotFound
from harmonyd.services.base import Ask, HttpAnswer, HttpRequest
from harmonyd.services.dicomweb.cors import cors_headers, preflight
from harmonyd.web.docs_page import SECURITY_POLICY, page
from harmonyd.web.openapi import openapi
from harmonyd.web.route import Route

DOCUMENT_PATH = "/openapi.json"
PAGE_PATH = "/docs"
_JSON = "application/json"
_HTML = "text/html; charset=utf-8"


class DocumentEndpoint:
    """Serves one document that stays as it is, with an ETag (RFC 9110 section 8.8.3).

    It is made when it is first asked for, in a thread: that of a large configuration takes its time.
    """

    methods: tuple[str, ...] = ("GET", "OPTIONS")

    def __init__(
        self, path: str, make: Callable[[], bytes], fields: Mapping[str, str], origins: Sequence[str]
    ) -> None:
        self.name = path.strip("/")
        self.path_prefix = path
        self._make = make
        self._made: tuple[bytes, Mapping[str, str]] | None = None
        self._fields = fields
        self._origins = origins

    def common_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return what lets pages of the configured origins read it."""
        return cors_headers(headers.get("origin"), self._origins)

    async def serve(self, request: HttpRequest, ask: Ask) -> HttpAnswer:
        """Send it, or 304 to a client that has it."""
        if request.method == "OPTIONS":
            return preflight(request, ("GET", "HEAD"))
        if self._made is None:
            self._made = await deferToThread(self._make_it)
        content, fields = self._made
        if _has(request.headers.get("if-none-match", ""), fields["ETag"]):
            return HttpAnswer(304, dict(fields))
        return HttpAnswer(200, dict(fields), BytesBody(content).chunks(), len(content))

    def _make_it(self) -> tuple[bytes, Mapping[str, str]]:
        content = self._make()
        return content, {"ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"', **self._fields}


def _has(if_none_match: str, etag: str) -> bool:
    """Compare weakly (RFC 9110 section 13.1.2)."""
    known = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in known or etag in known


async def _asks_nothing(_: RequestEnvelope) -> ResponseEnvelope:
    raise NotFound("There is nothing behind a document.")


def _description(path: str, name: str, summary: str, media: str) -> Description:
    answers = {
        200: Answer("It.", {media: {}}, {"ETag": "Changes with it"}),
        304: Answer("It is what the client has (If-None-Match)."),
    }
    operation = Operation("GET", "", name, summary, answers)
    return Description("documentation", "What is served here.", (operation,))


def documentation(
    title: str,
    routes: Iterable[Route],
    origins: Sequence[str],
    *,
    compresses: bool,
    secured: Callable[[Description], Description] = lambda found: found,
) -> list[Route]:
    """Return the routes of the documents about ``routes``, and about themselves.

    ``origins``: whose pages may read; ``secured``: what stands before these documents.
    """
    own = {
        DOCUMENT_PATH: secured(_description(DOCUMENT_PATH, "getOpenapi", "This, for programs (OpenAPI 3.1)", _JSON)),
        PAGE_PATH: secured(_description(PAGE_PATH, "getPage", "This, for people", "text/html")),
    }
    served = [(route.endpoint.path_prefix, route.described) for route in routes if route.described is not None]
    served += own.items()
    fields = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    shown = {"Content-Security-Policy": SECURITY_POLICY, "Referrer-Policy": "no-referrer"}

    def document() -> bytes:
        text = json.dumps(openapi(title, served), ensure_ascii=False, indent=1)
        return text.encode("utf-8", "backslashreplace") + b"\n"

    def html() -> bytes:
        return page(openapi(title, served), DOCUMENT_PATH)

    endpoints = (
        DocumentEndpoint(DOCUMENT_PATH, document, {"Content-Type": _JSON, **fields}, origins),
        DocumentEndpoint(PAGE_PATH, html, {"Content-Type": _HTML, **fields, **shown}, origins),
    )
    return [
        Route(each, _asks_nothing, is_exact=True, compresses=compresses, described=own[each.path_prefix])
        for each in endpoints
    ]
