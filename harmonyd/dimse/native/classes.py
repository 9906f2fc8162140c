"""What a study consists of, asked before a C-GET: it can bring only the SOP classes that were proposed."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from twisted.logger import Logger

from harmonyd.dimse.engine import OperationContext, Query, QueryLevel, RemoteNode
from harmonyd.dimse.errors import AssociationRejected, DimseError, DimseTimeout, RemoteUnreachable
from harmonyd.dimse.native import names
from harmonyd.dimse.native.exchange import Means
from harmonyd.dimse.native.find import find
from harmonyd.dimse.uid import is_uid
from harmonyd.errors import DeadlinePassed

_log = Logger()

_SOP_CLASS, _CLASSES_IN_STUDY, _MODALITY, _SERIES = "00080016", "00080062", "00080060", "0020000E"
_PATIENCE_SECS, _PATIENCE_SHARE = 10.0, 0.25
"""It may be that a node knows how to C-GET, and not how to C-FIND: so long at most, and so much of the time left."""
_WITHOUT_ASSOCIATION = ("connect", "association")
"""What was waited for in vain, when there is nobody to ask for anything."""
_ENOUGH = 1000
"""Answers of each kind that are looked at."""


async def classes_of(means: Means, remote: RemoteNode, query: Query, op: OperationContext) -> list[str]:
    """SOP classes of what a retrieve asks for, as far as the node tells; empty when it tells nothing.

    One series stands for those of its modality; where no SOP class is told, the usual ones of the modality are named.
    Raises ``RemoteUnreachable``, ``AssociationRejected`` and ``DimseTimeout`` when it would take no C-GET either.
    """
    now = means.reactor.seconds()
    deadline = now + min(_PATIENCE_SECS, _PATIENCE_SHARE * (op.deadline - now))
    asking = _Asking(means, remote, replace(op, slots=None, max_results=_ENOUGH, deadline=deadline))
    found: dict[str, None] = {}
    try:
        async for uid in asking.classes(query):
            if is_uid(uid):
                found[uid] = None
    except (RemoteUnreachable, AssociationRejected):
        raise
    except (DimseError, DeadlinePassed) as error:
        if isinstance(error, DimseTimeout) and error.extra.get("timeout") in _WITHOUT_ASSOCIATION:
            raise
        _log.info("{node} does not tell what a study consists of: {why}", node=remote.name, why=error.detail)
    return list(found)


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
                by_modality.setdefault("".join(record.get(_MODALITY, ())), series)
        for modality, series in by_modality.items():
            told = [uid async for uid in self._of_series(query, series)]
            for uid in told or names.CLASSES_OF_MODALITY.get(modality, ()):
                yield uid

    async def _of_series(self, query: Query, series: object) -> AsyncIterator[str]:
        async for record in self._found(query, QueryLevel.IMAGE, "SOPInstanceUID", "SOPClassUID", series=series):
            for uid in record.get(_SOP_CLASS, ()):
                yield uid

    async def _found(
        self, query: Query, level: QueryLevel, *returned: str, series: object = None
    ) -> AsyncIterator[dict[str, list[str]]]:
        """Records below what is asked for: tag → values."""
        keys = copy.deepcopy(query.dataset)
        keys.QueryRetrieveLevel = level.value
        if series is not None:
            keys.SeriesInstanceUID = series
        for keyword in returned:
            if keyword not in keys:
                setattr(keys, keyword, "")
        stream = find(self._means, self._remote, Query(level, query.model, keys), self._op)
        async with aclosing(aiter(stream)) as matches:  # type: ignore[type-var]
            async for match in matches:
                members = json.loads(match.json).items()
                yield {tag: [str(value) for value in member.get("Value", []) if value] for tag, member in members}
