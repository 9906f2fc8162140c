"""``passthru``: a link that changes nothing; also the base of links that act on one side only."""

from __future__ import annotations

from harmonyd.envelope import RequestEnvelope, ResponseEnvelope


class Passthru:
    """Lets requests and responses pass as they are."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def on_request(self, request: RequestEnvelope) -> ResponseEnvelope | None:
        """Let the request pass."""
        return None

    async def on_response(self, request: RequestEnvelope, response: ResponseEnvelope) -> ResponseEnvelope:
        """Let the response pass."""
        return response
