"""``type = "route"``: rules that choose backends by metadata and DICOM elements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harmonyd.config import checks, keywords
from harmonyd.config.errors import listing, nearest
from harmonyd.config.fields import Section
from harmonyd.config.model import RouteRule

METADATA_KEYS = (
    *("called_aet", "calling_aet", "dimse_op", "method", "move_destination", "move_originator_aet", "path"),
    *("peer_address", "query_model", "series_instance_uid", "sop_class_uid", "sop_instance_uid"),
    *("study_instance_uid", "transfer_syntax_uid"),
)
ADDRESS = "peer_address"
_FIRST_GROUP = 0x0008
"""Groups below are those of commands and file meta information (PS3.10 section 7.1), which no data set has."""
_EVERYTHING = "it would match everything; write otherwise for that"


def options(section: Section) -> Mapping[str, Any]:
    """``rules`` as ``RouteRule``, and ``otherwise``: names of backends, or None for all."""
    section.require("rules")
    rules = section.list_of_tables("rules")
    if "rules" in section and section.sound and not rules:
        section.problem("rules", "empty: nothing to route by", "write one, or remove the middleware")
    found = tuple(map(_rule, rules))
    otherwise = section.strings("otherwise") if "otherwise" in section else section.raw("otherwise")
    section.finish()
    return {"rules": found, "otherwise": otherwise}


def chosen(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and name of each backend that is chosen somewhere."""
    for rule in options["rules"]:
        yield from (("rules", name) for name in rule.backends)
    yield from (("otherwise", name) for name in options["otherwise"] or ())


def _rule(section: Section) -> RouteRule:
    section.require("when", "backends")
    when = section.table("when")
    if "when" in section and when.is_table and not list(when):
        section.problem("when", "empty", _EVERYTHING)
    spelled: dict[str, str] = {}
    for key in when:
        name = _name(when, key)
        if name is not None and spelled.setdefault(name, key) != key:
            when.problem(key, f"another spelling of {spelled[name]}, which is there too", "remove one")
    patterns = {key: _patterns(when, key) for key in when}
    rule = RouteRule({name: patterns[key] for name, key in spelled.items()}, section.strings("backends"))
    section.finish()
    return rule


def _patterns(when: Section, key: str) -> tuple[str, ...]:
    value = when.raw(key)
    check = _address if key == ADDRESS else _pattern
    if isinstance(value, str):
        return (when.text(key, "", check),)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        when.problem(key, "neither a string nor a list of strings", 'write "CT" or ["CT", "MR"], numbers too')
        return ()
    if not value:
        when.problem(key, "an empty list, which nothing matches", 'write "" for an element that is missing or empty')
    return when.strings(key, check)


def _pattern(value: str) -> str | None:
    return None if value.isprintable() else "no value has control characters"


def _address(value: str) -> str | None:
    """A pattern, or with a slash a block of addresses."""
    return checks.address_block(value) if "/" in value else _pattern(value)


def _name(when: Section, key: str) -> str | None:
    """A metadata key as it is, an element as ``GGGGEEEE``; None when a mistake was noted."""
    if key in METADATA_KEYS:
        return key
    tag = keywords.tag_of(key)
    if tag is None:
        remedy = f"metadata keys: {listing(METADATA_KEYS)}"
        when.problem(key, "no metadata key, DICOM keyword or tag of eight hexadecimal digits", remedy, _nearest(key))
        return None
    complaint = None if keywords.is_tag(key) else keywords.textless(tag)
    if tag >> 16 < _FIRST_GROUP:
        complaint = "not an element of a data set"
    if complaint:
        when.problem(key, complaint, "remove it")
        return None
    return f"{tag:08X}"


def _nearest(key: str) -> str | None:
    known = nearest(key, METADATA_KEYS) if key.islower() else None
    return known or keywords.nearest_keyword(key)
