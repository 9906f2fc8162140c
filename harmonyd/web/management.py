"""The management API as a route like any other: ``GET {base}/NAME`` for each document, and resources with more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from harmonyd.bodies import BytesBody
from harmonyd.control.describing import description
from harmonyd.control.hosts import is_from_another_site, names_this_machine
from harmonyd.control.management import Document, Resource
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import Forbidden, MethodNotAllowed, NotFound
from harmonyd.services.base import HttpAnswer, HttpRequest
from harmonyd.web.route import Route

__all__ = ["management_route"]

READING = ("GET", "HEAD")


class ManagementEndpoint:
    """Serves the documents."""

    name = "management"
    methods: tuple[str, ...] = ()
    """Each document has its own."""

    def __init__(self, base_path: str, *, local_only: bool) -> None:
        """``local_only``: for clients that name this machine, so that no page can have a browser ask in its stead."""
        self.path_prefix = base_path
        self._local_only = local_only

    def request(self, request: HttpRequest) -> RequestEnvelope:
        """Make an envelope. Raises ``Forbidden``."""
        if self._local_only and not names_this_machine(request.headers.get("host", "")):
            raise Forbidden(
                "The management API answers only to this machine's own names.", hint="Ask for 127.0.0.1 or localhost."
            )
        if request.method not in READING and is_from_another_site(request.headers):
            raise Forbidden(
                "A page of another site may change nothing here.", hint="Ask without a browser, or from its own page."
            )
        return RequestEnvelope(
            protocol="http",
            method=request.method,
            uri=request.uri,
            path=request.path,
            body=request.body,
            query=request.query,
            id=request.id,
        )

    async def answer(self, request: RequestEnvelope, response: ResponseEnvelope) -> HttpAnswer:
        """Pass the document on."""
        body = response.body
        assert body is not None
        return HttpAnswer(response.status, dict(response.headers), body.chunks(), body.length)


def management_route(
    base_path: str, documents: Mapping[str, Document], resources: Mapping[str, Resource], *, local_only: bool = True
) -> Route:
    """Serve ``documents`` and ``resources``, by name, below ``base_path``."""

    async def found(request: RequestEnvelope) -> Any:
        name, *below = request.path.strip("/").split("/")
        if name in resources:
            return await resources[name]("GET" if request.method == "HEAD" else request.method, below, request.query)
        if below or name not in documents:
            known = ", ".join(f"{base_path}/{name}" for name in (*documents, *resources))
            raise NotFound("The management API has nothing at this path.", hint=f"It has {known}.")
        if request.method not in READING:
            raise MethodNotAllowed(f"{request.method} is not allowed here, only GET, HEAD.", allow=READING)
        return await documents[name]()

    async def handle(request: RequestEnvelope) -> ResponseEnvelope:
        text = json.dumps(await found(request), ensure_ascii=False, indent=2)
        return ResponseEnvelope(
            headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
            body=BytesBody(text.encode("utf-8", "backslashreplace") + b"\n"),
        )

    return Route(
        ManagementEndpoint(base_path, local_only=local_only), handle, described=description((*documents, *resources))
    )
