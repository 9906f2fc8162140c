"""Imports point one way: each package may import what stands beside it in ``MAY_IMPORT``, itself, and nothing else.

The table is the architecture's. Read it from the bottom: errors, envelope, bodies and media types know nothing above
them; the pipeline knows no protocol; ``cli`` and what it runs, where everything is wired, know all. An import inside a
function or below ``TYPE_CHECKING`` counts like any other: it is a dependency of the design.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "harmonyd"

BASE = {
    *("errors", "privacy", "tracing", "progress", "envelope", "bodies", "mediatypes", "multipart", "describe"),
    *("subject", "permit"),
}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "privacy": {"errors"},
    "tracing": set(),
    "waiters": set(),
    "progress": set(),
    "tls": set(),
    "tls_port": {"errors", "subject", "tls"},
    "acknowledge": set(),
    "identity": set(),
    "hours": set(),
    "jolt": {"errors", "privacy"},
    "landlock": set(),
    "seccomp": set(),
    "subject": set(),
    "permit": {"errors", "subject"},
    "passwords": set(),
    "jwk": set(),
    "audit": {"errors", "subject", "tls", "config"},
    "envelope": {"errors", "progress", "subject", "permit", "tracing"},
    "bodies": {"errors", "envelope"},
    "mediatypes": {"errors"},
    "describe": set(),
    "multipart": {"errors", "envelope", "bodies", "mediatypes"},
    "config": {"errors", "tls", "acknowledge", "identity", "jolt", "hours", "permit", "passwords", "jwk"},
    "telemetry": {"errors", "privacy", "tracing", "config"},
    "supervision": {"errors", "privacy", "waiters", "landlock", "seccomp", "config", "telemetry"},
    "dimse": {"errors", "waiters", "progress", "subject", "tls", "tls_port", "tracing", "acknowledge", "identity"},
    "dimse.dcmtk": {"errors", "privacy", "waiters", "progress", "subject", "tls", "tracing", "landlock"}
    | {"dimse", "supervision"},
    "dimse.native": {"errors", "waiters", "subject", "tls", "tls_port", "acknowledge", "dimse"},
    "rewriting": BASE | {"dimse"},
    "middleware": BASE | {"waiters", "dimse", "rewriting", "config", "jolt", "audit", "passwords", "jwk"},
    "pipeline": BASE | {"config", "middleware"},
    "spool": BASE | {"config"},
    "commitment": {"errors"},
    "cache": BASE | {"waiters", "config", "dimse"},
    "services": BASE
    | {"waiters", "tls", "landlock", "seccomp", "audit", "config", "middleware", "pipeline", "dimse", "spool", "cache"}
    | {"commitment"},
    "control": {"errors", "describe", "config", "supervision", "telemetry", "spool"},
    "operations": BASE | {"waiters", "audit", "config", "services", "web"},
    "metrics": BASE
    | {"waiters", "tls", "config", "services", "web", "spool", "control", "supervision", "audit"},
    "web": BASE
    | {"audit", "tls", "tls_port", "config", "middleware", "pipeline", "services", "control", "supervision"}
    | {"telemetry"},
}
EVERYTHING = {
    *("cli", "check", "doctor", "spool_command", "cache_command", "hash_command", "daemon", "demo", "testing"),
    "__main__",
}
"""The command line, what it runs, and the kit for tests may import all; nothing else may import them."""
SANS_IO = "harmonyd.dimse.native.core"
SANS_IO_MAY_IMPORT = {"__future__", "collections", "dataclasses", "enum", "struct", "typing"}
"""Of the standard library: the protocol core has no sockets, clocks, threads or reactor."""


def room(module: str) -> str:
    """The row of the table that a module belongs to: ``dimse.dcmtk`` for ``harmonyd.dimse.dcmtk.log``."""
    parts = module.split(".")[1:]
    nested = ".".join(parts[:2])
    return nested if nested in MAY_IMPORT else ".".join(parts[:1])


def imported(path: Path) -> Iterator[str]:
    """The names of harmonyd's modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            names = [node.module or ""] if node.module != "harmonyd" else [f"harmonyd.{a.name}" for a in node.names]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if name.startswith("harmonyd."))


def modules() -> dict[str, Path]:
    """Every module below the package itself."""
    found = (path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py")
    return {".".join(("harmonyd", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in found}


@pytest.mark.parametrize("module", [name for name in modules() if room(name) not in EVERYTHING])
def test_imports_point_one_way(module: str) -> None:
    """A module imports only what the table lets its package import."""
    own = room(module)
    assert own in MAY_IMPORT, f"{module} is in no row of the table"
    rooms = {room(name) for name in imported(modules()[module]) if name != "harmonyd.__version__"}
    assert rooms <= MAY_IMPORT[own] | {own}


def test_the_table_has_no_circle() -> None:
    """Following the table never leads back to where one began."""
    order: list[str] = []
    waiting = dict(MAY_IMPORT)
    while waiting:
        free = [name for name, below in waiting.items() if below <= set(order)]
        assert free, f"these import each other: {sorted(waiting)}"
        order += free
        for name in free:
            del waiting[name]


@pytest.mark.parametrize("module", [name for name in modules() if name.startswith(SANS_IO)])
def test_the_protocol_core_does_no_io(module: str) -> None:
    """It imports what computes, and of harmonyd the vocabulary of DIMSE only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(modules()[module].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    outside = {name for name in found if name.split(".")[0] != "harmonyd"}
    assert {name.split(".")[0] for name in outside} <= SANS_IO_MAY_IMPORT
    allowed = ("harmonyd.dimse.associate", "harmonyd.dimse.errors", SANS_IO)
    assert all(name.startswith(allowed) for name in found - outside)


def test_the_protocol_core_can_be_used_alone() -> None:
    """Importing it loads no reactor, no socket and no pydicom."""
    program = (
        f"import sys, {SANS_IO}; print(sorted({{'twisted', 'socket', 'asyncio', 'pydicom'}} & sys.modules.keys()))"
    )
    # Measuring coverage would load modules of its own.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    ended = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=env)
    assert ended.stdout == "[]\n"
