"""The log: one line an event, as text or as JSON, on standard error or in a file.

Everything is logged through ``twisted.logger``; what libraries say through the standard ``logging`` module joins it.
An event may carry fields (``lines.FIELDS``) that join the lines of one matter: ``request``, ``operation``, ``child``.
A log that cannot be written (a full disk, a closed pipe) never stops the daemon; the next line that can be written is
preceded by one that says how many were lost.

Lines are written by whoever logs, also on the reactor thread: a log file belongs on a local disk.
"""

from __future__ import annotations

import contextlib
import logging as stdlib_logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    globalLogBeginner,
    globalLogPublisher,
)
from zope.interface import implementer

from harmonyd.errors import HarmonydError
from harmonyd.privacy import Privacy, said
from harmonyd.telemetry import journal, lines
from harmonyd.telemetry.ring import RingBuffer

__all__ = ["LATEST", "LEVELS", "LogFileError", "LoggingOptions", "start_logging", "stop_logging"]

LEVELS = {
    "trace": LogLevel.debug,
    "debug": LogLevel.debug,
    "info": LogLevel.info,
    "warn": LogLevel.warn,
    "warning": LogLevel.warn,
    "error": LogLevel.error,
    "critical": LogLevel.critical,
}
"""Names of levels in the configuration."""

LATEST = RingBuffer(256_000)
"""The end of this process's log, wherever the log goes; written by any thread."""

_STDLIB_LEVELS = (
    (stdlib_logging.CRITICAL, LogLevel.critical),
    (stdlib_logging.ERROR, LogLevel.error),
    (stdlib_logging.WARNING, LogLevel.warn),
    (stdlib_logging.INFO, LogLevel.info),
)
_PRIORITIES = {
    LogLevel.debug: journal.DEBUG,
    LogLevel.info: journal.INFO,
    LogLevel.warn: journal.WARNING,
    LogLevel.error: journal.ERROR,
    LogLevel.critical: journal.CRITICAL,
}

class LogFileError(HarmonydError):
    """The log file cannot be opened."""

    title = "The log file cannot be opened"


class LoggingOptions(Protocol):
    """What is read of the configuration (``harmonyd.config.model.LoggingConfig``)."""

    @property
    def level(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def file(self) -> Path | None: ...
    @property
    def patient_identifiers(self) -> bool: ...


class _Sink(Protocol):
    def write(self, line: str, level: Any) -> None: ...

    def close(self) -> None: ...


class _StderrSink:
    """Lines to whatever ``sys.stderr`` is at that time; with priorities when that is the journal."""

    def __init__(self) -> None:
        self._is_journal = journal.is_journal(2, os.environ)

    def write(self, line: str, level: Any) -> None:
        sys.stderr.write(journal.mark(line, _PRIORITIES[level]) if self._is_journal else line)
        sys.stderr.flush()

    def close(self) -> None:
        """Leave standard error open."""


class _FileSink:
    """Lines appended to a file, which is opened anew when it was renamed or removed (logrotate)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._open()

    def write(self, line: str, level: Any) -> None:
        if not self._is_current():
            fresh = self._open()
            self._file.close()
            self._file = fresh
        self._file.write(line.encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        self._file.close()

    def _open(self) -> BinaryIO:
        # Unbuffered: one write, hence one whole line, also when something else appends to the same file.
        return self._path.open("ab", buffering=0)

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False


@implementer(ILogObserver)
class _LineObserver:
    """Writes events of a level and above to a sink."""

    def __init__(self, sink: _Sink, render: Callable[[LogEvent], str], level: Any) -> None:
        self._sink = sink
        self._render = render
        self._level = level
        self._lost = 0

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level") or LogLevel.info
        if level < self._level:
            return
        try:
            if self._lost:
                self._sink.write(self._render(_lost_event(self._lost, event)), LogLevel.error)
                self._lost = 0
            line = self._render(event)
            LATEST.write(line.encode("utf-8", "backslashreplace"))
            self._sink.write(line, level)
        except (OSError, ValueError):
            self._lost += 1

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sink.close()


def _lost_event(count: int, event: LogEvent) -> LogEvent:
    return {
        "log_format": "{count} log lines before this one could not be written",
        "count": count,
        "log_level": LogLevel.error,
        "log_namespace": "harmonyd.telemetry",
        "log_time": event.get("log_time"),
    }


class _Bridge(stdlib_logging.Handler):
    """Passes records of the standard library's ``logging`` on to ``twisted.logger``."""

    def emit(self, record: stdlib_logging.LogRecord) -> None:
        level = next((ours for theirs, ours in _STDLIB_LEVELS if record.levelno >= theirs), LogLevel.debug)
        message = lines.where(record) if lines.is_withheld(record.name) else _text_of(record)
        if record.exc_info and record.exc_info[1] is not None:
            message += "\n" + lines.traceback_of(record.exc_info[1], record.exc_info[2])
        Logger(record.name).emit(level, "{message}", message=message.rstrip())


def _text_of(record: stdlib_logging.LogRecord) -> str:
    given = record.args
    if isinstance(given, tuple):
        given = tuple(said(each) if isinstance(each, BaseException) else each for each in given)
    try:
        return str(record.msg) % given if given else str(record.msg)
    except (TypeError, ValueError):
        return f"{record.msg} {record.args}"


class _Running:
    """The one log of the process: which observer and bridge are installed."""

    begun = False
    observer: Any = None  # a _LineObserver; mypy does not see that it provides ILogObserver
    bridge: _Bridge | None = None


def start_logging(config: LoggingOptions) -> None:
    """Log as configured from now on; replaces what an earlier call started.

    Raises ``LogFileError`` when the log file cannot be opened.
    """
    sink = _sink(config.file)
    render = lines.json_line if config.format == "json" else lines.text_line
    observer: Any = _LineObserver(sink, render, LEVELS.get(config.level.lower(), LogLevel.info))
    stop_logging()
    Privacy.shows_patients = config.patient_identifiers
    _Running.observer = observer
    if _Running.begun:
        globalLogPublisher.addObserver(observer)
    else:
        _Running.begun = True
        globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    _Running.bridge = _Bridge()
    stdlib_logging.getLogger().addHandler(_Running.bridge)


def stop_logging() -> None:
    """Stop writing the log and close its file; does nothing when it was not started."""
    if _Running.bridge is not None:
        stdlib_logging.getLogger().removeHandler(_Running.bridge)
        _Running.bridge = None
    Privacy.shows_patients = False
    if _Running.observer is not None:
        globalLogPublisher.removeObserver(_Running.observer)
        _Running.observer.close()
        _Running.observer = None


def _sink(file: Path | None) -> _Sink:
    if file is None:
        return _StderrSink()
    try:
        return _FileSink(file)
    except OSError as exc:
        raise LogFileError(
            f"The log file {file} cannot be opened: {exc.strerror}.",
            hint="Create its folder, let harmonyd write there, or change log_file_path in [logging].",
        ) from exc
