"""What a middleware is: it may act on the request side, the response side, or both."""

from __future__ import annotations

from typing import Protocol

from harmonyd.envelope import RequestEnvelope, ResponseEnvelope


class Middleware(Protocol):
    """One link of a pipeline's chain. Requests pass the chain in its order, responses in the reverse order."""

    name: str

    async def on_request(self, request: RequestEnvelope) -> ResponseEnvelope | None:
        """Change the request in place and return None, or return a response, which then goes back at once.

        Raises a ``HarmonydError`` to refuse.
        """
        ...

    async def on_response(self, request: RequestEnvelope, response: ResponseEnvelope) -> ResponseEnvelope:
        """Return the response, changed or not."""
        ...
