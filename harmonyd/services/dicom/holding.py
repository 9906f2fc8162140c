"""Holds a subject to the studies that it may see, whatever the PACS makes of a query.

What decides are attributes of studies. A query for patients or studies gets them as keys, and what comes back is
looked at. Whatever is below a study, to be found, retrieved or stored, is preceded by the question what its study is.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from harmonyd.dimse.engine import Match, OperationStream, Query, QueryLevel
from harmonyd.dimse.errors import IdentifierError
from harmonyd.dimse.identifier import parse_query
from harmonyd.envelope import Record, Results
from harmonyd.errors import Forbidden, NotFound
from harmonyd.permit import Limits, elements, forced, holds, texts
from harmonyd.privacy import uid_or_nothing

KNOWN_SECS = 30.0
"""How long a study counts as looked at."""
MAX_KNOWN = 5000
MAX_STUDIES = 100
"""In one request, of those that are not known."""
_STUDY = "0020000D"
_BELOW = (QueryLevel.SERIES, QueryLevel.IMAGE)
T = TypeVar("T")
Find = Callable[[Query], Awaitable[Sequence[Mapping[str, Any]]]]
Build = Callable[[Mapping[str, str]], Query]


class Seen:
    """Of a node, the studies that were within limits a moment ago."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._until: OrderedDict[tuple[Limits, str], float] = OrderedDict()

    def note(self, limits: Limits, study: str) -> None:
        """This one was."""
        key = (limits, study)
        self._until.pop(key, None)
        self._until[key] = self._seconds() + KNOWN_SECS
        if len(self._until) > MAX_KNOWN:
            self._until.popitem(last=False)

    def forget(self, studies: set[str]) -> None:
        """These are about to change."""
        for key in [key for key in self._until if key[1] in studies]:
            del self._until[key]

    def has(self, limits: Limits, study: str) -> bool:
        return self._seconds() < self._until.get((limits, study), 0.0)


class Hold:
    """One request's. ``find`` asks the node on its behalf; ``refused`` is told what was out of the limits."""

    def __init__(
        self, limits: Limits, seen: Seen, find: Find, refused: Callable[[str], None] = lambda what: None
    ) -> None:
        self.limits = limits
        self._refused = refused
        self._seen = seen
        self._find = find

    # --- find

    async def query(self, build: Build) -> tuple[Query, Callable[[Match], bool]]:
        """Return what the node is asked, and what tells of a match whether it may be shown.

        Raises ``Forbidden`` for a query below studies that names none, and ``IdentifierError``.
        """
        query = build({})
        if query.level in _BELOW:
            named = self._named(query)
            studies = {uid for uid in named if await self._is_within(uid)}
            if len(studies) < len(named):
                self._refused("it is below a study that is not there, or not within the limits of the caller")
            return query, lambda match: _study_of(json.loads(match.json)) in studies
        missing = [each for each in elements(self.limits) if not _value(query, each)]
        keys = dict.fromkeys(missing, "") | {t: v for t, v in forced(self.limits).items() if t in missing}
        try:
            query = build(keys)
        except IdentifierError:
            query = build(dict.fromkeys(missing, ""))  # a pattern that its VR does not have
        return query, self._shows

    def _shows(self, match: Match) -> bool:
        # It opens no study: a node may repeat keys of a query that it does not know, and look like a match by that.
        return holds(self.limits, json.loads(match.json))

    # --- retrieve

    async def studies(self, query: Query) -> frozenset[str]:
        """Return those of a retrieve, which are all within limits.

        Raises ``NotFound`` for others as if they were not there, and ``Forbidden`` where none is named.
        """
        named = self._named(query)
        for uid in named:
            if not await self._is_within(uid):
                self._refused(f"study {uid_or_nothing(uid)} is not there, or not within the limits of the caller")
                raise NotFound("The PACS has nothing like that.", hint="Check the UIDs with a find.")
        return frozenset(named)

    # --- store

    async def admit(self, data_sets: Sequence[Mapping[str, Any]]) -> None:
        """Raise ``Forbidden`` unless all may be stored: they are within limits, and the studies that they are for."""
        for data_set in data_sets:
            if not holds(self.limits, data_set):
                self._refused("an object is not within the limits of the caller")
                raise Forbidden("An object here is not one of those that you may store.")
        for uid in {_study_of(data_set) for data_set in data_sets}:
            if not uid or not (self._seen.has(self.limits, uid) or all(map(self._holds, await self._about(uid)))):
                self._refused("a study is not within the limits of the caller")
                raise Forbidden("A study here is not one of those that you may store to.")

    # --- details

    def _named(self, query: Query) -> list[str]:
        named = _value(query, _STUDY)
        if not named or any(char in uid for uid in named for char in "*?"):
            self._refused("it names no study, and the caller is limited to some")
            raise Forbidden(
                "What you may see is limited to some studies, so this has to name its study.",
                hint="Give a StudyInstanceUID; a find at the level STUDY shows those that there are.",
            )
        if len(named) > MAX_STUDIES:
            raise Forbidden(f"What you may see is limited, so it is for {MAX_STUDIES} studies at most at once.")
        return named

    async def _is_within(self, uid: str) -> bool:
        if self._seen.has(self.limits, uid):
            return True
        found = [each for each in await self._about(uid) if _study_of(each) == uid]
        if not found or not all(map(self._holds, found)):
            return False
        self._seen.note(self.limits, uid)
        return True

    def _holds(self, data_set: Mapping[str, Any]) -> bool:
        return holds(self.limits, data_set)

    async def _about(self, uid: str) -> Sequence[Mapping[str, Any]]:
        keys: dict[str, Any] = dict.fromkeys(elements(self.limits))
        named = {"StudyInstanceUID": uid, "level": "STUDY", "query_model": "study", "return": "requested"}
        return await self._find(parse_query({**keys, **named}, operation="find"))


class Showing(OperationStream[T]):
    """A stream without what may not be shown."""

    def __init__(self, stream: OperationStream[T], shows: Callable[[T], bool]) -> None:
        self._stream = stream
        self._shows = shows

    @property
    def outcome(self) -> Any:  # type: ignore[override]
        return self._stream.outcome

    @property
    def folder(self) -> Any:  # type: ignore[override]
        return self._stream.folder

    @property
    def debug(self) -> Any:  # type: ignore[override]
        return self._stream.debug

    async def __aiter__(self) -> AsyncIterator[T]:
        async for item in self._stream:
            if self._shows(item):
                yield item

    async def aclose(self) -> None:
        await self._stream.aclose()


class HeldResults:
    """Results of a retrieve that end with an error at an instance of another study: a node may ignore keys."""

    def __init__(self, results: Results, studies: frozenset[str]) -> None:
        self.operation = results.operation
        self.media_type = results.media_type
        self.items_key = results.items_key
        self._results = results
        self._studies = studies

    async def __aiter__(self) -> AsyncIterator[Record]:
        async for record in self._results:
            instance = getattr(record, "instance", None)
            if instance is None or instance.study_instance_uid not in self._studies:
                raise Forbidden("The PACS sent an object of another study, which you may not see.")
            yield record

    def summary(self) -> Mapping[str, Any]:
        """Those of the results behind."""
        return self._results.summary()

    async def aclose(self) -> None:
        """Close the results behind. Safe to call twice."""
        await self._results.aclose()


async def admit_files(hold: Hold, in_thread: Callable[..., Awaitable[Any]], paths: Sequence[Path]) -> None:
    """Raise ``Forbidden`` unless all of these files may be stored."""
    await hold.admit(await in_thread(_read_keys, paths, [*elements(hold.limits), _STUDY]))


def _read_keys(paths: Sequence[Path], tags: Sequence[str]) -> list[dict[str, Any]]:
    from pydicom import dcmread

    wanted: Any = [int(tag, 16) for tag in tags]
    return [dcmread(path, specific_tags=wanted, stop_before_pixels=True).to_json_dict() for path in paths]


def _study_of(data_set: Mapping[str, Any]) -> str:
    return next(iter(texts(data_set.get(_STUDY))), "")


def _value(query: Query, tag: str) -> list[str]:
    number = int(tag, 16)
    value = query.dataset[number].value if number in query.dataset else None
    if value is None or value == "":
        return []
    return [str(value)] if isinstance(value, str) or not hasattr(value, "__iter__") else [str(each) for each in value]
