"""HTTP requests, counted as they end."""

from __future__ import annotations

from collections.abc import Collection

from prometheus_client import CollectorRegistry

from harmonyd.metrics.families import counter, histogram

CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx", "cut")
"""Of statuses; "cut" is what did not come to its end: the client left, or the answer broke off."""
_OTHER = "other"


class RequestMeter:
    """Called for each request with the name of its endpoint, as ``web.front_end.Measured``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = counter("harmonyd_http_requests_total", registry)
        self._secs = histogram("harmonyd_http_request_seconds", registry)
        self._seen: set[tuple[str, str]] = set()

    def __call__(self, endpoint: str, status: int | None, secs: float) -> None:
        """``endpoint``: empty where none serves the path; ``status`` None: it was cut."""
        kind = "cut" if status is None else f"{status // 100}xx"
        labels = endpoint, kind if kind in CLASSES else _OTHER
        self._seen.add(labels)
        self._requests.labels(*labels).inc()
        self._secs.labels(endpoint).observe(max(0.0, secs))

    def forget(self, endpoints: Collection[str]) -> None:
        """These are not there any more."""
        gone = {labels for labels in self._seen if labels[0] in endpoints}
        self._seen -= gone
        for labels in gone:
            self._requests.remove(*labels)
        for endpoint in {endpoint for endpoint, _ in gone}:
            self._secs.remove(endpoint)
