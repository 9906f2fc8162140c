"""Where the spool keeps its files, and the moves between those places. Everything here blocks: call it in a thread.

* ``<storage>/spool/journal.sqlite3``: what is in the spool, and where it goes
* ``<storage>/spool/objects/<2 hex>/<32 hex>.dcm``: the objects, byte for byte as they came
* ``<storage>/spool/incoming/``: copies of files that came from another file system, until they are ours
* ``<storage>/spool/receiving/<endpoint>/``: what receivers write, and is not ours yet
* ``<storage>/spool/ballast``: room kept in reserve
* ``<storage>/quarantine/``: files that nobody knows, each beside a note that says why it is there
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harmonyd.errors import StorageFull

PREFIXES = tuple(f"{number:02x}" for number in range(256))
"""The folders of ``objects/``."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
SUFFIX = ".dcm"


class Layout:
    """The paths below one storage path."""

    def __init__(self, storage: Path) -> None:
        self.folder = storage / "spool"
        self.journal = self.folder / "journal.sqlite3"
        self.objects = self.folder / "objects"
        self.incoming = self.folder / "incoming"
        self.receiving = self.folder / "receiving"
        self.ballast = self.folder / "ballast"
        self.quarantine = storage / "quarantine"

    def make(self) -> None:
        """Make the folders that are not there. Only our own user may look into them."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.incoming, self.objects, *(self.objects / prefix for prefix in PREFIXES)):
            folder.mkdir(mode=0o700, exist_ok=True)
        for folder in (self.objects, self.folder, self.folder.parent):
            sync(folder)
        with suppress(PermissionError):  # not ours to read: whoever made it was somebody else
            sync(self.folder.parent.parent)

    def object(self, name: str) -> Path:
        """The place of the object of this name."""
        return self.objects / name[:2] / (name + SUFFIX)

    def place(self, source: Path, name: str) -> None:
        """Move a file of this file system to its place. Raises OSError, then it is where it was."""
        source.rename(self.object(name))

    def near(self, path: Path, name: str) -> Path:
        """The file itself where it can be renamed into ``objects/``; else a copy that can. Raises OSError."""
        if path.stat().st_dev == self.incoming.stat().st_dev:
            return path
        copy = self.incoming / (name + SUFFIX)
        try:
            shutil.copyfile(path, copy)
        except OSError:
            copy.unlink(missing_ok=True)
            raise
        return copy

    def is_copy(self, path: Path) -> bool:
        """Whether ``near`` made this file."""
        return path.parent == self.incoming


def new_name() -> str:
    """A name that no object has or had."""
    return uuid.uuid4().hex


def sync(path: Path) -> None:
    """Flush a file or folder to the disk. Raises OSError."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def free_bytes(folder: Path) -> int:
    """What we may still write there; 0 when no more files can be made. Raises OSError."""
    figures = os.statvfs(folder)
    if figures.f_files and not figures.f_favail:
        return 0
    return figures.f_bavail * figures.f_frsize


@contextmanager
def full_disk_said() -> Iterator[None]:
    """Turn an OSError for lack of room into StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise StorageFull("the spool has no room on the disk", hint="free space there") from error
        raise


def quarantine(path: Path, folder: Path, reason: str) -> Path:
    """Move a file into the quarantine folder beside a note that says why; returns its new path. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}_{uuid.uuid4().hex}.dcm"
    beside = target.with_suffix(".json")
    try:
        beside.write_text(json.dumps({"reason": reason, "was": str(path), "time": time.time()}), encoding="utf-8")
        shutil.move(path, target)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    return target
