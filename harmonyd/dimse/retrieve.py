"""What a C-GET or C-MOVE identifier may hold: unique keys and nothing else (PS3.4 sections C.4.2.2.1 and C.4.3.2.1)."""

from __future__ import annotations

from harmonyd.dimse.engine import QueryLevel, QueryModel
from harmonyd.dimse.errors import IdentifierError
from harmonyd.dimse.keys import CHARACTER_SET_TAG, LEVEL_TAG
from harmonyd.dimse.keyset import Entry, Scope
from harmonyd.dimse.levels import UNIQUE_KEYS, levels_down_to

_BESIDE = frozenset({LEVEL_TAG, CHARACTER_SET_TAG})


def retrieve_keys(scope: Scope, operation: str, level: QueryLevel, model: QueryModel) -> Scope:
    """Return the unique keys of ``level`` and the levels above it in ``model``, from ``scope``.

    Raises ``IdentifierError`` when one of them is missing, empty or a pattern (a node would send its whole archive),
    when a level above has several values, and when another key has a value: nodes ignore such a filter or fail. Other
    keys without a value ask for nothing in a retrieve and are left out.
    """
    levels = levels_down_to(level, model)
    keys = {UNIQUE_KEYS[above][0]: _unique_key(scope, operation, above, level) for above in levels}
    for tag, entry in scope.items():
        if tag not in keys and tag not in _BESIDE and not entry.is_empty:
            raise _not_unique(entry, operation, level, model)
    return keys


def _unique_key(scope: Scope, operation: str, above: QueryLevel, level: QueryLevel) -> Entry:
    tag, keyword = UNIQUE_KEYS[above]
    entry = scope.get(tag)
    if entry is None or entry.is_empty:
        raise IdentifierError(
            f"A {operation} at {level.value} level needs {keyword} with a value",
            key=entry.name if entry else keyword,
            hint="without it the node would send its whole archive; find gives the value",
        )
    if entry.is_pattern:
        raise IdentifierError(
            f"{entry.name}: a {operation} takes no wildcards, the node might send its whole archive",
            key=entry.name,
            hint="find the values first",
        )
    if len(entry.values) > 1 and (above is not level or level is QueryLevel.PATIENT):
        raise IdentifierError(
            f"{entry.name}: a {operation} at {level.value} level takes one {keyword}",
            key=entry.name,
            hint="send one request for each",
        )
    return entry


def _not_unique(entry: Entry, operation: str, level: QueryLevel, model: QueryModel) -> IdentifierError:
    is_patient_id = entry.key.tag == UNIQUE_KEYS[QueryLevel.PATIENT][0]
    if is_patient_id and model is QueryModel.STUDY_ROOT:
        hint = 'leave it out, or ask with "query_model": "patient"'
    else:
        hint = "leave it out, or use find to choose what to retrieve"
    return IdentifierError(
        f"{entry.name}: a {operation} at {level.value} level in {model.value.title()} Root cannot filter by it",
        key=entry.name,
        hint=hint,
    )
