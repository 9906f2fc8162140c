"""One part of the cache: the folder of a retrieve, the instances in it, and what was made of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harmonyd.cache.key import Key
from harmonyd.dimse.engine import Instance

if TYPE_CHECKING:
    from harmonyd.cache.made import Made

_FOLDER = re.compile(r"(dcmtk_(?:get|move)_([0-9a-f]{32}))(?:\.json|\.kept)?")
_MANIFEST = "entry.json"
_FORMAT = 1


@dataclass(slots=True, eq=False)
class Entry:
    """``folder`` has the files as they arrived, ``derived`` what is made of them."""

    key: Key
    folder: Path
    began_at: float
    """When the PACS was asked, in seconds since the epoch: what it has got since is not in here."""
    instances: dict[str, Instance] = field(default_factory=dict)
    """By SOP Instance UID, in the order of their arrival."""
    size_bytes: int = 0
    holders: int = 0
    """Who reads from it, or writes to it. It stays on the disk as long as there is one."""
    is_complete: bool = False
    is_dropped: bool = False
    """Nobody new gets it, and it goes with its last holder."""
    made: Made | None = None

    @property
    def id(self) -> str:
        """Another one for each retrieve: files of one id never change."""
        return self.folder.name.rpartition("_")[2]

    @property
    def derived(self) -> Path:
        """The folder for what is made of them."""
        return self.folder.with_name(f"{self.folder.name}.kept")

    def chosen(self, key: Key) -> Iterator[Instance]:
        """The instances that belong to ``key``."""
        if key.instance:
            found = self.instances.get(key.instance)
            # A PACS may ignore the series that is named beside an instance; who names another one asks for nothing.
            yield from () if found is None or found.series_instance_uid != key.series else (found,)
        elif key.series and not self.key.series:
            yield from (each for each in self.instances.values() if each.series_instance_uid == key.series)
        else:
            yield from self.instances.values()

    def remove(self) -> None:
        """Remove all files. Blocking."""
        _remove(self.folder)

    def write_manifest(self) -> None:
        """Make a start of the daemon know it again. Blocking. Raises OSError."""
        instances = [{**asdict(each), "path": each.path.name} for each in self.instances.values()]
        document = {
            "format": _FORMAT,
            "boot": _boot_id(),
            "key": self.key,
            "began_at": self.began_at,
            "instances": instances,
        }
        self.derived.mkdir(exist_ok=True)
        write_whole(self.derived / _MANIFEST, json.dumps(document).encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all. Blocking. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def found_in(storage: Path) -> list[Entry]:
    """Return what an earlier run of the daemon left whole, the oldest first; remove all else of ours. Blocking.

    What was written before the machine started is not trusted: files are not forced to the disk.
    """
    folders: dict[str, Path] = {}
    with suppress(FileNotFoundError), os.scandir(storage) as names:
        folders = {match[1]: storage / match[1] for name in names if (match := _FOLDER.fullmatch(name.name))}
    entries = []
    for folder in folders.values():
        entry = _read(folder)
        if entry is None:
            _remove(folder)
        else:
            entries.append(entry)
    return sorted(entries, key=lambda each: each.began_at)


def remove_all(storage: Path) -> None:
    """Remove all files of ours. Blocking."""
    with suppress(FileNotFoundError), os.scandir(storage) as names:
        for folder in {match[1] for name in names if (match := _FOLDER.fullmatch(name.name))}:
            _remove(storage / folder)


def _remove(folder: Path) -> None:
    # The manifest first: should we be killed under way, nothing half is found.
    shutil.rmtree(folder.with_name(f"{folder.name}.kept"), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.with_name(f"{folder.name}.json").unlink(missing_ok=True)


def _read(folder: Path) -> Entry | None:
    try:
        document = json.loads((folder.with_name(f"{folder.name}.kept") / _MANIFEST).read_bytes())
        if document["format"] != _FORMAT or document["boot"] != _boot_id():
            return None
        instances = [Instance(**{**each, "path": folder / Path(each["path"]).name}) for each in document["instances"]]
        entry = Entry(Key(*document["key"]), folder, float(document["began_at"]), is_complete=True)
        entry.instances = {each.sop_instance_uid: each for each in instances}
        entry.size_bytes = _checked_bytes(folder, entry)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return entry if entry.instances else None


def _checked_bytes(folder: Path, entry: Entry) -> int:
    """The size of all files. Raises ValueError for an instance that is not what it was; removes what is none."""
    sizes: dict[str, int] = {}
    with os.scandir(folder) as files:
        for file in files:
            sizes[file.name] = file.stat(follow_symlinks=False).st_size
    names = {each.path.name: each.size_bytes for each in entry.instances.values()}
    for name in sizes.keys() - names.keys():
        (folder / name).unlink()
    if any(sizes.get(name) != size for name, size in names.items()):
        raise ValueError("a file is missing, or has another size")
    texts = {_MANIFEST, *(f"{name}.json" for name in names)}
    with os.scandir(entry.derived) as files:
        for file in files:
            if file.name not in texts:
                Path(file.path).unlink()
            else:
                sizes[f"/{file.name}"] = file.stat(follow_symlinks=False).st_size
    return sum(sizes.values())


def _boot_id() -> str:
    """Another one after each start of the machine (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
