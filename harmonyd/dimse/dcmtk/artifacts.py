"""The folders operations leave behind for people to look at, and their retention by age and size.

Only folders and files of our own naming are ever removed; spool, quarantine and incoming folders are not touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from harmonyd.errors import StorageFull

FREE_FLOOR_BYTES = 1_000_000

_OURS = re.compile(r"^dcmtk_(find|get|move|store)_[0-9a-f]{32}$")
LAST_MOVE = "movescu_last.json"


def make_folder(storage: Path, operation: str, operation_id: str) -> Path:
    """Create ``<storage>/dcmtk_<operation>_<id>``; raises OSError."""
    folder = storage / f"dcmtk_{operation}_{operation_id}"
    folder.mkdir(parents=True)
    return folder


def write_last_move(storage: Path, debug: dict[str, object]) -> None:
    """Replace ``movescu_last.json`` atomically; raises OSError."""
    temporary = storage / f".{LAST_MOVE}.{os.getpid()}"
    temporary.write_text(json.dumps(debug, indent=1), encoding="utf-8")
    temporary.replace(storage / LAST_MOVE)


@dataclass(slots=True)
class _Folder:
    path: Path
    modified: float
    size_bytes: int


def clean(storage: Path, *, now: float, max_age_secs: float, max_bytes: int, in_use: frozenset[str]) -> list[Path]:
    """Remove artifact folders that are too old, then the oldest until the rest fits ``max_bytes``; return what went.

    Blocking: call it in a thread. Folders whose operation id is ``in_use`` stay.
    """
    folders = sorted(_artifact_folders(storage, in_use), key=lambda folder: folder.modified)
    total = sum(folder.size_bytes for folder in folders)
    removed = []
    for folder in folders:
        if now - folder.modified <= max_age_secs and total <= max_bytes:
            break
        shutil.rmtree(folder.path, ignore_errors=True)
        total -= folder.size_bytes
        removed.append(folder.path)
    return removed


def _artifact_folders(storage: Path, in_use: frozenset[str]) -> list[_Folder]:
    found: list[_Folder] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(storage) as entries:
        for entry in entries:
            if not _OURS.match(entry.name) or entry.name[-32:] in in_use or not entry.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(FileNotFoundError):
                found.append(_Folder(Path(entry.path), entry.stat().st_mtime, _size_bytes(entry.path)))
    return found


def _size_bytes(folder: str) -> int:
    total = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_size
    return total


def raise_if_full(folder: Path) -> None:
    """Raise ``StorageFull`` when the file system of ``folder`` has no room left."""
    space = os.statvfs(folder)
    if space.f_bavail * space.f_frsize < FREE_FLOOR_BYTES or (space.f_files and space.f_favail == 0):
        raise StorageFull("The disk is full; what the PACS sent could not be written", hint=_FULL_HINT)


_FULL_HINT = "Free space under the storage path, or lower its retention."
