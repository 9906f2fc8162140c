"""What limits of callers keep count of. It outlives a reload: who was over a limit before it still is after it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from harmonyd.envelope import RequestEnvelope
from harmonyd.middleware.auth.throttle import network_of

__all__ = ["Buckets", "Counts", "LimitState", "caller_key"]


def caller_key(request: RequestEnvelope, by: str) -> str | None:
    """Who is counted: the subject where there is one and ``by`` is "subject", else the address.

    None for what harmonyd asks itself, and for objects that it has received: their senders are limited elsewhere.
    """
    if request.protocol == "dicom" and request.method == "C-STORE":
        return None
    if by == "subject" and request.subject is not None:
        return f"subject {request.subject.scheme} {request.subject.name}"
    address = request.caller.address
    return f"address {network_of(address)}" if address else None


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float
    refused: bool = False


class Buckets:
    """Token buckets by caller, at most ``most``: of more, the one that asked longest ago is forgotten."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, per_sec: float, burst: int, most: int) -> tuple[float, bool]:
        """Take a token; return seconds until there is one (0: it was taken), and whether that is news.

        A bucket holds ``burst`` tokens and gets ``per_sec`` of them each second.
        """
        now = self._seconds()
        bucket = self._buckets.setdefault(key, _Bucket(burst, now))
        self._buckets.move_to_end(key)
        while len(self._buckets) > most:
            self._buckets.popitem(last=False)
        elapsed = max(0.0, now - bucket.at)  # clocks are set back
        bucket.tokens, bucket.at = min(burst, bucket.tokens + elapsed * per_sec), now
        was_refused, bucket.refused = bucket.refused, bucket.tokens < 1
        if bucket.refused:
            return (1 - bucket.tokens) / per_sec, not was_refused
        bucket.tokens -= 1
        return 0.0, False


class Counts:
    """How many requests of each caller run; no more entries than requests."""

    def __init__(self) -> None:
        self._running: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._running)

    def enter(self, key: str, most: int) -> bool:
        """Count one more, unless ``most`` run already."""
        running = self._running.get(key, 0)
        if running >= most:
            return False
        self._running[key] = running + 1
        return True

    def leave(self, key: str) -> None:
        """One has ended."""
        running = self._running.pop(key) - 1
        if running:
            self._running[key] = running


class LimitState:
    """By name of the middleware. ``refused`` is told the name whenever one refuses a request."""

    def __init__(self, seconds: Callable[[], float], refused: Callable[[str], None] = lambda name: None) -> None:
        self._seconds = seconds
        self._buckets: dict[str, Buckets] = {}
        self._counts: dict[str, Counts] = {}
        self.refused = refused

    def buckets(self, name: str) -> Buckets:
        """Those of a ``rate_limit``."""
        return self._buckets.setdefault(name, Buckets(self._seconds))

    def counts(self, name: str) -> Counts:
        """Those of a ``concurrency``."""
        return self._counts.setdefault(name, Counts())


def whole_secs(secs: float) -> int:
    """At least one."""
    return max(1, math.ceil(secs))
