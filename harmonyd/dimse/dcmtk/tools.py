"""Finding DCMTK's own programs.

pynetdicom installs scripts named echoscu, findscu, … that shadow DCMTK's in a virtual environment, so a name on PATH is
not enough: a program is DCMTK's only if its ``--version`` starts with ``$dcmtk:``.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from harmonyd.dimse.errors import ToolMissing

SCU_TOOLS = ("echoscu", "findscu", "getscu", "movescu", "storescu")
DAEMON_TOOLS = (*SCU_TOOLS, "storescp")
MINIMUM_VERSION = (3, 6, 7)
INSTALL_HINT = "install DCMTK 3.6.7 or later: 'sudo apt-get install dcmtk' (Debian, Ubuntu) or 'brew install dcmtk'"

VERSION_SECS = 10.0
"""How long a program may take to say its version."""
_VERSION = re.compile(rb"^\$dcmtk: (\S+) v(\d+)\.(\d+)\.(\d+)")
_FALLBACK_DIRS = ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin", "/opt/dcmtk/bin")


@dataclass(frozen=True, slots=True)
class Tool:
    """A DCMTK program: absolute path and version."""

    name: str
    path: Path
    version: tuple[int, int, int]

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))


def find_tools(names: Sequence[str] = DAEMON_TOOLS, search_path: str | None = None) -> dict[str, Tool]:
    """Find every program of ``names`` on ``search_path`` (default: PATH, then the usual places).

    Runs each candidate once with ``--version``, several at a time, and so blocks for some milliseconds: call it before
    the reactor runs.
    Raises ``ToolMissing`` that names all that are missing or older than 3.6.7.
    """
    found: dict[str, Tool] = {}
    problems: list[str] = []
    with ThreadPoolExecutor() as threads:
        identified = list(threads.map(lambda name: _identified(name, search_path), names))
    for name, candidates in zip(names, identified, strict=True):
        new_enough = [tool for tool in candidates if tool.version >= MINIMUM_VERSION]
        if new_enough:
            found[name] = new_enough[0]
        elif candidates:
            problems.append(f"{name} is too old ({candidates[0].path} is {candidates[0].version_text})")
        else:
            problems.append(f"{name} not found")
    if problems:
        raise ToolMissing("DCMTK: " + ", ".join(problems), hint=INSTALL_HINT)
    return found


def find_tool(name: str) -> Path:
    """Path of one DCMTK program; raises ``ToolMissing``."""
    return find_tools((name,))[name].path


def _candidates(name: str, search_path: str | None) -> Iterator[Path]:
    places = (search_path if search_path is not None else os.environ.get("PATH", "")).split(os.pathsep)
    if search_path is None:
        places += _FALLBACK_DIRS
    seen: set[Path] = set()
    for place in filter(None, places):
        path = Path(place).absolute() / name
        if path not in seen and path.is_file() and os.access(path, os.X_OK):
            seen.add(path)
            yield path


def _identified(name: str, search_path: str | None) -> list[Tool]:
    return [tool for path in _candidates(name, search_path) if (tool := _identify(name, path))]


def _identify(name: str, path: Path) -> Tool | None:
    try:
        ran = subprocess.run(
            [path, "--version"], capture_output=True, timeout=VERSION_SECS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = _VERSION.match(ran.stdout)
    if said is None or said[1].decode() != name:
        return None
    return Tool(name, path, (int(said[2]), int(said[3]), int(said[4])))
