"""A look at the certificates now and then: who renews one has to hear of it before it expires, not afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from harmonyd.config.model import Config
from harmonyd.metrics.certificates import Known, certificate_files, certificates_in
from harmonyd.supervision.process import in_thread
from harmonyd.tls import EXPIRY_WARNING_DAYS

LOOK_SECS = 3600.0
SAY_AGAIN_SECS = 24 * 3600.0
DAY_SECS = 24 * 3600.0


class CertificateWatch:
    """Says once a day what expires soon, has expired, or cannot be read (any more), and when a file was renewed."""

    _log = Logger()

    def __init__(self, reactor: Any, config: Callable[[], Config], now: Callable[[], float] = time.time) -> None:
        """``config``: the one in force. ``now``: seconds since the epoch."""
        self._reactor = reactor
        self._config = config
        self._now = now
        self._said: dict[Path, tuple[str, float]] = {}
        """What was said of a file, and when."""
        self._looking = LoopingCall(lambda: Deferred.fromCoroutine(self.look()))
        self._looking.clock = reactor

    def start(self) -> None:
        self._looking.start(LOOK_SECS).addErrback(
            lambda failure: self._log.failure("certificates are not looked at any more", failure)
        )

    def stop(self) -> None:
        if self._looking.running:
            self._looking.stop()

    async def look(self) -> None:
        """Look at all that the configuration names."""
        owners: dict[Path, list[str]] = {}
        for file in certificate_files(self._config()):
            owners.setdefault(file.path, []).append(f"{file.where} {file.name}: {file.key}")
        found = await in_thread(self._reactor, _read, list(owners))
        now = self._now()
        for path, certificates in found.items():
            self._judge(path, ", ".join(owners[path]), certificates, now)
        for path in self._said.keys() - owners.keys():
            del self._said[path]

    def _judge(self, path: Path, owners: str, certificates: Sequence[Known], now: float) -> None:
        problem = problem_of(certificates, now)
        said, said_at = self._said.get(path, ("", 0.0))
        if not problem:
            if self._said.pop(path, None) is not None:
                self._log.info("{owners} {file} has been renewed", owners=owners, file=str(path))
            return
        if problem == said and now - said_at < SAY_AGAIN_SECS:
            return
        self._said[path] = problem, now
        self._log.warn("{owners} {file}: {problem}", owners=owners, file=str(path), problem=problem)


def problem_of(certificates: Sequence[Known], now: float) -> str:
    """What is wrong with those in a file, or will be soon; empty when nothing is."""
    if not certificates:
        return "no certificate can be read from it"
    first = min(certificates, key=lambda each: each.expires)
    if first.expires <= now:
        return f"{first.subject} expired on {day(first.expires)}: renew it"
    if first.expires <= now + EXPIRY_WARNING_DAYS * DAY_SECS:
        return f"{first.subject} expires on {day(first.expires)}: renew it"
    return ""


def day(timestamp: float) -> str:
    """YYYY-MM-DD, in UTC."""
    return datetime.fromtimestamp(timestamp, UTC).date().isoformat()


def _read(paths: Sequence[Path]) -> dict[Path, list[Known]]:
    return {path: certificates_in(path) for path in paths}
