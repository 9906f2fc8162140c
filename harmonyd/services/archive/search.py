"""QIDO-RS: matches read one by one from a JSON array that is never whole in memory, page after page."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import ijson

from harmonyd.dimse.engine import Match, OperationContext, Outcome, Query, QueryLevel
from harmonyd.dimse.errors import NonsenseAnswer
from harmonyd.services.archive.answer import Answer
from harmonyd.services.archive.client import Client
from harmonyd.services.archive.errors import error_of
from harmonyd.services.archive.query import Answers, Patients, Search, searches, study_key

JSON = "application/dicom+json"
MAX_MATCH_BYTES = 4 * 1000**2
"""Of one match; longer ones are no answer to a search."""
_KINDS = (JSON, "application/json")
_MORE = "additional result"
_FUZZY = "fuzzymatching"


@dataclass(slots=True)
class Page:
    """What one answer of an archive turned out to be."""

    received: int = 0
    fresh: int = 0
    """That had not come before."""
    more: str = ""
    """What the archive says about further results; empty: nothing."""
    notes: list[str] = field(default_factory=list)
    """What else it says."""


class Searcher:
    """Of one archive. ``prefix`` stands before each path."""

    def __init__(self, client: Client, prefix: str, page_size: int, *, fuzzy: bool) -> None:
        self._client = client
        self._prefix = prefix
        self._page_size = page_size
        self._fuzzy = fuzzy
        self._is_known = False
        """There is a QIDO-RS service at this address: 404 means that nothing matches."""

    async def echo(self, deadline: float) -> None:
        """Raises what is wrong: whether the archive is there, lets us in, and is one."""
        answer = await self._client.get(f"{self._prefix}/studies?limit=1", JSON, deadline, gzip=True)
        try:
            if answer.status == 204:
                await answer.drop()
            elif answer.status == 200:
                self._check_kind(answer)
                async with aclosing(items(answer, self._client.name)) as found:
                    await anext(found, None)
                    await anext(found, None)  # to its end, so that the connection stays; unless limit means nothing
            else:
                await answer.drop()
                raise self._error(answer)
        finally:
            await answer.close()
        self._is_known = True

    async def find(self, query: Query, op: OperationContext, outcome: Outcome) -> AsyncGenerator[Match, None]:
        """The matches of a C-FIND; what is known about their completeness goes to ``outcome``."""
        answers, seen = Answers(query), set[str]()
        if query.level is QueryLevel.PATIENT:
            async with aclosing(self._patients(query, op, outcome)) as patients:
                async for item in patients:
                    yield Match(answers.match(item))
            return
        for search in searches(query, fuzzy=self._fuzzy):
            async with aclosing(self._pages(search, answers.key, seen, op, outcome)) as found:
                async for item in found:
                    if len(seen) > op.max_results:
                        outcome.incomplete(f"more than max_results ({op.max_results}) matches; the rest was cut")
                        return
                    yield Match(answers.match(item))

    async def _patients(
        self, query: Query, op: OperationContext, outcome: Outcome
    ) -> AsyncGenerator[dict[str, Any], None]:
        patients, seen = Patients(query), set[str]()
        for search in searches(query, fuzzy=self._fuzzy):
            async with aclosing(self._pages(search, study_key, seen, op, outcome)) as found:
                async for study in found:
                    is_new = patients.add(study)
                    if len(patients) > op.max_results:
                        outcome.incomplete(f"more than max_results ({op.max_results}) matches; the rest was cut")
                        break
                    if is_new and not patients.counted:
                        yield study
        if patients.counted:
            for item in islice(patients.all(), op.max_results):
                yield item

    async def uids(self, search: Search, tag: str, op: OperationContext, outcome: Outcome) -> list[str]:
        """All values of a UID among the matches. ``op.max_results`` does not count."""
        seen: set[str] = set()

        def key(item: dict[str, Any]) -> str:
            return str(((item.get(tag) or {}).get("Value") or [""])[0])

        async with aclosing(self._pages(search, key, seen, op, outcome)) as found:
            async for _ in found:
                pass
        return [uid for uid in seen if uid]

    async def first(self, search: Search, op: OperationContext) -> dict[str, Any] | None:
        """The first match, None where there is none."""
        async with aclosing(self._page(search, 1, 0, op.deadline, Page())) as found:
            item = await anext(found, None)
            await anext(found, None)  # as above
            return item

    async def _pages(
        self,
        search: Search,
        key: Callable[[dict[str, Any]], str],
        seen: set[str],
        op: OperationContext,
        outcome: Outcome,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """All matches that are not in ``seen``, to which they are added. ``limit`` and ``offset`` may be ignored.

        Orthanc 1.10 counts the limit of some searches from the first match on, whatever the offset is: so an empty page
        is not believed before it is empty with the larger limit, too.
        """
        offset, from_first = 0, False
        while True:
            page, limit = Page(), self._page_size + (offset if from_first else 0)
            async with aclosing(self._page(search, limit, offset, op.deadline, page)) as found:
                async for item in found:
                    uid = key(item) or f"#{len(seen)}"
                    if uid not in seen:
                        seen.add(uid)
                        page.fresh += 1
                        yield item
            outcome.warnings += [note for note in page.notes if note not in outcome.warnings]
            if not page.received and offset and not from_first:
                from_first = True
                continue
            if not page.more and page.received not in (limit, self._page_size):
                return  # the last page; or all at once, where the archive knows no pages
            if not page.fresh:
                if page.more or page.received:
                    outcome.incomplete(page.more or "the archive gives its first results again instead of the next")
                return
            offset += page.received

    async def _page(
        self, search: Search, limit: int, offset: int, deadline: float, page: Page
    ) -> AsyncGenerator[dict[str, Any], None]:
        answer = await self._client.get(self._prefix + search.url(limit, offset), JSON, deadline, gzip=True)
        try:
            if answer.status == 404:
                await self._must_be_known(answer, deadline)
            if answer.status in (204, 404):
                await answer.drop()
                return
            if answer.status != 200:
                await answer.drop()
                raise self._error(answer)
            self._check_kind(answer)
            _read_warnings(answer.headers.get("warning", ""), page)
            async with aclosing(items(answer, self._client.name)) as found:
                async for item in found:
                    page.received += 1
                    yield item
            self._is_known = True
        finally:
            await answer.close()

    async def _must_be_known(self, answer: Answer, deadline: float) -> None:
        """404 is what a server says that has no matches, and what any other says. Raises the error of the latter."""
        await answer.drop()
        if not self._is_known:
            await self.echo(deadline)

    def _error(self, answer: Answer) -> Exception:
        return error_of(self._client.name, "a search", answer.status, answer.headers.get("retry-after"))

    def _check_kind(self, answer: Answer) -> None:
        media = answer.media_type
        if media is not None and media.essence in _KINDS:
            return
        kind = media.essence[:80] if media is not None else "something without a type"
        raise NonsenseAnswer(
            f"The archive of backend {self._client.name} answered a search with {kind}",
            hint=f"It has to be {JSON}. Check url and qido_prefix: a login page, or a proxy, may stand there.",
        )


def _read_warnings(header: str, page: Page) -> None:
    """Warning 299 (PS3.18 section 10.6.3): further results, or fuzzy matching that was not done."""
    if "299" not in header:
        return
    lower = header.lower()
    if _MORE in lower:
        page.more = "the archive says that there are additional results"
    elif _FUZZY in lower:
        page.notes.append("the archive did no fuzzy matching")
    else:
        page.notes.append("the archive warns about its answer to the search")
        page.more = "the archive warns about its answer"


async def items(answer: Answer, name: str) -> AsyncGenerator[dict[str, Any], None]:
    """The elements of a JSON array as they come. Raises ``NonsenseAnswer``, and what reading raises."""
    found: Any = ijson.sendable_list()
    parser = ijson.items_coro(found, "item", use_float=True)
    waiting, has_begun = 0, False
    try:
        async with aclosing(answer.chunks()) as chunks:
            async for chunk in chunks:
                if not has_begun and (begin := chunk.lstrip()):
                    if not begin.startswith(b"["):
                        raise _no_array(name)
                    has_begun = True
                parser.send(chunk)
                waiting = 0 if found else waiting + len(chunk)
                if waiting > MAX_MATCH_BYTES:
                    raise NonsenseAnswer(f"The archive of backend {name} sent a match of more than {waiting} bytes")
                for item in found:
                    if not isinstance(item, dict):
                        raise _no_array(name)
                    yield item
                del found[:]
        parser.close()
    except (ijson.JSONError, UnicodeDecodeError, RecursionError) as error:
        raise _no_array(name) from error
    if not has_begun:
        raise _no_array(name)


def _no_array(name: str) -> NonsenseAnswer:
    return NonsenseAnswer(
        f"The archive of backend {name} answered a search with what is no array of data sets",
        hint="PS3.18 section F.2: a search answers a JSON array. The archive's log may say more.",
    )
