"""Readiness as the sum of its checks, and the disk check that never blocks."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from harmonyd.telemetry.health import WATCHED_SECS, CheckResult, DiskWritable, Health


def good() -> CheckResult:
    return CheckResult(True, "well")


def test_ready_when_all_checks_pass() -> None:
    """The body lists each check with its detail."""
    health = Health()
    health.add_check("one", good)
    health.add_check("two", good)
    well = {"ok": True, "detail": "well"}
    assert health.ready() == (True, {"status": "ready", "checks": {"one": well, "two": well}})


def test_one_failed_check_is_enough() -> None:
    """The others are still told."""
    health = Health()
    health.add_check("one", good)
    health.add_check("two", lambda: CheckResult(False, "ill"))
    ok, body = health.ready()
    assert (ok, body["status"], body["checks"]["two"]["detail"]) == (False, "not ready", "ill")


def test_since_when() -> None:
    """Each check, and all of them, with when they last changed, which is noted without being asked."""
    clock = Clock()
    says = CheckResult(True, "well")
    health = Health(clock.seconds)
    health.add_check("one", good)
    health.add_check("two", lambda: says)
    health.watch(clock)
    clock.pump([WATCHED_SECS] * 12)
    says = CheckResult(False, "ill")
    clock.pump([WATCHED_SECS] * 12)
    assert "since" not in str(health.ready())
    assert health.ready(verbose=True) == (False, {
        "status": "not ready",
        "checks": {
            "one": {"ok": True, "detail": "well", "since": "1970-01-01T00:00:00Z"},
            "two": {"ok": False, "detail": "ill", "since": "1970-01-01T00:01:05Z"},
        },
        "since": "1970-01-01T00:01:05Z",
    })  # fmt: skip
    says = CheckResult(True, "well again")
    clock.advance(1)
    assert health.ready(verbose=True)[1]["since"] == "1970-01-01T00:02:01Z"
    assert health.live(verbose=True)[1]["since"] == "1970-01-01T00:00:00Z"
    health.unwatch()
    assert clock.getDelayedCalls() == []


def test_a_check_that_raises_has_failed(logged_failures: object) -> None:
    """It does not break the report, does not show its exception, and is logged."""

    def broken() -> CheckResult:
        raise ZeroDivisionError("secret")

    health = Health()
    health.add_check("broken", broken)
    ok, body = health.ready()
    assert not ok
    assert "secret" not in str(body)
    assert len(logged_failures.flush(ZeroDivisionError)) == 1  # type: ignore[attr-defined]


def test_shutting_down_is_not_ready() -> None:
    """From its begin on, whatever the checks say; the process is still alive."""
    health = Health()
    health.add_check("one", good)
    health.begin_shutdown()
    ok, body = health.ready()
    assert (ok, body["checks"]["shutdown"]["detail"]) == (False, "shutting down")
    assert health.live()[0]


def test_two_checks_of_one_name_are_refused() -> None:
    """One would hide the other."""
    health = Health()
    health.add_check("one", good)
    with pytest.raises(ValueError, match="one"):
        health.add_check("one", good)


@pytest_twisted.ensureDeferred
async def test_a_disk_that_works(tmp_path: Path) -> None:
    """After start there is a result, and nothing is left in the folder."""
    from twisted.internet import reactor

    check = DiskWritable(reactor, tmp_path)
    assert not check().ok
    await check.start()
    assert check().ok
    await check.stop()
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - pathlib's is refused in a coroutine


@pytest_twisted.ensureDeferred
async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """The detail says which folder and why."""
    from twisted.internet import reactor

    check = DiskWritable(reactor, tmp_path / "missing")
    await check.start()
    assert check() == CheckResult(False, f"{tmp_path / 'missing'} cannot be written to: No such file or directory")
    await check.stop()


class Probe:
    """A probe whose answers the test gives."""

    def __init__(self) -> None:
        self.asked: list[Deferred[None]] = []

    def __call__(self, folder: Path) -> Deferred[None]:
        self.asked.append(Deferred())
        return self.asked[-1]


def test_the_disk_is_checked_again_and_again() -> None:
    """A disk that fills up, and is freed, shows in the next results."""
    clock, probe = Clock(), Probe()
    check = DiskWritable(clock, Path("/data"), 10, probe)
    Deferred.fromCoroutine(check.start())
    probe.asked[0].callback(None)
    assert check().ok
    clock.advance(10)
    probe.asked[1].errback(Failure(OSError(errno.ENOSPC, "No space left on device")))
    assert "No space left on device" in check().detail
    clock.advance(10)
    probe.asked[2].callback(None)
    assert check().ok
    Deferred.fromCoroutine(check.stop())
    assert clock.getDelayedCalls() == []


def test_a_disk_that_hangs_is_not_writable() -> None:
    """No answer for three intervals is an answer; probes do not pile up meanwhile."""
    clock, probe = Clock(), Probe()
    check = DiskWritable(clock, Path("/data"), 10, probe)
    Deferred.fromCoroutine(check.start())
    probe.asked[0].callback(None)
    clock.pump([10, 10, 10, 1])
    assert len(probe.asked) == 2
    assert check() == CheckResult(False, "the file system of /data has not answered for 31 s")
    stopped = Deferred.fromCoroutine(check.stop())
    assert not stopped.called
    probe.asked[1].callback(None)
    assert stopped.called
