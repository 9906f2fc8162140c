"""Is the process alive, and is it ready for work? What ``/livez`` and ``/readyz`` answer.

Readiness depends on what is ours (children, disk, shutdown), never on a PACS: one PACS that is away must not take the
gateway to all the others out of service.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread
from twisted.logger import Logger

__all__ = ["CheckResult", "DiskWritable", "Health", "write_probe"]

_log = Logger("harmonyd.telemetry")
_PROBE = bytes(4096)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """``detail`` is for people, and also says what is well."""

    ok: bool
    detail: str


WATCHED_SECS = 5.0
_ALL = ""


class Health:
    """The checks that together decide readiness. A check is cheap and never blocks.

    ``now`` gives seconds since the epoch.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._checks: dict[str, Callable[[], CheckResult]] = {}
        self._stopping = False
        self._now = now
        self._began_at = now()
        self._since: dict[str, tuple[bool, float]] = {}
        """By name of a check, what it says and since when; ``_ALL``: all of them together."""
        self._watching = LoopingCall(self.ready)

    def add_check(self, name: str, fn: Callable[[], CheckResult]) -> None:
        """Make readiness depend on ``fn``; one that raises counts as failed. Raises ``ValueError`` for a taken name."""
        if name in self._checks:
            raise ValueError(f"there is a check named {name!r} already")
        self._checks[name] = fn

    def begin_shutdown(self) -> None:
        """Be not ready from now on, so that whoever balances the load turns elsewhere."""
        self._stopping = True

    def watch(self, clock: Any) -> None:
        """Look every few seconds, so that it is known since when something is as it is. ``IReactorTime``."""
        self._watching.clock = clock
        self._watching.start(WATCHED_SECS)

    def unwatch(self) -> None:
        """Look only when asked."""
        if self._watching.running:
            self._watching.stop()

    def ready(self, *, verbose: bool = False) -> tuple[bool, dict[str, Any]]:
        """Return whether all checks pass, and the JSON body that says so; ``verbose``: and since when."""
        results = {name: _run(name, fn) for name, fn in self._checks.items()}
        if self._stopping:
            results["shutdown"] = CheckResult(False, "shutting down")
        ok, report = _report(results)
        self._note(ok, results)
        if verbose:
            report["since"] = _utc(self._since[_ALL][1])
            for name, told in report["checks"].items():
                told["since"] = _utc(self._since[name][1])
        return ok, report

    def live(self, *, verbose: bool = False) -> tuple[bool, dict[str, Any]]:
        """Return that the process works: it answers, which is all that restarting it could mend."""
        ok, report = _report({})
        return ok, report | ({"since": _utc(self._began_at)} if verbose else {})

    def _note(self, ok: bool, results: dict[str, CheckResult]) -> None:
        was_ok, _ = self._since.get(_ALL, (ok, 0.0))
        now = self._now()
        for name, is_ok in {_ALL: ok, **{name: result.ok for name, result in results.items()}}.items():
            if name not in self._since or self._since[name][0] != is_ok:
                self._since[name] = is_ok, now
        if was_ok and not ok and not self._stopping:
            failed = "; ".join(f"{name}: {result.detail}" for name, result in results.items() if not result.ok)
            _log.warn("not ready: {failed}", failed=failed)
        elif ok and not was_ok:
            _log.info("ready")


def _utc(secs: float) -> str:
    return datetime.fromtimestamp(secs, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _report(results: dict[str, CheckResult]) -> tuple[bool, dict[str, Any]]:
    ok = all(result.ok for result in results.values())
    checks = {name: {"ok": result.ok, "detail": result.detail} for name, result in results.items()}
    return ok, {"status": "ready" if ok else "not ready", "checks": checks}


def _run(name: str, fn: Callable[[], CheckResult]) -> CheckResult:
    try:
        return fn()
    except Exception as exc:  # noqa: BLE001 - a broken check is a failed check, whatever broke it
        _log.failure("health check {check} raised", check=name)
        return CheckResult(False, f"the check itself failed: {type(exc).__name__}")


def write_probe(folder: Path) -> None:
    """Write and remove a small file in ``folder``. Raises ``OSError``."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(_PROBE)


class DiskWritable:
    """The check that a folder can be written to: probed in a thread every ``interval_secs``, answered from memory.

    A probe that does not come back (a file system that hangs) makes the check fail after three intervals.
    ``clock`` provides ``IReactorTime``.
    """

    def __init__(
        self,
        clock: Any,
        folder: Path,
        interval_secs: float = 10.0,
        probe: Callable[[Path], Deferred[None]] | None = None,
    ) -> None:
        self._clock = clock
        self._folder = folder
        self._interval_secs = interval_secs
        self._probe = probe or _probe_in_thread
        self._result = CheckResult(False, f"{folder} was not checked yet")
        self._checked_at = clock.seconds()
        self._loop = LoopingCall(self._check)
        self._loop.clock = clock
        self._running: Deferred[None] | None = None

    async def start(self) -> None:
        """Probe once, then regularly."""
        self._loop.start(self._interval_secs)
        await self._idle()

    async def stop(self) -> None:
        """Stop probing; returns when no probe runs any more."""
        if self._loop.running:
            self._loop.stop()
        await self._idle()

    def __call__(self) -> CheckResult:
        """Return the newest result."""
        silent_secs = self._clock.seconds() - self._checked_at
        if silent_secs > 3 * self._interval_secs:
            return CheckResult(False, f"the file system of {self._folder} has not answered for {silent_secs:.0f} s")
        return self._result

    def _check(self) -> Deferred[None]:
        self._running = running = self._probe(self._folder)
        running.addCallbacks(self._passed, self._failed)
        return running

    async def _idle(self) -> None:
        if self._running is not None and not self._running.called:
            done: Deferred[None] = Deferred()
            self._running.addBoth(lambda _: done.callback(None))
            await done

    def _passed(self, _: None) -> None:
        self._store(CheckResult(True, f"{self._folder} can be written to"))

    def _failed(self, failure: Any) -> None:
        reason = getattr(failure.value, "strerror", None) or type(failure.value).__name__
        self._store(CheckResult(False, f"{self._folder} cannot be written to: {reason}"))

    def _store(self, result: CheckResult) -> None:
        if result.ok != self._result.ok:
            _log.info("disk check: {detail}", detail=result.detail)
        self._result = result
        self._checked_at = self._clock.seconds()


def _probe_in_thread(folder: Path) -> Deferred[None]:
    return deferToThread(write_probe, folder)
