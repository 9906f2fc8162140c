"""JSON bodies for middleware: what a message says, as decoded JSON, within a bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.threads import deferToThread

from harmonyd.bodies import BytesBody
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import BadRequest, PayloadTooLarge
from harmonyd.jolt import TransformFailed, decode
from harmonyd.mediatypes import parse_media_type

MAX_BYTES = 10_000_000
IN_REACTOR_BYTES = 4096
"""What is larger is worked on in a thread."""
_NO_BODY = (204, 205, 304)


def is_json(content_type: str) -> bool:
    """Tell whether a Content-Type is one of JSON (RFC 6839 section 3.1)."""
    media = parse_media_type(content_type)
    return media is not None and (media.essence == "application/json" or media.subtype.endswith("+json"))


async def request_json(request: RequestEnvelope, limit_bytes: int = MAX_BYTES) -> Any:
    """Return the JSON of a request: the normalised view, or its body, which can be read again after that.

    None where there is none: no body, or one of another kind. Raises ``BadRequest`` and ``PayloadTooLarge``.
    """
    if request.normalized is not None:
        return request.normalized
    if request.body.length == 0 or not is_json(request.headers.get("content-type", "application/json")):
        return None
    text = await request.body.read(limit_bytes)
    request.body = BytesBody(text)
    if not text.strip():
        return None
    try:
        return await decoded(text)
    except ValueError as error:
        raise BadRequest(f"The request body is not JSON: {error}.", hint="Send JSON (RFC 8259) in UTF-8.") from error


async def response_json(response: ResponseEnvelope, limit_bytes: int = MAX_BYTES) -> Any:
    """Return the JSON in the body of a response, which can be read again after that; None where there is none.

    Raises ``TransformFailed`` for one that is too long, or not what its header says.
    """
    if response.normalized is not None:
        return response.normalized
    body, headers = response.body, _lowered(response.headers)
    if body is None or body.length == 0 or response.status in _NO_BODY or not is_json(headers.get("content-type", "")):
        return None
    if headers.get("content-encoding", "identity") != "identity":
        raise TransformFailed("The answer of the backend is compressed, and nobody had asked for that.")
    try:
        text = await body.read(limit_bytes)
    except PayloadTooLarge as error:
        raise too_large(limit_bytes) from error
    await body.close()
    response.body = BytesBody(text)
    try:
        return await decoded(text) if text.strip() else None
    except ValueError as error:
        raise TransformFailed(f"The answer of the backend is not JSON: {error}.") from error


def too_large(limit_bytes: int) -> TransformFailed:
    """Return the error for an answer beyond the bound."""
    return TransformFailed(
        f"The answer is larger than {limit_bytes} bytes, the most that is transformed as a whole.",
        hint="Ask for less; or raise max_bytes of the transformation, or set its per_record.",
    )


async def decoded(text: bytes) -> Any:
    """Return JSON decoded, in a thread when it is long. Raises ``ValueError``."""
    return decode(text) if len(text) <= IN_REACTOR_BYTES else await deferToThread(decode, text)


def _lowered(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
