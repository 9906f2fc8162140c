"""``harmonyd doctor`` and ``check --probe`` ask an archive as the daemon does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archive_kit import ScriptedArchive, scripted_archive

from harmonyd.check import check
from harmonyd.config import load
from harmonyd.config.archive_model import DicomwebBackendOptions
from harmonyd.doctor.case import case_of
from harmonyd.doctor.output import Table
from harmonyd.doctor.report import Result, Side, Step
from harmonyd.doctor.walk import walk
from harmonyd.testing.config_files import write_config
from harmonyd.testing.processes import free_port


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedArchive]:
    with scripted_archive(tmp_path_factory.mktemp("archive")) as running:
        yield running


def examined(folder: Path, url: str) -> tuple[dict[str, Step], str]:
    """The steps by name, and the line above them."""
    config = load(write_config(folder, http_port=free_port(), backends={"web": {"service": "dicomweb", "url": url}}))
    options: Any = config.backends["web"].options
    assert isinstance(options, DicomwebBackendOptions)
    case = case_of("web", options, 5.0, is_asked=True, daemon=None)
    return {step.step: step for step in walk(case)}, Table().heading(case)


def test_an_archive_that_answers(archive: ScriptedArchive, tmp_path: Path) -> None:
    """Its own steps, and none of DIMSE."""
    steps, heading = examined(tmp_path, archive.url("nopaging"))
    assert {name: step.result for name, step in steps.items()} == {
        "resolve": Result.OK,
        "tcp": Result.OK,
        "tls": Result.SKIPPED,
        "search": Result.OK,
    }
    assert heading == f"backend web: {archive.url('nopaging')} (DICOMweb)"


@pytest.mark.parametrize(("behaviour", "word"), [("unauthorized", "credentials"), ("wrong", "url"), ("html", "url")])
def test_what_is_wrong_is_told(archive: ScriptedArchive, tmp_path: Path, behaviour: str, word: str) -> None:
    """With what to look at."""
    steps, _ = examined(tmp_path, archive.url(behaviour))
    assert (steps["search"].result, steps["search"].side) == (Result.ERROR, Side.PACS)
    assert word in str(steps["search"].hint)


def test_nobody_there(tmp_path: Path) -> None:
    """The search is not tried."""
    steps, _ = examined(tmp_path, f"http://127.0.0.1:{free_port()}")
    assert (steps["tcp"].result, steps["search"].result) == (Result.ERROR, Result.SKIPPED)


def test_check_with_probe(archive: ScriptedArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each, and the exit status of the worst."""
    backends = {
        name: {"service": "dicomweb", "url": archive.url(behaviour)}
        for name, behaviour in (("good", "nopaging"), ("bad", "busy"))
    }
    config = write_config(tmp_path, http_port=free_port(), backends=backends)
    assert check(config, probe=True) != 0
    said = capsys.readouterr().out
    assert f"backend good: {archive.url('nopaging')} answered a search" in said
    assert f"backend bad: {archive.url('busy')} did not answer a search" in said
