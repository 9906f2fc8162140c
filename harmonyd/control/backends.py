"""What the management API tells of the remote nodes: whether they answer, and whether they may be asked now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from harmonyd.control.management import utc
from harmonyd.errors import BadRequest, MethodNotAllowed, NotFound

REFRESH = "refresh"
_YES, _NO = ("", "true"), ("false",)


class Backends(Protocol):
    """Those that are operated."""

    def figures(self) -> Mapping[str, Mapping[str, Any]]:
        """By name; keys that end in ``_at``, or are ``at``, are seconds since the epoch, or None."""
        ...

    async def refresh(self, names: Sequence[str]) -> None:
        """Ask these for a C-ECHO now; returns after a while, even where one does not answer."""
        ...


class BackendsResource:
    """``management.Resource``: all backends, and below it one by its name."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def __call__(self, method: str, path: Sequence[str], query: Mapping[str, Sequence[str]]) -> Any:
        """Tell. Raises NotFound, MethodNotAllowed, BadRequest."""
        if len(path) > 1:
            raise NotFound("The management API has nothing at this path.", hint="A backend has nothing below it.")
        if method != "GET":
            raise MethodNotAllowed(f"{method} is not allowed here, only GET, HEAD.", allow=("GET", "HEAD"))
        names = list(path) or list(self._backends.figures())
        if path and path[0] not in self._backends.figures():
            raise NotFound("There is no backend of this name.", hint="GET /backends lists them.")
        if _wants_refresh(query):
            await self._backends.refresh(names)
        found = self._backends.figures()
        shown = [_sayable({"name": name, **found[name]}) for name in names if name in found]
        return shown[0] if path and shown else shown


def _wants_refresh(query: Mapping[str, Sequence[str]]) -> bool:
    for key in query:
        if key != REFRESH:
            raise BadRequest("Only refresh can be given here.", key=key[:100])
    values = query.get(REFRESH, _NO)
    if len(values) != 1 or values[0] not in _YES + _NO:
        raise BadRequest("refresh is true or false.", key=REFRESH)
    return values[0] in _YES


def _sayable(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _sayable(each, name) for name, each in value.items()}
    return utc(value) if key == "at" or key.endswith("_at") else value
