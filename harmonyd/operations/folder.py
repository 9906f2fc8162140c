"""Where results are on disk: a folder each, named by the operation, with a note of whose it is.

What is there when harmonyd starts belongs to operations that ended with the run before. Their results are removed, and
of the latest the notes are kept, so that who asks for one of them can be told what became of it. Everything here
blocks, and raises OSError.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

from harmonyd.operations.operation import Owner

__all__ = ["MAX_REMEMBERED", "ResultFolder"]

MAX_REMEMBERED = 1000
"""Operations of earlier runs."""
_ID = re.compile(r"[0-9a-f]{32}")
_NOTE = "operation.json"
_RESULT = "result"


class ResultFolder:
    """``path`` is made when it is needed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def result_of(self, operation_id: str) -> Path:
        """The file for a result."""
        return self.path / operation_id / _RESULT

    def add(self, operation_id: str, owner: Owner) -> None:
        """Make the folder of an operation; it is there after a crash of the machine, too."""
        folder = self.path / operation_id
        folder.mkdir(mode=0o700, parents=True)
        try:
            with (folder / _NOTE).open("w", encoding="utf-8") as note:
                json.dump({"endpoint": owner.endpoint, "path_prefix": owner.path_prefix}, note)
                note.flush()
                os.fsync(note.fileno())
        except OSError:
            self.remove(operation_id)
            raise

    def remove(self, operation_id: str) -> None:
        """Remove an operation's folder, if it is there."""
        shutil.rmtree(self.path / operation_id, ignore_errors=True)

    def remove_result(self, operation_id: str) -> None:
        """Remove what was written of a result."""
        self.result_of(operation_id).unlink(missing_ok=True)

    def take_stock(self) -> dict[str, Owner]:
        """Remove all results; return the owners of the latest operations, and forget the others."""
        if not self.path.is_dir():
            return {}
        found = sorted(filter(_is_ours, self.path.iterdir()), key=_changed, reverse=True)
        owners: dict[str, Owner] = {}
        for folder in found:
            owner = _owner(folder) if len(owners) < MAX_REMEMBERED else None
            if owner is None:
                self.remove(folder.name)
            else:
                owners[folder.name] = owner
                self.remove_result(folder.name)
        return owners


def _is_ours(folder: Path) -> bool:
    return _ID.fullmatch(folder.name) is not None and folder.is_dir() and not folder.is_symlink()


def _changed(folder: Path) -> float:
    """When its note was written: removing a result changes the folder."""
    with contextlib.suppress(OSError):
        return (folder / _NOTE).stat().st_mtime
    return 0.0


def _owner(folder: Path) -> Owner | None:
    try:
        note = json.loads((folder / _NOTE).read_text("utf-8"))
        return Owner(note["endpoint"], note["path_prefix"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
