"""A daemon as a process of its own: configuration, log, reactor, signals, exit status."""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from harmonyd import config as configuration
from harmonyd.config.model import Config
from harmonyd.daemon.build import needs_dicom
from harmonyd.daemon.daemon import Daemon
from harmonyd.dimse.dcmtk.tools import Tool, find_tools
from harmonyd.errors import HarmonydError
from harmonyd.telemetry.logging import start_logging

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIGURATION = 2

_log = Logger(namespace="harmonyd.daemon")
Main = Callable[[Daemon, Any], Awaitable[int | None]]


def complain(error: HarmonydError) -> None:
    """Say what is wrong, and what to do, on standard error."""
    for line in error.detail.splitlines():
        print(f"harmonyd: {line}", file=sys.stderr)
    if error.hint:
        print(f"harmonyd: {error.hint}", file=sys.stderr)


def run(config_path: Path, main: Main | None = None, adapt: Callable[[Config], Config] | None = None) -> int:
    """Run a daemon until SIGTERM or SIGINT; return the exit status.

    ``main`` is awaited once the daemon has started; a number it returns ends the process with that status.
    ``adapt`` changes the configuration that was read.
    """
    try:
        config = configuration.load(config_path)
        tools = find_tools() if needs_dicom(config) else None
        config = config if adapt is None else adapt(config)
        start_logging(config.logging)
    except configuration.ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIGURATION
    except HarmonydError as error:
        complain(error)
        return EXIT_FAILED
    for warning in config.warnings:
        _log.warn("{warning}", warning=warning)
    return _run_reactor(config, tools, main)


def _run_reactor(config: Config, tools: Mapping[str, Tool] | None, main: Main | None) -> int:
    from twisted.internet import reactor as installed

    reactor: Any = installed
    status = EXIT_OK
    try:
        daemon = Daemon(config, reactor, tools)
    except HarmonydError as error:
        complain(error)
        return EXIT_FAILED
    except OSError as error:
        print(f"harmonyd: cannot use the storage path {config.storage.path}: {error}", file=sys.stderr)
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
        if isinstance(failure.value, HarmonydError):
            complain(failure.value)
        elif isinstance(failure.value, OSError):
            print(f"harmonyd: {failure.value}", file=sys.stderr)
        else:
            _log.failure("cannot start", failure=failure)
            if config.logging.file is not None:
                print(f"harmonyd: cannot start, by our fault; see {config.logging.file}", file=sys.stderr)
        reactor.stop()

    running: list[Deferred[None]] = []

    def begin() -> None:
        running.append(Deferred.fromCoroutine(go()).addErrback(_unless_stopping))

    def _unless_stopping(failure: Failure) -> None:
        if not stopping:
            failed(failure)

    stopping: list[bool] = []

    def stop() -> Deferred[None]:
        stopping.append(True)
        _take_no_more_signals(reactor)
        for deferred in running:
            deferred.cancel()
        return daemon.stop()

    reactor.callWhenRunning(begin)
    reactor.addSystemEventTrigger("before", "shutdown", stop)
    reactor.run()
    return status


def _take_no_more_signals(reactor: Any) -> None:
    """Twisted would try to stop a second time, and log that as a failure of ours."""

    def say(_number: int, _frame: object) -> None:
        reactor.callFromThread(_log.warn, "already stopping: requests that run have a few seconds to end")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, say)
