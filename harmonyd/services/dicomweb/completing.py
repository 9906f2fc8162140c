"""Attributes that a result must have and many PACS leave out: counted, one level below (PS3.18 section 10.6.3.3)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from harmonyd.errors import DeadlinePassed
from harmonyd.services.dicomweb.asking import Asker, Found
from harmonyd.services.dicomweb.counted import Counted
from harmonyd.services.dicomweb.entities import UNIQUE, first_value, json_key
from harmonyd.services.dicomweb.parallel import each_of
from harmonyd.services.dicomweb.search import Page

MAX_QUESTIONS = 200
"""Most questions for one page of results."""
AT_ONCE = 4
"""Questions that are asked at the same time."""
_STUDY_COUNTS = ("ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances")
_SERIES_COUNT = "NumberOfSeriesRelatedInstances"


_Complete = Callable[[dict[str, Any]], Awaitable[None]]


class _NoMore(Exception):
    """The questions are used up, or an answer was not whole: what is missing stays out."""


class Completer:
    """Completes the results of a page, as far as ``MAX_QUESTIONS`` and the deadline go.

    What was counted a moment ago, for a request that was routed by the same header, is taken from ``counted``.
    """

    def __init__(self, asker: Asker, counted: Counted) -> None:
        self._asker = asker
        self._counted = counted
        self._left = MAX_QUESTIONS

    async def complete(self, page: Page, level: str) -> None:
        """Fill in counts and modalities, and add a warning where that was not done for all."""
        completed = {"STUDY": self._study, "SERIES": self._series}.get(level)
        if completed is None:
            return
        try:
            await each_of(page.records, partial(self._remembered, completed, level), AT_ONCE)
        except (_NoMore, DeadlinePassed):
            page.warnings.append("Counts and modalities that the PACS does not tell are not in every result.")

    async def _remembered(self, complete: _Complete, level: str, record: dict[str, Any]) -> None:
        key = self._counted.key(self._asker.request, first_value(record, UNIQUE[level]) or "")
        known = self._counted.get(key)
        if known is None:
            before = dict(record)
            await complete(record)
            known = {tag: element for tag, element in record.items() if before.get(tag) != element}
            if known and not self._asker.failed:
                self._counted.put(key, known)
        for tag, element in known.items():
            if not record.get(tag, {}).get("Value"):
                record[tag] = element

    async def _study(self, record: dict[str, Any]) -> None:
        uid = first_value(record, "StudyInstanceUID")
        if not uid or all(first_value(record, keyword) is not None for keyword in _STUDY_COUNTS):
            return
        names = {"StudyInstanceUID": uid}
        series = await self._ask("SERIES", {**names, "Modality": None, _SERIES_COUNT: None, "SeriesInstanceUID": None})
        modalities = sorted({modality for each in series if (modality := first_value(each, "Modality"))})
        _set(record, "ModalitiesInStudy", "CS", modalities)
        _set(record, "NumberOfStudyRelatedSeries", "IS", [len(series)])
        if first_value(record, "NumberOfStudyRelatedInstances") is None:
            counts = [await self._count(uid, each) for each in series]
            _set(record, "NumberOfStudyRelatedInstances", "IS", [sum(counts)])

    async def _series(self, record: dict[str, Any]) -> None:
        study = first_value(record, "StudyInstanceUID")
        if study and first_value(record, _SERIES_COUNT) is None:
            _set(record, _SERIES_COUNT, "IS", [await self._count(study, record)])

    async def _count(self, study: str, series: Mapping[str, Any]) -> int:
        told = first_value(series, _SERIES_COUNT)
        if told is not None:
            return int(told)
        uid = first_value(series, "SeriesInstanceUID")
        if not uid:
            raise _NoMore
        names = {"StudyInstanceUID": study, "SeriesInstanceUID": uid, "SOPInstanceUID": None}
        return len(await self._ask("IMAGE", {**names, "return": "requested"}))

    async def _ask(self, level: str, keys: Mapping[str, Any]) -> list[dict[str, Any]]:
        if not self._left:
            raise _NoMore
        self._left -= 1
        found = Found()
        matches = [match async for match in self._asker.find(level, {**keys, "return": "requested"}, found)]
        if found.cut:
            raise _NoMore
        return matches


def _set(record: dict[str, Any], keyword: str, vr: str, values: list[Any]) -> None:
    if first_value(record, keyword) is None and values:
        record[json_key(keyword)] = {"vr": vr, "Value": values}
