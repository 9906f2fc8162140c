"""Media types and codings as HTTP headers spell them (RFC 9110 section 8.3.1): parsing only, no policy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# The closing quote is optional so that a match never fails late: a header full of stray quotes costs linear time.
_QUOTED = r'"(?:[^"\\]|\\.|\\$)*"?'
_ELEMENT = re.compile(rf'(?:[^,"]|{_QUOTED})+', re.DOTALL)
_TYPE = re.compile(rf"\s*({_TOKEN})(?:/({_TOKEN}))?\s*(?=;|$)")
_PARAMETER = re.compile(rf'\s*;\s*(?:({_TOKEN})\s*=\s*({_QUOTED}|[^";]*))?', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class MediaType:
    """``type/subtype`` in lower case; parameter names in lower case, their values as sent, without quotes."""

    type: str
    subtype: str
    parameters: Mapping[str, str]

    @property
    def essence(self) -> str:
        """``type/subtype`` without parameters."""
        return f"{self.type}/{self.subtype}"


def parse_media_type(text: str) -> MediaType | None:
    """Parse one media type or range; None when it is not one.

    Lenient where it is harmless: unquoted values with a slash (``type=application/dicom``), empty parameters, and a
    lone ``*`` for ``*/*``. The first of two parameters of the same name counts.
    """
    head = _TYPE.match(text)
    if head is None or (head[2] is None and head[1] != "*"):
        return None
    parameters: dict[str, str] = {}
    for name, value in _parameters(text, head.end()):
        parameters.setdefault(name, value)
    return MediaType(head[1].lower(), (head[2] or "*").lower(), parameters)


def split_list(header: str) -> list[str]:
    """The elements of a comma-separated header (RFC 9110 section 5.6.1), commas in quoted strings left alone."""
    elements = (element.strip() for element in _ELEMENT.findall(header))
    return [element for element in elements if element]


def prefers_gzip(accept_encoding: str) -> bool:
    """Tell whether a client that sends this Accept-Encoding would rather have gzip than nothing of the kind.

    RFC 9110 section 12.5.3.
    """
    weights = dict(map(_weight, split_list(accept_encoding.lower())))
    gzip = weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0)))
    return gzip > 0 and gzip >= weights.get("identity", 0.0)


def _weight(element: str) -> tuple[str, float]:
    name, _, parameter = element.partition(";")
    key, _, value = parameter.replace(" ", "").partition("=")
    try:
        weight = min(max(float(value), 0.0), 1.0) if key == "q" else 1.0
    except ValueError:
        weight = 0.0
    return name.strip(), weight if weight == weight else 0.0


def _parameters(text: str, position: int) -> Iterator[tuple[str, str]]:
    while (found := _PARAMETER.match(text, position)) is not None:
        position = found.end()
        if found[1] is not None:
            yield found[1].lower(), _unquote(found[2])


def _unquote(value: str) -> str:
    value = value.strip()
    if not value.startswith('"'):
        return value
    closed = value[1:-1] if len(value) > 1 and value.endswith('"') else value[1:]
    return _ESCAPE.sub(r"\1", closed)
