"""What was found, as a table for people and as JSON for machines."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from harmonyd.control.text import clean
from harmonyd.doctor.case import Case
from harmonyd.doctor.report import Result, Side, Step, worst

_COLORS = {Result.OK: "32", Result.WARNING: "33", Result.ERROR: "31", Result.SKIPPED: "2"}
_SIDES = {Side.HARMONYD: "harmonyd", Side.PACS: "PACS", Side.NETWORK: "network"}
_INDENT = " " * 22
_NARROW = 60


class Table:
    """Lines of text; on a terminal with colours, and as wide as that is."""

    def __init__(self) -> None:
        self._fancy = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        columns = shutil.get_terminal_size().columns
        self._width = max(columns, _NARROW) if sys.stdout.isatty() else None

    def heading(self, case: Case) -> str:
        """A line about the backend."""
        remote = case.remote
        if case.archive is not None:
            return f"backend {case.name}: {case.archive.url} (DICOMweb)"
        where = f"{remote.aet} at {remote.host}:{remote.port}"
        return f"backend {case.name}: {where}, as {remote.local_aet} ({case.options.engine} engine)"

    def lines(self, step: Step) -> Iterator[str]:
        """A row, and below it what to change, and where."""
        result = f"{step.result.value:<8}"
        if self._fancy:
            result = f"\x1b[{_COLORS[step.result]}m{result}\x1b[0m"
        first, *rest = self._wrapped(clean(step.text))
        yield f"{result} {step.step:<12} {first}"
        yield from (_INDENT + line for line in rest)
        if step.hint is not None:
            side = f"{_SIDES[step.side]}: " if step.side is not None else ""
            yield from (_INDENT + line for line in self._wrapped(f"-> {side}{clean(step.hint)}"))
        for kind, line in step.lines.items():
            yield f"{_INDENT}   {kind + ':':<31} {line}"

    def _wrapped(self, text: str) -> list[str]:
        line = text.replace("\n", " ")
        if self._width is None:
            return [line]
        return textwrap.wrap(line, self._width - len(_INDENT), break_on_hyphens=False) or [""]


def summary(results: Sequence[tuple[str, Result]]) -> str:
    """The last line."""
    parts = []
    for result, word in ((Result.ERROR, "an error"), (Result.WARNING, "a warning")):
        if found := [name for name, its_result in results if its_result is result]:
            parts.append(f"{len(found)} of {len(results)} backends with {word}: {', '.join(found)}")
    return "; ".join(parts) or "all is well"


def backend_json(case: Case, steps: Sequence[Step]) -> dict[str, Any]:
    """A backend's part of the document; always with the same members."""
    return {
        "backend": case.name,
        "aet": case.remote.aet,
        "host": case.remote.host,
        "port": case.remote.port,
        "local_aet": case.remote.local_aet,
        "engine": case.options.engine,
        "result": worst([step.result for step in steps]).value,
        "steps": [step.as_json() for step in steps],
    }
