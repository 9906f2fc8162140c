"""The repository itself: nothing of one machine in it, every module says what it is, none is too long."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES = 400
NOT_OURS = {".git", ".venv", ".audit", ".interop", ".viewer", "build", "dist", "dev"}
# In two parts each, so that this file does not contain what it looks for.
PRIVATE = re.compile(
    "|".join(
        [
            "/ro" + "ot/",
            "/ho" + r"me/\w",
            "/wo" + "rk/",
            "/Us" + r"ers/\w",
            "/opt/wh" + "eels",
            "pythonho" + r"sted\.org",
            "py" + r"pi\.org",
            "jfr" + r"og\.",
            "artif" + "actory",
            "--(extra-)?index" + "-url",
            "PIP_(EXTRA_)?INDEX" + "_URL",
            "find" + "-links",
        ]
    )
)


def tracked() -> list[Path]:
    """The files of the repository: what git knows or would take; without git, all but what is built or installed."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (ROOT / ".git").exists():
        names = subprocess.run(listing, check=True, capture_output=True).stdout.decode().split("\0")
        found = [ROOT / name for name in names if name]
    else:
        found = [path for path in ROOT.rglob("*") if not NOT_OURS & set(path.relative_to(ROOT).parts)]
    return [path for path in found if path.is_file() and not path.is_symlink()]


def python_files(folder: str) -> Iterator[Path]:
    """The Python files below a folder of the repository."""
    yield from sorted((ROOT / folder).rglob("*.py"))


def _named(paths: Iterator[Path]) -> list[object]:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


def test_nothing_of_one_machine_is_in_the_repository() -> None:
    """No file holds a path of somebody's machine, or a package registry's address."""
    texts = {path: path.read_text("utf-8", "replace") for path in tracked()}
    found = {str(path.relative_to(ROOT)): sorted({m[0] for m in PRIVATE.finditer(t)}) for path, t in texts.items()}
    assert {name: hits for name, hits in found.items() if hits} == {}


@pytest.mark.parametrize("path", _named(python_files("harmonyd")))
def test_modules_are_described_and_short(path: Path) -> None:
    """Each module that is not empty has a docstring, and fewer than 400 lines."""
    text = path.read_text("utf-8")
    assert not text or ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) < MAX_LINES


@pytest.mark.parametrize("path", _named(path for path in python_files("tests") if path.name.startswith("test_")))
def test_tests_say_what_they_show(path: Path) -> None:
    """Each test module and each test function has a docstring."""
    tree = ast.parse(path.read_text("utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    silent = [node.name for node in functions if node.name.startswith("test_") and not ast.get_docstring(node)]
    assert ast.get_docstring(tree), "no docstring"
    assert silent == []
