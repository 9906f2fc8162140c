"""Results of one C-FIND at several nodes, made one: each match once, and who did not answer."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.logger import Logger
from twisted.python.failure import Failure

from harmonyd.envelope import ResponseEnvelope
from harmonyd.errors import Fault, HarmonydError, RemoteError
from harmonyd.waiters import Waiters

AT_ONCE = 8
"""Nodes that are asked at the same time; further ones wait for their turn."""
_RETRIEVE_AET = "00080054"
_log = Logger()


class NoBackendAnswered(RemoteError):
    """All backends that were asked together failed; ``extra['backends']`` has the reason of each."""

    title = "No PACS answered"


@dataclass(slots=True)
class Source:
    """One node that is asked. What it found waits here until its turn in the answer has come."""

    backend: str
    aet: str
    ask: Callable[[], Awaitable[ResponseEnvelope]]
    found: deque[bytes] = field(default_factory=deque)
    count: int = 0
    ended: bool = False
    error: Exception | None = None
    incomplete_reason: str | None = None

    async def run(self, changed: Callable[[], None]) -> None:
        """Ask, and take what comes. What goes wrong is noted."""
        try:
            await self._run(changed)
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one node, the others get their turn
            if not isinstance(error, HarmonydError):
                _log.failure("asking {backend} failed by our fault", backend=self.backend)
            self.error = error
        finally:
            self.ended = True
            changed()

    async def _run(self, changed: Callable[[], None]) -> None:
        response = await self.ask()
        results = response.results
        if results is None:
            raise RemoteError("It answered something else.")
        try:
            async for record in results:
                self.found.append(await record.json())
                self.count += 1
                changed()
            summary = results.summary()
            if not summary["complete"]:
                self.incomplete_reason = str(summary.get("incomplete_reason") or "it has more")
        finally:
            await results.aclose()

    def told(self) -> dict[str, Any]:
        """As a member of an answer."""
        if self.error is not None:
            return {"name": self.backend, "success": False, "complete": False, "error": reason_of(self.error)}
        told: dict[str, Any] = {"name": self.backend, "success": True, "complete": not self.incomplete_reason}
        more = {"incomplete_reason": self.incomplete_reason} if self.incomplete_reason else {}
        return {**told, "count": self.count, **more}


def reason_of(error: Exception) -> str:
    """Return what a client gets to know of an error."""
    return error.detail if isinstance(error, HarmonydError) else "something went wrong inside harmonyd"


@dataclass(frozen=True, slots=True)
class MergedRecord:
    """A match, and which backend it comes from."""

    text: bytes
    backend: str
    name: str = "match"
    path: Path | None = None

    async def json(self) -> bytes:
        return self.text


class MergedResults:
    """``Results`` of several sources, in their order, and within one in its own: so that pages fit together.

    Of the matches with the same element ``unique`` (a tag) only the first is passed on; None: all are.
    """

    operation = "find"
    items_key: str | None = "matches"

    def __init__(self, sources: Sequence[Source], media_type: str, unique: str | None) -> None:
        self.media_type = media_type
        self._sources = sources
        self._unique = unique
        self._seen: set[str] = set()
        self._changed: Waiters[None] = Waiters()
        self._count = 0
        self._whole = False
        turns: Any = DeferredSemaphore(AT_ONCE)
        self._running: list[Deferred[None]] = [
            turns.run(lambda source=source: Deferred.fromCoroutine(source.run(self._tell))) for source in sources
        ]
        for running in self._running:
            running.addErrback(_cancelled)
        self._records = self._merged()
        self._first: MergedRecord | None = None

    async def begin(self) -> None:
        """Wait until there is something to answer.

        Raises ``NoBackendAnswered``, or what the caller did wrong, when nothing was found and every source failed.
        """
        self._first = await anext(self._records, None)
        if self._first is None and all(source.error for source in self._sources):
            raise _nobody(self._sources)

    async def __aiter__(self) -> AsyncGenerator[MergedRecord, None]:
        if self._first is None:
            return
        first, self._first = self._first, None
        yield first
        async for record in self._records:
            yield record

    async def _merged(self) -> AsyncGenerator[MergedRecord, None]:
        for source in self._sources:
            while source.found or not source.ended:
                if not source.found:
                    await self._changed.wait()
                    continue
                record = self._new(source, source.found.popleft())
                if record is not None:
                    self._count += 1
                    yield record
        self._whole = True

    def _new(self, source: Source, text: bytes) -> MergedRecord | None:
        """The match as a record; None when it was there already."""
        match = json.loads(text)
        uid = _value(match, self._unique) if self._unique else ""
        if uid in self._seen:
            return None
        if uid:
            self._seen.add(uid)
        if not _value(match, _RETRIEVE_AET):
            # Who reads the answer has to learn where the match is (PS3.4 section C.4.1.1.3.2).
            match[_RETRIEVE_AET] = {"vr": "AE", "Value": [source.aet]}
            text = json.dumps(dict(sorted(match.items())), ensure_ascii=False).encode("utf-8", "replace")
        return MergedRecord(text, source.backend)

    def _tell(self) -> None:
        self._changed.fire(None)

    def summary(self) -> Mapping[str, Any]:
        """Success when one answered; complete when all did, and have nothing more. ``backends`` tells of each."""
        told = [source.told() for source in self._sources]
        reasons = [f"{each['name']} failed: {each['error']}" for each in told if not each["success"]]
        reasons += [f"{each['name']}: {each['incomplete_reason']}" for each in told if "incomplete_reason" in each]
        if not self._whole:
            reasons = ["nobody took the rest of the answer"]
        members: dict[str, Any] = {
            "success": self._whole and any(each["success"] for each in told),
            "complete": not reasons,
            "count": self._count,
            "backends": told,
        }
        return {**members, "incomplete_reason": "; ".join(reasons)} if reasons else members

    async def aclose(self) -> None:
        """End what still runs. Safe to call twice."""
        running, self._running = self._running, []
        # Those that wait for their turn first: the end of another one would begin them.
        for each in reversed(running):
            each.cancel()
        for each in running:
            await each


def _cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)  # type: ignore[no-untyped-call]


def _value(match: Mapping[str, Any], tag: str) -> str:
    values = match.get(tag, {}).get("Value")
    return str(values[0]) if values and values[0] is not None else ""


def _nobody(sources: Sequence[Source]) -> Exception:
    """The error when all failed: what the caller did wrong, if that is it; else who failed, and why."""
    for source in sources:
        if isinstance(source.error, HarmonydError) and source.error.fault is Fault.CALLER:
            return source.error
    reasons = "; ".join(f"{source.backend}: {reason_of(source.error)}" for source in sources if source.error)
    return NoBackendAnswered(
        f"None of the {len(sources)} PACS answered. {reasons}",
        hint="Check each of them with an echo: ?backend=NAME asks a single one.",
        operation="find",
        backends=[source.told() for source in sources],
    )
