"""``json_extractor``: lets middleware after it see what JSON bodies say."""

from __future__ import annotations

from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.middleware.json_view import request_json, response_json


class JsonExtractor:
    """Puts the JSON of a body into the normalised view, in which ``route`` looks for elements; bodies stay.

    A view that is there already (an inbound object has one) is left, and so are bodies of another kind.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    async def on_request(self, request: RequestEnvelope) -> ResponseEnvelope | None:
        """Raises ``BadRequest`` for a body that is not JSON though it says so, ``PayloadTooLarge``."""
        request.normalized = await request_json(request)
        return None

    async def on_response(self, request: RequestEnvelope, response: ResponseEnvelope) -> ResponseEnvelope:
        """The same with an answer. Records of an operation are left: they are JSON, one by one."""
        response.normalized = await response_json(response)
        return response
