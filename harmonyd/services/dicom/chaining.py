"""Results of retrieves from several nodes, one after the other, as those of one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from harmonyd.envelope import Record, ResponseEnvelope, Results
from harmonyd.errors import HarmonydError

_COUNTS = ("completed", "failed", "warning", "remaining")


@dataclass(frozen=True, slots=True)
class Step:
    """A retrieve from one backend."""

    backend: str
    send: Callable[[], Awaitable[ResponseEnvelope]]


class ChainedResults:
    """``Results`` of each step in turn; an instance that came already does not come again.

    All files stay until the end. ``failed``: backends that could not be asked, and why; the summary tells them.
    """

    items_key: str | None = "instances"

    def __init__(self, steps: Sequence[Step], failed: Mapping[str, str]) -> None:
        self._steps = steps
        self._failed = failed
        self._begun: list[tuple[str, Results]] = []
        self._closing = AsyncExitStack()
        self._seen: set[str] = set()
        self._whole = False
        self.repeated = 0
        """Instances that were left out because they had come already."""
        self.operation = ""
        self.media_type = ""

    async def begin(self) -> None:
        """Begin with the first step. Raises what it raises."""
        first = await self._begin(self._steps[0])
        self.operation, self.media_type = first.operation, first.media_type

    async def _begin(self, step: Step) -> Results:
        response = await step.send()
        if response.results is None:
            raise HarmonydError(f"Backend {step.backend} answered a retrieve with something else.")
        self._begun.append((step.backend, response.results))
        self._closing.push_async_callback(response.results.aclose)
        return response.results

    async def __aiter__(self) -> AsyncGenerator[Record, None]:
        for number, step in enumerate(self._steps):
            results = self._begun[0][1] if number == 0 else await self._begin(step)
            async for record in results:
                if record.name in self._seen:
                    self.repeated += 1
                    continue
                self._seen.add(record.name)
                yield record
        self._whole = True

    def summary(self) -> Mapping[str, Any]:
        """Those of all steps together. ``backends``: what came from each, and who could not be asked."""
        each = [(name, results.summary()) for name, results in self._begun]
        reasons = [f"{name}: {one['incomplete_reason']}" for name, one in each if not one["complete"]]
        if not self._whole and not reasons:
            reasons = ["not all of it was retrieved"]
        members = {**each[0][1], "file_count": len(self._seen), "success": self._whole and not reasons}
        members |= {"complete": not reasons}
        members.pop("incomplete_reason", None)
        if reasons:
            members["incomplete_reason"] = "; ".join(reasons)
        if any("suboperations" in one for _, one in each):
            members["suboperations"] = _sums([one.get("suboperations", {}) for _, one in each])
        told: list[dict[str, Any]] = [{"name": name, "success": one["success"]} for name, one in each]
        told += [{"name": name, "success": False, "error": why} for name, why in self._failed.items()]
        return {**members, "backends": told}

    @property
    def failed_uids(self) -> tuple[str, ...]:
        """SOP Instance UIDs that the steps did not bring, as far as they are known; after the end."""
        return tuple(uid for _, results in self._begun for uid in getattr(results, "failed_uids", ()))

    async def aclose(self) -> None:
        """Close all that was begun. Safe to call twice."""
        await self._closing.aclose()


def _sums(counts: Sequence[Mapping[str, int | None]]) -> dict[str, int | None]:
    """Sub-operations of all; None where one node did not tell."""
    summed: dict[str, int | None] = {}
    for name in _COUNTS:
        values = [each.get(name) for each in counts]
        known = [value for value in values if value is not None]
        summed[name] = sum(known) if len(known) == len(values) else None
    return summed
