"""What a backend truly has: asked object by object of a folder, series by series of a node."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from harmonyd.bodies import BytesBody
from harmonyd.commitment.api import Place, Reference
from harmonyd.envelope import RequestEnvelope
from harmonyd.errors import HarmonydError, NotFound
from harmonyd.services.base import Backend

MAX_ONE_BY_ONE = 200
"""Questions at the level of instances in one go."""


@runtime_checkable
class Holds(Protocol):
    """A backend that knows itself."""

    async def held(self, sought: Mapping[str, Place]) -> Mapping[str, str]:
        """Of these (by SOP Instance UID) those that are durably kept, and their SOP class; empty: not known."""
        ...


class CannotTell(HarmonydError):
    """There is no way to ask this backend what it has."""

    title = "The backend cannot be asked"


async def held(
    backend: Backend, sought: Sequence[Reference], places: Mapping[str, Place], request_id: str, deadline: float
) -> dict[str, str]:
    """Of these the SOP Instance UIDs that the backend has, with their SOP classes (empty: not told).

    ``places``: where they belong, as far as is known. Raises a ``HarmonydError`` when it does not say.
    """
    known = {each.sop_instance_uid: places[each.sop_instance_uid] for each in sought if each.sop_instance_uid in places}
    if isinstance(backend, Holds):
        return dict(await backend.held(known))
    if not getattr(backend, "queryable", False):
        raise CannotTell(f"{backend.name} cannot be asked what it has")
    asking = _Asking(backend, request_id, deadline)
    by_series: dict[tuple[str, str], list[str]] = defaultdict(list)
    unknown: list[str] = []
    for each in sought:
        place = known.get(each.sop_instance_uid)
        if place is None or not (place.study_instance_uid and place.series_instance_uid):
            unknown.append(each.sop_instance_uid)
        else:
            by_series[place.study_instance_uid, place.series_instance_uid].append(each.sop_instance_uid)
    found: dict[str, str] = {}
    for (study, series), uids in by_series.items():
        found |= await asking.series(study, series, uids)
    for uid in unknown[:MAX_ONE_BY_ONE]:
        found |= await asking.anywhere(uid)
    return found


class _Asking:
    def __init__(self, backend: Backend, request_id: str, deadline: float) -> None:
        self._backend = backend
        self._request_id = request_id
        self._deadline = deadline

    async def series(self, study: str, series: str, uids: Sequence[str]) -> dict[str, str]:
        """With one question for all, which every node understands; what that leaves out is asked for one by one."""
        above = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
        if len(uids) == 1:
            found, _ = await self._find({**above, "SOPInstanceUID": uids[0]})
            return _of(found, uids)
        found, is_whole = await self._find({**above, "SOPInstanceUID": None})
        if not is_whole:
            for uid in [uid for uid in uids if uid not in found][:MAX_ONE_BY_ONE]:
                found |= (await self._find({**above, "SOPInstanceUID": uid}))[0]
        return _of(found, uids)

    async def anywhere(self, uid: str) -> dict[str, str]:
        """A relational query (PS3.4 section C.4.1.2.2.2); a node that takes none does not have it as far as we know."""
        keys = {"StudyInstanceUID": None, "SeriesInstanceUID": None, "SOPInstanceUID": uid}
        try:
            return _of((await self._find(keys))[0], [uid])
        except HarmonydError as error:
            if "dimse_status" in error.extra or error.fault.value == "caller":
                return {}
            raise

    async def _find(self, keys: Mapping[str, str | None]) -> tuple[dict[str, str], bool]:
        document = {"QueryRetrieveLevel": "IMAGE", **keys, "SOPClassUID": None, "return": "requested"}
        request = RequestEnvelope(
            protocol="http",
            method="POST",
            uri="/find",
            path="/find",
            body=BytesBody(json.dumps(document).encode()),
            headers={"content-type": "application/json"},
            metadata={"dimse_op": "find"},
            id=self._request_id,
            deadline=self._deadline,
        )
        found: dict[str, str] = {}
        try:
            response = await self._backend.send(request)
        except NotFound:
            return found, True
        try:
            if response.results is None:
                raise CannotTell(f"{self._backend.name} does not say what it has")
            async for record in response.results:
                item = json.loads(await record.json())
                if uid := _value(item, "00080018"):
                    found[uid] = _value(item, "00080016")
            return found, bool(response.results.summary()["complete"])
        finally:
            await response.close()


def _of(found: Mapping[str, str], uids: Sequence[str]) -> dict[str, str]:
    return {uid: found[uid] for uid in uids if uid in found}


def _value(item: Mapping[str, Any], tag: str) -> str:
    values = item.get(tag, {}).get("Value") or [""]
    return str(values[0] or "")
