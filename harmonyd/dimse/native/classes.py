"""What a study consists of, asked before a C-GET: it can bring only the SOP classes that were proposed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from pydicom import Dataset

from harmonyd.dimse.engine import OperationContext, Query, QueryLevel, RemoteNode
from harmonyd.dimse.errors import DimseError
from harmonyd.dimse.native.exchange import Means
from harmonyd.dimse.native.find import find

_SOP_CLASS, _CLASSES_IN_STUDY, _MODALITY, _SERIES = "00080016", "00080062", "00080060", "0020000E"
_ENOUGH = 1000
"""Answers of each kind that are looked at."""


async def classes_of(means: Means, remote: RemoteNode, query: Query, op: OperationContext) -> list[str]:
    """SOP classes of what a retrieve asks for, as far as the node tells; empty when it tells nothing.

    One object of a series stands for the others, and one series for those of its modality.
    """
    asking = _Asking(means, remote, replace(op, slots=None, max_results=_ENOUGH))
    try:
        return list(dict.fromkeys([uid async for uid in asking.classes(query)]))
    except DimseError:
        return []  # it may still know how to C-GET


class _Asking:
    def __init__(self, means: Means, remote: RemoteNode, op: OperationContext) -> None:
        self._means = means
        self._remote = remote
        self._op = op

    async def classes(self, query: Query) -> AsyncIterator[str]:
        """In no order, with repetitions."""
        keys = query.dataset
        if query.level in (QueryLevel.IMAGE, QueryLevel.SERIES):
            async for uid in self._of_series(query, keys.get("SeriesInstanceUID")):
                yield uid
        elif query.level is QueryLevel.STUDY:
            async for uid in self._of_study(query):
                yield uid

    async def _of_study(self, query: Query) -> AsyncIterator[str]:
        told = [uid async for record in self._found(query, QueryLevel.STUDY, "SOPClassesInStudy")
                for uid in record.get(_CLASSES_IN_STUDY, ())]  # fmt: skip
        if told:
            for uid in told:
                yield uid
            return
        by_modality: dict[str, str] = {}
        async for record in self._found(query, QueryLevel.SERIES, "Modality", "SeriesInstanceUID"):
            for series in record.get(_SERIES, ()):
                by_modality.setdefault(str(record.get(_MODALITY)), series)
        for series in by_modality.values():
            async for uid in self._of_series(query, series):
                yield uid

    async def _of_series(self, query: Query, series: object) -> AsyncIterator[str]:
        async for record in self._found(query, QueryLevel.IMAGE, "SOPInstanceUID", "SOPClassUID", series=series):
            for uid in record.get(_SOP_CLASS, ()):
                yield uid

    async def _found(
        self, query: Query, level: QueryLevel, *returned: str, series: object = None
    ) -> AsyncIterator[dict[str, list[str]]]:
        """Records below what is asked for: tag → values."""
        keys = Dataset()
        keys.update(query.dataset)
        keys.QueryRetrieveLevel = level.value
        if series is not None:
            keys.SeriesInstanceUID = series
        for keyword in returned:
            if keyword not in keys:
                setattr(keys, keyword, "")
        stream = find(self._means, self._remote, Query(level, query.model, keys), self._op)
        async with aclosing(aiter(stream)) as matches:  # type: ignore[type-var]
            async for match in matches:
                yield {tag: member.get("Value", []) for tag, member in json.loads(match.json).items()}
