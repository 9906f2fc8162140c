"""What is wrong with a configuration: one ``Problem`` a mistake, and one ``ConfigError`` that carries them all."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from harmonyd.errors import Fault, HarmonydError


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake, with all that is needed to find and mend it."""

    file: Path
    table: str
    """Dotted name as in the TOML header; "" for the file itself."""
    key: str | None
    """None: the table (or the file) as a whole."""
    what: str
    """What is wrong."""
    found: str | None = None
    """The value in the file, as TOML would write it; None where there is none to show."""
    remedy: str = ""
    """What is allowed, or what to do."""
    nearest: str | None = None
    """The nearest known name, where the mistake is an unknown one."""

    def __str__(self) -> str:
        """One line: ``file: [table] key = found: what; remedy; did you mean "nearest"?``."""
        place = " ".join(part for part in (f"[{self.table}]" if self.table else "", self._assignment()) if part)
        hint = f'did you mean "{self.nearest}"?' if self.nearest else ""
        text = "; ".join(part for part in (self.what, hint, self.remedy) if part)
        line = ": ".join(part for part in (str(self.file), place, text) if part)
        return "".join(char if char.isprintable() else "�" for char in line)

    def _assignment(self) -> str:
        if self.key is None:
            return ""
        return self.key if self.found is None else f"{self.key} = {self.found}"


class ConfigError(HarmonydError):
    """The configuration cannot be used; ``problems`` lists every mistake, and ``str()`` shows one a line."""

    fault: ClassVar[Fault] = Fault.OURS
    title: ClassVar[str] = "Configuration error"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(slots=True)
class Report:
    """Collects problems and warnings while the configuration is read, so that all are told at once."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that resembles ``name`` most, or None when none does."""
    folded = {candidate.casefold(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None


def listing(names: Iterable[str]) -> str:
    """Names for a message, in order: ``a, b, c``."""
    return ", ".join(sorted(names)) or "none"
