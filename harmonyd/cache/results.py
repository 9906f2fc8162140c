"""What is in the cache as the results of a retrieve."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harmonyd.cache.entry import Entry
from harmonyd.cache.key import Key
from harmonyd.cache.made import Made
from harmonyd.cache.retrieval import Retrieval
from harmonyd.dimse.dataset_json import file_to_json
from harmonyd.dimse.engine import Instance
from harmonyd.dimse.uid import name_of
from harmonyd.envelope import Record, Results
from harmonyd.progress import UNWATCHED, Progress


@dataclass(frozen=True, slots=True)
class KeptRecord:
    """One instance; its file stays as it is as long as the results are open."""

    instance: Instance
    made: Made

    @property
    def path(self) -> Path:
        return self.instance.path

    @property
    def name(self) -> str:
        """See ``name_of``."""
        return name_of(self.instance.sop_instance_uid, self.path.name)

    async def json(self) -> bytes:
        data: bytes = await self.made.in_thread(file_to_json, self.path)
        return data


class KeptResults:
    """Implements ``Results`` for one reader of an entry, of what still arrives where ``retrieval`` is given."""

    items_key: str | None = "instances"
    media_type = "application/json"

    def __init__(
        self,
        key: Key,
        made: Made,
        operation: str,
        close: Callable[[], None],
        retrieval: Retrieval | None = None,
        progress: Progress = UNWATCHED,
    ) -> None:
        """``close`` is called once, when the reader is done; ``progress`` is told of each record it comes to."""
        self.key = key
        self.made = made
        self.operation = operation
        self._progress = progress
        self._retrieval = retrieval
        self._close: Callable[[], None] | None = close
        self.on_read: Callable[[Sequence[Instance]], None] | None = None
        """Called once, when the reader is done, with what it came to."""
        self._read: list[Instance] = []
        self._is_over = False
        self._error: Exception | None = None

    @property
    def entry(self) -> Entry:
        """Where they are."""
        return self.made.entry

    @property
    def chosen(self) -> list[Instance] | None:
        """All instances, where that is all that there will be; else None."""
        return list(self.entry.chosen(self.key)) if self._retrieval is None else None

    async def whole(self) -> list[Instance] | None:
        """Wait for the end, and return all instances; None where some are missing. Raises what the operation raised."""
        if self._retrieval is None:
            return list(self.entry.chosen(self.key))
        return await self._retrieval.whole()

    def took(self, instances: Sequence[Instance]) -> None:
        """Take note that the reader has these, which are all, without having come to each."""
        for instance in instances:
            self._next(instance)
        self._is_over = True

    async def first(self) -> None:
        """Wait for the first instance, or the end. Raises what the operation raised before."""
        if self._retrieval is not None:
            await self._retrieval.first()

    async def __aiter__(self) -> AsyncIterator[Record]:
        if self._retrieval is None:
            for instance in list(self.entry.chosen(self.key)):
                yield self._next(instance)
        else:
            try:
                async for instance in self._retrieval.instances():
                    yield self._next(instance)
            except Exception as error:
                self._error = error
                raise
        self._is_over = True

    def _next(self, instance: Instance) -> KeptRecord:
        self._read.append(instance)
        self._progress.arrived(instance.size_bytes)
        return KeptRecord(instance, self.made)

    def summary(self) -> Mapping[str, Any]:
        """Those of the operation; of what was kept, that it is whole."""
        members: dict[str, Any] = {"success": self._is_over, "complete": self._is_over}
        if not self._is_over:
            why = getattr(self._error, "detail", "") if self._error is not None else ""
            members["incomplete_reason"] = why or "nobody took the rest of the answer"
        elif self._retrieval is not None:
            members = dict(self._retrieval.summary())
        folder = self.entry.folder
        return {**members, "file_count": len(self._read), "folder_id": self.entry.id, "folder_path": str(folder)}

    async def aclose(self) -> None:
        """Let go of the entry. Safe to call twice."""
        close, self._close = self._close, None
        if close is not None:
            close()
            if self.on_read is not None:
                self.on_read(self._read)


def kept_in(results: Results) -> KeptResults | None:
    """Return ``results`` if they come from the cache, and have not been changed on their way here."""
    return results if isinstance(results, KeptResults) else None
