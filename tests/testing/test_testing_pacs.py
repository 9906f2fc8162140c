"""The real PACS that tests use."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from pydicom import dcmread

from harmonyd.testing.data import make_study
from harmonyd.testing.pacs import PacsLayout, RunningPacs
from harmonyd.testing.processes import dcmtk, free_port, group_members, port_is_free

ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}


def _found(pacs: RunningPacs, *keys: str) -> int:
    """How many answers DCMTK's findscu gets."""
    options = [part for key in keys for part in ("-k", key)]
    argv = [dcmtk("findscu"), "-S", "-aec", pacs.aet, *options, "127.0.0.1", str(pacs.port)]
    said = subprocess.run(argv, check=True, capture_output=True, env=ENVIRONMENT).stderr
    return said.count(b"Find Response: ")


def test_pacs_answers_echo(pacs: RunningPacs) -> None:
    """The session's PACS answers C-ECHO."""
    assert pacs.echo()


def test_pacs_has_every_study_that_was_loaded(pacs: RunningPacs) -> None:
    """findscu finds as many studies, and as many instances of one, as the files have."""
    headers = [dcmread(path, stop_before_pixels=True) for path in pacs.files]
    assert _found(pacs, "QueryRetrieveLevel=STUDY", "StudyInstanceUID") == len({h.StudyInstanceUID for h in headers})
    ct = [header for header in headers if header.PatientID == "12345678"]
    keys = (f"StudyInstanceUID={ct[0].StudyInstanceUID}", f"SeriesInstanceUID={ct[0].SeriesInstanceUID}")
    assert _found(pacs, "QueryRetrieveLevel=IMAGE", *keys, "SOPInstanceUID") == len(ct) == 50


def test_pacs_moves_to_its_destinations(pacs: RunningPacs, tmp_path: Path) -> None:
    """A C-MOVE to an AE title of the host table arrives at its port."""
    header = dcmread(pacs.files[0], stop_before_pixels=True)
    argv = [dcmtk("movescu"), "-S", "-aec", pacs.aet, "-aem", "HARMONY_MOVE", "-od", str(tmp_path)]
    argv += ["+P", str(pacs.destinations["HARMONY_MOVE"]), "-k", "QueryRetrieveLevel=STUDY"]
    argv += ["-k", f"StudyInstanceUID={header.StudyInstanceUID}", "127.0.0.1", str(pacs.port)]
    subprocess.run(argv, check=True, capture_output=True, env=ENVIRONMENT)
    assert len(list(tmp_path.iterdir())) == 3


def test_loading_more_files_than_one_call_takes(tmp_path: Path) -> None:
    """More files than one dcmqridx call takes are all indexed, beside those that were there."""
    layout = PacsLayout(tmp_path / "pacs", port=free_port())
    layout.write()
    assert layout.load(make_study(tmp_path / "a", 3, patient_id="A", size=8).files) == 3
    assert layout.load(make_study(tmp_path / "b", 510, patient_id="B", size=8).files) == 510
    assert len(list(layout.area.glob("*.dcm"))) == 513


def test_stopping_leaves_nothing(tmp_path: Path) -> None:
    """A stopped PACS has no process in its group, and its port is free, even with an association open."""
    running = RunningPacs(tmp_path, files=[]).start()
    group, port = running.pid, running.port
    running.stop()
    assert group_members(group) == []
    assert port_is_free(port)
    running.stop()


def test_a_port_that_is_taken_is_said(pacs: RunningPacs, tmp_path: Path) -> None:
    """A second PACS on a port is refused before it could be taken for the first."""
    with pytest.raises(RuntimeError, match=f"port {pacs.port} is taken"):
        RunningPacs(tmp_path, files=[], port=pacs.port).start()


def test_a_pacs_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The error of a PACS that ended has its exit code and its log."""
    broken = RunningPacs(tmp_path, files=[], aet="A B")
    with pytest.raises(RuntimeError, match=r"(?s)dcmqrscp ended with 10.*bad config file"):
        broken.start()
    broken.stop()


def test_verbose_variable_adds_debug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HARMONY_TEST_VERBOSE_DCMTK=1 adds ``-d`` to dcmqrscp."""
    layout = PacsLayout(tmp_path, port=11112)
    monkeypatch.delenv("HARMONY_TEST_VERBOSE_DCMTK", raising=False)
    assert "-d" not in layout.argv()
    monkeypatch.setenv("HARMONY_TEST_VERBOSE_DCMTK", "1")
    assert "-d" in layout.argv()
