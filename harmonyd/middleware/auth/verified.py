"""Tokens whose signature and claims were right: the next request with one costs no cryptography."""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harmonyd.jwk import Key
from harmonyd.subject import Subject

__all__ = ["Verified", "VerifiedTokens"]

MOST = 1000


@dataclass(frozen=True, slots=True)
class Verified:
    """What a token has shown. ``key`` has to be one of those that are trusted still."""

    subject: Subject
    key: Key
    kid: str | None
    algorithm: str
    valid_from: float
    valid_until: float
    """By the clock on the wall, seconds since the epoch, leeway included."""


class VerifiedTokens:
    """Only keyed hashes are kept, of the last ``MOST`` tokens, until their time is over by a clock that may jump."""

    def __init__(self, leeway_secs: float, now: Callable[[], float] = time.time) -> None:
        self._leeway_secs = leeway_secs
        self._now = now
        self._key = os.urandom(32)
        self._found: OrderedDict[bytes, Verified] = OrderedDict()

    def get(self, token: str) -> Verified | None:
        """What it has shown; None where it has to be verified (again)."""
        digest = self._digest(token)
        found = self._found.get(digest)
        if found is None:
            return None
        if not found.valid_from <= self._now() < found.valid_until:
            del self._found[digest]
            return None
        self._found.move_to_end(digest)
        return found

    def put(
        self, token: str, subject: Subject, claims: Mapping[str, Any], key: Key, kid: str | None, algorithm: str
    ) -> None:
        """It was verified just now, with this key."""
        begins = [float(int(claims[name])) for name in ("nbf", "iat") if name in claims]
        until = float(int(claims["exp"])) + self._leeway_secs
        valid_from = max(begins, default=0.0) - self._leeway_secs
        self._found[self._digest(token)] = Verified(subject, key, kid, algorithm, valid_from, until)
        while len(self._found) > MOST:
            self._found.popitem(last=False)

    def _digest(self, token: str) -> bytes:
        return hmac.digest(self._key, token.encode("utf-8", "surrogateescape"), hashlib.sha256)
