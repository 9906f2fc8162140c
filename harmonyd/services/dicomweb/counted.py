"""What was counted below studies and series, kept for a moment: viewers page and refresh their lists."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from harmonyd.services.base import HttpRequest

KEPT_SECS = 30.0
"""A study that is being received shows its new count after this at the latest."""
MAX_KEPT = 5000
_Key = tuple[str, bytes]
_Elements = Mapping[str, Any]
_CHANGING = ("accept", "if-", "range", "traceparent", "tracestate", "x-request-id", "content-", "connection")
"""Header fields that say nothing about where a request goes, or what its sender may see."""


class Counted:
    """Attributes by study or series, the newest ``MAX_KEPT`` of them. ``seconds`` is the reactor's clock."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._kept: OrderedDict[_Key, tuple[float, _Elements]] = OrderedDict()

    def key(self, request: HttpRequest, uid: str) -> _Key:
        """Two requests share what differs in nothing that middleware could look at."""
        fields = sorted(item for item in request.headers.items() if not item[0].startswith(_CHANGING))
        who = (request.subject, request.caller.certificate)
        asked = repr((request.prefix, request.query.get("backend"), fields, who)).encode("utf-8", "backslashreplace")
        return uid, hashlib.sha256(asked).digest()

    def get(self, key: _Key) -> _Elements | None:
        """Return what is kept and not too old."""
        found = self._kept.get(key)
        if found is None or self._seconds() - found[0] >= KEPT_SECS:
            return None
        return found[1]

    def put(self, key: _Key, elements: _Elements) -> None:
        """Keep it, for ``KEPT_SECS``."""
        self._kept.pop(key, None)
        self._kept[key] = (self._seconds(), elements)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
