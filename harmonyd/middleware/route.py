"""``route``: chooses backends by metadata and by elements of the object."""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from harmonyd.config.model import RouteRule
from harmonyd.config.route import ADDRESS
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.middleware.passthru import Passthru

_TAG = re.compile(r"[0-9A-F]{8}\Z")


class Route(Passthru):
    """The first rule that matches decides which backends a request may go to, whatever middleware before it chose.

    When none matches, ``otherwise`` does; None leaves the choice as it is. Elements are looked up in
    ``request.normalized``: those of an inbound object, or of the identifier of a question over DIMSE.
    """

    def __init__(self, name: str, rules: Sequence[RouteRule], otherwise: Sequence[str] | None) -> None:
        super().__init__(name)
        self._rules = [(_conditions(rule), rule.backends) for rule in rules]
        self._otherwise = otherwise

    async def on_request(self, request: RequestEnvelope) -> ResponseEnvelope | None:
        """Choose."""
        for conditions, backends in self._rules:
            if all(condition.holds(_texts(request, key)) for key, condition in conditions.items()):
                _choose(request, backends)
                return None
        if self._otherwise is not None:
            _choose(request, self._otherwise)
        return None


class _Condition:
    """Some patterns, one of which has to match one of the values."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._allows_nothing = "" in patterns
        # A bracket would begin a set of characters, which rules do not have.
        escaped = "|".join(fnmatch.translate(pattern.replace("[", "[[]")) for pattern in patterns if pattern)
        self._pattern = re.compile(escaped or r"(?!)")

    def holds(self, texts: Sequence[str]) -> bool:
        return any(map(self._pattern.match, texts)) if texts else self._allows_nothing


class _PlaceCondition(_Condition):
    """Some patterns or blocks of addresses, one of which has to match the address."""

    def __init__(self, patterns: Sequence[str]) -> None:
        super().__init__([pattern for pattern in patterns if "/" not in pattern])
        self._blocks = [ipaddress.ip_network(pattern) for pattern in patterns if "/" in pattern]

    def holds(self, texts: Sequence[str]) -> bool:
        return super().holds(texts) or any(_is_in(text, block) for text in texts for block in self._blocks)


_CONDITIONS: Mapping[str, type[_Condition]] = {ADDRESS: _PlaceCondition}


def _conditions(rule: RouteRule) -> Mapping[str, _Condition]:
    return {key: _CONDITIONS.get(key, _Condition)(values) for key, values in rule.when.items()}


def _is_in(text: str, block: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address) in block


def _choose(request: RequestEnvelope, backends: Sequence[str]) -> None:
    request.metadata.pop("backend", None)
    request.metadata.pop("skip_backends", None)
    if backends:
        request.metadata["backend"] = ",".join(backends)
    else:
        request.metadata["skip_backends"] = "true"


def _nothing(request: RequestEnvelope) -> str:
    return ""


_OF_THE_REQUEST: Mapping[str, Callable[[RequestEnvelope], str]] = {
    "method": lambda request: request.method,
    ADDRESS: lambda request: request.caller.address,
}
"""What a request has without metadata."""


def _texts(request: RequestEnvelope, key: str) -> list[str]:
    """The values that are not empty, as text."""
    if not _TAG.match(key):
        value = request.metadata.get(key, "") or _OF_THE_REQUEST.get(key, _nothing)(request)
        return [value] if value else []
    element = request.normalized.get(key) if isinstance(request.normalized, Mapping) else None
    return [text for text in map(_text, _values(element)) if text]


def _values(element: Any) -> Iterator[Any]:
    """The values of an element in the DICOM JSON Model (PS3.18 section F.2.2)."""
    values = element.get("Value") if isinstance(element, Mapping) else None
    yield from values if isinstance(values, list) else ()


def _text(value: Any) -> str:
    """A value as text: ``2.0`` as "2", a person name by its Alphabetic part; "" where there is no text."""
    if isinstance(value, Mapping):
        value = value.get("Alphabetic")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, str | int | float) else ""
