"""Operations, measured as they go: implements ``services.dicom.metering.Meter``."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from harmonyd.metrics.families import counter, gauge, histogram
from harmonyd.services.dicom.metering import OUTCOMES, Measure

__all__ = ["OperationMeter"]


@dataclass(frozen=True, slots=True)
class _Series:
    """Those of one backend and operation: looked up once, since that costs more than counting does."""

    ended: dict[str, Counter]
    in_flight: Gauge
    queue: Histogram
    association: Histogram
    first_result: Histogram
    total: Histogram
    results: Counter
    bytes: Counter


class OperationMeter:
    """``now`` never runs backwards, whatever is done to the machine's clock."""

    def __init__(self, registry: CollectorRegistry, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._ended = counter("harmonyd_operations_total", registry)
        self._in_flight = gauge("harmonyd_operations_in_flight", registry)
        self._queue = histogram("harmonyd_operation_queue_seconds", registry)
        self._association = histogram("harmonyd_operation_association_seconds", registry)
        self._first_result = histogram("harmonyd_operation_first_result_seconds", registry)
        self._total = histogram("harmonyd_operation_seconds", registry)
        self._results = counter("harmonyd_operation_results_total", registry)
        self._bytes = counter("harmonyd_operation_bytes_total", registry)
        self._series: dict[tuple[str, str], _Series] = {}

    def begin(self, backend: str, operation: str) -> Measure:
        """An operation begins."""
        key = backend, operation
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = self._make(*key)
        return _Measured(series, self._now)

    def keep(self, backends: Collection[str]) -> None:
        """Forget all but these. What still runs elsewhere ends unnoticed."""
        for key in [key for key in self._series if key[0] not in backends]:
            del self._series[key]
            for outcome in OUTCOMES:
                self._ended.remove(*key, outcome)
            for metric in (
                *(self._in_flight, self._queue, self._association, self._first_result, self._total),
                *(self._results, self._bytes),
            ):
                metric.remove(*key)

    def _make(self, *key: str) -> _Series:
        return _Series(
            # All at once: a rate needs to have seen the zero before the first.
            {outcome: self._ended.labels(*key, outcome) for outcome in OUTCOMES},
            self._in_flight.labels(*key),
            self._queue.labels(*key),
            self._association.labels(*key),
            self._first_result.labels(*key),
            self._total.labels(*key),
            self._results.labels(*key),
            self._bytes.labels(*key),
        )


class _Measured:
    """Implements ``Measure``, and ``Steps``."""

    __slots__ = ("_associated_at", "_began_at", "_has_first", "_now", "_queued_at", "_series", "_started_at")

    def __init__(self, series: _Series, now: Callable[[], float]) -> None:
        self._series = series
        self._now = now
        self._started_at = now()
        self._queued_at: float | None = None
        self._began_at: float | None = None
        self._associated_at: float | None = None
        self._has_first = False
        series.in_flight.inc()

    @property
    def steps(self) -> _Measured:
        return self

    def queued(self) -> None:
        if self._queued_at is None:
            self._queued_at = self._now()

    def began(self) -> None:
        if self._began_at is None and self._queued_at is not None:
            self._began_at = self._now()
            self._series.queue.observe(self._began_at - self._queued_at)

    def associated(self) -> None:
        if self._associated_at is None and self._began_at is not None:
            self._associated_at = self._now()
            self._series.association.observe(self._associated_at - self._began_at)

    def arrived(self, count: int, size_bytes: int) -> None:
        self._series.results.inc(count)
        self._series.bytes.inc(size_bytes)

    def first(self) -> None:
        if not self._has_first:
            self._has_first = True
            self._series.first_result.observe(self._now() - self._started_at)

    def ended(self, outcome: str) -> None:
        self._series.in_flight.dec()
        self._series.total.observe(self._now() - self._started_at)
        self._series.ended[outcome].inc()
