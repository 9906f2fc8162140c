"""Retrieves among several nodes: who has it is asked first, and then it is retrieved from there."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from harmonyd.bodies import BytesBody
from harmonyd.dimse.engine import Query, QueryLevel
from harmonyd.dimse.levels import UNIQUE_KEYS
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import Fault, HarmonydError, NotFound
from harmonyd.progress import SummedProgress
from harmonyd.services.dicom.backend import DicomBackend
from harmonyd.services.dicom.chaining import ChainedResults, Step
from harmonyd.services.dicom.merging import MergedResults, NoBackendAnswered
from harmonyd.services.dicom.request import RETRIEVE

FAILED = "fan_out_failed"
"""Metadata of an answer to a retrieve: names of backends (with commas) that could not be asked whether they have it.

So there may be more of it than comes.
"""
KNOWN_SECS = 60.0
MAX_KNOWN = 1000
MAX_COUNTS = 50
"""Series that several nodes have and do not tell the size of, whose instances are counted; further ones: the first."""
_SERIES, _COUNT = "SeriesInstanceUID", "NumberOfSeriesRelatedInstances"
_TAGS = {keyword: f"{tag:08X}" for tag, keyword in UNIQUE_KEYS.values()} | {_COUNT: "00201209"}
Document = dict[str, Any]


class Finder(Protocol):
    """Who asks several nodes (``FanOut``)."""

    def find(
        self, request: RequestEnvelope, nodes: Mapping[str, DicomBackend], document: Mapping[str, Any]
    ) -> MergedResults: ...


class Places:
    """Where instances of a series were retrieved from lately: the next frame then costs no question to every node."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._known: dict[str, tuple[str, float]] = {}

    def note(self, series: str, backend: str) -> None:
        """Remember it for ``KNOWN_SECS``; of ``MAX_KNOWN`` series, the oldest goes."""
        self._known.pop(series, None)
        self._known[series] = (backend, self._seconds() + KNOWN_SECS)
        if len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def of(self, series: str) -> str | None:
        """Return the backend, None where it is not known."""
        backend, until = self._known.get(series, ("", 0.0))
        return backend if self._seconds() < until else None


class Locator:
    """One retrieve. A series comes from the node that has most of it; where several do, from the first of these."""

    def __init__(
        self,
        finder: Finder,
        request: RequestEnvelope,
        operation: str,
        nodes: Mapping[str, DicomBackend],
        places: Places,
    ) -> None:
        self._finder = finder
        self._request = request
        self._operation = operation
        self._nodes = nodes
        self._places = places
        self._progress = SummedProgress(request.progress)
        self._counts_left = MAX_COUNTS
        self._failed: dict[str, str] = {}

    async def retrieve(self, query: Query) -> ResponseEnvelope:
        """Raises ``NotFound`` when all answered and none has it, ``NoBackendAnswered``, what the retrieve raises."""
        keys = _keys(query)
        series = str(keys.get(_SERIES)) if query.level is QueryLevel.IMAGE else ""
        known = self._places.of(series)
        failure: HarmonydError | None = None
        if known in self._nodes:
            try:
                return await self._begun([(str(known), {**keys, "level": "IMAGE"})])
            except NotFound:
                pass  # it has some of the series, and not this one
            except HarmonydError as error:
                if error.fault is not Fault.REMOTE:
                    raise
                failure = error  # it has gone away since; another one may have the same
                self._failed[str(known)] = error.detail
        try:
            plan = await (self._by_series(query, keys) if query.level in _BY_SERIES else self._by_match(query, keys))
        except NoBackendAnswered as error:
            raise failure or error from None
        if not plan:
            raise failure or self._nothing()
        response = await self._begun(plan)
        if series and len(plan) == 1:
            self._places.note(series, plan[0][0])
        return response

    async def _begun(self, plan: list[tuple[str, Document]]) -> ResponseEnvelope:
        self._progress.expected = len(plan)
        steps = [Step(name, self._sender(name, document)) for name, document in plan]
        if len(steps) == 1 and self._operation == RETRIEVE and not self._failed:
            # Nothing is to be told of several: so it is what it would be without the others, entity-tags and all.
            response = await steps[0].send()
            if response.results is not None:
                self._request.metadata["dimse_op"] = response.results.operation
            return response
        results = ChainedResults(steps, self._failed)
        await results.begin()
        self._request.metadata["dimse_op"] = results.operation
        metadata = {FAILED: ",".join(self._failed)} if self._failed else {}
        return ResponseEnvelope(results=results, metadata=metadata)

    def _nothing(self) -> Exception:
        if not self._failed:
            return NotFound("None of the PACS here has it.", hint="Check the UIDs with a find.")
        reasons = "; ".join(f"{name}: {why}" for name, why in self._failed.items())
        return NoBackendAnswered(
            f"No PACS that answered has it. {reasons}",
            hint="It may be at one of those that did not answer.",
            backends=[{"name": name, "success": False, "error": why} for name, why in self._failed.items()],
        )

    async def _by_series(self, query: Query, keys: Document) -> list[tuple[str, Document]]:
        """Of a study each series, of some series each, from one node."""
        found = await self._found({**keys, _SERIES: keys.get(_SERIES), _COUNT: None, "level": "SERIES"})
        sizes: dict[str, dict[str, int | None]] = {}
        for name, matches in found.items():
            for match in matches:
                if uid := _first(match, _SERIES):
                    count = _first(match, _COUNT)
                    sizes.setdefault(str(uid), {})[name] = int(count) if str(count).isdecimal() else None
        owned: dict[str, list[str]] = {name: [] for name in self._nodes}
        for uid, holders in sizes.items():
            owned[await self._owner({**keys, _SERIES: uid}, holders)].append(uid)
        plan = []
        for name, uids in owned.items():
            has = [uid for uid, holders in sizes.items() if name in holders]
            if uids and len(uids) == len(has) and query.level is QueryLevel.STUDY:
                plan.append((name, {**keys, "level": "STUDY"}))
            else:
                plan += [(name, {**keys, _SERIES: uid, "level": "SERIES"}) for uid in uids]
        return plan

    async def _owner(self, keys: Document, holders: Mapping[str, int | None]) -> str:
        sizes = dict(holders)
        if len(sizes) > 1 and None in sizes.values() and self._counts_left:
            self._counts_left -= 1
            nodes = {name: self._nodes[name] for name in sizes}
            found = await self._found({**keys, "SOPInstanceUID": None, "level": "IMAGE"}, nodes)
            sizes = {name: len(found.get(name, ())) for name in sizes}
        return max(sizes, key=lambda name: sizes[name] or 0)

    async def _by_match(self, query: Query, keys: Document) -> list[tuple[str, Document]]:
        """Each instance from the first node that has it; what belongs to a patient from each that has some."""
        keyword = UNIQUE_KEYS[query.level][1]
        found = await self._found({**keys, "level": query.level.value})
        if query.level is QueryLevel.PATIENT:
            return [(name, {**keys, "level": "PATIENT"}) for name, matches in found.items() if matches]
        seen: set[str] = set()
        plan = []
        for name, matches in found.items():
            uids = dict.fromkeys(str(uid) for match in matches if (uid := _first(match, keyword)))
            new = [uid for uid in uids if uid not in seen]
            seen.update(new)
            if new:
                plan.append((name, {**keys, keyword: new if len(new) > 1 else new[0], "level": query.level.value}))
        return plan

    async def _found(
        self, document: Document, nodes: Mapping[str, DicomBackend] | None = None
    ) -> dict[str, list[dict[str, Any]]]:
        """The matches at each node, in the configuration's order. Raises ``NoBackendAnswered``."""
        asked = {name: node for name, node in (nodes or self._nodes).items() if name not in self._failed}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in asked}
        results = self._finder.find(self._request, asked, {**document, "return": "requested"})
        try:
            await results.begin()
            async for record in results:
                found[record.backend].append(json.loads(await record.json()))
            told = results.summary()["backends"]
        finally:
            await results.aclose()
        self._failed.update({each["name"]: each["error"] for each in told if not each["success"]})
        return found

    def _sender(self, name: str, document: Document) -> Callable[[], Awaitable[ResponseEnvelope]]:
        request = self._request

        def send() -> Awaitable[ResponseEnvelope]:
            headers = {**request.headers, "content-type": "application/json"}
            metadata = {**request.metadata, "dimse_op": self._operation}
            body, progress = BytesBody(json.dumps(document).encode()), self._progress.step()
            part = request.part(body=body, headers=headers, metadata=metadata, progress=progress)
            return self._nodes[name].send(part)

        return send


_BY_SERIES = (QueryLevel.STUDY, QueryLevel.SERIES)


def _keys(query: Query) -> Document:
    """The unique keys of a retrieve, and its model. The keys of several values are lists."""
    keys: Document = {"query_model": query.model.value}
    for tag, keyword in UNIQUE_KEYS.values():
        value = query.dataset[tag].value if tag in query.dataset else None
        if value:
            keys[keyword] = str(value) if isinstance(value, str) else [str(each) for each in value]
    return keys


def _first(match: Mapping[str, Any], keyword: str) -> Any:
    values = match.get(_TAGS[keyword], {}).get("Value")
    return values[0] if values else None
