"""Setting right, at the start, what a crash or a lost disk left: journal and files agree again."""

from __future__ import annotations

import json
from pathlib import Path

from twisted.logger import Logger

from harmonyd.spool.journal import Journal
from harmonyd.spool.layout import PREFIXES, SUFFIX, quarantine

_log = Logger()

GONE = "the file is gone"


def set_right(journal: Journal, now: float, latest_due: float) -> None:
    """Within a transaction; may be repeated. Memory does not grow with the backlog: folder after folder.

    Nothing may be due later than ``latest_due``. Raises OSError.
    """
    for prefix in PREFIXES:
        _set_folder_right(journal, prefix, now)
    for path in journal.layout.incoming.iterdir():
        path.unlink()  # a copy that was not journalled: the file itself is still where it came from
    for queue in journal.queues():
        journal.set_away(queue.id, "")
        journal.cap_due(queue.id, latest_due)


def _set_folder_right(journal: Journal, prefix: str, now: float) -> None:
    folder = journal.layout.objects / prefix
    files = {path.name: path for path in folder.iterdir()}
    rows = journal.db.execute(
        "SELECT id, name, source, size_bytes, done, metadata FROM entries WHERE name >= ? AND name < ?",
        (prefix, prefix + "g"),
    ).fetchall()
    for entry, name, source, size_bytes, done, metadata in rows:
        path = files.pop(name + SUFFIX, None)
        if done:
            if path is not None:
                path.unlink()
            journal.forget([entry])
            continue
        wrong = _missing(journal, name, Path(source)) if path is None else _torn(path, size_bytes)
        if wrong:
            damage(journal, entry, json.loads(metadata).get("sop_instance_uid", ""), wrong, now)
    for path in files.values():
        reason = "in the spool's folder, unknown to its journal"
        target = quarantine(path, journal.layout.quarantine, reason)
        _log.warn("{file} was found {reason}: moved to {target}", file=str(path), reason=reason, target=str(target))


def _missing(journal: Journal, name: str, source: Path) -> str:
    """Finish the move that was under way, or say that there is nothing to move."""
    try:
        journal.layout.place(source, name)
    except FileNotFoundError:
        return GONE
    return ""


def _torn(path: Path, size_bytes: int) -> str:
    found = path.stat().st_size
    return "" if found == size_bytes else f"the file has {found} bytes instead of {size_bytes}"


def damage(journal: Journal, entry: int, uid: str, reason: str, now: float) -> None:
    """An object that was acknowledged cannot be delivered: said once, loudly."""
    whole = "SELECT 1 FROM deliveries WHERE entry = ? AND state <> 'DAMAGED'"
    if journal.db.execute(whole, (entry,)).fetchone() and journal.damage(entry, reason, now):
        say_damaged(uid, entry, reason)


def say_damaged(uid: str, entry: int, reason: str) -> None:
    _log.error(
        "an acknowledged object is damaged and cannot be delivered: SOP Instance UID {sop_instance_uid}: {reason}"
        " (spool entry {entry})",
        sop_instance_uid=uid or "unknown",
        entry=entry,
        reason=reason,
    )
