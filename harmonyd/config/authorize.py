"""``type = "authorize"``: rules that say which role may do what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harmonyd.config import checks, keywords
from harmonyd.config.errors import listing, nearest
from harmonyd.config.fields import Section
from harmonyd.permit import ACTIONS, Element, Rule

_FIRST_GROUP = 0x0008


def options(section: Section) -> Mapping[str, Any]:
    """``rules`` as ``Rule``."""
    section.require("rules")
    rules = section.list_of_tables("rules")
    if "rules" in section and section.sound and not rules:
        section.problem("rules", "empty: nobody could do anything", "write one")
    found = tuple(map(_rule, rules))
    section.finish()
    return {"rules": found}


def backends(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and name of each backend that a rule names."""
    for rule in options["rules"]:
        yield from (("rules", name) for name in sorted(rule.backends))


def _rule(section: Section) -> Rule:
    section.require("roles", "allow")
    names = section.strings("roles", checks.plain_text)
    allowed = section.strings("allow")
    for action in allowed:
        if action not in ACTIONS:
            section.problem(
                "allow", f'"{action}" is no action', f"allowed: {listing(ACTIONS)}", nearest(action, ACTIONS)
            )
    for key, given in (("roles", names), ("allow", allowed)):
        if key in section and section.sound and not given:
            section.problem(key, "empty", "the rule would do nothing: remove it")
    where = section.strings("backends", checks.name)
    if "backends" in section and section.sound and not where:
        section.problem("backends", "empty", "leave it out for all backends")
    only = section.table("only")
    limits = tuple(each for key in only if (each := _element(only, key)) is not None)
    if "only" in section and only.is_table and not list(only):
        only.problem(None, "empty", "leave it out where there is no limit")
    section.finish()
    return Rule(frozenset(names), frozenset(allowed), frozenset(where), limits)


def _element(section: Section, key: str) -> Element | None:
    tag = keywords.tag_of(key)
    if tag is None:
        what = "not a DICOM keyword, nor a tag of eight hexadecimal digits"
        section.problem(key, what, "write for example InstitutionName", keywords.nearest_keyword(key))
        return None
    complaint = keywords.textless(tag) if tag >> 16 >= _FIRST_GROUP else "not an attribute of a query identifier"
    if complaint:
        section.problem(key, complaint, "remove it")
        return None
    value = section.raw(key)
    patterns = (section.text(key, "", _pattern),) if isinstance(value, str) else section.strings(key, _pattern)
    if section.sound and not patterns:
        section.problem(key, "an empty list, which nothing matches", "write what may be seen")
    return Element(f"{tag:08X}", keywords.name_of(tag), patterns)


def _pattern(value: str) -> str | None:
    if not value.strip("* "):
        return "it would match everything: leave it out"
    return None if value.isprintable() and "\\" not in value else "no control characters and no backslash"
