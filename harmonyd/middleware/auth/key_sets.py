"""Where the keys are that tokens are verified with: in the configuration, or in a key set that may change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from harmonyd.errors import HarmonydError, Unavailable
from harmonyd.jwk import Key, parse_key_set
from harmonyd.middleware.auth.guard import Together

__all__ = ["ChangingKeys", "FixedKeys", "Keys"]

AGAIN_SECS = 30.0
"""Between two looks for a key that is not there, and after a failure."""
STALE_SECS = 24 * 3600.0
"""How long keys are used that could not be fetched again."""


class Keys(Protocol):
    """Where keys are."""

    async def candidates(self, kid: str | None, algorithm: str) -> Sequence[Key]:
        """Return the keys that a token may be signed with. Raises ``Unavailable`` where there are none to be had."""
        ...


def _chosen(keys: Sequence[Key], kid: str | None, algorithm: str) -> list[Key]:
    fitting = [key for key in keys if algorithm in key.algorithms]
    if kid is None:
        # Without a name it has to be clear which one is meant.
        return fitting if len(fitting) == 1 else []
    return [key for key in fitting if key.kid == kid]


class FixedKeys:
    """One key of the configuration. It has no name, so a token may call it as it likes."""

    def __init__(self, key: Key) -> None:
        self._key = key

    async def candidates(self, kid: str | None, algorithm: str) -> Sequence[Key]:
        return [self._key] if algorithm in self._key.algorithms else []


class ChangingKeys:
    """A key set that is read again when it is old, or when a token names a key that is not in it."""

    _log = Logger("harmonyd.auth")

    def __init__(
        self, where: str, read: Callable[[], Awaitable[bytes]], seconds: Callable[[], float], refresh_secs: float
    ) -> None:
        """``read`` has to end by itself. ``where``: for the log."""
        self._where = where
        self._read = read
        self._seconds = seconds
        self._refresh_secs = refresh_secs
        self._keys: Sequence[Key] = ()
        self._read_at: float | None = None
        self._tried_at: float | None = None
        self._together = Together()

    async def candidates(self, kid: str | None, algorithm: str) -> Sequence[Key]:
        now = self._seconds()
        age = None if self._read_at is None else now - self._read_at
        found = _chosen(self._keys, kid, algorithm) if age is not None and age < STALE_SECS else []
        if found:
            if age is not None and age >= self._refresh_secs and self._may_try(now):
                Deferred.fromCoroutine(self._again())  # who has a key that is known does not wait
        elif self._may_try(now):
            await self._again()
            found = _chosen(self._keys, kid, algorithm)
        if self._read_at is None or self._seconds() - self._read_at >= STALE_SECS:
            raise Unavailable(
                "The keys that tokens are verified with cannot be had just now.",
                hint="The log of harmonyd says why.",
                retry_after_secs=round(AGAIN_SECS),
            )
        return found

    def _may_try(self, now: float) -> bool:
        return self._tried_at is None or now - self._tried_at >= AGAIN_SECS or self._together.is_busy(b"")

    async def _again(self) -> None:
        if not self._together.is_busy(b""):
            self._tried_at = self._seconds()
        await self._together.once(b"", self._take)

    async def _take(self) -> None:
        try:
            self._keys = parse_key_set(await self._read())
            self._read_at = self._seconds()
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the keys that are there go on being used
            reason = error.detail if isinstance(error, HarmonydError) else str(error) or type(error).__name__
            self._log.error("the key set at {where} cannot be had: {reason}", where=self._where, reason=reason[:300])
