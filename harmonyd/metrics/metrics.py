"""All metrics of one daemon, in a registry of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from harmonyd.config.model import Config
from harmonyd.metrics.certificates import CertificateFile, certificate_files, expiry
from harmonyd.metrics.families import Found, counter, histogram
from harmonyd.metrics.lag import LoopLag
from harmonyd.metrics.operations import OperationMeter
from harmonyd.metrics.requests import RequestMeter
from harmonyd.metrics.shared import Shared
from harmonyd.metrics.state import Sources, add_spool, add_state
from harmonyd.spool.api import Summary
from harmonyd.supervision.process import in_thread

PART_SECS = 2.0
"""How long a part may take that needs the disk; a scrape goes on without it then."""
_WHOLE_SECS = 30.0


class Metrics:
    """Counts from the beginning, whether or not anybody scrapes; ``text`` reads the rest.

    The counters outlive a reload; those of backends and endpoints that it took out go.
    """

    _log = Logger("harmonyd.metrics")

    def __init__(self, reactor: Any, config: Config, sources: Sources) -> None:
        self._reactor = reactor
        self._config = config
        self._endpoints: set[str] = set()
        """All that there have been."""
        self._sources = sources
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.operations = OperationMeter(self._registry)
        self.requests = RequestMeter(self._registry)
        self._limits: set[str] = set()
        """Middleware that has refused something."""
        self._limited = counter("harmonyd_limited_requests_total", self._registry)
        self._lag = LoopLag(reactor, histogram("harmonyd_event_loop_lag_seconds", self._registry).observe)
        self._spool = Shared(reactor, self._summary)
        self._certificates = Shared(reactor, self._expiries)
        self._text = Shared(reactor, self._scrape)

    def start(self) -> None:
        """Measure what needs a timer, if the configuration wants metrics."""
        if self._config.telemetry.metrics:
            self._lag.start()

    def configure(self, config: Config) -> None:
        """Another configuration is in force."""
        self.operations.keep(config.backends)
        self._endpoints |= set(self._config.endpoints)  # a request may end after its endpoint is gone: look again
        self.requests.forget(self._endpoints - set(config.endpoints))
        for name in self._limits - set(config.middleware):
            self._limited.remove(name)
        self._limits &= set(config.middleware)
        self._config = config
        if config.telemetry.metrics:
            self._lag.start()
        else:
            self._lag.stop()

    def limited(self, middleware: str) -> None:
        """This middleware refused a request because of a limit of its caller."""
        self._limited.labels(middleware).inc()
        self._limits.add(middleware)

    def stop(self) -> None:
        """Leave no timer."""
        self._lag.stop()

    async def text(self) -> bytes:
        """Everything in Prometheus's text format 0.0.4. Who asks while another one waits gets the same."""
        return await self._text.get(_WHOLE_SECS)

    async def _scrape(self) -> bytes:
        found = Found()
        add_state(found, self._sources, self._reactor.seconds())
        parts = (self._add_spool(found), self._add_certificates(found))
        await gatherResults([Deferred.fromCoroutine(part) for part in parts])
        text: bytes = await in_thread(self._reactor, generate_latest, _Everything(self._registry, found.families))
        return text

    async def _add_spool(self, found: Found) -> None:
        summary = await self._part(found, "spool", self._spool)
        if summary is not None:
            add_spool(found, summary, self._reactor.seconds())

    async def _add_certificates(self, found: Found) -> None:
        for file, when in await self._part(found, "certificates", self._certificates) or ():
            labels = file.where, file.name, file.key
            found.add("harmonyd_certificate_expiry_timestamp_seconds", when, *labels)
            found.add("harmonyd_certificate_unreadable", when is None, *labels)

    async def _part(self, found: Found, name: str, shared: Shared[Any]) -> Any:
        """What is found in time; None, and a metric that says so, where nothing is."""
        try:
            result = await shared.get(PART_SECS)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a part, the rest can be told
            self._log.warn("metrics lack {part}: {why}", part=name, why=str(error) or type(error).__name__)
            result = None
        found.add("harmonyd_scrape_ok", result is not None, name)
        return result

    async def _summary(self) -> Summary:
        return await self._sources.spool()

    async def _expiries(self) -> Sequence[tuple[CertificateFile, float | None]]:
        files = certificate_files(self._config)
        if not files:
            return []

        def read() -> list[float | None]:
            return [expiry(file.path) for file in files]

        return list(zip(files, await in_thread(self._reactor, read), strict=True))


class _Everything:
    """What ``generate_latest`` takes for a registry. Without the times at which series were made: nobody asks."""

    def __init__(self, registry: CollectorRegistry, found: Sequence[Metric]) -> None:
        self._registry = registry
        self._found = found

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [each for each in family.samples if not each.name.endswith("_created")]
            yield family
        yield from self._found
