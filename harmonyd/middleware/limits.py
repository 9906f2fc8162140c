"""``rate_limit`` and ``concurrency``: how often a caller may ask, and how much of it at once.

A request of a client counts once, however many questions an endpoint makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from twisted.logger import Logger

from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import TooManyRequests
from harmonyd.middleware.limiting import LimitState, caller_key, whole_secs
from harmonyd.middleware.passthru import Passthru

__all__ = ["LIMITS", "Concurrency", "RateLimit"]

LIMITS = ("rate_limit", "concurrency")
"""Types whose refusals are 429."""

_BUSY_SECS = 2


class RateLimit(Passthru):
    """A token bucket for each caller. Raises ``TooManyRequests``."""

    _log = Logger()

    def __init__(self, name: str, options: Mapping[str, Any], state: LimitState) -> None:
        """Options: ``requests`` in ``per_secs``, ``burst``, ``by`` ("subject", "address"), ``max_callers``."""
        super().__init__(name)
        self._requests: int = options["requests"]
        self._per_secs: float = options["per_secs"]
        self._burst: int = options["burst"]
        self._by: str = options["by"]
        self._most: int = options["max_callers"]
        self._state = state

    async def on_request(self, request: RequestEnvelope) -> ResponseEnvelope | None:
        """Count it."""
        key = caller_key(request, self._by)
        marks = request.occasion.marks if request.occasion is not None else {}
        if key is None or self.name in marks:
            return None
        buckets, per_sec = self._state.buckets(self.name), self._requests / self._per_secs
        wait, is_news = buckets.take(key, per_sec, self._burst, self._most)
        if wait:
            self._refuse(request, key, whole_secs(wait), is_news=is_news)
        marks[self.name] = key
        return None

    def _refuse(self, request: RequestEnvelope, key: str, secs: int, *, is_news: bool) -> None:
        self._state.refused(self.name)
        if is_news:
            self._log.warn("{caller} is over its rate ({limit})", caller=key, limit=self.name, request=request.id)
        raise TooManyRequests(
            f"More than {self._requests} requests in {self._per_secs:g} s: the next one is due in {secs} s.",
            hint="Wait as long as Retry-After says, and ask less often; or have the limit raised.",
            retry_after_secs=secs,
        )


class Concurrency(Passthru):
    """At most so many requests of a caller run at once, until their answers were given. Raises ``TooManyRequests``."""

    def __init__(self, name: str, options: Mapping[str, Any], state: LimitState) -> None:
        """Options: ``limit``, ``by``."""
        super().__init__(name)
        self._limit: int = options["limit"]
        self._by: str = options["by"]
        self._state = state

    async def on_request(self, request: RequestEnvelope) -> ResponseEnvelope | None:
        """Count it until it ends."""
        key, occasion = caller_key(request, self._by), request.occasion
        if key is None or occasion is None or self.name in occasion.marks:
            return None
        counts = self._state.counts(self.name)
        if not counts.enter(key, self._limit):
            self._state.refused(self.name)
            raise TooManyRequests(
                f"{self._limit} requests of this caller run already.",
                hint="Wait until one of them has ended, or end one: with DELETE on its operation, or by leaving.",
                retry_after_secs=_BUSY_SECS,
            )
        occasion.marks[self.name] = key
        occasion.at_end(partial(counts.leave, key))
        return None
