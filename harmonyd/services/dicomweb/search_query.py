"""The query string of a search (PS3.18 sections 8.3.4 and 10.6.1.2), as keys for C-FIND."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harmonyd.dimse.errors import IdentifierError
from harmonyd.dimse.keys import Key, resolve, shown
from harmonyd.errors import BadRequest
from harmonyd.services.dicomweb.entities import LEVELS, level_of

_NOT_KEYS = frozenset({"accept", "charset", "backend", "limit", "offset", "fuzzymatching", "includefield"})
_NOT_SUPPORTED = ("emptyvaluematching", "multiplevaluematching")
_INTEGERS = frozenset({"US", "SS", "UL", "SL", "UV", "SV"})
_TRUTH = {"true": True, "false": False}
_MAX_PATH = 8


@dataclass(slots=True)
class SearchQuery:
    """What is searched for."""

    level: str
    """STUDY, SERIES or IMAGE."""
    keys: dict[str, dict[str, Any]] = field(default_factory=lambda: {level: {} for level in LEVELS})
    """By level: the document of a C-FIND, matching keys and keys to return."""
    include_all: bool = False
    limit: int | None = None
    offset: int = 0
    warnings: list[str] = field(default_factory=list)


def parse_search(query: Mapping[str, list[str]], level: str) -> SearchQuery:
    """Read the parameters of a search at ``level``. Raises ``BadRequest``; ``IdentifierError`` names the parameter."""
    search = SearchQuery(level)
    search.limit = _number(query, "limit")
    search.offset = _number(query, "offset") or 0
    _warn(search, query)
    for name, values in query.items():
        if name not in _NOT_KEYS and name not in _NOT_SUPPORTED:
            _add_match(search, name, values)
    for name in _include(search, query.get("includefield", [])):
        path = _path(name, "includefield")
        keys = search.keys[level_of(path[0].tag, level)]
        _put(keys, path, None)
    return search


def _warn(search: SearchQuery, query: Mapping[str, list[str]]) -> None:
    if _flag(query, "fuzzymatching"):
        search.warnings.append(
            "The fuzzymatching parameter is not supported. Only literal matching has been performed."
        )
    search.warnings += [f"The {name} parameter is not supported." for name in _NOT_SUPPORTED if _flag(query, name)]


def _flag(query: Mapping[str, list[str]], name: str) -> bool:
    values = query.get(name, ["false"])
    if len(values) != 1 or values[0].lower() not in _TRUTH:
        raise BadRequest(f"{name} is true or false.", key=name)
    return _TRUTH[values[0].lower()]


def _number(query: Mapping[str, list[str]], name: str) -> int | None:
    values = query.get(name)
    if values is None:
        return None
    if len(values) != 1 or not values[0].isascii() or not values[0].isdigit() or len(values[0]) > 9:
        raise BadRequest(f"{name} is one number, 0 or more (PS3.18 section 8.3.4.4).", key=name)
    return int(values[0])


def _include(search: SearchQuery, values: Sequence[str]) -> list[str]:
    names = [name.strip() for value in values for name in value.split(",") if name.strip()]
    search.include_all = "all" in names
    return [name for name in names if name != "all"]


def _add_match(search: SearchQuery, name: str, values: Sequence[str]) -> None:
    path = _path(name, name)
    level = level_of(path[0].tag, search.level)
    value = _value(path[-1], name, values)
    _put(search.keys[level], path, value)


def _path(name: str, key: str) -> list[Key]:
    """An attribute, or the path to one inside of sequences: ``RequestAttributesSequence.ScheduledProcedureStepID``."""
    path = [resolve(part) for part in name.split(".")]
    for around in path[:-1]:
        if "SQ" not in around.vrs:
            raise IdentifierError(f"{shown(name)}: {around} is not a sequence", key=shown(key))
    if len(path) > _MAX_PATH:
        raise IdentifierError(f"{shown(name)}: sequences may be nested {_MAX_PATH - 1} deep", key=shown(key))
    return path


def _value(key: Key, name: str, values: Sequence[str]) -> Any:
    if "UI" in key.vrs:
        # A list of UIDs has commas; some clients send DICOM's backslashes (PS3.18 section 8.3.4.1).
        uids = [uid.strip() for value in values for uid in value.replace("\\", ",").split(",") if uid.strip()]
        return (uids[0] if len(uids) == 1 else uids) if uids else None
    if len(set(values)) > 1:
        raise IdentifierError(f"{shown(name)} is given twice, with different values", key=shown(name))
    if not values[0] or "SQ" in key.vrs:
        return None
    return _integer(values[0]) if _INTEGERS.intersection(key.vrs) else values[0]


def _integer(text: str) -> Any:
    return int(text) if text.removeprefix("-").isdecimal() and len(text) < 20 else text


def _put(keys: dict[str, Any], path: Sequence[Key], value: Any) -> None:
    for around in path[:-1]:
        items = keys.setdefault(_name(around), None) or [{}]
        keys[_name(around)] = items
        keys = items[0]
    name = _name(path[-1])
    if value is not None or keys.get(name) is None:
        keys[name] = value


def _name(key: Key) -> str:
    return f"{key.tag:08X}"
