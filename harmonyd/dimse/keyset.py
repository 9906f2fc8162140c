"""Query keys as a client wrote them, read into checked entries: one for each data element."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from harmonyd.dimse.errors import IdentifierError
from harmonyd.dimse.keys import CHARACTER_SET_TAG, LEVEL_TAG, Key, resolve, shown
from harmonyd.dimse.levels import level_of
from harmonyd.dimse.values import CHECKS, MAX_VALUES, BadValueError, Value, check_values, has_wildcard

MAX_KEYS = 256
"""Keys and sequence items in one identifier, at all depths together."""
MAX_NESTING = 8

LEVEL_ALIASES = ("level", "query_level")
_LEVEL_KEY = resolve("QueryRetrieveLevel")
_NEVER_NESTED = frozenset({LEVEL_TAG, CHARACTER_SET_TAG})
_BINARY_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_ELEMENT_MEMBERS = frozenset({"vr", "Value", "BulkDataURI", "InlineBinary"})
_NO_VALIDATION = 0
"""pydicom's ``config.IGNORE``: values are checked here already, and its warnings would only cost time."""


@dataclass(slots=True)
class Entry:
    """One query key: equal to another when VR and values are."""

    name: str = field(compare=False)
    """As the client wrote it, with its path inside sequences, fit for a message."""
    key: Key = field(compare=False)
    vr: str
    values: list[Value]
    items: list[Scope]
    """The items of a sequence (VR SQ), which has no ``values``."""

    @property
    def is_empty(self) -> bool:
        """Universal matching: a return key."""
        return not self.values and not self.items

    @property
    def is_pattern(self) -> bool:
        return any(has_wildcard(self.vr, value) for value in self.values)


Scope = dict[int, Entry]
"""The entries of a data set or an item, by tag."""


class KeyReader:
    """Reads mappings of names to JSON values into scopes; one reader a document, since it counts the keys of all."""

    def __init__(self) -> None:
        self._left = MAX_KEYS

    def read(self, members: Mapping[str, Any], scope: Scope, known_beside: Iterable[str] = ()) -> None:
        """Add the keys in ``members`` to ``scope``; one given twice must have the same value.

        ``known_beside``: other names that are allowed where the mapping stands, for the hint about a misspelt one.
        Raises ``IdentifierError``.
        """
        for name, raw in members.items():
            key = _LEVEL_KEY if name in LEVEL_ALIASES else resolve(name, (*LEVEL_ALIASES, *known_beside))
            _add(scope, self._entry(key, shown(name), raw, 0))

    def _count(self, path: str) -> None:
        self._left -= 1
        if self._left < 0:
            raise IdentifierError(f"An identifier may have at most {MAX_KEYS} keys and sequence items", key=path)

    def _entry(self, key: Key, path: str, raw: Any, depth: int) -> Entry:
        self._count(path)
        vrs, value = _vrs_and_value(key, path, raw)
        if vrs[0] == "SQ":
            return Entry(path, key, "SQ", [], self._items(path, value, depth + 1))
        vr, values = _checked(path, vrs, value)
        if key.tag == LEVEL_TAG:
            values = [_level_value(path, value) for value in values]
        return Entry(path, key, vr, values, [])

    def _items(self, path: str, value: Any, depth: int) -> list[Scope]:
        if value is None or value == "":
            return []
        items = value if isinstance(value, list) else [value]
        if len(items) > MAX_VALUES:
            raise IdentifierError(f"{path}: {len(items)} items are more than the {MAX_VALUES} allowed", key=path)
        if depth > MAX_NESTING:
            raise IdentifierError(f"{path}: sequences may be nested {MAX_NESTING} deep", key=path)
        return [self._item(f"{path}[{index}]", item, depth) for index, item in enumerate(items)]

    def _item(self, path: str, item: Any, depth: int) -> Scope:
        self._count(path)
        if not isinstance(item, dict):
            raise IdentifierError(f"{path}: an item of a sequence is a JSON object with its keys", key=path)
        scope: Scope = {}
        for name, raw in item.items():
            key = resolve(name)
            if key.tag in _NEVER_NESTED:
                raise IdentifierError(f"{path}.{shown(name)} does not belong inside a sequence", key=shown(name))
            _add(scope, self._entry(key, f"{path}.{shown(name)}", raw, depth))
        check_private_creators(scope)
        return scope


def check_private_creators(scope: Scope) -> None:
    """Raise ``IdentifierError`` for a private element whose block no private creator reserves (PS3.5 section 7.8.1)."""
    for tag, entry in scope.items():
        if not entry.key.is_private or entry.key.is_private_creator:
            continue
        creator = (tag & 0xFFFF0000) | (tag >> 8 & 0xFF)
        if creator not in scope or scope[creator].is_empty:
            raise IdentifierError(
                f"{entry.name} is a private element, and its private creator is not given",
                key=entry.name,
                hint=f'add "{creator:08X}": {{"vr": "LO", "Value": ["the name of the creator"]}}',
            )


def build(scope: Scope) -> Dataset:
    """Return a data set with the keys in ``scope``; text in Unicode."""
    ds = Dataset()
    for tag, entry in scope.items():
        ds.add(element(tag, entry.vr, _pydicom_value(entry)))
    return ds


def element(tag: int, vr: str, value: Any) -> DataElement:
    """Return a data element without having pydicom check its value again; None is a return key."""
    return DataElement(BaseTag(tag), vr, value, validation_mode=_NO_VALIDATION)


def _pydicom_value(entry: Entry) -> Any:
    if entry.vr == "SQ":
        return Sequence([build(item) for item in entry.items])
    if len(entry.values) > 1:
        return entry.values
    return entry.values[0] if entry.values else None


def _add(scope: Scope, entry: Entry) -> None:
    present = scope.setdefault(entry.key.tag, entry)
    if present != entry:
        raise IdentifierError(
            f"{present.name} and {entry.name} are both {entry.key}, with different values",
            key=entry.name,
            hint="give each key once",
        )


def _vrs_and_value(key: Key, path: str, raw: Any) -> tuple[tuple[str, ...], Any]:
    """The VRs to try and the value, of a plain value or an element of the DICOM JSON model (PS3.18 section F.2.2)."""
    if not (isinstance(raw, dict) and not _ELEMENT_MEMBERS.isdisjoint(raw)):
        if not key.vrs:
            raise _needs_vr(key, path)
        return key.vrs, raw
    if extra := [member for member in raw if member not in ("vr", "Value")]:
        hint = "an element has the members vr and Value; bulk data cannot be matched"
        raise IdentifierError(f"{path}: {shown(extra[0])} is not allowed here", key=path, hint=hint)
    value = raw.get("Value")
    if value is not None and not isinstance(value, list):
        raise IdentifierError(f"{path}: Value must be a list (PS3.18 section F.2.2)", key=path)
    return _declared_vrs(key, path, raw), value


def _declared_vrs(key: Key, path: str, raw: dict[str, Any]) -> tuple[str, ...]:
    vr = raw.get("vr")
    if vr is None:
        if not key.vrs:
            raise _needs_vr(key, path)
        return key.vrs
    if isinstance(vr, str) and (vr in key.vrs or (not key.vrs and (vr in CHECKS or vr in _BINARY_VRS or vr == "SQ"))):
        return (vr,)
    wrong = f"VR {shown(vr, 8)}" if isinstance(vr, str) else "a vr that is not text"
    right = f"{key} has VR {' or '.join(key.vrs)}" if key.vrs else "which is not a VR of DICOM (PS3.5 section 6.2)"
    raise IdentifierError(f"{path} is given with {wrong}; {right}", key=path)


def _needs_vr(key: Key, path: str) -> IdentifierError:
    kind = "a private element" if key.is_private else "not in the data dictionary"
    hint = f'write "{key.tag:08X}": {{"vr": "LO", "Value": ["..."]}} with its own VR'
    return IdentifierError(f"{path} is {kind}, so its VR must be given", key=path, hint=hint)


def _checked(path: str, vrs: tuple[str, ...], value: Any) -> tuple[str, list[Value]]:
    """Check against each VR the dictionary allows, so that -1 fits "US or SS"; the first VR's complaint counts."""
    failure: BadValueError | None = None
    for vr in vrs:
        try:
            return vr, check_values(vr, value)
        except BadValueError as error:
            failure = failure or error
    assert failure is not None
    raise IdentifierError(f"{path}: {failure.detail}", key=path, hint=failure.hint) from None


def _level_value(path: str, value: Value) -> Value:
    level = level_of(str(value))
    if level is None:
        raise IdentifierError(
            f"{path}: this is not a query level", key=path, hint="use PATIENT, STUDY, SERIES or IMAGE"
        )
    return level.value
