"""What the rest of harmonyd sees of the spool: entries in, deliveries out.

An entry is ours from the moment ``Spool.take`` returns: its file is on disk (fsync'd), and so is the journal's line
that says where it goes. It stays until each of its backends has it, was told to be left out, or somebody discarded it.
The spool knows neither DICOM nor HTTP: what an object is stands in its ``metadata``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol


class EntryState(StrEnum):
    """Of an entry at one backend."""

    WAITING = "WAITING"
    """For its first attempt, or the next one."""
    QUARANTINED = "QUARANTINED"
    """Given up; ``retry`` makes it WAITING again."""
    DAMAGED = "DAMAGED"
    """It failed its check: there is nothing to deliver."""


@dataclass(frozen=True, slots=True)
class NewEntry:
    """A file to take over. ``metadata`` holds at least ``sop_instance_uid`` and ``study_instance_uid`` (may be "")."""

    path: Path
    size_bytes: int
    metadata: Mapping[str, str]
    request_id: str
    """Correlation id; made by whoever received it, it stays with the object to its last delivery."""
    flushed: bool = False
    """The file and its name in its folder are on the disk already."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object in the spool."""

    id: int
    endpoint: str
    path: Path
    size_bytes: int
    received_at: float
    """Seconds since the epoch."""
    metadata: Mapping[str, str]
    request_id: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """The backend has it, or middleware left this backend out."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It did not arrive."""

    reason: str
    """For people; never patient data."""
    is_away: bool = False
    """The backend as a whole cannot be reached or used now: no other object would fare better."""
    again_secs: float | None = None
    """When it may be used again, where that is known and it is away."""


@dataclass(frozen=True, slots=True)
class Untried:
    """Another entry of the same delivery was in the way: nothing is known of this one, and it may be tried at once."""


@dataclass(frozen=True, slots=True)
class Held:
    """The backend has it, and it is to be kept here all the same; no attempt has failed."""

    reason: str
    again_secs: float
    """When it is asked about again, unless ``retry`` says so before."""


Result = Delivered | Failed | Untried | Held


class Deliverer(Protocol):
    """Delivers the entries of one endpoint."""

    def backends(self) -> Mapping[str, int]:
        """By name, the backends that the endpoint's pipeline has now, and how many entries fit one ``deliver``."""
        ...

    async def deliver(self, backend: str, entries: Sequence[Entry]) -> Sequence[Result]:
        """Deliver these to one backend; one result each, in order. Anything it raises counts as failed for all.

        Cancelled when the spool stops; what was not answered then is delivered again later.
        """
        ...


@dataclass(frozen=True, slots=True)
class DeliveryInfo:
    """Where an entry is with one backend."""

    backend: str
    state: EntryState
    attempts: int
    next_attempt_at: float | None
    """Seconds since the epoch."""
    reason: str


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """An entry for people."""

    entry: Entry
    deliveries: tuple[DeliveryInfo, ...]


@dataclass(frozen=True, slots=True)
class BackendSummary:
    """Of the entries of an endpoint that one backend does not have."""

    endpoint: str
    backend: str
    waiting: int
    quarantined: int
    oldest_received_at: float | None
    """Of those that wait: when the oldest came, however often it was driven again."""
    away_reason: str = ""
    """Why the backend is not tried now; empty when it is."""


@dataclass(frozen=True, slots=True)
class Pile:
    """Files in a folder."""

    files: int
    bytes: int
    oldest_at: float | None = None
    """When the oldest of them was written; seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The whole spool."""

    entries: int
    bytes: int
    damaged: int
    backends: tuple[BackendSummary, ...]
    refusal: str | None
    """Why nothing is accepted now."""
    set_aside: Pile = Pile(0, 0)
    """Objects in the quarantine folder: they belong to no entry."""
    untaken: Mapping[str, Pile] = field(default_factory=dict)
    """By name, what was received for endpoints that are not there any more, and was not taken into the spool."""


class Admission(Protocol):
    """Also ``dimse.engine.Admission``."""

    def refusal(self) -> str | None: ...

    def must_end(self) -> bool: ...

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]: ...


class Spool(Protocol):
    """The durable queue between receivers and backends. One for a daemon."""

    @property
    def admission(self) -> Admission: ...

    async def start(self) -> None:
        """Open the journal and set right what a crash left. Before any receiver looks through its folders."""
        ...

    async def stop(self) -> None:
        """End deliveries; what is not done stays on disk."""
        ...

    async def take(self, endpoint: str, entries: Sequence[NewEntry], backends: Sequence[str]) -> None:
        """Make these durable and queue them for each backend, one at least.

        When it raises (OSError, StorageFull, Unavailable), none is taken and each file is where it was.
        """
        ...

    async def put_aside(self, endpoint: str, entry: NewEntry, reason: str) -> None:
        """Take over a damaged file: DAMAGED (at the backend ""), visible, delivered nowhere. Raises as ``take``."""
        ...

    def attach(self, endpoint: str, deliverer: Deliverer, *, in_order: bool) -> None:
        """Deliver the endpoint's entries with this from now on. ``in_order``: a study's objects as they came.

        Raises ValueError for an endpoint that is attached already.
        """
        ...

    async def rearrange(self, endpoint: str, *, in_order: bool) -> None:
        """The backends of an attached endpoint, or the order for it, may have changed."""
        ...

    async def detach(self, endpoint: str) -> None:
        """Deliver nothing of this endpoint any more; what is under way is cancelled. Returns when that has ended."""
        ...

    def returned(self, backend: str) -> None:
        """It can be reached again: try it now."""
        ...

    async def outstanding(self, endpoint: str, backends: Iterable[str], studies: Iterable[str]) -> frozenset[str]:
        """SOP Instance UIDs of what came to this endpoint, is of these studies, and one of these backends has not."""
        ...

    async def emptied(self, endpoint: str) -> None:
        """Return when nothing of this endpoint waits (what is in quarantine does not count)."""
        ...

    async def summary(self) -> Summary: ...

    async def entries(
        self, *, state: EntryState | None = None, endpoint: str | None = None, after: int = 0, limit: int = 100
    ) -> list[EntryInfo]:
        """In the order of their arrival; ``after``: the last id already seen."""
        ...

    async def retry(self, ids: Sequence[int] | None = None) -> int:
        """Try these now (None: all that wait or are in quarantine); returns how many deliveries that concerns."""
        ...

    async def discard(self, ids: Sequence[int]) -> int:
        """Remove these for good; returns how many there were."""
        ...
