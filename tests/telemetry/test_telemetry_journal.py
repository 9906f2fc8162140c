"""Priorities of lines in the journal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harmonyd.telemetry import journal

PROGRAM = """
from twisted.logger import Logger
from twisted.python.failure import Failure
from harmonyd.config.daemon import LoggingConfig
from harmonyd.telemetry.logging import start_logging

start_logging(LoggingConfig(level="debug", format="{form}"))
logger = Logger("test")
{statements}
"""
EACH_LEVEL = "for level in ('debug', 'info', 'warn', 'error', 'critical'): getattr(logger, level)('a line')"


def written(folder: Path, statements: str, form: str = "text", stream: str = "{device}:{inode}") -> list[str]:
    """The lines of a process of its own, whose standard error is what JOURNAL_STREAM names."""
    path = folder / "journal"
    program = PROGRAM.format(form=form, statements=statements)
    with path.open("w") as file:
        stat = os.fstat(file.fileno())
        environ = os.environ | {"JOURNAL_STREAM": stream.format(device=stat.st_dev, inode=stat.st_ino)}
        subprocess.run([sys.executable, "-c", program], stderr=file, env=environ, check=True)
    return path.read_text().splitlines()


@pytest.mark.parametrize("form", ["text", "json"])
def test_each_level_has_its_priority(tmp_path: Path, form: str) -> None:
    """Debug to critical become 7 to 2, in both forms of the log."""
    lines = written(tmp_path, EACH_LEVEL, form)
    assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>", "<2>"]


def test_each_line_of_a_traceback_has_the_priority(tmp_path: Path) -> None:
    """The journal takes every line for itself."""
    lines = written(tmp_path, "logger.failure('broken', failure=Failure(ValueError('x')))")
    assert len(lines) > 2
    assert {line[:3] for line in lines} == {"<2>"}


def test_another_stream_gets_no_priorities(tmp_path: Path) -> None:
    """A daemon whose standard error was redirected to a file writes plain lines."""
    lines = written(tmp_path, EACH_LEVEL, stream="1:{inode}")
    assert len(lines) == 5
    assert not any(line.startswith("<") for line in lines)


def test_a_closed_descriptor_is_not_the_journal() -> None:
    """Nothing to write to is no journal, and no error."""
    assert not journal.is_journal(999_999, {"JOURNAL_STREAM": "1:2"})


def test_marking_keeps_the_lines() -> None:
    """Every line gets the mark, whether or not the last one has an end."""
    assert journal.mark("a\nb", 3) == journal.mark("a\nb\n", 3) == "<3>a\n<3>b\n"
