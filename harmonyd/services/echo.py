"""``echo``: answers with what it got. For trying out pipelines, and for seeing what middleware makes of a request."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from twisted.internet.threads import deferToThread

from harmonyd.bodies import BytesBody
from harmonyd.envelope import Body, RequestEnvelope, ResponseEnvelope
from harmonyd.services.http.endpoint import HttpServiceEndpoint
from harmonyd.services.http.methods import require_passable

MAX_TEXT_BYTES = 64 * 1024
"""A longer body is answered with its size and digest."""

_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})


class EchoEndpoint(HttpServiceEndpoint):
    """The endpoint half: the same as ``http``."""


class EchoBackend:
    """The backend half: a JSON object with method, path, query, headers, metadata and body.

    Credentials are left out. ``body`` is its size in bytes and its text (UTF-8, up to ``MAX_TEXT_BYTES``), or else its
    SHA-256.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    async def start(self) -> None:
        """Do nothing."""

    async def stop(self) -> None:
        """Do nothing."""

    async def send(self, request: RequestEnvelope) -> ResponseEnvelope:
        """Answer; raises ``MethodNotAllowed`` for TRACE, and what reading the body raises."""
        require_passable(request.method)
        answer = {
            "id": request.id,
            "protocol": request.protocol,
            "method": request.method,
            "path": request.path,
            "query": dict(request.query),
            "headers": {name: value for name, value in request.headers.items() if name not in _SECRET_HEADERS},
            "metadata": request.metadata,
            "body": await _described(request.body),
        }
        headers = {"content-type": "application/json", "cache-control": "no-store"}
        return ResponseEnvelope(headers=headers, body=BytesBody(json.dumps(answer).encode("ascii") + b"\n"))


async def _described(body: Body) -> dict[str, Any]:
    digest, size, start = hashlib.sha256(), 0, b""
    async for chunk in body.chunks():
        size += len(chunk)
        start += chunk[: MAX_TEXT_BYTES + 1 - len(start)]
        await deferToThread(digest.update, chunk)
    try:
        text = start.decode("utf-8") if size <= MAX_TEXT_BYTES else None
    except UnicodeDecodeError:
        text = None
    return {"size_bytes": size, "sha256": digest.hexdigest()} if text is None else {"size_bytes": size, "text": text}
