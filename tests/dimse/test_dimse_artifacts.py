"""Retention of artifacts: by age and by size, folder and record together, and nothing that is not ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harmonyd.dimse.artifacts import clean

NOW = 1_000_000.0
OURS = ("find", "get", "move", "store")


def artifact(storage: Path, number: int, age_secs: float, *, operation: str = "get", size: int = 1000) -> Path:
    """A folder of one file, and its record, that are ``age_secs`` old."""
    folder = storage / f"dcmtk_{operation}_{number:032x}"
    folder.mkdir()
    (folder / "CT.1.2.3").write_bytes(bytes(size))
    record = folder.with_name(f"{folder.name}.json")
    record.write_text("{}")
    for path in (folder, record):
        os.utime(path, (NOW - age_secs, NOW - age_secs))
    return folder


def cleaned(storage: Path, *, age: float = 100, size: int = 10**9, in_use: frozenset[str] = frozenset()) -> list[str]:
    removed = clean(storage, now=NOW, max_age_secs=age, max_bytes=size, in_use=in_use)
    return sorted(path.name for path in removed)


def names(storage: Path) -> list[str]:
    return sorted(path.name for path in storage.iterdir())


@pytest.mark.parametrize("operation", OURS)
def test_what_is_too_old_goes_with_its_record(tmp_path: Path, operation: str) -> None:
    """The folder and the file beside it; what is younger stays whole."""
    old = artifact(tmp_path, 1, 101, operation=operation)
    young = artifact(tmp_path, 2, 99, operation=operation)
    assert cleaned(tmp_path) == [old.name]
    assert names(tmp_path) == [young.name, f"{young.name}.json"]


def test_the_oldest_go_until_the_rest_fits(tmp_path: Path) -> None:
    """By size: oldest first, and no more than needed."""
    folders = [artifact(tmp_path, number, 50 - number, size=1000) for number in range(5)]
    assert cleaned(tmp_path, size=2100) == [folder.name for folder in folders[:3]]
    assert cleaned(tmp_path, size=2100) == []


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    """However old it is."""
    folder = artifact(tmp_path, 7, 10_000)
    assert cleaned(tmp_path, in_use=frozenset({f"{7:032x}"})) == []
    assert names(tmp_path) == [folder.name, f"{folder.name}.json"]


def test_halves_go_too(tmp_path: Path) -> None:
    """A record whose folder somebody removed, and a folder without a record (a crash) have the same end."""
    alone, bare = artifact(tmp_path, 1, 101), artifact(tmp_path, 2, 101)
    (alone / "CT.1.2.3").unlink()
    alone.rmdir()
    bare.with_name(f"{bare.name}.json").unlink()
    assert cleaned(tmp_path) == [alone.name, bare.name]
    assert names(tmp_path) == []


def test_nothing_else_is_touched(tmp_path: Path) -> None:
    """Spool, quarantine, other names, files named like folders and links out of the storage path."""
    outside = tmp_path / "outside"
    storage = tmp_path / "storage"
    storage.mkdir()
    outside.mkdir()
    (outside / "precious").touch()
    for name in ("spool", "quarantine", "incoming", "dcmtk_get_short", f"dcmtk_echo_{1:032x}", f"xdcmtk_get_{1:032x}"):
        (storage / name).mkdir()
    (storage / f"dcmtk_get_{2:032x}").touch()
    (storage / f"dcmtk_get_{3:032x}.json").mkdir()
    (storage / f"dcmtk_get_{4:032x}").symlink_to(outside)
    (storage / "movescu_last.json").touch()
    before = names(storage)
    assert cleaned(storage, age=-(10.0**12), size=0) == []
    assert names(storage) == before
    assert (outside / "precious").exists()


def test_no_storage_yet(tmp_path: Path) -> None:
    """A storage path that is not there has nothing to clean."""
    assert cleaned(tmp_path / "missing") == []
