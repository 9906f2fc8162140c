"""What the management API tells of the spool, and lets people do to it. No patient data: AE titles, UIDs, addresses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from harmonyd.control.describing import SPOOL
from harmonyd.control.management import utc
from harmonyd.errors import BadRequest, Conflict, MethodNotAllowed, NotFound
from harmonyd.spool.api import BackendSummary, EntryInfo, EntryState, Pile, Spool, Summary

MAX_LISTED = 1000
_DEFAULT_LISTED = 100
_MOST = 2**63 - 1
_SHOWN = (
    *("called_aet", "calling_aet", "peer_address", "association_id", "move_originator_aet"),
    *("sop_class_uid", "sop_instance_uid", "study_instance_uid", "series_instance_uid", "transfer_syntax_uid"),
)
"""Of the metadata only this."""

Query = Mapping[str, Sequence[str]]
_Action = Callable[[], Awaitable[Any]]


class SpoolResource:
    """``management.Resource`` for the spool."""

    def __init__(self, spool: Spool, now: Callable[[], float]) -> None:
        self._spool = spool
        self._now = now

    async def __call__(self, method: str, path: Sequence[str], query: Query) -> Any:
        """Do what ``method`` asks for. Raises BadRequest, Conflict, NotFound, MethodNotAllowed, Unavailable."""
        actions = self._actions(path, query)
        action = actions.get(method)
        if action is None:
            allowed = [each for found in actions for each in (("GET", "HEAD") if found == "GET" else (found,))]
            raise MethodNotAllowed(f"{method} is not allowed here, only {', '.join(allowed)}.", allow=allowed)
        _check_keys(query, ("state", "endpoint", "after", "limit") if list(path) == ["entries"] else ())
        return await action()

    def _actions(self, path: Sequence[str], query: Query) -> Mapping[str, _Action]:
        """By method, what can be done at a path. Raises NotFound."""
        found = {
            item.method: partial(self._perform, item.name, variables, query)
            for item in SPOOL
            if (variables := item.variables(("spool", *path))) is not None
        }
        if not found:
            raise NotFound(
                "The management API has nothing at this path.",
                hint="The spool has entries, entries/ID, entries/ID/retry and retry.",
            )
        return found

    async def _perform(self, name: str, variables: Mapping[str, str], query: Query) -> Any:
        match name:
            case "getSpool":
                return await self.summary()
            case "listEntries":
                return await self.entries(query)
            case "retryAll":
                return await self.retry_all()
        action = {"getEntry": self.entry, "discardEntry": self.discard, "retryEntry": self.retry}[name]
        return await action(_id(variables["id"]))

    async def summary(self) -> dict[str, Any]:
        """Counts, bytes, ages; why nothing is accepted."""
        return summary_document(await self._spool.summary(), self._now())

    async def entries(self, query: Query) -> dict[str, Any]:
        """Some entries, in the order of their arrival. Raises BadRequest, which names the key."""
        limit = _number(query, "limit", _DEFAULT_LISTED, 1, MAX_LISTED)
        found = await self._spool.entries(
            state=_state(query),
            endpoint=_one(query, "endpoint"),
            after=_number(query, "after", 0, 0, _MOST),
            limit=limit,
        )
        return {
            "entries": [entry_document(info) for info in found],
            "next_after": found[-1].entry.id if len(found) == limit else None,
        }

    async def entry(self, id_: int) -> dict[str, Any]:
        """One entry. Raises NotFound."""
        return entry_document(await self._found(id_))

    async def retry(self, id_: int) -> dict[str, Any]:
        """Try one now. Raises NotFound, and Conflict for one that is damaged."""
        found = await self._found(id_)
        damage = [delivery.reason for delivery in found.deliveries if delivery.state is EntryState.DAMAGED]
        if damage and len(damage) == len(found.deliveries):
            raise Conflict(
                f"Entry {id_} is damaged, there is nothing to deliver: {damage[0]}.",
                hint="Have the object sent again, then discard the entry.",
                reason=damage[0],
            )
        return {"deliveries": await self._spool.retry([id_])}

    async def retry_all(self) -> dict[str, Any]:
        """Try all now that wait or are in quarantine."""
        return {"deliveries": await self._spool.retry()}

    async def discard(self, id_: int) -> dict[str, Any]:
        """Remove one for good. Raises NotFound."""
        discarded = await self._spool.discard([id_])
        if not discarded:
            raise _missing(id_)
        return {"discarded": discarded}

    async def _found(self, id_: int) -> EntryInfo:
        found = await self._spool.entries(after=id_ - 1, limit=1)
        if not found or found[0].entry.id != id_:
            raise _missing(id_)
        return found[0]


def summary_document(summary: Summary, now: float) -> dict[str, Any]:
    """The whole spool, JSON-ready."""
    return {
        "entries": summary.entries,
        "bytes": summary.bytes,
        "damaged": summary.damaged,
        "refusal": summary.refusal,
        "backends": [_backend(backend, now) for backend in summary.backends],
        "quarantine_folder": pile_document(summary.set_aside),
        "untaken": [{"endpoint": name, **pile_document(left)} for name, left in summary.untaken.items()],
    }


def pile_document(pile: Pile) -> dict[str, Any]:
    """Some files, JSON-ready."""
    return {"files": pile.files, "bytes": pile.bytes, "oldest_at": utc(pile.oldest_at)}


def _backend(backend: BackendSummary, now: float) -> dict[str, Any]:
    oldest = backend.oldest_received_at
    return {
        "endpoint": backend.endpoint,
        "backend": backend.backend,
        "waiting": backend.waiting,
        "quarantined": backend.quarantined,
        "oldest_waits_since": utc(oldest),
        "oldest_waits_secs": None if oldest is None else round(max(0.0, now - oldest), 1),
        "away_reason": backend.away_reason or None,
    }


def entry_document(info: EntryInfo) -> dict[str, Any]:
    """One entry, JSON-ready. A damaged one is at no backend (null)."""
    entry = info.entry
    return {
        "id": entry.id,
        "endpoint": entry.endpoint,
        "received_at": utc(entry.received_at),
        "size_bytes": entry.size_bytes,
        "request_id": entry.request_id,
        "metadata": {key: entry.metadata[key] for key in _SHOWN if key in entry.metadata},
        "deliveries": [
            {
                "backend": delivery.backend or None,
                "state": delivery.state.value,
                "attempts": delivery.attempts,
                "next_attempt_at": utc(delivery.next_attempt_at) if delivery.state is EntryState.WAITING else None,
                "reason": delivery.reason or None,
            }
            for delivery in info.deliveries
        ],
    }


def _missing(id_: int) -> NotFound:
    return NotFound(f"There is no entry {id_} in the spool.", hint="It was delivered or discarded, or never was there.")


def _id(text: str) -> int:
    """An id in a path. Raises NotFound."""
    if not _is_number(text) or not 0 < int(text) <= _MOST:
        raise NotFound("This is not the id of an entry.", hint="The entries of the spool have their ids.")
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= len(str(_MOST))


def _check_keys(query: Query, known: Sequence[str]) -> None:
    """Raises BadRequest for a key that has no effect."""
    for key in query:
        if key not in known:
            hint = f"Known here: {', '.join(known)}." if known else "Nothing can be given here."
            raise BadRequest(f"{key[:100]} is not a known query key.", hint=hint, key=key[:100])


def _one(query: Query, key: str) -> str | None:
    values = query.get(key, ())
    if len(values) > 1:
        raise BadRequest(f"{key} was given {len(values)} times.", hint="Give it once.", key=key)
    return values[0] if values else None


def _number(query: Query, key: str, default: int, least: int, most: int) -> int:
    text = _one(query, key)
    if text is None:
        return default
    if not _is_number(text) or not least <= int(text) <= most:
        raise BadRequest(f"{key} has a wrong value.", hint=f"It is a whole number from {least} to {most}.", key=key)
    return int(text)


def _state(query: Query) -> EntryState | None:
    text = _one(query, "state")
    if text is None:
        return None
    if text not in list(EntryState):
        raise BadRequest("state has a wrong value.", hint=f"It is one of {', '.join(EntryState)}.", key="state")
    return EntryState(text)
