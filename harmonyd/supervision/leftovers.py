"""Kept children on record, so that the next run can end what a crash left behind. The watcher's second belt.

The file holds JSON lines: first who wrote it, then one line for each child. A process is ended only when its pid, its
start time (or, when the leader is dead, its session) and its command line match; strangers never, and nothing while the
daemon that wrote the file is alive.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harmonyd.supervision.ports import command
from harmonyd.supervision.watcher import end_sessions, members, read_stat

FILE_NAME = "children.jsonl"


@dataclass(frozen=True, slots=True)
class Entry:
    """A kept child that runs."""

    name: str
    pid: int
    start: int
    """Clock ticks since boot."""
    argv: Sequence[str]


class OwnerAlive(Exception):
    """The daemon that wrote the record is still running."""


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def save(path: Path, entries: Iterable[Entry]) -> None:
    """Write the record atomically. Raises OSError."""
    pid = os.getpid()
    stat = read_stat(pid)
    owner: dict[str, Any] = {"owner": pid, "start": stat.start if stat else 0, "boot": boot_id()}
    text = "".join(json.dumps(line) + "\n" for line in [owner, *map(asdict, entries)])
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def load(path: Path) -> list[Entry]:
    """Read the record of an earlier run; empty when there is none, or none of this boot.

    Raises ``OwnerAlive`` when that run has not ended, ValueError for a broken file, OSError.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    try:
        first, *rest = [json.loads(line) for line in text.splitlines()] or [{"boot": None}]
        if first["boot"] != boot_id():
            return []
        _check_owner(first["owner"], first["start"])
        return [Entry(line["name"], int(line["pid"]), int(line["start"]), line["argv"]) for line in rest]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a record of children: {error!r}") from error


def _check_owner(pid: int, start: int) -> None:
    owner = read_stat(pid)
    if owner is not None and owner.alive and owner.start == start and pid != os.getpid():
        raise OwnerAlive(f"pid {pid}")


def still_there(entry: Entry) -> bool:
    """Is a process of this child left?"""
    leader = read_stat(entry.pid)
    if leader is not None and leader.start != entry.start:
        return False
    candidates = [leader] if leader is not None and leader.alive else members(entry.pid)
    return any(_same_command(stat.pid, entry.argv) for stat in candidates)


def _same_command(pid: int, argv: Sequence[str]) -> bool:
    # The end is compared: before it, setpriv and setsid, or the interpreter of a script, may stand.
    return command(pid)[-len(argv) :] == tuple(argv)


def end_leftovers(path: Path) -> list[Entry]:
    """KILL what is left of the children on record; return them. Blocks for up to some seconds: run it in a thread."""
    left = [entry for entry in load(path) if still_there(entry)]
    end_sessions((entry.pid, entry.start) for entry in left)
    return left
