"""What a service offers over HTTP, as data beside its code: the vocabulary of the OpenAPI document.

How to describe a route:

1. Beside the code that serves it, in the one module of its service that is called ``describing`` (or where the routes
   are), write an ``Operation`` for each method and path. ``path`` is what follows the prefix, with ``{name}`` for a
   segment that varies; the parameters of such segments are ``path_parameter``. HEAD is understood where GET is.
2. ``answers`` are the statuses that are no errors, ``problems`` the statuses of problem details. 400, 500 and 503 can
   always come and are added by themselves, and so are 413 and 415 where there is a ``body``.
3. Put it into the ``operations`` of the service's ``Description``; what it refers to with ``ref`` goes into
   ``schemas``. Names of operations are unique in their description and stay: they become operationIds.
4. ``harmonyd.services.describing`` says which endpoint has which description, and ``harmonyd.web.openapi`` makes the
   document. The tests of each service compare its description with what it serves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Schema = Mapping[str, Any]
"""JSON Schema 2020-12, as OpenAPI 3.1 has it."""
Media = Mapping[str, Schema]
"""By media type."""

TEXT: Schema = {"type": "string"}
BINARY: Schema = {}
"""Bytes: OpenAPI 3.1 says nothing about what is no JSON."""


def ref(name: str) -> Schema:
    """Refer to one of the ``schemas`` of a description."""
    return {"$ref": f"#/components/schemas/{name}"}


def list_of(item: Schema) -> Schema:
    """A JSON array."""
    return {"type": "array", "items": item}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A part of the path (``place`` is "path"), a query parameter ("query") or a header field ("header")."""

    name: str
    text: str
    schema: Schema = field(default_factory=lambda: TEXT)
    place: str = "query"
    example: Any = None


def path_parameter(name: str, text: str, schema: Schema = TEXT, example: Any = None) -> Parameter:
    """A segment of the path that varies."""
    return Parameter(name, text, schema, "path", example)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a status means, and its body by media type; ``headers``: name and meaning of fields that matter."""

    text: str
    media: Media = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    """After the prefix; "" is the prefix itself."""
    name: str
    summary: str
    answers: Mapping[int, Answer]
    text: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: Media | None = None
    body_is_required: bool = True
    problems: tuple[int, ...] = ()
    any_answer: str = ""
    """Says what else may come, where that is not for us to know."""

    @property
    def segments(self) -> tuple[str, ...]:
        """The segments of ``path``."""
        return segments_of(self.path)

    def variables(self, segments: Sequence[str]) -> Mapping[str, str] | None:
        """Return what stands for the variables where ``segments`` are a path of this operation, None where not."""
        if len(segments) != len(self.segments):
            return None
        pairs = list(zip(self.segments, segments, strict=True))
        if not all(given if name.startswith("{") else name == given for name, given in pairs):
            return None
        return {name[1:-1]: given for name, given in pairs if name.startswith("{")}


@dataclass(frozen=True, slots=True)
class Description:
    """What one endpoint offers."""

    tag: str
    """Its heading."""
    text: str
    operations: tuple[Operation, ...]
    schemas: Mapping[str, Schema] = field(default_factory=dict)
    schemes: Mapping[str, Schema] = field(default_factory=dict)
    """Ways to show who one is, as OpenAPI's Security Scheme Objects."""
    security: tuple[frozenset[str], ...] = ()
    """Which of them have to be shown together: one of these will do. Empty: none."""

    def having(self, *, parameters: Iterable[Parameter] = (), problems: Iterable[int] = ()) -> Description:
        """Return it with more parameters and problems for each of its operations."""
        more, statuses = tuple(parameters), tuple(problems)
        changed = (
            replace(item, parameters=item.parameters + more, problems=item.problems + statuses)
            for item in self.operations
        )
        return replace(self, operations=tuple(changed))


def segments_of(path: str) -> tuple[str, ...]:
    """The segments of a path; none for "" and "/"."""
    return tuple(path.strip("/").split("/")) if path.strip("/") else ()
