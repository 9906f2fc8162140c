"""Searches (QIDO-RS, PS3.18 section 10.6): one C-FIND, or one for each study and series on the way to what is asked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from harmonyd.errors import DeadlinePassed
from harmonyd.services.dicomweb.asking import Asker, Found
from harmonyd.services.dicomweb.entities import LEVELS, UNIQUE, first_value, json_key, keys_to_return
from harmonyd.services.dicomweb.search_query import SearchQuery

_LEVEL_KEY = json_key("QueryRetrieveLevel")
TOO_MANY = "The number of results exceeded the maximum supported by the server. Additional results can be requested."
"""The words of PS3.18 section 8.3.4.4."""


@dataclass(slots=True)
class Page:
    """Results of a search, and what has to be said about them."""

    records: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    total: int | None = None
    """How many there are, with those before and after the page; None where that is not known."""


async def search(asker: Asker, query: SearchQuery, uids: Mapping[str, str], max_results: int) -> Page:
    """Return the results from ``query.offset`` on, ``query.limit`` or ``max_results`` at most.

    ``uids`` are those in the path. Raises what the questions raise; a deadline only where nothing was found before.
    """
    page = Page(warnings=list(query.warnings))
    walk = _Walk(asker, query, uids)
    wanted = max_results if query.limit is None else min(query.limit, max_results)
    seen = 0
    matches = walk.below(0, {}, {})
    try:
        async for record in matches:
            if seen >= query.offset + wanted:
                # One more than asked for: without knowing the rest, all that can be said is that there is one.
                page.warnings.append(TOO_MANY)
                break
            if seen >= query.offset:
                page.records.append(record)
            seen += 1
        else:
            page.total = None if walk.cuts or asker.failed else seen
    except DeadlinePassed:
        if not page.records:
            raise
        page.warnings.append(f"{TOO_MANY} The search took too long.")
    finally:
        await matches.aclose()
    page.warnings += [f"{TOO_MANY} ({reason})" for reason in dict.fromkeys(walk.cuts)]
    return page


class _Walk:
    """Goes down the levels. A level is left out where the path names its UID and nothing else is asked of it.

    A PACS need not answer a question below a study that is not named (PS3.4 section C.4.1.1.3.2).
    """

    def __init__(self, asker: Asker, query: SearchQuery, uids: Mapping[str, str]) -> None:
        self.cuts: list[str] = []
        self._asker = asker
        self._query = query
        self._given = uids
        self._levels = LEVELS[: LEVELS.index(query.level) + 1]

    async def below(
        self, depth: int, uids: Mapping[str, str], around: Mapping[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the results below ``uids``, with the attributes of what is ``around`` them.

        Each question is closed with whoever asks: a generator that is only let go of cannot end its association.
        """
        level = self._levels[depth]
        given = self._given.get(UNIQUE[level])
        last = depth == len(self._levels) - 1
        if given is not None and not last and not self._query.keys[level]:
            async with aclosing(self.below(depth + 1, {**uids, UNIQUE[level]: given}, around)) as results:
                async for result in results:
                    yield result
            return
        async with aclosing(self._found(level, uids, given)) as matches:
            async for match in matches:
                record = {**around, **match, **_uid_elements(uids)}
                uid = first_value(record, UNIQUE[level])
                if last:
                    yield record
                elif uid:
                    async with aclosing(self.below(depth + 1, {**uids, UNIQUE[level]: uid}, record)) as results:
                        async for result in results:
                            yield result

    async def _found(
        self, level: str, uids: Mapping[str, str], given: str | None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The matches of one question.

        That of an upper level is read to its end before the next is asked: a PACS may have few associations.
        """
        keys = _by_tag(keys_to_return(level, self._query.include_all)) | self._query.keys[level] | _by_tag(uids)
        if given is not None:
            keys |= _by_tag({UNIQUE[level]: given})
        found = Found()
        matches = self._asker.find(level, keys, found)
        try:
            if level == self._query.level:
                async for match in matches:
                    yield _cleaned(match)
            else:
                for match in [_cleaned(match) async for match in matches]:
                    yield match
        finally:
            await matches.aclose()
        if found.cut:
            self.cuts.append(found.cut)


def _by_tag(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {json_key(keyword): value for keyword, value in keys.items()}


def _cleaned(match: dict[str, Any]) -> dict[str, Any]:
    match.pop(_LEVEL_KEY, None)
    return match


def _uid_elements(uids: Mapping[str, str]) -> dict[str, Any]:
    return {json_key(keyword): {"vr": "UI", "Value": [uid]} for keyword, uid in uids.items()}
