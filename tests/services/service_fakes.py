"""Fakes for the tests of services: results and records that are told what to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from harmonyd.envelope import Record
from harmonyd.services.http.media import JSON


@dataclass(frozen=True)
class FakeRecord:
    """A record with its JSON, its file, or both."""

    text: bytes = b"{}"
    path: Path | None = None
    name: str = "record"

    async def json(self) -> bytes:
        return self.text


class FakeResults:
    """Yields records; waits for a Deferred among them, raises an exception among them."""

    def __init__(
        self,
        items: Iterable[FakeRecord | Deferred[None] | Exception] = (),
        *,
        media_type: str = JSON,
        operation: str = "find",
        items_key: str | None = "matches",
        summary: Mapping[str, Any] | None = None,
    ) -> None:
        self.media_type = media_type
        self.operation = operation
        self.items_key = items_key
        self.closed = 0
        self.is_waiting = False
        self.closing: Deferred[None] | None = None
        """What closing waits for."""
        self._items = items
        self._summary = summary or {"success": True, "complete": True}

    async def __aiter__(self) -> AsyncIterator[Record]:
        for item in self._items:
            if isinstance(item, Exception):
                raise item
            if isinstance(item, Deferred):
                self.is_waiting = True
                await item
            else:
                yield item

    def summary(self) -> Mapping[str, Any]:
        return self._summary

    async def aclose(self) -> None:
        if self.closing is not None:
            await self.closing
        self.closed += 1


def records(*texts: bytes) -> list[FakeRecord]:
    """Records with the given JSON."""
    return [FakeRecord(text) for text in texts]


def instances(folder: Path, contents: Sequence[bytes]) -> list[FakeRecord]:
    """Records with files of the given contents, named 1.1, 1.2 …"""
    made = []
    for number, content in enumerate(contents, 1):
        path = folder / f"file{number}"
        path.write_bytes(content)
        made.append(FakeRecord(b"{}", path, f"1.{number}"))
    return made
