"""``/metrics`` as a route like any other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from harmonyd.bodies import BytesBody
from harmonyd.describe import TEXT, Answer, Description, Operation
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import NotFound
from harmonyd.services.base import Ask, HttpAnswer, HttpRequest
from harmonyd.web.route import Route

__all__ = ["PATH", "metrics_route"]

PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DESCRIPTION = Description(
    "metrics",
    "For Prometheus.",
    (
        Operation(
            "GET",
            "",
            "getMetrics",
            "What is measured, in Prometheus's text format",
            {200: Answer("All metrics, as they are now.", {"text/plain": TEXT})},
        ),
    ),
)


class MetricsEndpoint:
    """Serves what ``text`` finds."""

    name = "metrics"
    path_prefix = PATH
    methods: tuple[str, ...] = ("GET", "HEAD")

    def __init__(self, text: Callable[[], Awaitable[bytes]]) -> None:
        self._text = text

    def common_headers(self, headers: object) -> dict[str, str]:
        """None: no page of another site may read it."""
        return {}

    async def serve(self, request: HttpRequest, ask: Ask) -> HttpAnswer:
        """Send it."""
        content = await self._text()
        fields = {"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"}
        return HttpAnswer(200, fields, BytesBody(content).chunks(), len(content))


async def _asks_nothing(_: RequestEnvelope) -> ResponseEnvelope:
    raise NotFound("There is nothing behind the metrics.")


def metrics_route(text: Callable[[], Awaitable[bytes]]) -> Route:
    """Return the route of ``/metrics``."""
    return Route(MetricsEndpoint(text), _asks_nothing, is_probe=True, is_exact=True, described=DESCRIPTION)
