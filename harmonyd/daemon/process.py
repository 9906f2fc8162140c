"""A daemon as a process of its own: configuration, log, reactor, signals, exit status."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from harmonyd import config as configuration
from harmonyd.config.model import Config
from harmonyd.daemon.again import hold_signals, start_again, take_signals
from harmonyd.daemon.clock import use_steady_clock
from harmonyd.daemon.daemon import Daemon
from harmonyd.errors import HarmonydError
from harmonyd.telemetry import journal
from harmonyd.telemetry.logging import start_logging
from harmonyd.telemetry.notify import Notifier

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIGURATION = 2
FOR_NOBODY_ELSE = 0o027
"""What the modes of new files and folders never have: anything for others, and writing for the group."""

_log = Logger(namespace="harmonyd.daemon")
Main = Callable[[Daemon, Any], Awaitable[int | None]]


def complain(error: HarmonydError) -> None:
    """Say what is wrong, and what to do, on standard error."""
    say("\n".join(f"harmonyd: {line}" for line in [*error.detail.splitlines(), error.hint] if line))


def say(text: str) -> None:
    """Print an error on standard error; in the journal it has the priority of one."""
    in_journal = journal.is_journal(2, os.environ)
    print(journal.mark(text, journal.ERROR).rstrip("\n") if in_journal else text, file=sys.stderr)


def run(config_path: Path, main: Main | None = None, adapt: Callable[[Config], Config] | None = None) -> int:
    """Run a daemon until SIGTERM or SIGINT; return the exit status.

    ``main`` is awaited once the daemon has started; a number it returns ends the process with that status.
    ``adapt`` changes the configuration that was read.
    """
    os.umask(os.umask(FOR_NOBODY_ELSE) | FOR_NOBODY_ELSE)  # before the first file; children inherit it
    faulthandler.enable(2)  # systemd's watchdog ends us with SIGABRT: say where each thread hangs
    notifier = Notifier.from_environment(os.environ)
    try:
        config = configuration.load(config_path)
        config = config if adapt is None else adapt(config)
        start_logging(config.logging)
    except configuration.ConfigError as error:
        say(str(error))
        notifier.status(f"The configuration is wrong: {error}")
        return EXIT_CONFIGURATION
    except HarmonydError as error:
        complain(error)
        notifier.status(f"Cannot start: {error.detail}")
        return EXIT_FAILED
    for warning in config.warnings:
        _log.warn("{warning}", warning=warning)

    def load() -> Config:
        found = configuration.load(config_path)
        return found if adapt is None else adapt(found)

    return _run_reactor(config, load, main, notifier)


def _run_reactor(
    config: Config,
    load: Callable[[], Config],
    main: Main | None,
    notifier: Notifier,
) -> int:
    from twisted.internet import reactor as installed

    reactor: Any = installed
    use_steady_clock(reactor)
    status = EXIT_OK
    try:
        daemon = Daemon(config, reactor, load, notifier)
    except HarmonydError as error:
        complain(error)
        notifier.status(f"Cannot start: {error.detail}")
        return EXIT_FAILED
    except OSError as error:
        say(f"harmonyd: cannot use the storage path {config.storage.path}: {error}")
        return EXIT_FAILED

    async def go() -> None:
        nonlocal status
        await daemon.start()
        if main is not None:
            ended = await main(daemon, reactor)
            if ended is not None:
                status = ended
                reactor.stop()

    def failed(failure: Failure) -> None:
        nonlocal status
        status = EXIT_FAILED
        daemon.manager.failed(failure.getErrorMessage())
        if isinstance(failure.value, HarmonydError):
            complain(failure.value)
        elif isinstance(failure.value, OSError):
            say(f"harmonyd: {failure.value}")
        else:
            _log.failure("cannot start", failure=failure)
            if config.logging.file is not None:
                say(f"harmonyd: cannot start, by our fault; see {config.logging.file}")
        reactor.stop()

    running: list[Deferred[None]] = []

    def begin() -> None:
        take_signals()  # the reactor has its handlers now; children must not inherit that signals are held
        running.append(Deferred.fromCoroutine(go()).addErrback(_unless_stopping))

    def _unless_stopping(failure: Failure) -> None:
        if not stopping:
            failed(failure)

    stopping: list[bool] = []

    def stop() -> Deferred[None]:
        stopping.append(True)
        _take_no_more_signals(reactor, daemon)
        for deferred in running:
            deferred.cancel()
        return daemon.stop()

    def hang_up() -> None:
        Deferred.fromCoroutine(daemon.reload()).addErrback(
            lambda failure: _log.failure("reload failed", failure=failure)
        )

    if main is None:
        signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(hang_up))
    reactor.callWhenRunning(begin)
    reactor.addSystemEventTrigger("before", "shutdown", stop)
    reactor.run()
    if daemon.restarting and status == EXIT_OK:
        return _start_again(daemon, notifier)
    return status


def _start_again(daemon: Daemon, notifier: Notifier) -> int:
    """Start again in place, unless we are told to stop until now; a signal that comes later waits for the next run."""
    hold_signals()
    if not daemon.restarting:
        return EXIT_OK
    try:
        start_again(notifier)
    except OSError as error:
        say(f"harmonyd: cannot start again: {error}")
    return EXIT_FAILED


def _take_no_more_signals(reactor: Any, daemon: Daemon) -> None:
    """Twisted would try to stop a second time, and log that as a failure of ours."""

    def say(_number: int, _frame: object) -> None:
        daemon.restarting = False
        reactor.callFromThread(_log.warn, "already stopping: requests that run have a few seconds to end")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, say)
