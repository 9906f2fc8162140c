"""An event as a line of the log: what gets into it, as text and as JSON (``log.schema.json``).

Whatever the network may have written is escaped. Where patients must not be named, exceptions show what
``privacy.said`` lets through, tracebacks have no texts of exceptions, and UIDs are UIDs.
"""

from __future__ import annotations

import json
import linecache
import re
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from twisted.logger import LogEvent, LogLevel, formatEvent
from twisted.python.failure import Failure

from harmonyd.privacy import Privacy, said, uid_or_nothing
from harmonyd.tracing import trace_of

__all__ = ["FIELDS", "TEXT_FIELDS", "escape", "json_line", "text_line", "traceback_of"]

_STR, _INT = (str,), (int,)
FIELDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "request": ("request", _STR),
    "trace": ("trace", _STR),
    "cause": ("cause", _STR),
    "operation": ("operation", _STR),
    "operation_id": ("operation_id", _STR),
    "endpoint": ("endpoint", _STR),
    "backend": ("backend", _STR),
    "child": ("child", _STR),
    "pid": ("pid", _INT),
    "association": ("association_id", _STR),
    "calling_aet": ("calling", _STR),
    "peer": ("peer", _STR),
    "sop_instance_uid": ("sop_instance_uid", _STR),
    "attempts": ("attempts", _INT),
    "http_method": ("http_method", _STR),
    "http_path": ("http_path", _STR),
    "http_status": ("http_status", _INT),
    "bytes": ("sent_bytes", _INT),
    "duration_ms": ("ms", _INT),
    "outcome": ("outcome_kind", _STR),
}
"""Members of a JSON line beside time, level, logger, message and traceback: key of the event, and its type."""
TEXT_FIELDS = ("request", "trace", "cause", "operation", "child", "pid")
"""Those that follow the message of a text line, which says the others itself."""
_UIDS = ("sop_instance_uid", "uid")
_MAX_FIELD_CHARS = 256

# C0, DEL, C1 and the line separators of Unicode: whatever a viewer could take for a new line or a terminal command.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def text_line(event: LogEvent) -> str:
    """Render one line, and below it a traceback whose lines cannot be taken for log lines."""
    event = _fit(event)
    fields = _fields(event)
    added = "".join(f" {name}={escape(str(fields[name]))}" for name in TEXT_FIELDS if name in fields)
    message = escape(_message(event))
    line = f"{_time(event)} {_level(event):<5} [{escape(event.get('log_namespace') or '-')}] {message}{added}\n"
    return line + "".join(f"  | {escape(below)}\n" for below in _traceback(event).splitlines())


def json_line(event: LogEvent) -> str:
    """Render one JSON object (RFC 8259) and a line feed."""
    event = _fit(event)
    members = {
        "time": _time(event),
        "level": _level(event).lower(),
        "logger": event.get("log_namespace") or "-",
        "message": _message(event),
        **_fields(event),
    }
    if text := _traceback(event):
        members["traceback"] = text
    # ASCII, so that no character of a message can end the line for any reader.
    return json.dumps(members) + "\n"


def _fit(event: LogEvent) -> LogEvent:
    """The event with nothing in it that must not be shown."""
    changed: dict[str, Any] = {
        key: said((value.value or value) if isinstance(value, Failure) else value)
        for key, value in event.items()
        if isinstance(value, BaseException) and key != "log_failure"
    }
    for key in _UIDS:
        if isinstance(value := event.get(key), str) and not value.startswith("entry "):
            changed[key] = uid_or_nothing(value)
    if isinstance(event.get("log_failure"), Failure) and "log_text" in event:
        # Of twisted.python.log: the text holds the traceback.
        changed["log_format"] = "{log_why}"
        changed["log_why"] = str(event.get("why") or "Unhandled error")
    return {**event, **changed} if changed else event


def _message(event: LogEvent) -> str:
    return formatEvent(event).strip("\n")


def _time(event: LogEvent) -> str:
    when = datetime.fromtimestamp(event.get("log_time") or 0.0, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _level(event: LogEvent) -> str:
    return str((event.get("log_level") or LogLevel.info).name).upper()


def _fields(event: LogEvent) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (key, kinds) in FIELDS.items():
        value = event.get(key)
        if isinstance(value, kinds) and value != "" and not isinstance(value, bool):
            found[name] = value[:_MAX_FIELD_CHARS] if isinstance(value, str) else value
    if "trace" not in found and "request" in found and (trace := trace_of(str(found["request"]))):
        found["trace"] = trace
    return found


def escape(text: str) -> str:
    """The text in one line, with nothing that a terminal obeys."""
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


def _traceback(event: LogEvent) -> str:
    failure = event.get("log_failure")
    if failure is None:
        return ""
    if Privacy.shows_patients:
        return str(failure.getTraceback())
    error = failure.value
    lines = [_frame(name, file, number) for name, file, number, *_ in failure.frames]
    return _whole(lines, error)


def traceback_of(error: BaseException, trace: TracebackType | None) -> str:
    """A traceback of the standard library's ``logging``, with no more in it than may be shown."""
    lines = []
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(_frame(code.co_name, code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    return _whole(lines, error)


def _frame(name: str, file: str, number: int) -> str:
    source = linecache.getline(file, number).strip()
    return f'  File "{file}", line {number}, in {name}\n' + (f"    {source}\n" if source else "")


def _whole(frames: list[str], error: BaseException) -> str:
    kind = type(error)
    text = said(error)
    name = kind.__name__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__name__}"
    return f"Traceback (most recent call last):\n{''.join(frames)}{name}" + (
        f": {text}\n" if text != kind.__name__ else "\n"
    )


def is_withheld(logger: str) -> bool:
    """Whether the texts of this library's log quote the data sets it reads."""
    return not Privacy.shows_patients and logger.split(".")[0] in ("pydicom", "pynetdicom")


def where(record: Any) -> str:
    """For a text that is withheld: who has said it, and where."""
    return f"(a text of {record.name} is withheld; it comes from {record.module}, line {record.lineno})"


