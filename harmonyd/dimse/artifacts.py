"""The folders operations leave behind for people to look at, and their retention by age and size.

Only folders and files of our own naming are ever removed; spool, quarantine and incoming folders are not touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from harmonyd.errors import StorageFull

FREE_FLOOR_BYTES = 1_000_000

_OURS = re.compile(r"(dcmtk_(?:find|get|move|store)_([0-9a-f]{32}))(\.json)?")
"""An operation's folder, and the record of the operation beside it (``harmonyd.services.dicom.record``)."""
LAST_MOVE = "movescu_last.json"


def folder_of(storage: Path, operation: str, operation_id: str) -> Path:
    """Where an operation leaves its files: ``<storage>/dcmtk_<operation>_<id>``."""
    return storage / f"dcmtk_{operation}_{operation_id}"


def write_last_move(storage: Path, debug: dict[str, object]) -> None:
    """Replace ``movescu_last.json`` atomically; raises OSError."""
    temporary = storage / f".{LAST_MOVE}.{uuid.uuid4().hex}"
    try:
        temporary.write_text(json.dumps(debug, indent=1), encoding="utf-8")
        temporary.replace(storage / LAST_MOVE)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@dataclass(slots=True)
class _Artifact:
    """A folder and its record, or what is left of the two."""

    paths: list[str] = field(default_factory=list)
    modified: float = 0.0
    size_bytes: int = 0

    def add(self, entry: os.DirEntry[str]) -> None:
        stat = entry.stat(follow_symlinks=False)
        self.paths.append(entry.path)
        self.modified = max(self.modified, stat.st_mtime)
        self.size_bytes += _size_bytes(entry.path) if entry.is_dir(follow_symlinks=False) else stat.st_size

    def remove(self) -> None:
        for path in self.paths:
            if path.endswith(".json"):
                with contextlib.suppress(OSError):
                    Path(path).unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)


def clean(storage: Path, *, now: float, max_age_secs: float, max_bytes: int, in_use: frozenset[str]) -> list[Path]:
    """Remove artifact folders that are too old, then the oldest until the rest fits ``max_bytes``; return what went.

    Blocking: call it in a thread. Folders whose operation id is ``in_use`` stay. A record goes with its folder.
    """
    artifacts = sorted(_artifacts(storage, in_use).items(), key=lambda item: item[1].modified)
    total = sum(artifact.size_bytes for _, artifact in artifacts)
    removed = []
    for name, artifact in artifacts:
        if now - artifact.modified <= max_age_secs and total <= max_bytes:
            break
        artifact.remove()
        total -= artifact.size_bytes
        removed.append(storage / name)
    return removed


def _artifacts(storage: Path, in_use: frozenset[str]) -> dict[str, _Artifact]:
    found: dict[str, _Artifact] = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(storage) as entries:
        for entry in entries:
            match = _OURS.fullmatch(entry.name)
            if match is None or match[2] in in_use or entry.is_dir(follow_symlinks=False) == bool(match[3]):
                continue
            with contextlib.suppress(FileNotFoundError):
                found.setdefault(match[1], _Artifact()).add(entry)
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
        raise storage_full()


def says_cannot_write(lines: Iterable[str]) -> bool:
    """Does a line of a DCMTK program's log say that a received object could not be written?"""
    return any("annot write" in line for line in lines)


def storage_full() -> StorageFull:
    """Return the error for what could not be written."""
    return StorageFull(
        "The disk is full; what the PACS sent could not be written",
        hint="Free space under the storage path, or lower its retention.",
    )
