"""From a client's JSON to a validated C-FIND, C-GET or C-MOVE identifier (PS3.4 section C.4).

Four spellings may be mixed: snake case keywords, DICOM keywords, tags (with plain values or in the DICOM JSON model),
and Harmony's wrappers (see ``harmonyd.dimse.document``). An empty value or null asks for a key, a list is several
values, an object or a list of objects is a sequence. Spaces around a value mean nothing in DICOM and are dropped.

Specific Character Set (0008,0005) is accepted and replaced: the text is written in UTF-8 whenever ASCII is not enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from harmonyd.dimse.document import CONTROLS, Document, requested_operation, take_apart
from harmonyd.dimse.engine import Query, QueryLevel, QueryModel
from harmonyd.dimse.errors import IdentifierError
from harmonyd.dimse.json_text import decode_json
from harmonyd.dimse.keys import CHARACTER_SET_TAG, LEVEL_TAG, resolve, shown
from harmonyd.dimse.keyset import KeyReader, Scope, build, check_private_creators, element
from harmonyd.dimse.levels import UNIQUE_KEYS, level_from_keys
from harmonyd.dimse.query_file import declare_character_set
from harmonyd.dimse.retrieve import retrieve_keys
from harmonyd.dimse.return_keys import return_keys

__all__ = ["decode_json", "parse_query", "requested_operation"]

_OPERATIONS = frozenset({"find", "get", "move"})
_NONE: Mapping[str, str] = MappingProxyType({})


def parse_query(
    document: Any,
    *,
    operation: str,
    model: QueryModel | None = None,
    forced: Mapping[str, str] = _NONE,
    destination: str | None = None,
) -> Query:
    """Return the query that ``document`` (decoded JSON, None for an empty body) asks for.

    ``operation`` is find, get or move, whatever the document's own ``operation`` says: compare that first.
    ``model`` is used where the document asks for none; without either it is Study Root, but Patient Root at the PATIENT
    level and for a retrieve that names a Patient ID.
    ``forced`` sets or replaces keys, by any spelling of their names, under the same checks.
    ``destination`` is the AE title a move goes to; a document may repeat it but not name another.

    The first thing wrong raises ``IdentifierError``.
    """
    if operation not in _OPERATIONS:
        raise ValueError(f"{operation} has no identifier")
    parts = take_apart(document, operation, destination)
    scope = _read(parts, forced)
    chosen = parts.model or model
    level = _level(scope, chosen)
    chosen = chosen or _default_model(operation, level, scope)
    _check_model(level, chosen)
    if operation != "find":
        scope = retrieve_keys(scope, operation, level, chosen)
    return _query(level, chosen, scope, with_return_keys=operation == "find" and parts.adds_return_keys)


def _read(parts: Document, forced: Mapping[str, str]) -> Scope:
    reader = KeyReader()
    scope: Scope = {}
    for section in parts.sections:
        reader.read(section, scope, CONTROLS)
    _check_match_types(parts.match_types, scope)
    if forced:
        replacing: Scope = {}
        reader.read(forced, replacing)
        scope.update(replacing)
    check_private_creators(scope)
    return scope


def _check_match_types(match_types: Mapping[str, str], scope: Scope) -> None:
    """Refuse a note of Harmony's ``query_metadata`` that contradicts the key it describes."""
    for name, match_type in match_types.items():
        entry = scope.get(resolve(name).tag)
        label = f"query_metadata.{shown(name)}"
        if entry is None:
            raise IdentifierError(f"{label} describes a key that the identifier does not have", key=label)
        if match_type in ("RETURN_KEY", "UNIVERSAL") and not entry.is_empty:
            raise IdentifierError(f"{label} is {match_type}, but {entry.name} has a value", key=label)
        if match_type in ("EXACT", "SINGLE") and entry.is_pattern:
            raise IdentifierError(f"{label} is {match_type}, but {entry.name} has a wildcard", key=label)


def _level(scope: Scope, model: QueryModel | None) -> QueryLevel:
    entry = scope.get(LEVEL_TAG)
    if entry is None or not entry.values:
        return level_from_keys(scope, model)
    if len(entry.values) > 1:
        raise IdentifierError(f"{entry.name}: a query has one level", key=entry.name)
    return QueryLevel(str(entry.values[0]))


def _default_model(operation: str, level: QueryLevel, scope: Scope) -> QueryModel:
    """Study Root where it can say what was asked.

    It has no place for the Patient ID of a retrieve below the PATIENT level (PS3.4 section C.4.2.2.1). Harmony's
    clients send one: they get the model in which it is a unique key, rather than a filter dropped or a refusal.
    """
    if level is QueryLevel.PATIENT:
        return QueryModel.PATIENT_ROOT
    patient = scope.get(UNIQUE_KEYS[QueryLevel.PATIENT][0])
    if operation != "find" and patient is not None and patient.values:
        return QueryModel.PATIENT_ROOT
    return QueryModel.STUDY_ROOT


def _check_model(level: QueryLevel, model: QueryModel) -> None:
    if level is QueryLevel.PATIENT and model is QueryModel.STUDY_ROOT:
        raise IdentifierError(
            "The Study Root query model has no PATIENT level",
            key="level",
            hint='ask at another level, or with "query_model": "patient"',
        )


def _query(level: QueryLevel, model: QueryModel, scope: Scope, *, with_return_keys: bool) -> Query:
    scope.pop(CHARACTER_SET_TAG, None)
    scope.pop(LEVEL_TAG, None)
    ds = build(scope)
    ds.add(element(LEVEL_TAG, "CS", level.value))
    if with_return_keys:
        for tag, vr in return_keys(level, model):
            if tag not in scope:
                ds.add(element(tag, vr, None))
    declare_character_set(ds)
    return Query(level, model, ds)
