"""The JSON of a request that asks for something: whatever spelling its keys have, as a data set for rules to change."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from harmonyd.dimse.errors import IdentifierError
from harmonyd.dimse.keys import resolve
from harmonyd.rewriting.editor import Check, Editor
from harmonyd.rewriting.tree import JsonTree, vr_of

_WRAPPERS = ("identifier", "query")
_CONTROLS = frozenset(
    {
        "operation",
        "level",
        "query_level",
        "model",
        "query_model",
        "return",
        "destination",
        "command",
        "query_metadata",
        "queryMetadata",
        "backend",
    }
)
"""Members that are no keys (``harmonyd.dimse.document``)."""


def change_document(document: Any, editor: Editor, *, forward: bool) -> tuple[Any, list[Check]]:
    """Return an identifier in the other view, and what matches have to be checked for.

    A key whose name is not known stays, for whoever reads the document to complain about.
    Raises ``NotAskable``.
    """
    if not isinstance(document, dict):
        return document, []
    changed = dict(document)
    checks: list[Check] = []
    for name in _WRAPPERS:
        if isinstance(changed.get(name), dict):
            changed[name], found = change_document(changed[name], editor, forward=forward)
            checks += found
    names = {name: tag for name in changed if name not in _WRAPPERS and (tag := _tag(name)) is not None}
    tree = JsonTree({})
    for name, tag in names.items():
        tree.members[f"{tag:08X}"] = _element(tag, changed[name])
    before = {tag: _values(tree.members[f"{tag:08X}"]) for tag in names.values()}
    checks += editor.ask(tree, forward=forward)
    for name, tag in names.items():
        after = tree.members.get(f"{tag:08X}")
        if after is None:
            del changed[name]
        elif _values(after) != before[tag]:
            changed[name] = after if isinstance(changed[name], dict) and "vr" in changed[name] else _plain(after)
    return changed, checks


def _tag(name: str) -> int | None:
    if name in _CONTROLS:
        return None
    try:
        return resolve(name).tag
    except IdentifierError:
        return None


def _element(tag: int, value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and ("vr" in value or "Value" in value):
        return _with_copies({"vr": vr_of(tag), **value})
    vr = vr_of(tag)
    given = value if isinstance(value, list) else [value]
    if vr == "SQ":
        return {"vr": "SQ", "Value": [_item(each) for each in given if isinstance(each, dict)]}
    return {"vr": vr, "Value": [str(each) for each in given if each not in (None, "")]}


def _with_copies(element: dict[str, Any]) -> dict[str, Any]:
    values = element.get("Value")
    if not isinstance(values, list):
        return element
    if element["vr"] == "SQ":
        return {**element, "Value": [_item(each) if isinstance(each, dict) else each for each in values]}
    return {**element, "Value": list(values)}


def _item(members: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in members.items():
        tag = _tag(name)
        found[name if tag is None else f"{tag:08X}"] = value if tag is None else _element(tag, value)
    return found


def _values(element: Any) -> Any:
    return copy.deepcopy(element.get("Value") or [])


def _plain(element: Mapping[str, Any]) -> Any:
    """As a client would write it."""
    values = element.get("Value") or []
    if element.get("vr") == "SQ":
        return list(values)
    texts = [JsonTree({"00000000": {"vr": element["vr"], "Value": [value]}}).texts(0)[0] for value in values]
    return "" if not texts else texts[0] if len(texts) == 1 else texts
