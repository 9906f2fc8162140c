"""The folders of results, and what is remembered of an earlier run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harmonyd.operations import folder as folder_module
from harmonyd.operations.folder import ResultFolder
from harmonyd.operations.operation import Owner

MINE = Owner("http", "/dicom")


def ids(count: int) -> list[str]:
    return [f"{number:032x}" for number in range(count)]


def test_what_was_there_is_remembered_without_its_results(tmp_path: Path) -> None:
    """Owners come back, results go; and again after that, as often as harmonyd starts."""
    results = ResultFolder(tmp_path / "operations")
    assert results.take_stock() == {}
    one, other = ids(2)
    results.add(one, MINE)
    results.add(other, Owner("web", ""))
    results.result_of(one).write_bytes(b"a result")
    for _ in range(2):
        assert ResultFolder(tmp_path / "operations").take_stock() == {one: MINE, other: Owner("web", "")}
        assert not results.result_of(one).exists()
    results.remove(one)
    results.remove(one)
    assert results.take_stock() == {other: Owner("web", "")}
    assert results.result_of(other).parent.stat().st_mode & 0o077 == 0, "only we may look"


def test_only_the_latest_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older ones are forgotten and removed, whenever their results were."""
    monkeypatch.setattr(folder_module, "MAX_REMEMBERED", 3)
    results = ResultFolder(tmp_path)
    for age, name in enumerate(ids(6)):
        results.add(name, MINE)
        os.utime(tmp_path / name / "operation.json", (1000 - age, 1000 - age))
    assert set(results.take_stock()) == set(ids(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ids(3)


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    """Folders of other names, files and links stay; a folder whose note cannot be read is no operation any more."""
    results = ResultFolder(tmp_path)
    damaged, link, file, sound = ids(4)
    for name, text in ((damaged, "{"), ("notes", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "operation.json").write_text(text)
    (tmp_path / link).symlink_to(tmp_path / "notes")
    (tmp_path / file).write_text("a file")
    results.add(sound, MINE)
    assert results.take_stock() == {sound: MINE}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["notes", link, file, sound])
