"""The middleware of a network: each of its requests passes it first, before whatever serves the path."""

from __future__ import annotations

from dataclasses import replace

from harmonyd.envelope import Occasion
from harmonyd.errors import Forbidden
from harmonyd.permit import NOTHING
from harmonyd.services.base import AskingEndpoint, HttpRequest
from harmonyd.web.route import Route

__all__ = ["identified"]


async def identified(route: Route, request: HttpRequest, occasion: Occasion) -> HttpRequest:
    """Return ``request`` with what is known of who asks, and what they may do.

    What the chain counts until the answer ends, it counts by ``occasion``, as the pipeline behind it does.

    Raises what the middleware raises, and ``Forbidden`` where ``route.action`` is not allowed.
    """
    if route.shown:
        request = replace(request, shown=route.shown)
    if not route.chain or (route.is_open is not None and route.is_open(request)):
        return request
    if _is_preflight(route, request):
        # A browser sends it without credentials (Fetch standard, section 3.2.2); the endpoint answers it by itself.
        return replace(request, permit=NOTHING)
    envelope = request.without_body()
    envelope.occasion = occasion
    for link in route.chain:
        await link.on_request(envelope)
    if route.action and envelope.permit is not None and envelope.permit.limits(route.action, ""):
        envelope.permit.refused(route.action, "")
        raise Forbidden("What you may do here is limited to some data.")
    return replace(request, subject=envelope.subject, permit=envelope.permit, consumed=envelope.consumed)


def _is_preflight(route: Route, request: HttpRequest) -> bool:
    asks = request.method == "OPTIONS" and "access-control-request-method" in request.headers
    return asks and isinstance(route.endpoint, AskingEndpoint)
