"""Who records spans: OpenTelemetry where it is configured, else nobody; its packages are not even imported then."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from harmonyd import tracing
from harmonyd.config.daemon import TracingConfig
from harmonyd.config.model import Config

if TYPE_CHECKING:
    from harmonyd.telemetry.spans import OtelTracer

CLOSE_SECS = 3.0
"""For spans that wait, when nobody records any more; what a collector that hangs does not take is dropped."""


class Spans:
    """The tracer of a daemon, as its configuration has it."""

    def __init__(self, in_thread: Callable[..., Awaitable[Any]]) -> None:
        self._in_thread = in_thread
        self._config: TracingConfig | None = None
        self._tracer: OtelTracer | None = None

    async def configure(self, config: Config) -> None:
        """Record as this says from now on."""
        wanted = config.telemetry.tracing
        if wanted == self._config:
            return
        tracer = None if wanted is None else await self._in_thread(_made, wanted, config.id)
        await self.stop()
        self._config, self._tracer = wanted, tracer
        tracing.install(tracer)

    async def stop(self) -> None:
        """Record nothing any more, and send what waits, within ``CLOSE_SECS``. Safe to call twice."""
        tracer, self._tracer, self._config = self._tracer, None, None
        if tracer is not None:
            tracing.install(None)
            await self._in_thread(tracer.close, CLOSE_SECS)


def _made(config: TracingConfig, service_id: str) -> OtelTracer:
    from harmonyd.telemetry.spans import OtelTracer

    return OtelTracer(config, service_id)
