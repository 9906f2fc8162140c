"""The guards of ``tests/conftest.py``, shown by a run of pytest over tests that break each of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
BROKEN = '''
import subprocess, time
import pytest, pytest_twisted
from hypothesis import given, strategies as st
from twisted.internet import defer, reactor
from twisted.logger import Logger

@pytest.mark.deadline(0.3)
def test_blocks():
    time.sleep(30)

@pytest.mark.deadline(0.3)
@pytest_twisted.ensureDeferred
async def test_waits_for_ever():
    await defer.Deferred()

def test_leaves_a_process():
    subprocess.Popen(["sleep", "98"])

@pytest_twisted.ensureDeferred
async def test_leaves_a_delayed_call():
    reactor.callLater(99, print)

@pytest_twisted.ensureDeferred
async def test_leaves_a_port():
    from twisted.internet.protocol import Factory
    reactor.listenTCP(0, Factory(), interface="127.0.0.1")

@pytest_twisted.ensureDeferred
async def test_drops_a_failed_deferred():
    defer.fail(ZeroDivisionError("dropped"))

def test_expects_a_logged_failure(logged_failures):
    try:
        1 / 0
    except ZeroDivisionError:
        Logger().failure("expected")
    assert logged_failures.flush(ZeroDivisionError)

@pytest_twisted.ensureDeferred
async def test_ends_clean():
    done = defer.Deferred()
    reactor.callLater(0.01, done.callback, None)
    await done

attempts = []

@pytest.mark.flaky(reruns=1)
@given(st.booleans())
def test_gets_another_chance(value):
    attempts.append(value)
    assert len(attempts) > 1

@pytest.mark.root
def test_needs_root():
    pass
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of pytest over the broken tests, as an ordinary user as far as pytest can see."""
    folder = tmp_path_factory.mktemp("guarded")
    impatient = (TESTS / "conftest.py").read_text().replace("SETTLE_SECS = 10.0", "SETTLE_SECS = 0.3")
    (folder / "conftest.py").write_text(impatient)
    shutil.copy(TESTS.parent / "setup.cfg", folder / "setup.cfg")
    (folder / "test_broken.py").write_text(BROKEN)
    program = "import os, sys, pytest; os.geteuid = lambda: 1000; sys.exit(pytest.main(['-v', 'test_broken.py']))"
    path = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, check=False, capture_output=True, env=environment
    )
    return ran.stdout.decode() + ran.stderr.decode()


@pytest.mark.parametrize(
    "said",
    [
        "FAILED test_broken.py::test_blocks - Failed: still busy after 0.3 s",
        "FAILED test_broken.py::test_waits_for_ever - Failed: not finished after 0.3 s",
        "ERROR test_broken.py::test_leaves_a_process",
        "is still running: sleep 98",
        "ERROR test_broken.py::test_leaves_a_delayed_call",
        "delayed call is still waiting",
        "ERROR test_broken.py::test_leaves_a_port",
        "still in the reactor: <",
        "ERROR test_broken.py::test_drops_a_failed_deferred",
        "ZeroDivisionError: dropped",
    ],
)
def test_what_breaks_a_rule_fails(run: str, said: str) -> None:
    """A deadline missed, and anything left behind, fails the test that did it, and says what it was."""
    assert said in run


@pytest.mark.parametrize("name", ["test_expects_a_logged_failure", "test_ends_clean", "test_gets_another_chance"])
def test_what_keeps_the_rules_passes(run: str, name: str) -> None:
    """Clean tests pass, those that take out the failures they expected, and those that fail the first time alone."""
    assert f"test_broken.py::{name} PASSED" in run
    assert f"ERROR test_broken.py::{name}" not in run


def test_root_tests_are_left_out_and_named(run: str) -> None:
    """For an ordinary user a root test is deselected and named, not skipped."""
    assert "left out: these tests need root" in run
    assert "\ntest_broken.py::test_needs_root\n" in run
    assert "1 deselected" in run
