"""``harmonyd spool``: what is in the spool, and what can be done to it by hand; whether or not the daemon runs."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harmonyd import config as configuration
from harmonyd.config.model import Config, DicomEndpointOptions
from harmonyd.control.management import utc
from harmonyd.control.spool import entry_document, summary_document
from harmonyd.control.text import clean
from harmonyd.errors import HarmonydError, NotFound
from harmonyd.spool.api import DeliveryInfo, EntryInfo, EntryState, Pile, Summary
from harmonyd.spool.folder import SpoolFolder

EXIT_OK = 0
EXIT_NOTHING = 1
EXIT_CONFIGURATION = 2

HEAD = (
    *("ID", "RECEIVED", "ENDPOINT", "SOP INSTANCE UID", "BYTES"),
    *("BACKEND:STATE", "ATTEMPTS", "NEXT ATTEMPT", "REASON"),
)
_PAGE = 1000

Action = Callable[[SpoolFolder], int]


def run(config_path: Path, action: Action) -> int:
    """Do ``action`` with the spool of a configuration; return the exit status. Complaints go to standard error."""
    try:
        config = configuration.load(config_path)
    except configuration.ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIGURATION
    try:
        with SpoolFolder(config.storage.path, _receiving(config)) as spool:
            return action(spool)
    except HarmonydError as error:
        _complain(error.detail, error.hint)
    except OSError as error:
        _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except sqlite3.Error as error:
        _complain(f"the spool's journal cannot be used: {error}", "run this as the user that harmonyd runs as")
    return EXIT_NOTHING


def _receiving(config: Config) -> set[str]:
    """The names of the endpoints that receive with DICOM."""
    names = {name for pipeline in config.pipelines.values() for name in pipeline.endpoints}
    return {name for name in names if isinstance(config.endpoints[name].options, DicomEndpointOptions)}


def _complain(*texts: str | None) -> None:
    for text in texts:
        if text:
            print(f"harmonyd: {clean(text)}", file=sys.stderr)


# --- list, show ---


def listing(state: str | None, endpoint: str | None, limit: int, *, as_json: bool) -> Action:
    """Print the summary, and up to ``limit`` entries, a line for each of their deliveries."""

    def action(spool: SpoolFolder) -> int:
        wanted = EntryState(state) if state else None
        summary = spool.summary()
        found = list(_entries(spool, wanted, endpoint, limit + 1))
        if as_json:
            documents = [entry_document(info) for info in found[:limit]]
            _print_json({"summary": summary_document(summary, time.time()), "entries": documents})
        else:
            print(_summary(summary))
            _print_table([row for info in found[:limit] for row in _rows(info, wanted)])
        if len(found) > limit:
            _complain(f"these are the first {limit}; --limit shows more")
        return EXIT_OK

    return action


def _entries(spool: SpoolFolder, state: EntryState | None, endpoint: str | None, most: int) -> Iterator[EntryInfo]:
    after, left = 0, most
    while left and (page := spool.entries(state=state, endpoint=endpoint, after=after, limit=min(left, _PAGE))):
        yield from page
        after, left = page[-1].entry.id, left - len(page)


def _summary(summary: Summary) -> str:
    waiting = sum(backend.waiting for backend in summary.backends)
    quarantined = sum(backend.quarantined for backend in summary.backends)
    since = [backend.oldest_received_at for backend in summary.backends if backend.oldest_received_at is not None]
    oldest = f", the oldest since {utc(min(since))}" if since else ""
    said = (
        f"{_counted(summary.entries, 'object')}, {summary.bytes} bytes; deliveries: {waiting} waiting{oldest},"
        f" {quarantined} in quarantine; {summary.damaged} damaged"
    )
    aside = [f"quarantine/: {_pile(summary.set_aside)}; nothing delivers them"] if summary.set_aside.files else []
    left = [
        f"spool/receiving/{clean(name)}: {_pile(heap)}; there is no such endpoint any more, and nothing takes them"
        for name, heap in summary.untaken.items()
    ]
    return "\n".join([said, *aside, *left])


def _pile(pile: Pile) -> str:
    return f"{_counted(pile.files, 'file')}, {pile.bytes} bytes, the oldest of {utc(pile.oldest_at)}"


def _rows(info: EntryInfo, state: EntryState | None) -> Iterator[list[str]]:
    """One line for each delivery: each tells all, for grep and awk."""
    entry = info.entry
    uid = entry.metadata.get("sop_instance_uid") or "-"
    what = [str(entry.id), utc(entry.received_at) or "-", entry.endpoint, uid, str(entry.size_bytes)]
    for delivery in info.deliveries:
        if state in (None, delivery.state):
            yield [*what, *_delivery(delivery)]


def _delivery(delivery: DeliveryInfo) -> list[str]:
    due = utc(delivery.next_attempt_at) if delivery.state is EntryState.WAITING else None
    return [f"{delivery.backend or '-'}:{delivery.state}", str(delivery.attempts), due or "-", delivery.reason or "-"]


def _print_table(rows: list[list[str]]) -> None:
    if not rows:
        return
    lines = [list(HEAD), *[[" ".join(clean(cell).split()) for cell in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def showing(id_: int, *, as_json: bool) -> Action:
    """Print all that is known about one entry."""

    def action(spool: SpoolFolder) -> int:
        info = spool.entry(id_)
        document = entry_document(info) | {"path": str(info.entry.path)}
        if as_json:
            _print_json(document)
            return EXIT_OK
        metadata, deliveries = document.pop("metadata"), document.pop("deliveries")
        for key, value in (*document.items(), *metadata.items()):
            print(f"{key:<20} {clean(str(value))}")
        for delivery in deliveries:
            said = [f"{key} {clean(str(value))}" for key, value in delivery.items() if value is not None]
            print(f"{'delivery':<20} {', '.join(said)}")
        return EXIT_OK

    return action


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


# --- retry, discard, export ---


def retrying(ids: Sequence[int] | None) -> Action:
    """Have these tried now; None: all that wait or are in quarantine."""

    def action(spool: SpoolFolder) -> int:
        known, missing = (None, []) if ids is None else _known(spool, ids)
        count = spool.retry(known)
        print(f"{_counted(count, 'delivery', 'deliveries')} to be tried now; harmonyd begins within 5 s, if it runs")
        if known and not count:
            _complain("what is damaged cannot be delivered", "have it sent again, then discard it")
        return _status(count, missing)

    return action


def discarding(ids: Sequence[int], *, is_sure: bool) -> Action:
    """Remove these for good."""

    def action(spool: SpoolFolder) -> int:
        if len(set(ids)) > 1 and not is_sure:
            _complain(f"this would remove {len(set(ids))} objects for good", "give --yes to do it")
            return EXIT_NOTHING
        known, missing = _known(spool, ids)
        count = spool.discard(known)
        print(f"{_counted(count, 'object')} discarded")
        return _status(count, missing)

    return action


def _known(spool: SpoolFolder, ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Which of these are there, and which are not; the second are complained about."""
    known: list[int] = []
    missing: list[int] = []
    for id_ in dict.fromkeys(ids):
        try:
            spool.entry(id_)
            known.append(id_)
        except NotFound as error:
            missing.append(id_)
            _complain(error.detail)
    return known, missing


def _status(count: int, missing: Sequence[int]) -> int:
    return EXIT_OK if count and not missing else EXIT_NOTHING


def exporting(id_: int, folder: Path) -> Action:
    """Copy one object into a folder, beside a JSON file of what is known about it; it stays in the spool."""

    def action(spool: SpoolFolder) -> int:
        try:
            print(spool.export(id_, folder))
        except FileExistsError as error:
            _complain(f"{error.filename} is there already: nothing was exported")
            return EXIT_NOTHING
        return EXIT_OK

    return action


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
