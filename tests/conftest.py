"""What holds for every test (a deadline, nothing left behind, no failure that was only logged), and shared fixtures."""

from __future__ import annotations

import faulthandler
import functools
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, settings
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from harmonyd.testing.config_files import ENGINE_VARIABLE, write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import demo_files, report_files, sample_files
from harmonyd.testing.leftovers import Leftovers, LoggedFailures
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port

ROOT = Path(__file__).parent.parent
DEFAULT_DEADLINE_SECS = 120.0
SETTLE_SECS = 10.0
DESTINATIONS = ("HARMONY_SCU", "HARMONY_MOVE", "HARMONY_THIRD")

# A busy machine is slow in making examples, too; what bounds a test is its deadline here.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

_left_out = pytest.StashKey[list[str]]()
_real_stderr = pytest.StashKey[int]()


# --- which tests run, and in which order ------------------------------------------------------------------------------


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is about DCMTK's programs in a native run, and, by name, what needs root when we are not."""
    _long_ones_first(config, items)
    if os.environ.get(ENGINE_VARIABLE) == "native":
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("dcmtk")])
        items[:] = [item for item in items if not item.get_closest_marker("dcmtk")]
    config.stash[_left_out] = []
    if os.geteuid() == 0:
        return
    need_root = [item for item in items if item.get_closest_marker("root")]
    config.stash[_left_out] = [item.nodeid for item in need_root]
    if hasattr(config, "workeroutput"):
        config.workeroutput["left_out"] = config.stash[_left_out]
    config.hook.pytest_deselected(items=need_root)
    items[:] = [item for item in items if not item.get_closest_marker("root")]


def _long_ones_first(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a parallel run files of few and long tests come first, so that the workers end at about the same time."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path.parent.name not in ("e2e", "interop", "viewer"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare the modules and tests that are there now from each later collection of garbage, of which there are many."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Learn from a worker of a parallel run what it left out: each leaves out the same."""
    if left_out := getattr(node, "workeroutput", {}).get("left_out"):
        node.config.stash[_left_out] = left_out


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name what was left out."""
    left_out = config.stash.get(_left_out, [])
    if left_out:
        terminalreporter.section("left out: these tests need root")
        for name in left_out:
            terminalreporter.line(name)


# --- deadlines --------------------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Keep the real standard error, for the traceback of a test that cannot even be interrupted."""
    _environment_last()
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background; our daemons would not hear it either
        signal.signal(signal.SIGINT, signal.default_int_handler)
    capture = config.pluginmanager.getplugin("capturemanager")
    with ExitStack() as stack:
        if capture is not None:
            stack.enter_context(capture.global_and_fixture_disabled())
        config.stash[_real_stderr] = os.dup(2)


def _environment_last() -> None:
    """Look for programs in an activated virtual environment last.

    pynetdicom installs scripts there that are named like DCMTK's programs; each daemon would run each of them to see.
    """
    ours = str(Path(sys.executable).parent)
    places = os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join(sorted(places, key=lambda place: place == ours))


def _deadline_secs(item: pytest.Item) -> float:
    marker = item.get_closest_marker("deadline")
    return float(marker.args[0]) if marker else DEFAULT_DEADLINE_SECS


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """The last resort, for set-up, test and tear-down together: show every thread's stack and end the run."""
    faulthandler.dump_traceback_later(_deadline_secs(item) + 120, exit=True, file=item.config.stash[_real_stderr])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Fail a test at its deadline: an async one by cancelling it, one that blocks by a signal."""
    secs = _deadline_secs(pyfuncitem)
    if getattr(pyfuncitem.obj, "_pytest_twisted_mark", None) and not hasattr(pyfuncitem.obj, "hypothesis"):
        pyfuncitem.obj = _cancelled_after(pyfuncitem.obj, secs)
        secs += 5
    with _interrupted_after(secs), _as_it_was(pyfuncitem.obj):
        return (yield)


@contextmanager
def _as_it_was(test: Any) -> Iterator[None]:
    """pytest-twisted wraps what a Hypothesis test runs, and would wrap it again when the test gets another chance."""
    handle = getattr(test, "hypothesis", None)
    inner_test = getattr(handle, "inner_test", None)
    try:
        yield
    finally:
        if handle is not None:
            handle.inner_test = inner_test


def _cancelled_after(test: Callable[..., Awaitable[None]], secs: float) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def bounded(**arguments: Any) -> None:
        from twisted.internet import reactor

        await Deferred.fromCoroutine(test(**arguments)).addTimeout(secs, reactor, _say_deadline)

    return bounded


def _say_deadline(value: Any, secs: float) -> None:
    pytest.fail(f"not finished after {secs:g} s")


@contextmanager
def _interrupted_after(secs: float) -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"still busy after {secs:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, secs)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- nothing left behind ----------------------------------------------------------------------------------------------


@pytest.fixture
def logged_failures() -> Iterator[LoggedFailures]:
    """What is logged as a failure fails the test; ``logged_failures.flush(SomeError)`` takes out what was expected."""
    failures = LoggedFailures()
    failures.start()
    yield failures
    failures.stop()


@pytest.fixture(scope="session")
def started_reactor() -> Any:
    """The reactor after its first turn, with its own readers in place."""
    from twisted.internet import reactor

    pytest_twisted.blockon(deferLater(reactor, 0))
    return reactor


@pytest.fixture(autouse=True)
def clean_end(request: pytest.FixtureRequest, started_reactor: Any, logged_failures: LoggedFailures) -> Iterator[None]:
    """Fail a test that leaves a process, a delayed call, a reader or a logged failure behind."""
    before = Leftovers(started_reactor)
    yield
    if getattr(request.function, "_pytest_twisted_mark", None):
        gc.collect()  # a Deferred tells of a failure that nobody handled when it is collected
    problems = _settled(before, started_reactor)
    before.end()
    problems += [f"logged failure: {failure.getTraceback()}" for failure in logged_failures.flush()]
    if problems:
        pytest.fail("the test left something behind:\n" + "\n".join(problems), pytrace=False)


def _settled(before: Leftovers, reactor: Any) -> list[str]:
    """What is left after the reactor has had time to finish what was ending."""
    give_up = reactor.seconds() + SETTLE_SECS
    while (problems := before.problems()) and reactor.seconds() < give_up:
        pytest_twisted.blockon(deferLater(reactor, 0.02))
    return problems


# --- shared fixtures --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPacs]:
    """One dcmqrscp for the whole run, with pydicom's images and reports and up to 50 of ``dev/samples``. Read only.

    It can move to the AE titles in ``pacs.destinations``, each with a free port of its own.
    """
    files = [*demo_files(), *report_files(), *sample_files(ROOT)]
    ports = {aet: free_port() for aet in DESTINATIONS}
    with RunningPacs(tmp_path_factory.mktemp("pacs"), files=files, destinations=ports) as running:
        yield running


@pytest.fixture
def peer() -> Iterator[Callable[..., ScriptedPeer]]:
    """Start scripted peers: ``peer("serve", count=3)``; see ``harmonyd.testing.peer``."""
    with ExitStack() as stack:

        def start(script: str = "serve", **options: Any) -> ScriptedPeer:
            return stack.enter_context(ScriptedPeer(script, **options))

        yield start


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., RunningDaemon]]:
    """Start daemons: ``daemon(backends={"pacs": {...}})``, with the arguments of ``write_config``, and ``env``.

    At the end of the test each is stopped, and must exit with 0 and leave nothing.
    """
    with ExitStack() as stack:

        def start(*, env: dict[str, str] | None = None, **arguments: Any) -> RunningDaemon:
            port = arguments.pop("http_port", None) or free_port()
            config = write_config(tmp_path / f"harmonyd-{port}", http_port=port, **arguments)
            return stack.enter_context(RunningDaemon(config, env=env))

        yield start
