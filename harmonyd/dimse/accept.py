"""Deciding, for each received file, whether it is whole and was asked for. What is not is put aside, never lost."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harmonyd.dimse.engine import Instance, Query
from harmonyd.dimse.part10 import DamagedFile, InstanceHeader, check_complete
from harmonyd.dimse.uid import is_uid

TWICE = "the same SOP Instance UID arrived twice"
_UNIQUE_KEYS = (
    ("PatientID", "patient_id"),
    ("StudyInstanceUID", "study_instance_uid"),
    ("SeriesInstanceUID", "series_instance_uid"),
    ("SOPInstanceUID", "sop_instance_uid"),
)


def instance_of(path: Path, header: InstanceHeader) -> Instance:
    """A checked file as an instance."""
    return Instance(
        path,
        header.sop_class_uid,
        header.sop_instance_uid,
        header.transfer_syntax_uid,
        header.size_bytes,
        header.study_instance_uid,
        header.series_instance_uid,
        header.patient_id,
        header.data_set_at,
    )


def wanted_keys(query: Query) -> dict[str, frozenset[str]]:
    """The unique keys of a retrieve: attribute of ``InstanceHeader`` → the values asked for."""
    wanted: dict[str, frozenset[str]] = {}
    for keyword, attribute in _UNIQUE_KEYS:
        value = query.dataset.get(keyword)
        if value:
            values = [value] if isinstance(value, str) else list(value)
            wanted[attribute] = frozenset(str(item).strip() for item in values)
    return wanted


def matches(wanted: Mapping[str, frozenset[str]], header: InstanceHeader) -> bool:
    """Whether an object has one of the values asked for in each unique key."""
    return all(getattr(header, attribute).strip() in values for attribute, values in wanted.items())


def quarantine(path: Path, folder: Path, reason: str) -> Path:
    """Move a file into the quarantine folder beside a note that says why; returns its new path. Blocking.

    Raises OSError; ``FileNotFoundError`` when the file is gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}_{uuid.uuid4().hex}.dcm"
    note = {"reason": reason, "was": str(path), "time": time.time()}
    beside = target.with_suffix(".json")
    try:
        beside.write_text(json.dumps(note), encoding="utf-8")
        shutil.move(path, target)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    return target


@dataclass(slots=True)
class Intake:
    """Takes received files into an operation's folder, one by one. Its methods block: call them in a thread."""

    query: Query
    folder: Path
    quarantine_folder: Path
    arrived: set[str] = field(default_factory=set)
    """SOP Instance UIDs taken in."""
    put_aside: Counter[str] = field(default_factory=Counter)
    """How many files that were not taken in are in quarantine, by reason; never a patient's data."""
    put_aside_bytes: int = 0
    damaged: int = 0
    wanted: dict[str, frozenset[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.wanted = wanted_keys(self.query)

    def take(self, paths: list[Path]) -> list[Instance]:
        """Check each file, move it into the folder; returns those that count."""
        instances = []
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                instance = self._take_one(path)
                if instance is not None:
                    instances.append(instance)
        return instances

    def _take_one(self, path: Path) -> Instance | None:
        try:
            header = check_complete(path)
        except DamagedFile as damage:
            self.damaged += 1
            self.aside(path, "damaged", damage.detail)
            return None
        return self.take_checked(path, header)

    def take_checked(self, path: Path, header: InstanceHeader) -> Instance | None:
        """Take in a file that is known to be whole; None when it was not asked for, or not again."""
        if not matches(self.wanted, header):
            self.aside(path, "not asked for")
            return None
        if header.sop_instance_uid in self.arrived:
            self.aside(path, TWICE)
            return None
        return self.taken(self.place(path, header), header)

    def is_wanted(self, header: InstanceHeader) -> bool:
        """Whether it was asked for, and has not arrived yet. Does not block."""
        return matches(self.wanted, header) and header.sop_instance_uid not in self.arrived

    def taken(self, path: Path, header: InstanceHeader) -> Instance:
        """Count one that is wanted, and lies in the folder already. Does not block."""
        self.arrived.add(header.sop_instance_uid)
        return instance_of(path, header)

    def place(self, path: Path, header: InstanceHeader) -> Path:
        """Move a file into the folder, unless it is there; returns where it is."""
        if path.parent == self.folder:
            return path
        uid = header.sop_instance_uid
        target = self.folder / (uid if is_uid(uid) else path.name)
        if target.exists():
            target = self.folder / f"{target.name}.{uuid.uuid4().hex}"
        try:
            return path.rename(target)
        except OSError:
            # Another file system (a backend's storage_dir).
            return Path(shutil.move(path, target))

    def aside(self, path: Path, reason: str, detail: str = "") -> None:
        """Quarantine a file, and count it."""
        size = path.stat().st_size
        quarantine(path, self.quarantine_folder, f"{reason}: {detail}" if detail else reason)
        self.put_aside[reason] += 1
        self.put_aside_bytes += size
