"""An operation's stream as ``Results``: records for the endpoint to serialise, and the summary that tells the truth."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from twisted.internet.defer import CancelledError

from harmonyd.dimse.dataset_json import file_to_json
from harmonyd.dimse.engine import Instance, Match, OperationStream, Outcome, Received, RemoteNode, StoreResult
from harmonyd.dimse.errors import DimseError
from harmonyd.dimse.uid import name_of
from harmonyd.dimse.wire import json_of
from harmonyd.errors import HarmonydError, NotFound
from harmonyd.services.dicom.metering import CANCELLED, outcome_of_error
from harmonyd.services.dicom.record import failed

_DECODED_HERE_BYTES = 16 * 1024
"""See ``dimse.native.find``."""
T = TypeVar("T")
InThread = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class MatchRecord:
    """One C-FIND match."""

    match: Match
    in_thread: InThread
    name: str = "match"
    path: Path | None = None

    @property
    def received(self) -> Received | None:
        """As the node sent it, where somebody is going to pass it on like that."""
        return self.match.received

    @property
    def size_bytes(self) -> int:
        return len(self.match.json if self.match.received is None else self.match.received.data)

    async def json(self) -> bytes:
        received = self.match.received
        if received is None:
            return self.match.json
        if len(received.data) <= _DECODED_HERE_BYTES:
            return json_of(received)
        data: bytes = await self.in_thread(json_of, received)
        return data


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """One received instance; its JSON is read from the file in a thread."""

    instance: Instance
    in_thread: InThread

    @property
    def path(self) -> Path:
        return self.instance.path

    @property
    def name(self) -> str:
        """See ``name_of``."""
        return name_of(self.instance.sop_instance_uid, self.path.name)

    async def json(self) -> bytes:
        data: bytes = await self.in_thread(file_to_json, self.instance.path)
        return data

    async def discard(self) -> None:
        """Nobody needs the file any more."""
        await self.in_thread(self.path.unlink, True)


class DimseResults(Generic[T]):
    """Implements ``Results`` over an operation whose first item has been read already."""

    def __init__(
        self,
        operation: str,
        media_type: str,
        items_key: str,
        stream: OperationStream[T],
        first: T | None,
        record: Callable[[T], MatchRecord | InstanceRecord],
        *,
        with_debug: bool,
        closed: Callable[[Mapping[str, Any]], Awaitable[None]],
    ) -> None:
        """``closed`` is awaited once, with the summary, when the operation is over."""
        self.operation = operation
        self.media_type = media_type
        self.items_key: str | None = items_key
        self._stream = stream
        self._first = first
        self._record = record
        self._with_debug = with_debug
        self._closed: Callable[[Mapping[str, Any]], Awaitable[None]] | None = closed
        self._count = 0
        self._failed: Exception | None = None
        self._ended = False

    async def __aiter__(self) -> AsyncIterator[MatchRecord | InstanceRecord]:
        try:
            if self._first is not None:
                first, self._first = self._first, None
                self._count += 1
                yield self._record(first)
                async for item in self._stream:
                    self._count += 1
                    yield self._record(item)
            self._ended = True
        except CancelledError:
            raise
        except Exception as error:
            self._failed = error
            raise

    def summary(self) -> dict[str, Any]:
        members: dict[str, Any] = {"success": self._ended, "complete": self._ended}
        if not self._ended:
            left = "nobody took the rest of the answer"
            members["incomplete_reason"] = failed(self._failed)["error"] if self._failed else left
            if isinstance(self._failed, HarmonydError) and "dimse_comment" in self._failed.extra:
                members["dimse_comment"] = self._failed.extra["dimse_comment"]
        else:
            members |= outcome_members(self._stream.outcome)
        if self.items_key == "matches":
            members["count"] = self._count
        else:
            folder = self._stream.folder
            members |= {
                "file_count": self._count,
                "folder_id": folder.name.rpartition("_")[2] if folder else None,
                "folder_path": str(folder) if folder else None,
            }
        if self._with_debug and self._stream.debug is not None:
            members["debug"] = self._stream.debug
        return members

    @property
    def failed_uids(self) -> tuple[str, ...]:
        """SOP Instance UIDs that a retrieve did not bring, as far as the node has told; after the end."""
        return self._stream.outcome.failed_uids

    def _ending(self) -> dict[str, str]:
        """How it ended, where it did not end by itself."""
        if self._ended:
            return {}
        return {"outcome": outcome_of_error(self._failed) if self._failed else CANCELLED}

    async def aclose(self) -> None:
        closed, self._closed = self._closed, None
        try:
            await self._stream.aclose()
        finally:
            if closed is not None:
                await closed(self.summary() | self._ending())


def outcome_members(outcome: Outcome) -> dict[str, Any]:
    """An outcome as members of an answer."""
    members: dict[str, Any] = {"complete": outcome.complete}
    if outcome.incomplete_reason:
        members["incomplete_reason"] = outcome.incomplete_reason
        if outcome.comment:
            members["dimse_comment"] = outcome.comment
    if outcome.suboperations is not None:
        members["suboperations"] = asdict(outcome.suboperations)
    if outcome.warnings:
        members["warnings"] = outcome.warnings
    return members


class FixedResults:
    """``Results`` of an operation that has ended: echo (no records) and store."""

    def __init__(
        self, operation: str, media_type: str, summary: Mapping[str, Any], stored: list[StoreResult] | None = None
    ) -> None:
        self.operation = operation
        self.media_type = media_type
        self.items_key: str | None = None if stored is None else "instances"
        self._summary = summary
        self._stored = stored or []

    async def __aiter__(self) -> AsyncIterator[StoreRecord]:
        for result in self._stored:
            yield StoreRecord(result)

    def summary(self) -> Mapping[str, Any]:
        return self._summary

    async def aclose(self) -> None:
        return None


def echoed(remote: RemoteNode, media_type: str) -> FixedResults:
    """Of a C-ECHO that was answered."""
    summary = {"success": True, "complete": True, "remote_aet": remote.aet, "host": remote.host, "port": remote.port}
    return FixedResults("echo", media_type, summary)


@dataclass(frozen=True, slots=True)
class StoreRecord:
    """The outcome of storing one instance."""

    result: StoreResult
    path: Path | None = None

    @property
    def name(self) -> str:
        return self.result.sop_instance_uid

    async def json(self) -> bytes:
        return json.dumps(store_members(self.result)).encode()


def store_members(result: StoreResult) -> dict[str, Any]:
    """One store outcome as members of an answer; the status as 0xHHHH, null when there was no answer."""
    above = {"study_instance_uid": result.study_instance_uid, "series_instance_uid": result.series_instance_uid}
    return {
        "sop_class_uid": result.sop_class_uid,
        "sop_instance_uid": result.sop_instance_uid,
        "status": None if result.status is None else f"0x{result.status:04X}",
        "status_text": result.status_text,
        **({"dimse_comment": result.comment} if result.comment else {}),
        **{name: uid for name, uid in above.items() if uid},
    }


_NOTHING_ARRIVED = {
    "get": "The PACS has it but did not deliver it to us; its log, and 'suboperations', say how many it tried.",
    "move": "The PACS delivered elsewhere, or not at all: its host table entry for our move_destination_aet must have "
    "this host and incoming_store_port.",
}


def raise_for_nothing(operation: str, outcome: Outcome) -> None:
    """Raise what a retrieve that brought nothing is answered with: ``NotFound``, or ``DimseError``."""
    if outcome.complete:
        raise NotFound(
            "Nothing at the remote node matches",
            hint="Check the UIDs with a find; an instance the PACS has under other UIDs does not match.",
        )
    raise DimseError(
        f"No instance arrived: {outcome.incomplete_reason}",
        hint=_NOTHING_ARRIVED[operation],
        dimse_status=f"0x{outcome.status:04X}" if outcome.status else None,
        dimse_status_text=outcome.status_text if outcome.status else None,
        dimse_comment=outcome.comment,
        suboperations=None if outcome.suboperations is None else asdict(outcome.suboperations),
        warnings=outcome.warnings or None,
    )
