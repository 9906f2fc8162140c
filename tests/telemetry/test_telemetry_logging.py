"""Log lines: their shape, what cannot be forged, files that are rotated, and the bridge from the standard library."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.config import WARN, settings
from twisted.logger import Logger
from twisted.python.failure import Failure

from harmonyd.config.daemon import LoggingConfig
from harmonyd.telemetry.logging import LogFileError, start_logging, stop_logging

Lines = Callable[[], list[str]]


@pytest.fixture(scope="session", autouse=True)
def _begun(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Twisted replays to everybody what was logged before the first start; other tests' failures are in there."""
    start_logging(LoggingConfig(file=tmp_path_factory.mktemp("log") / "replayed"))
    stop_logging()


@pytest.fixture
def log_path(tmp_path: Path) -> Iterator[Path]:
    """Where the tests log to; logging ends with the test."""
    yield tmp_path / "harmonyd.log"
    stop_logging()


def logger() -> Logger:
    return Logger("harmonyd.test")


def own_lines(path: Path) -> list[str]:
    """The lines of the test's own logger; other parts of the process may log too."""
    return [line for line in path.read_text().splitlines() if "harmonyd.test" in line or line.startswith("  | ")]


def test_a_text_line(log_path: Path) -> None:
    """Time in UTC, level, logger, message, then the fields that are there."""
    start_logging(LoggingConfig(file=log_path))
    logger().info("found {count} matches", count=3, request="r1", operation="find", child="findscu:x", pid=42)
    [line] = own_lines(log_path)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO  \[harmonyd\.test\] "
        r"found 3 matches request=r1 operation=find child=findscu:x pid=42",
        line,
    )


def test_a_json_line(log_path: Path) -> None:
    """One object a line, with the same members."""
    start_logging(LoggingConfig(format="json", file=log_path))
    logger().warn("odd\nname: {name}", name="Jürgen", request="r1", pid=7)
    [line] = own_lines(log_path)
    members = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", members.pop("time"))
    assert members == {
        "level": "warn",
        "logger": "harmonyd.test",
        "message": "odd\nname: Jürgen",
        "request": "r1",
        "pid": 7,
    }


def test_messages_cannot_forge_lines(log_path: Path) -> None:
    """Line ends and terminal codes of any kind are escaped, in messages and in fields."""
    start_logging(LoggingConfig(file=log_path))
    evil = "a\n2026-01-01T00:00:00.000Z INFO  [x] forged\r\x1b[31m\x85\u2028\x00"
    logger().info("{evil}", evil=evil, child=evil)
    assert len(own_lines(log_path)) == 1
    text = log_path.read_text()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028]", text)
    assert r"a\n2026" in text


def test_levels_below_the_configured_one_are_left_out(log_path: Path) -> None:
    """"warn" lets warnings and errors through."""
    start_logging(LoggingConfig(level="warn", file=log_path))
    log = logger()
    log.debug("no")
    log.info("no")
    log.warn("yes 1")
    log.error("yes 2")
    assert [line.split("] ")[1] for line in own_lines(log_path)] == ["yes 1", "yes 2"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_failure_has_its_traceback(log_path: Path, logged_failures: Any, form: str) -> None:
    """In text the traceback follows in lines that cannot be taken for log lines; in JSON it is a member."""
    start_logging(LoggingConfig(format=form, file=log_path, patient_identifiers=True))
    try:
        raise RuntimeError("first\nsecond")
    except RuntimeError:
        logger().failure("it broke", failure=Failure(), request="r1")
    logged_failures.flush(RuntimeError)
    first, *rest = own_lines(log_path)
    if form == "json":
        assert "RuntimeError: first\nsecond" in json.loads(first)["traceback"]
    else:
        assert first.endswith("it broke request=r1")
        assert all(line.startswith("  | ") for line in rest)
        assert "  | second" in rest


def test_fields_that_are_objects_are_left_out(log_path: Path) -> None:
    """Twisted's own events carry objects under the same names."""
    start_logging(LoggingConfig(file=log_path))
    logger().info("hello", request=object(), pid=None)
    [line] = own_lines(log_path)
    assert line.endswith("] hello")


def test_a_renamed_file_is_left_for_a_new_one(log_path: Path) -> None:
    """logrotate renames the file; the next line goes to a new one. Nothing is overwritten."""
    log_path.write_text("kept harmonyd.test\n")
    start_logging(LoggingConfig(file=log_path))
    logger().info("one")
    old = log_path.rename(log_path.with_suffix(".1"))
    logger().info("two")
    assert [line.split()[-1] for line in own_lines(old)] == ["harmonyd.test", "one"]
    assert [line.split()[-1] for line in own_lines(log_path)] == ["two"]


def test_lost_lines_are_counted(log_path: Path) -> None:
    """When the log cannot be written nothing breaks, and the first line after it says how many are missing."""
    folder = log_path.parent / "sub"
    folder.mkdir()
    start_logging(LoggingConfig(file=folder / "log"))
    moved = folder.rename(log_path.parent / "away")
    logger().info("lost 1")
    logger().info("lost 2")
    moved.rename(folder)
    (folder / "log").unlink()
    logger().info("back")
    text = (folder / "log").read_text()
    assert re.search(r"ERROR \[harmonyd\.telemetry\] \d+ log lines before this one could not be written", text)
    assert text.endswith("back\n")


def test_a_log_file_that_cannot_be_opened(log_path: Path) -> None:
    """The error names the file and the key to change; what was logged to before goes on."""
    start_logging(LoggingConfig(file=log_path))
    missing = log_path.parent / "missing" / "log"
    with pytest.raises(LogFileError, match=str(missing)):
        start_logging(LoggingConfig(file=missing))
    logger().info("still here")
    assert len(own_lines(log_path)) == 1


def test_logging_can_be_started_again(log_path: Path) -> None:
    """The newest configuration is the one in force, and a line is written once."""
    start_logging(LoggingConfig(file=log_path.with_suffix(".old")))
    start_logging(LoggingConfig(format="json", file=log_path))
    logger().info("once")
    assert own_lines(log_path.with_suffix(".old")) == []
    assert len(own_lines(log_path)) == 1


def test_standard_error_is_the_default(log_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a file the lines go to standard error."""
    start_logging(LoggingConfig())
    logger().info("hello")
    assert "INFO  [harmonyd.test] hello\n" in capsys.readouterr().err


def test_libraries_that_use_the_standard_library(log_path: Path) -> None:
    """Their records join the log with their level and their logger's name."""
    start_logging(LoggingConfig(file=log_path))
    library = logging.getLogger("harmonyd.test.library")
    library.warning("%s {is} odd", "this")
    [line] = own_lines(log_path)
    assert line.split(" ", 1)[1] == "WARN  [harmonyd.test.library] this {is} odd"


def test_texts_of_pydicom_are_withheld(log_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It quotes values, in its own log and in warnings."""
    monkeypatch.setattr(settings, "reading_validation_mode", WARN)  # where it has been told to be silent
    monkeypatch.setattr(settings, "writing_validation_mode", WARN)
    start_logging(LoggingConfig(level="debug", file=log_path))
    dataset = Dataset()
    with pytest.warns(UserWarning, match="Invalid value"):
        dataset.StudyDate = "DOE^JOHN"
    logging.getLogger("pydicom.test").error("%s", "DOE^JOHN")
    logging.getLogger("other").error("%s", ValueError("DOE^JOHN"))
    text = log_path.read_text()
    assert "DOE^JOHN" not in text
    assert "a text of pydicom.test is withheld" in text
    assert "[other] ValueError" in text
