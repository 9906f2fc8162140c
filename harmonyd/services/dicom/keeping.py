"""Which retrieves are for the cache, and what a request says about that."""

from __future__ import annotations

import re
import uuid
from typing import Any

from harmonyd.cache.key import Key
from harmonyd.dimse.engine import RemoteNode
from harmonyd.envelope import RequestEnvelope

AHEAD = "retrieve_ahead"
""""false" in the metadata of a retrieve: no more of its series will be asked for."""
_UIDS = {"StudyInstanceUID": "study", "SeriesInstanceUID": "series", "SOPInstanceUID": "instance"}
_KEYS = {"STUDY": 1, "SERIES": 2, "IMAGE": 3}
"""How many of the UIDs a level has."""
_UID = re.compile(r"[0-9.]{1,64}")


def new_id() -> str:
    """Return an id for an operation."""
    return uuid.uuid4().hex


def key_of(remote: RemoteNode, request: RequestEnvelope, document: Any) -> Key | None:
    """Return what a retrieve is for; None for one that may be about more or less than its UIDs say."""
    if not isinstance(document, dict) or any(name.startswith("identifier.") for name in request.metadata):
        return None
    named = {name: value for name, value in document.items() if name not in ("level", "query_model")}
    wanted = list(_UIDS)[: _KEYS.get(document.get("level", ""), 0)]
    sound = all(isinstance(uid, str) and _UID.fullmatch(uid) for uid in named.values())
    if not wanted or list(named) != wanted or document.get("query_model") != "study" or not sound:
        return None
    user = remote.user_identity.username if remote.user_identity is not None else ""
    node = " ".join((remote.name, remote.local_aet, user, f"{remote.aet}@{remote.host}:{remote.port}"))
    return Key(node, **{_UIDS[keyword]: uid for keyword, uid in named.items()})


def document_for(key: Key) -> dict[str, str]:
    """Return the identifier of a retrieve of ``key``, as a client would write it."""
    return {**key.uids, "level": key.level, "query_model": "study"}


def wants_fresh(request: RequestEnvelope) -> bool:
    """Tell whether the client wants nothing from a cache (RFC 9111 section 5.2.1.4)."""
    directives = request.headers.get("cache-control", "").lower().split(",")
    return "no-cache" in (each.strip() for each in directives)
