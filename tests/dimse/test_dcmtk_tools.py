"""Finding DCMTK's own programs among others of the same names."""

from __future__ import annotations

from pathlib import Path

import pytest

from harmonyd.dimse.dcmtk import tools
from harmonyd.dimse.dcmtk.tools import DAEMON_TOOLS, find_tool, find_tools
from harmonyd.dimse.errors import ToolMissing

NEW = "$dcmtk: findscu v3.7.0 2026-01-15 $"


def _program(folder: Path, said: str, name: str = "findscu", code: str = "") -> Path:
    """A program that says ``said`` to whoever runs it."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{said}'\n{code}\n")
    path.chmod(0o755)
    return path


def _search(*folders: Path) -> str:
    return ":".join(map(str, folders))


def test_the_installed_dcmtk_is_found() -> None:
    """On this machine every program the daemon needs is there, new enough, with its absolute path."""
    found = find_tools()
    assert list(found) == list(DAEMON_TOOLS)
    for name, tool in found.items():
        assert tool.path.is_absolute()
        assert tool.path.name == tool.name == name
        assert tool.version >= (3, 6, 7)
    assert find_tool("dcmqrscp").name == "dcmqrscp"


def test_a_program_of_another_maker_is_passed_over(tmp_path: Path) -> None:
    """pynetdicom's findscu does not call itself DCMTK's, so the next one on the path is used."""
    _program(tmp_path / "venv", "findscu.py 0.2.3")
    dcmtk = _program(tmp_path / "dcmtk", NEW)
    found = find_tools(("findscu",), _search(tmp_path / "venv", tmp_path / "dcmtk"))
    assert found["findscu"].path == dcmtk
    assert found["findscu"].version == (3, 7, 0)
    assert found["findscu"].version_text == "3.7.0"


@pytest.mark.parametrize("said", ["$dcmtk: findscu v3.6.7 2022-04-22 $", "$dcmtk: findscu v3.10.0 2030-01-01 $"])
def test_versions_that_will_do(tmp_path: Path, said: str) -> None:
    """3.6.7 and anything later, compared as numbers."""
    _program(tmp_path / "bin", said)
    assert find_tools(("findscu",), _search(tmp_path / "bin"))


def test_an_old_one_before_a_new_one(tmp_path: Path) -> None:
    """One that is too old does not hide one that is not."""
    _program(tmp_path / "old", "$dcmtk: findscu v3.6.5 2019-10-28 $")
    new = _program(tmp_path / "new", NEW)
    assert find_tools(("findscu",), _search(tmp_path / "old", tmp_path / "new"))["findscu"].path == new


def test_one_that_is_too_old(tmp_path: Path) -> None:
    """It is named with its place and version, and how to install another."""
    path = _program(tmp_path / "old", "$dcmtk: findscu v3.6.6 2021-01-14 $")
    with pytest.raises(ToolMissing) as caught:
        find_tools(("findscu",), _search(tmp_path / "old"))
    assert f"findscu is too old ({path} is 3.6.6)" in caught.value.detail
    assert caught.value.hint is not None
    assert "3.6.7 or later" in caught.value.hint
    assert "apt-get install dcmtk" in caught.value.hint


def test_all_that_is_missing_is_named(tmp_path: Path) -> None:
    """One error for every program, and none for those that are there."""
    _program(tmp_path / "bin", NEW)
    with pytest.raises(ToolMissing) as caught:
        find_tools(("echoscu", "findscu", "getscu"), _search(tmp_path / "bin"))
    assert "echoscu not found" in caught.value.detail
    assert "getscu not found" in caught.value.detail
    assert "findscu" not in caught.value.detail


def test_what_is_no_program(tmp_path: Path) -> None:
    """Folders, files that may not be run, broken ones, and those of another name are passed over."""
    (tmp_path / "folder" / "findscu").mkdir(parents=True)
    _program(tmp_path / "plain", NEW).chmod(0o644)
    _program(tmp_path / "broken", NEW).write_bytes(b"\x7fELF nonsense")
    _program(tmp_path / "other", "$dcmtk: echoscu v3.7.0 2026-01-15 $")
    places = (tmp_path / "none", *(tmp_path / name for name in ("folder", "plain", "broken", "other")))
    with pytest.raises(ToolMissing, match="findscu not found"):
        find_tools(("findscu",), _search(*places))


def test_a_program_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not answer ``--version`` in time is passed over."""
    _program(tmp_path / "hangs", NEW, code="exec sleep 1000")
    dcmtk = _program(tmp_path / "dcmtk", NEW)
    monkeypatch.setattr(tools, "VERSION_SECS", 1.0)
    found = find_tools(("findscu",), _search(tmp_path / "hangs", tmp_path / "dcmtk"))
    assert found["findscu"].path == dcmtk


def test_relative_and_empty_entries_of_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty entry does not mean the working folder, and the path found is absolute."""
    _program(tmp_path / "bin", NEW)
    _program(tmp_path, NEW)
    monkeypatch.chdir(tmp_path)
    assert find_tools(("findscu",), "bin")["findscu"].path == tmp_path / "bin" / "findscu"
    with pytest.raises(ToolMissing):
        find_tools(("findscu",), "::")


def test_the_usual_places_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service started with a bare PATH still finds what is installed where packages put it."""
    _program(tmp_path / "usual", NEW)
    monkeypatch.setattr(tools, "_FALLBACK_DIRS", (str(tmp_path / "usual"),))
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert find_tools(("findscu",))["findscu"].path == tmp_path / "usual" / "findscu"
