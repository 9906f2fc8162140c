"""The JSON document of a request, taken apart: where its keys stand, and what it says beside them.

A document is an object of query keys, or a wrapper with the keys in ``identifier`` or ``query``, or both at once.
Beside the keys it may say:

===================================  ===================================================================================
``operation``                        the DIMSE operation: find, C-FIND, c_find ...
``level``, ``query_level``           the level, like the key QueryRetrieveLevel
``model``, ``query_model``           "study" or "patient" root
``return``                           "default" adds return keys to a find, "requested" does not
``destination``                      AE title a move goes to; only the one that the backend is configured with
``command``                          Harmony's command set: see ``_COMMAND_MEMBERS``
``query_metadata``                   Harmony's notes: level, model, request_id, and {key: {"match_type": ...}}
===================================  ===================================================================================

A message id and a request id are accepted and not used: the engine numbers its messages, and the correlation id is
``X-Request-ID``. Everything else is used, checked against what will be done, or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harmonyd.dimse.engine import QueryModel
from harmonyd.dimse.errors import IdentifierError
from harmonyd.dimse.keys import nearest, shown
from harmonyd.dimse.levels import model_of

OPERATIONS = ("echo", "find", "worklist", "get", "move", "store", "commit")

_OPERATION_WORDS = {
    form: name for name in OPERATIONS for form in (name, f"c-{name}", f"c_{name}", f"c {name}", f"c{name}")
}
_SOP_CLASSES = {
    f"1.2.840.10008.5.1.4.1.2.{root}.{number}": (operation, model)
    for root, model in ((1, QueryModel.PATIENT_ROOT), (2, QueryModel.STUDY_ROOT))
    for number, operation in ((1, "find"), (2, "move"), (3, "get"))
}
"""The Query/Retrieve SOP classes (PS3.4 section C.6): what they do and by which model."""

_WRAPPERS = ("identifier", "query")
_MODEL = ("model", "query_model")
_METADATA = ("query_metadata", "queryMetadata")
_MATCH_TYPE = ("match_type", "matchType")
MATCH_TYPES = frozenset({"EXACT", "SINGLE", "WILDCARD", "RANGE", "LIST", "SEQUENCE", "RETURN_KEY", "UNIVERSAL"})

CONTROLS = ("operation", "return", "destination", "command", *_WRAPPERS, *_MODEL, _METADATA[0])
"""Members of a document that are not query keys."""

_COMMAND_MEMBERS = {
    "operation": "operation",
    "level": "level",
    "querylevel": "level",
    "queryretrievelevel": "level",
    "model": "model",
    "querymodel": "model",
    "sopclassuid": "sop_class",
    "affectedsopclassuid": "sop_class",
    "priority": "priority",
    "direction": "direction",
    "destination": "destination",
    "movedestination": "destination",
    "messageid": "ignored",
}
"""Members of ``command``, compared without case and underscores; what they mean."""


@dataclass(slots=True)
class Document:
    """What a document says."""

    sections: list[Mapping[str, Any]] = field(default_factory=list)
    """Mappings of query keys, in the order of the document."""
    model: QueryModel | None = None
    adds_return_keys: bool = True
    match_types: dict[str, str] = field(default_factory=dict)
    """Key to what the client says of its matching."""


def requested_operation(document: Any) -> str | None:
    """Return the operation a document asks for (echo, find, get, move, store), or None when it leaves that open.

    Looks at ``operation``, also inside ``command``. Raises ``IdentifierError`` for one that is unknown, and for two
    that differ.
    """
    if not isinstance(document, dict):
        return None
    asked = _operation("operation", document.get("operation"))
    command = document.get("command")
    if isinstance(command, dict):
        inner = _operation("command.operation", command.get("operation"))
        if asked and inner and asked != inner:
            raise _refused("command.operation", f"is {inner}, but operation is {asked}")
        asked = asked or inner
    return asked


def take_apart(document: Any, operation: str, destination: str | None) -> Document:
    """Return what ``document`` says to a find, get or move.

    ``destination`` is the AE title moves go to, the only one a document may name. Raises ``IdentifierError``.
    """
    if document is None:
        return Document()
    if not isinstance(document, dict):
        raise IdentifierError("A query is a JSON object of keys", hint='for example {"patient_id": "12345"}')
    requested_operation(document)
    return _Splitter(operation, destination).split(document)


class _Splitter:
    def __init__(self, operation: str, destination: str | None) -> None:
        self._operation = operation
        self._destination = destination
        self._result = Document()

    def split(self, document: Mapping[str, Any]) -> Document:
        keys: dict[str, Any] = {}
        self._result.sections.append(keys)
        for name, value in document.items():
            if name in _WRAPPERS:
                self._result.sections.append(_object(name, value))
            elif name == "command":
                self._command(_object(name, value))
            elif name in _METADATA:
                self._metadata(name, _object(name, value))
            elif not self._control(name, name, value):
                keys[name] = value
        return self._result

    def _control(self, meaning: str, name: str, value: Any) -> bool:
        """Use a member that is not a key; return False if it is something else."""
        if meaning in _MODEL:
            self._set_model(name, _model(name, value))
        elif meaning == "return":
            self._result.adds_return_keys = _adds_return_keys(value)
        elif meaning == "destination":
            self._check_destination(name, value)
        else:
            return meaning == "operation"
        return True

    def _command(self, command: Mapping[str, Any]) -> None:
        for member, value in command.items():
            name = f"command.{shown(member)}"
            meaning = _COMMAND_MEMBERS.get(member.lower().replace("_", ""))
            if meaning is None:
                raise _unknown_member(name, member, tuple(_COMMAND_MEMBERS))
            if meaning == "level":
                self._result.sections.append({"level": value})
            elif meaning == "sop_class":
                self._sop_class(name, value)
            elif meaning == "priority" and value not in (None, 0, "MEDIUM", "medium"):
                raise _refused(name, "must be MEDIUM: requests are sent with no other priority")
            elif meaning == "direction" and value not in (None, "REQUEST", "request"):
                raise _refused(name, "must be REQUEST")
            else:
                self._control(meaning, name, value)

    def _metadata(self, where: str, metadata: Mapping[str, Any]) -> None:
        for member, value in metadata.items():
            name = f"{where}.{shown(member)}"
            if member in ("level", "query_level", "QueryRetrieveLevel", "query_retrieve_level"):
                self._result.sections.append({"level": value})
            elif member in _MODEL:
                self._set_model(name, _model(name, value))
            elif member != "request_id":
                self._result.match_types[member] = _match_type(name, value)

    def _sop_class(self, name: str, value: Any) -> None:
        if value is None or value == "":
            return
        operation, model = _SOP_CLASSES.get(value, (None, None)) if isinstance(value, str) else (None, None)
        if operation != self._operation:
            raise _refused(name, f"is not the SOP class of a {self._operation} in Patient Root or Study Root")
        self._set_model(name, model)

    def _set_model(self, name: str, model: QueryModel | None) -> None:
        if model and self._result.model not in (None, model):
            raise _refused(name, "asks for another query model than the rest of the document")
        self._result.model = model or self._result.model

    def _check_destination(self, name: str, value: Any) -> None:
        if value is None or value == "":
            return
        if self._operation != "move":
            raise _refused(name, f"belongs to a move, not to a {self._operation}")
        if not isinstance(value, str) or value.strip(" ") != self._destination:
            only = f"can only be {self._destination}" if self._destination else "cannot be chosen"
            raise _refused(name, f"{only}: the backend's move_destination_aet says where objects go")


def _operation(name: str, value: Any) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and (known := _OPERATION_WORDS.get(value.strip().lower())):
        return known
    raise IdentifierError(f"{name}: this is not a DIMSE operation", key=name, hint=f"use {', '.join(OPERATIONS)}")


def _model(name: str, value: Any) -> QueryModel | None:
    if value is None or value == "":
        return None
    model = model_of(value) if isinstance(value, str) else None
    if model is None:
        raise IdentifierError(f"{name} is not a query model", key=name, hint='use "study" or "patient"')
    return model


def _adds_return_keys(value: Any) -> bool:
    if value not in (None, "default", "requested"):
        raise IdentifierError('return must be "default" or "requested"', key="return")
    return bool(value != "requested")


def _match_type(name: str, value: Any) -> str:
    members = list(value.items()) if isinstance(value, dict) else []
    if len(members) != 1 or members[0][0] not in _MATCH_TYPE or str(members[0][1]) not in MATCH_TYPES:
        known = ", ".join(sorted(MATCH_TYPES))
        raise IdentifierError(f'{name} must be {{"match_type": TYPE}}', key=name, hint=f"TYPE is one of {known}")
    return str(members[0][1])


def _object(name: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _refused(name, "must be a JSON object")
    return value


def _refused(name: str, reason: str) -> IdentifierError:
    return IdentifierError(f"{name} {reason}", key=name)


def _unknown_member(name: str, member: str, known: tuple[str, ...]) -> IdentifierError:
    near = nearest(member, known)
    return IdentifierError(f"{name} is not known", key=name, hint=f"did you mean {near}?" if near else None)
