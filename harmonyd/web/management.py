"""The management API as a route like any other: ``GET {base}/NAME`` for each of its documents."""

from __future__ import annotations

import json
from collections.abc import Mapping

from harmonyd.bodies import BytesBody
from harmonyd.control.hosts import names_this_machine
from harmonyd.control.management import Document
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import Forbidden, NotFound
from harmonyd.services.base import HttpAnswer, HttpRequest
from harmonyd.web.route import Route

__all__ = ["management_route"]


class ManagementEndpoint:
    """Serves documents to those who ask for this machine by its address."""

    name = "management"
    methods: tuple[str, ...] = ("GET", "HEAD")

    def __init__(self, base_path: str) -> None:
        self.path_prefix = base_path

    def request(self, request: HttpRequest) -> RequestEnvelope:
        """Make an envelope. Raises ``Forbidden``."""
        if not names_this_machine(request.headers.get("host", "")):
            raise Forbidden(
                "The management API answers only to this machine's own names.", hint="Ask for 127.0.0.1 or localhost."
            )
        return RequestEnvelope(
            protocol="http",
            method=request.method,
            uri=request.uri,
            path=request.path,
            body=request.body,
            id=request.id,
        )

    async def answer(self, request: RequestEnvelope, response: ResponseEnvelope) -> HttpAnswer:
        """Pass the document on."""
        body = response.body
        assert body is not None
        return HttpAnswer(response.status, dict(response.headers), body.chunks(), body.length)


def management_route(base_path: str, documents: Mapping[str, Document]) -> Route:
    """Serve ``documents``, by name, below ``base_path``."""

    async def handle(request: RequestEnvelope) -> ResponseEnvelope:
        document = documents.get(request.path.strip("/"))
        if document is None:
            known = ", ".join(f"{base_path}/{name}" for name in documents)
            raise NotFound("The management API has nothing at this path.", hint=f"It has {known}.")
        text = json.dumps(await document(), ensure_ascii=False, indent=2)
        return ResponseEnvelope(
            headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
            body=BytesBody(text.encode("utf-8", "backslashreplace") + b"\n"),
        )

    return Route(ManagementEndpoint(base_path), handle)
