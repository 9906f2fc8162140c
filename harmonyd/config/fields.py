"""Typed access to one TOML table. A getter notes what is wrong and goes on, so that all mistakes are told at once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from harmonyd.config.errors import Problem, Report, listing, nearest

Check = Callable[[str], str | None]
"""Returns a complaint, or None when the value is right."""

NOT_BUILT = "not built yet"
_MAX_SHOWN = 60
_SECRET = re.compile(r"password|secret|token|key\Z|\Asha256\Z", re.IGNORECASE)
_T = TypeVar("_T")


def shown(value: object) -> str:
    """A value as TOML writes it, shortened, for a message."""
    if isinstance(value, dict):
        return "{ … }" if value else "{}"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


class Section:
    """One table of one file. A getter returns its default when the key is absent, or wrong (which is then noted)."""

    def __init__(
        self, report: Report, file: Path, name: str, data: Mapping[str, Any], parent: Section | None = None
    ) -> None:
        self.report = report
        self.file = file
        self.name = name
        self.sound = True
        """False once a mistake was noted here or in a table below."""
        self.is_table = True
        """False when the file has something else in its place (which is then noted)."""
        self._data = data
        self._parent = parent
        self._known: set[str] = set()
        self._handled: set[str] = set()
        self._tables: dict[str, Section] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._data

    def __iter__(self) -> Iterator[str]:
        """The keys, as they are in the file."""
        return iter(self._data)

    def raw(self, key: str) -> Any:
        """The value as it is in the file; None when absent. Marks the key as known."""
        self._known.add(key)
        return self._data.get(key)

    def problem(self, key: str | None, what: str, remedy: str = "", nearest_name: str | None = None) -> None:
        """Note a mistake at ``key``, or at the table when None."""
        self.report.problems.append(Problem(self.file, self.name, key, what, self._found(key), remedy, nearest_name))
        self._unsound()

    def warn(self, key: str | None, text: str) -> None:
        """Note something the operator should know and need not change."""
        place = " ".join(part for part in (f"[{self.name}]" if self.name else "", key) if part)
        self.report.warnings.append(f"{self.file}: {place}: {text}")

    def require(self, *keys: str) -> None:
        """Note each of these keys that is absent."""
        for key in keys:
            if key not in self._data:
                self.problem(key, "missing", "this key is required")

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number; a boolean is none."""
        value = self.raw(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            return self._wrong(key, "not a whole number", f"allowed: {low} to {high}", default)
        if not low <= value <= high:
            return self._wrong(key, "out of range", f"allowed: {low} to {high}", default)
        return value

    def port(self, key: str, default: int) -> int:
        """A TCP port that can be named, so not 0."""
        return self.integer(key, default, 1, 65535)

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A whole or decimal number."""
        value = self.raw(key)
        if value is None:
            return default
        allowed = f"allowed: {low:g} to {high:.12g}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return self._wrong(key, "not a number", allowed, default)
        if not low <= value <= high:
            return self._wrong(key, "out of range", allowed, default)
        return float(value)

    def milliseconds(self, key: str, default_secs: float, least: int = 100) -> float:
        """A time in milliseconds, returned in seconds."""
        return self.integer(key, int(default_secs * 1000), least, 7 * 24 * 3600 * 1000) / 1000

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw(key)
        if value is None:
            return default
        return value if isinstance(value, bool) else self._wrong(key, "not a boolean", "allowed: true, false", default)

    def text(self, key: str, default: str = "", check: Check | None = None) -> str:
        """A string that ``check`` does not complain about."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, str):
            return self._wrong(key, "not a string", "write it in quotes", default)
        complaint = check(value) if check else None
        return self._wrong(key, complaint, "", default) if complaint else value

    def choice(self, key: str, default: str, allowed: Collection[str], not_built: Collection[str] = ()) -> str:
        """One of ``allowed``; those in ``not_built`` are known and refused for now."""
        value = self.text(key, default)
        if value in not_built:
            return self._wrong(key, NOT_BUILT, f"allowed: {listing(allowed)}", default)
        if value in allowed or value == default:
            return value
        self.problem(key, "not one of the known values", f"allowed: {listing(allowed)}", nearest(value, allowed))
        return default

    def strings(self, key: str, check: Check | None = None) -> tuple[str, ...]:
        """A list of different strings; empty when absent."""
        value = self.raw(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            return self._wrong(key, "not a list of strings", 'write ["a", "b"]', ())
        complaints = {item: check(item) for item in value} if check else {}
        for item, complaint in complaints.items():
            if complaint:
                self.problem(key, f"{shown(item)}: {complaint}")
        for item in sorted({item for item in value if value.count(item) > 1}):
            self.problem(key, f"{shown(item)} is in the list twice", "remove one")
        return tuple(value)

    def table(self, key: str) -> Section:
        """The table below ``key``, the same object each time; an empty one when absent or not a table."""
        if key not in self._tables:
            value = self.raw(key)
            child = Section(self.report, self.file, self._below(key), value if isinstance(value, dict) else {}, self)
            self._tables[key] = child
            if value is not None and not isinstance(value, dict):
                self.problem(key, "not a table", f"write [{child.name}]")
                child.sound = child.is_table = False
        return self._tables[key]

    def tables(self) -> dict[str, Section]:
        """Every key of this table as a table of its own, by name."""
        return {key: self.table(key) for key in self}

    def list_of_tables(self, key: str) -> list[Section]:
        """A list of tables, each under the name ``TABLE.KEY[0]``; empty when absent."""
        value = self.raw(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            return self._wrong(key, "not a list of tables", f"write [[{self._below(key)}]]", [])
        name = self._below(key)
        return [Section(self.report, self.file, f"{name}[{number}]", item, self) for number, item in enumerate(value)]

    def string_table(self, key: str) -> dict[str, str]:
        """A table of strings."""
        section = self.table(key)
        return {name: section.text(name) for name in section}

    def refuse(self, key: str, why: str, remedy: str = "remove the key") -> None:
        """Note that ``key`` is there, for a key that is known and cannot be used."""
        self._handled.add(key)
        if key in self._data:
            self.problem(key, why, remedy)

    def ignore(self, keys: Collection[str], why: str) -> None:
        """Accept keys that mean nothing here, with one warning for all of them."""
        self._handled.update(keys)
        present = [key for key in keys if key in self._data]
        if present:
            self.warn(", ".join(present), f"accepted, without effect: {why}")

    def finish(self) -> None:
        """Note every key that nothing has asked for."""
        for key in self._data:
            if key not in self._known | self._handled:
                remedy = f"known here: {listing(self._known)}" if self._known else "no keys are known here"
                self.problem(key, "unknown key", remedy, nearest(key, self._known))

    def _below(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def _found(self, key: str | None) -> str | None:
        if key is None or key not in self._data:
            return None
        return "…" if _SECRET.search(key) else shown(self._data[key])

    def _unsound(self) -> None:
        self.sound = False
        if self._parent is not None:
            self._parent._unsound()

    def _wrong(self, key: str, what: str, remedy: str, default: _T) -> _T:
        self.problem(key, what, remedy)
        return default
