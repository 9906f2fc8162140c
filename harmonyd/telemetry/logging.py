"""The log: one line an event, as text or as JSON, on standard error or in a file.

Everything is logged through ``twisted.logger``; what libraries say through the standard ``logging`` module joins it.
An event may carry the fields ``request``, ``operation``, ``child`` and ``pid``, which join the lines of one matter.
A log that cannot be written (a full disk, a closed pipe) never stops the daemon; the next line that can be written is
preceded by one that says how many were lost.

Lines are written by whoever logs, also on the reactor thread: a log file belongs on a local disk.
"""

from __future__ import annotations

import contextlib
import json
import logging as stdlib_logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    formatEvent,
    globalLogBeginner,
    globalLogPublisher,
)
from zope.interface import implementer

from harmonyd.errors import HarmonydError
from harmonyd.telemetry import journal
from harmonyd.telemetry.ring import RingBuffer

__all__ = ["FIELDS", "LATEST", "LEVELS", "LogFileError", "LoggingOptions", "start_logging", "stop_logging"]

FIELDS = ("request", "operation", "child", "pid")
"""Event fields that reach the line when they are strings or numbers."""

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
# C0, DEL, C1 and the line separators of Unicode: whatever a viewer could take for a new line or a terminal command.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


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
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = f"{record.msg} {record.args}"
        if record.exc_info:
            message += "\n" + "".join(traceback.format_exception(*record.exc_info))
        Logger(record.name).emit(level, "{message}", message=message.rstrip())


def _time(event: LogEvent) -> str:
    when = datetime.fromtimestamp(event.get("log_time") or 0.0, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _level(event: LogEvent) -> str:
    return str((event.get("log_level") or LogLevel.info).name).upper()


def _fields(event: LogEvent) -> dict[str, str | int]:
    values = ((name, event.get(name)) for name in FIELDS)
    return {name: value for name, value in values if isinstance(value, (str, int)) and value != ""}


def _escape(text: str) -> str:
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


def _traceback(event: LogEvent) -> str:
    failure = event.get("log_failure")
    return str(failure.getTraceback()) if failure is not None else ""


def _text_line(event: LogEvent) -> str:
    """Render one line, and below it a traceback whose lines cannot be taken for log lines."""
    message = _escape(formatEvent(event).strip("\n"))
    fields = "".join(f" {name}={_escape(str(value))}" for name, value in _fields(event).items())
    line = f"{_time(event)} {_level(event):<5} [{_escape(event.get('log_namespace') or '-')}] {message}{fields}\n"
    return line + "".join(f"  | {_escape(below)}\n" for below in _traceback(event).splitlines())


def _json_line(event: LogEvent) -> str:
    members = {
        "time": _time(event),
        "level": _level(event).lower(),
        "logger": event.get("log_namespace") or "-",
        "message": formatEvent(event).strip("\n"),
        **_fields(event),
    }
    if text := _traceback(event):
        members["traceback"] = text
    # ASCII, so that no character of a message can end the line for any reader.
    return json.dumps(members) + "\n"


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
    render = _json_line if config.format == "json" else _text_line
    observer: Any = _LineObserver(sink, render, LEVELS.get(config.level.lower(), LogLevel.info))
    stop_logging()
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
