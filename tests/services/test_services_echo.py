"""The ``echo`` service: answers with what it got."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import pytest_twisted

from harmonyd.bodies import BytesBody
from harmonyd.config.model import HttpEndpointOptions
from harmonyd.envelope import RequestEnvelope
from harmonyd.services.echo import MAX_TEXT_BYTES, EchoBackend, EchoEndpoint


async def echoed(body: bytes = b"", **fields: Any) -> dict[str, Any]:
    backend = EchoBackend("echo")
    await backend.start()
    request = RequestEnvelope("http", "PUT", "/echo/a?x=1", "/a", BytesBody(body), **fields)
    response = await backend.send(request)
    await backend.stop()
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    assert response.body is not None
    answer: dict[str, Any] = json.loads(await response.body.read(10_000_000))
    return answer


@pytest_twisted.ensureDeferred
async def test_the_request_is_told() -> None:
    """Method, path, query, metadata, headers and body come back; credentials do not."""
    answer = await echoed(
        "häßlich".encode(),
        headers={"accept": "*/*", "authorization": "secret", "cookie": "secret", "proxy-authorization": "secret"},
        query={"x": ["1", "2"]},
        metadata={"path": "/a", "backend": "echo"},
        id="r1",
    )
    assert answer == {
        "id": "r1",
        "protocol": "http",
        "method": "PUT",
        "path": "/a",
        "query": {"x": ["1", "2"]},
        "headers": {"accept": "*/*"},
        "metadata": {"path": "/a", "backend": "echo"},
        "body": {"size_bytes": 9, "text": "häßlich"},
    }


@pytest.mark.parametrize("body", [b"x" * (MAX_TEXT_BYTES + 1), b"\xff\x00", b"y" * 1_000_000])
@pytest_twisted.ensureDeferred
async def test_a_long_or_binary_body_is_told_by_its_digest(body: bytes) -> None:
    """What is too long, or no text, is told by size and SHA-256."""
    digest = hashlib.sha256(body).hexdigest()
    assert (await echoed(body))["body"] == {"size_bytes": len(body), "sha256": digest}


@pytest_twisted.ensureDeferred
async def test_a_body_at_the_limit_is_still_text() -> None:
    """The limit itself is within."""
    assert (await echoed(b"x" * MAX_TEXT_BYTES))["body"]["text"] == "x" * MAX_TEXT_BYTES


def test_the_endpoint_has_prefix_and_methods() -> None:
    """The endpoint half is that of ``http``."""
    endpoint = EchoEndpoint("e", HttpEndpointOptions("/echo"))
    assert (endpoint.name, endpoint.path_prefix, endpoint.methods) == ("e", "/echo", ())
