"""A spool in a folder, with a backend that does what a test says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from harmonyd.config.daemon import SpoolConfig
from harmonyd.spool.api import Delivered, Entry, Failed, NewEntry, Result
from harmonyd.spool.journal import Journal, NewRow
from harmonyd.spool.layout import Layout, new_name
from harmonyd.spool.spool import DurableSpool

CONFIG = SpoolConfig(min_free_bytes=0, ballast_bytes=0)
ENDPOINT = "modalities"
BACKEND = "pacs"


class ClockReactor:
    """The real reactor's threads with a time of its own."""

    def __init__(self, reactor: Any, now: float = 1_000_000.0) -> None:
        self._reactor = reactor
        self.clock = Clock()
        self.clock.advance(now)
        self.seconds = self.clock.seconds
        self.callLater = self.clock.callLater
        self.advance = self.clock.advance

    def waits(self) -> list[float]:
        """In how many seconds the things are due that wait."""
        return [round(call.getTime() - self.seconds(), 3) for call in self.clock.calls]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


def received(folder: Path, uid: str, study: str = "1.2", size_bytes: int = 2000) -> NewEntry:
    """A file as a receiver hands it over; its bytes tell its UID."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uid}.{new_name()}"
    path.write_bytes(uid.encode().ljust(size_bytes, b"."))
    return NewEntry(path, size_bytes, {"sop_instance_uid": uid, "study_instance_uid": study}, f"req-{uid}")


def new_row(uid: str, study: str = "1.2") -> NewRow:
    """A row for the journal alone: there is no file."""
    metadata = {"sop_instance_uid": uid, "study_instance_uid": study}
    return NewRow(new_name(), Path("/nowhere") / uid, 1000, metadata, f"req-{uid}")


def uid_of(entry: Entry) -> str:
    return entry.metadata["sop_instance_uid"]


def object_files(storage: Path) -> list[Path]:
    return sorted((storage / "spool" / "objects").glob("*/*"))


def open_journal(storage: Path) -> Journal:
    layout = Layout(storage)
    layout.make()
    return Journal(layout)


class Pacs:
    """A Deliverer. ``answer`` says what comes of an entry; it may raise, or return a Deferred."""

    def __init__(self, batch: int = 10, backends: Sequence[str] = (BACKEND,)) -> None:
        self.sizes = dict.fromkeys(backends, batch)
        self.got: list[tuple[str, str, bytes]] = []
        """Backend, UID and content of each delivery that was made."""
        self.offered: list[tuple[str, list[str]]] = []
        self.answer: Callable[[str, Entry], Any] = lambda backend, entry: Delivered()

    def backends(self) -> Mapping[str, int]:
        return self.sizes

    async def deliver(self, backend: str, entries: Sequence[Entry]) -> Sequence[Result]:
        self.offered.append((backend, [uid_of(entry) for entry in entries]))
        results = []
        for entry in entries:
            result = self.answer(backend, entry)
            if isinstance(result, Deferred):
                result = await result
            if isinstance(result, Delivered):
                self.got.append((backend, uid_of(entry), entry.path.read_bytes()))
            results.append(result)
        return results

    def uids(self, backend: str = BACKEND) -> list[str]:
        return [uid for name, uid, _ in self.got if name == backend]


def away(backend: str, entry: Entry) -> Result:
    return Failed("connection refused", is_away=True)


def refuse(*uids: str) -> Callable[[str, Entry], Result]:
    return lambda backend, entry: Failed("not wanted") if uid_of(entry) in uids else Delivered()


async def take(spool: DurableSpool, folder: Path, *uids: str, study: str = "1.2", backends: Any = (BACKEND,)) -> None:
    await spool.take(ENDPOINT, [received(folder, uid, study) for uid in uids], list(backends))
