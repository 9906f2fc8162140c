"""What the front end routes to: the endpoint half of a service, and the pipeline behind it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.services.base import AskingEndpoint, HttpEndpoint

__all__ = ["Route"]


@dataclass(frozen=True, slots=True)
class Route:
    """``handle`` is the pipeline that names ``endpoint``."""

    endpoint: HttpEndpoint | AskingEndpoint
    handle: Callable[[RequestEnvelope], Awaitable[ResponseEnvelope]]
    is_probe: bool = False
    """Machines ask all the time: while all is well, this is logged at debug level."""

    def allows(self, method: str) -> bool:
        """Tell whether the endpoint takes ``method``; HEAD goes wherever GET goes (RFC 9110 section 9.3.2)."""
        methods = self.endpoint.methods
        return not methods or method in methods or (method == "HEAD" and "GET" in methods)
