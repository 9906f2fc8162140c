"""The spool as a command line sees it: from another process, whether or not the daemon runs."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType

from harmonyd.errors import NotFound
from harmonyd.spool import people
from harmonyd.spool.api import EntryInfo, EntryState, Summary
from harmonyd.spool.journal import Journal
from harmonyd.spool.layout import Layout
from harmonyd.spool.strays import set_aside, untaken


class SpoolFolder:
    """The spool below a storage path, for people. Everything blocks; a running daemon notices what was changed.

    A context manager. Raises NotFound when there is no spool, JournalUnusable, StorageFull.
    """

    def __init__(self, storage: Path, endpoints: Collection[str] | None = None) -> None:
        """``endpoints``: names of those that receive; None: not known."""
        self._endpoints = endpoints
        self._layout = Layout(storage)
        if not self._layout.journal.exists():
            aside = set_aside(self._layout).files  # moves put aside what nobody asked for, also without a spool
            held = f"; in {self._layout.quarantine} lie {aside} files" if aside else ""
            made = "harmonyd makes it when it starts with a dicom endpoint"
            raise NotFound(f"there is no spool below {storage}{held}", hint=made)
        self._journal = Journal(self._layout)

    def __enter__(self) -> SpoolFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._journal.close()

    def summary(self) -> Summary:
        """As ``Spool.summary``; ``refusal`` is known to the daemon alone, so None here. Raises OSError."""
        left = {} if self._endpoints is None else untaken(self._layout, self._endpoints)
        return replace(people.summary(self._journal, None), set_aside=set_aside(self._layout), untaken=left)

    def entries(
        self, *, state: EntryState | None = None, endpoint: str | None = None, after: int = 0, limit: int = 100
    ) -> list[EntryInfo]:
        """As ``Spool.entries``."""
        return people.entries(self._journal, state=state, endpoint=endpoint, after=after, limit=limit)

    def entry(self, id_: int) -> EntryInfo:
        """One entry. Raises NotFound."""
        found = people.entry(self._journal, id_)
        if found is None:
            raise NotFound(f"there is no entry {id_} in the spool")
        return found

    def retry(self, ids: Sequence[int] | None = None) -> int:
        """As ``Spool.retry``; a running daemon begins within 5 seconds."""
        with self._journal.transaction():
            # The daemon's clock may be behind ours, when that was set forward since it started.
            return people.retry(self._journal, ids, time.time(), due=0.0)

    def discard(self, ids: Sequence[int]) -> int:
        """As ``Spool.discard``."""
        with self._journal.transaction():
            gone = people.discard(self._journal, ids, time.time())
        for _, name in gone:
            self._layout.object(name).unlink(missing_ok=True)
        with self._journal.transaction():
            self._journal.forget([id_ for id_, _ in gone])
        return len(gone)

    def export(self, id_: int, folder: Path) -> Path:
        """Copy an entry's file into a folder, beside a JSON file of what is known about it; returns the copy's path.

        Raises NotFound, OSError; ``FileExistsError`` when it has been exported there before.
        """
        info = self.entry(id_)
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{id_}.dcm"
        with info.entry.path.open("rb") as source, target.open("xb") as copy:
            shutil.copyfileobj(source, copy)
        target.with_suffix(".json").write_text(json.dumps(asdict(info), default=str, indent=1) + "\n", "utf-8")
        return target
