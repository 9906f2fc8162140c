"""From a request target to a route: prefixes match by whole path segments, and the longest wins.

A target is untrusted. Each segment is percent-decoded exactly once; a slash that was encoded stays inside its segment
(and encoded), so nothing behind the router can take it for a separator.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import parse_qs, unquote_to_bytes

from harmonyd.errors import BadRequest

__all__ = ["Match", "Router", "parse_query", "segments_of", "split_target"]

T = TypeVar("T")

_MAX_QUERY_FIELDS = 1000
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE_FORM = re.compile(rb"https?://[^/?]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Match(Generic[T]):
    """A route, and the path after its prefix: with a leading slash, "/" for the prefix itself."""

    target: T
    prefix: str
    path: str


class Router(Generic[T]):
    """A table of prefixes ("" or "/" is the root) and of exact paths, which win over every prefix."""

    def __init__(self) -> None:
        self._exact: dict[tuple[str, ...], T] = {}
        self._prefixes: dict[tuple[str, ...], tuple[str, T]] = {}
        self._deepest = 0

    def add_exact(self, path: str, target: T) -> None:
        """Serve ``path`` itself, and nothing below it."""
        self._exact[_split(path)] = target

    def add_prefix(self, prefix: str, target: T) -> None:
        """Serve ``prefix`` and all below it. Raises ``ValueError`` when it is there already."""
        key = _split(prefix)
        if key in self._prefixes:
            raise ValueError(f"two routes have the prefix {prefix or '/'!r}")
        self._prefixes[key] = ("/" + "/".join(key) if key else "", target)
        self._deepest = max(self._deepest, len(key))

    def match(self, segments: tuple[str, ...]) -> Match[T] | None:
        """Return the route for the segments of a path, or None."""
        whole = segments[:-1] if segments and not segments[-1] else segments
        if whole in self._exact:
            return Match(self._exact[whole], "/" + "/".join(whole), "/")
        for depth in range(min(self._deepest, len(segments)), -1, -1):
            if found := self._prefixes.get(segments[:depth]):
                return Match(found[1], found[0], "/" + "/".join(segments[depth:]))
        return None


def _split(path: str) -> tuple[str, ...]:
    return tuple(path.strip("/").split("/")) if path.strip("/") else ()


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Return raw path and raw query of a request target (RFC 9112 section 3.2: origin-form or absolute-form).

    Raises ``BadRequest`` for the other forms.
    """
    rest = target
    if not rest.startswith(b"/") and (absolute := _ABSOLUTE_FORM.match(rest)):
        rest = rest[absolute.end() :]
        rest = rest if rest.startswith(b"/") else b"/" + rest
    if not rest.startswith(b"/"):
        raise BadRequest("The request target is neither a path nor a URL.", hint="Ask for a path that starts with '/'.")
    path, _, query = rest.partition(b"?")
    return path, query


def segments_of(path: bytes) -> tuple[str, ...]:
    """Return the decoded segments of a raw path. Raises ``BadRequest`` for what no honest client sends."""
    if _BAD_ESCAPE.search(path):
        raise BadRequest("The path has a '%' that two hexadecimal digits do not follow.", hint="Write '%' as '%25'.")
    return tuple(_segment(raw) for raw in path[1:].split(b"/"))


def _segment(raw: bytes) -> str:
    try:
        text = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("The path is not valid UTF-8 after percent-decoding.", hint="Encode it as UTF-8.") from None
    if "\0" in text:
        raise BadRequest("The path contains a NUL character.")
    if any(part in (".", "..") for part in text.split("/")):
        raise BadRequest("The path contains '.' or '..' as a segment.", hint="Send the path these stand for.")
    return text.replace("/", "%2F")


def parse_query(query: bytes) -> dict[str, list[str]]:
    """Return the parameters of a raw query string. Raises ``BadRequest`` unless it is UTF-8 and of sane size."""
    try:
        # Through Latin-1, so that bytes that came raw and bytes that came percent-encoded are treated alike.
        pairs = parse_qs(
            query.decode("latin-1"), keep_blank_values=True, encoding="latin-1", max_num_fields=_MAX_QUERY_FIELDS
        )
        return {_utf8(key): [_utf8(value) for value in values] for key, values in pairs.items()}
    except UnicodeError:
        raise BadRequest("The query string is not valid UTF-8 after percent-decoding.") from None
    except ValueError:
        raise BadRequest(f"The query string has more than {_MAX_QUERY_FIELDS} fields.") from None


def _utf8(text: str) -> str:
    return text.encode("latin-1").decode("utf-8")
