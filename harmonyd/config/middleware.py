"""``[middleware.*]``: the type decides which keys there are, directly in the table or in ``options`` below it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harmonyd.config import auth, authorize, checks, jwt_auth, keywords, limits, rewriting, route, transform
from harmonyd.config.errors import listing, nearest
from harmonyd.config.fields import Section
from harmonyd.config.model import MiddlewareConfig

DIMSE_OPERATIONS = ("echo", "find", "get", "move", "store")

BRIDGES = ("dicomweb_bridge", "dicomweb")
"""Harmony's names for what makes DICOMweb endpoints of the http endpoints of its pipeline."""
_OUT_OF_SCOPE_TYPES = ("auth", "connect", "jmix_builder")
_FIRST_GROUP = 0x0008


def middleware(name: str, section: Section, folders: Sequence[Path]) -> MiddlewareConfig | None:
    """``[middleware.NAME]``; None when a mistake was noted. ``folders``: where files that it names may be."""
    section.require("type")
    kind = section.text("type")
    parsers = _PARSERS | {known: partial(parser, folders) for known, parser in _WITH_FILES.items()}
    if kind in parsers:
        options = parsers[kind](_merged(section))
        return MiddlewareConfig(name, kind, options) if section.sound else None
    if kind in _OUT_OF_SCOPE_TYPES:
        section.problem("type", "out of scope", f"available: {listing(parsers)}")
    elif isinstance(section.raw("type"), str):
        section.problem("type", "unknown middleware type", f"available: {listing(parsers)}", nearest(kind, parsers))
    return None


def _merged(section: Section) -> Section:
    """The table's own keys and those of ``options`` as one table, under the name of the one that was used."""
    options = section.table("options")
    own = {key: section.raw(key) for key in section if key not in {"type", "options"}}
    below = {key: options.raw(key) for key in options}
    for key in sorted(own.keys() & below.keys()):
        section.problem(key, f"given here and in [{options.name}]", "remove one")
    place = section if own or not below else options
    return Section(section.report, section.file, place.name, {**below, **own}, section)


def _passthru(section: Section) -> Mapping[str, Any]:
    section.finish()
    return {}


def _path_filter(section: Section) -> Mapping[str, Any]:
    section.require("rules")
    rules = section.strings("rules", checks.path_rule)
    if section.sound and not rules:
        section.problem("rules", "empty: every request would be refused", 'write for example ["/Patient/{id}"]')
    section.finish()
    return {"rules": rules}


def _metadata(section: Section) -> Mapping[str, Any]:
    entries = section.string_table("set")
    identifier = _identifier(section.table("identifier"))
    options: dict[str, Any] = {"set": entries, "identifier": identifier}
    for key in ("dimse_op", "backend"):
        section.text(key)
        _shortcut(section, key, entries, options)
    if section.sound and not (entries or identifier or options.keys() & {"dimse_op", "backend"}):
        section.problem(None, "sets nothing", "give dimse_op, backend, set or identifier")
    section.finish()
    return options


def _shortcut(section: Section, key: str, entries: Mapping[str, str], options: dict[str, Any]) -> None:
    """``dimse_op`` and ``backend`` may stand in the table or in ``set``, and mean the same."""
    if key in section:
        options[key] = section.raw(key)
        if key in entries and entries[key] != options[key]:
            section.problem(key, f"differs from {key} in [{section.name}.set]", "remove one")
    place = section if key in section else section.table("set")
    if key == "dimse_op" and key in place and place.sound and place.raw(key) not in DIMSE_OPERATIONS:
        known = nearest(str(place.raw(key)), DIMSE_OPERATIONS)
        place.problem(key, "not an operation", f"allowed: {listing(DIMSE_OPERATIONS)}", known)


def _identifier(section: Section) -> dict[str, str]:
    """Query keys by DICOM keyword or tag ``ggggeeee`` (PS3.6 section 6); in the result by keyword if there is one."""
    values: dict[str, str] = {}
    for key in section:
        value = section.text(key, "", _query_value)
        tag = keywords.tag_of(key)
        if tag is None:
            what = "not a DICOM keyword, nor a tag of eight hexadecimal digits"
            section.problem(key, what, "write for example PatientID or 00100020", keywords.nearest_keyword(key))
            continue
        complaint, name = _query_key(tag)
        if complaint or name in values:
            section.problem(key, complaint or f"another spelling of {name}, which is there too", "remove it")
        values[name] = value
    return values


def _query_value(value: str) -> str | None:
    return None if value.isprintable() else "a query value has no control characters"


def _query_key(tag: int) -> tuple[str | None, str]:
    """A complaint or None, and the name of the tag."""
    if tag >> 16 < _FIRST_GROUP:
        return "not an attribute of a query identifier (PS3.4 section C.2.2)", f"{tag:08X}"
    return keywords.textless(tag), keywords.name_of(tag)


def chosen_backends(link: MiddlewareConfig) -> list[tuple[str, str]]:
    """The backends that a middleware may choose, each once: the key that names it, and its name."""
    if link.type == "route":
        return list(dict.fromkeys(route.chosen(link.options)))
    if link.type != "metadata":
        return []
    names = link.options.get("backend", link.options["set"].get("backend"))
    return [] if names is None else [("backend", name.strip()) for name in str(names).split(",")]


def named_backends(link: MiddlewareConfig) -> list[tuple[str, str]]:
    """The same, with those that it only speaks of: rules may be for several pipelines."""
    spoken_of = authorize.backends(link.options) if link.type == "authorize" else ()
    return [*chosen_backends(link), *dict.fromkeys(spoken_of)]


_PARSERS: dict[str, Callable[[Section], Mapping[str, Any]]] = {
    **dict.fromkeys(("passthru", *BRIDGES, "json_extractor", "json"), _passthru),
    "path_filter": _path_filter,
    "metadata": _metadata,
    "route": route.options,
    "rate_limit": limits.rate_limit,
    "concurrency": limits.concurrency,
    "client_certificate": auth.client_certificate,
    "calling_aet": auth.calling_aet,
    "authorize": authorize.options,
}
_WITH_FILES: Mapping[str, Callable[[Sequence[Path], Section], Mapping[str, Any]]] = {
    "transform": transform.options,
    "metadata_transform": transform.metadata_options,
    "rewrite": rewriting.rewrite,
    "deidentify": rewriting.deidentify,
    "basic_auth": lambda folders, section: auth.basic_auth(folders[-1], section),
    "api_key": lambda folders, section: auth.api_key(folders[-1], section),
    **dict.fromkeys(("jwt_auth", "jwtauth"), lambda folders, section: jwt_auth.options(folders[-1], section)),
}
