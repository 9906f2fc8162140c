"""The JSON lines of a daemon's log: against their schema, and as text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from harmonyd.telemetry.lines import TEXT_FIELDS, escape

__all__ = ["as_text", "complaint", "log_schema", "wrong_lines"]

_BEGIN = '{"'
"""Of a line of the log; the demo shows JSON of other shapes beside it."""
_TYPES = {"string": str, "integer": int}


@cache
def log_schema() -> dict[str, Any]:
    """The JSON Schema of a line."""
    found: dict[str, Any] = json.loads(files("harmonyd.telemetry").joinpath("log.schema.json").read_text("utf-8"))
    return found


@cache
def _patterns() -> dict[str, re.Pattern[str]]:
    rules = log_schema()["properties"]
    return {name: re.compile(rule["pattern"]) for name, rule in rules.items() if "pattern" in rule}


def wrong_lines(lines: Iterable[str]) -> Iterator[str]:
    """Each JSON line that the schema does not allow, and why. The last one may be cut: its writer was killed."""
    for line in lines:
        if line.startswith(_BEGIN) and line.endswith("\n") and (why := complaint(line)):
            yield f"{why}: {line.rstrip()}"


def complaint(line: str) -> str:
    """What the schema has against a line, or nothing. It is flat, which makes this much quicker than a validator."""
    schema = log_schema()
    try:
        members = json.loads(line)
    except ValueError as error:
        return f"no JSON ({error})"
    missing = [name for name in schema["required"] if name not in members]
    if missing:
        return f"{missing[0]} is missing"
    for name, value in members.items():
        rule = schema["properties"].get(name)
        if rule is None:
            return f"{name} is not in the schema"
        if not _fits(name, value, rule):
            return f"{name} is not as the schema says"
    return ""


def _fits(name: str, value: Any, rule: dict[str, Any]) -> bool:
    if not isinstance(value, _TYPES[rule["type"]]) or isinstance(value, bool):
        return False
    if isinstance(value, int):
        least, most = rule.get("minimum", value), rule.get("maximum", value)
        return bool(least <= value <= most)
    text = str(value)
    if not rule.get("minLength", 0) <= len(text) <= rule.get("maxLength", len(text)):
        return False
    pattern = _patterns().get(name)
    return text in rule.get("enum", (text,)) and (pattern is None or pattern.search(text) is not None)


def as_text(line: str) -> str:
    """A JSON line as the text format has it; any other line as it is."""
    if not line.startswith(_BEGIN):
        return line
    try:
        members = json.loads(line)
    except ValueError:
        return line
    if "logger" not in members:
        return line
    added = "".join(f" {name}={members[name]}" for name in TEXT_FIELDS if name in members)
    head = f"{members['time']} {members['level'].upper():<5} [{members['logger']}] "
    text = head + escape(members["message"]) + added + "\n"
    return text + "".join(f"  | {below}\n" for below in members.get("traceback", "").splitlines())
