"""The OpenAPI 3.1 document of what is served on a network, made of what the services say of themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from harmonyd import __version__
from harmonyd.describe import Answer, Description, Media, Operation, Parameter, Schema, ref

PROBLEM_JSON = "application/problem+json"
_ALWAYS = (400, 500, 503)
_WITH_BODY = (413, 415)
_NO_WORD = re.compile(r"[^0-9A-Za-z]+")
PROBLEMS: Mapping[int, str] = {
    400: "The request is wrong; key names the part of it where that is known.",
    401: "Credentials are missing or wrong; WWW-Authenticate says which would do.",
    403: "The configuration does not let this caller do this.",
    404: "Nothing is there, or nothing matched.",
    405: "The path takes other methods; Allow says which.",
    406: "Nothing that the client accepts can be had; offered says what can.",
    408: "The request came too slowly.",
    409: "It cannot be done in this state.",
    410: "It was there, and is no more.",
    413: "The body is larger than its limit.",
    414: "The request line is too long.",
    415: "The body is of a kind that is not read here.",
    416: "There is no such range; Content-Range says how many bytes there are.",
    429: "One of the caller's limits is reached; Retry-After says when to try again.",
    431: "The head of the request is too large.",
    500: "A fault of harmonyd; its log has the details.",
    502: "The node behind cannot be reached, refused, broke off, or failed.",
    503: "Not now: shutting down, too much at once, or a part is not ready.",
    504: "The node behind was silent for too long.",
    507: "The disk cannot take it.",
}
PROBLEM: Schema = {
    "type": "object",
    "description": "A problem detail (RFC 9457). There may be more members.",
    "required": ["type", "title", "status", "detail", "success", "error", "fault", "request_id"],
    "properties": {
        "type": {"type": "string", "pattern": "^urn:harmonyd:problem:[a-z-]+$"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "operation": {"type": "string"},
        "success": {"const": False},
        "error": {"type": "string", "description": "The same as detail, as Harmony calls it."},
        "fault": {"enum": ["caller", "remote", "ours"], "description": "Whose side has to change something."},
        "hint": {"type": "string", "description": "What to change there."},
        "request_id": {"type": "string", "description": "The same as in X-Request-ID."},
    },
}


def openapi(title: str, served: Iterable[tuple[str, Description]]) -> dict[str, Any]:
    """Return the document of what is ``served``: prefixes, and what is offered below each."""
    served = [(prefix, found) for prefix, found in served if found.operations]
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Schema] = {"Problem": PROBLEM}
    schemes: dict[str, Schema] = {}
    statuses: set[int] = set()
    names = _Names()
    for prefix, found in served:
        schemas |= found.schemas
        schemes |= found.schemes
        for item in found.operations:
            path = quote(prefix, safe="/:@!$&'()*+,;=~") + item.path or "/"
            made = _operation(item, found.tag, names.unique(f"{found.tag}_{item.name}"))
            if found.security:
                made["security"] = [{name: [] for name in sorted(way)} for way in found.security]
            paths.setdefault(path, {})[item.method.lower()] = made
            statuses.update(_problems(item))
    tags = {found.tag: found.text for _, found in served}
    return {
        "openapi": "3.1.1",
        "info": {"title": title, "version": __version__, "description": "Served by harmonyd."},
        "servers": [{"url": "/"}],
        "tags": [{"name": name} | ({"description": text} if text else {}) for name, text in tags.items()],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {f"Problem{status}": _problem(status) for status in sorted(statuses)},
            **({"securitySchemes": schemes} if schemes else {}),
            "headers": {"RequestId": {"description": "The correlation id", "schema": {"type": "string"}}},
        },
    }


class _Names:
    """operationIds: words for programs, each once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def unique(self, name: str) -> str:
        wanted = _NO_WORD.sub("_", name)
        found, number = wanted, 1
        while found in self._taken:
            number += 1
            found = f"{wanted}_{number}"
        self._taken.add(found)
        return found


def _operation(item: Operation, tag: str, name: str) -> dict[str, Any]:
    made: dict[str, Any] = {"operationId": name, "tags": [tag], "summary": item.summary}
    if item.text:
        made["description"] = item.text
    if item.parameters:
        made["parameters"] = list(map(_parameter, item.parameters))
    if item.body is not None:
        made["requestBody"] = {"required": item.body_is_required, "content": _content(item.body)}
    made["responses"] = dict(_responses(item))
    return made


def _parameter(given: Parameter) -> dict[str, Any]:
    made: dict[str, Any] = {"name": given.name, "in": given.place, "description": given.text, "schema": given.schema}
    if given.place == "path":
        made["required"] = True
    if given.example is not None:
        made["example"] = given.example
    return made


def _responses(item: Operation) -> Iterator[tuple[str, dict[str, Any]]]:
    problems = _problems(item)
    for status in sorted({*item.answers, *problems}):
        answer = item.answers.get(status)
        if answer is None:
            yield str(status), {"$ref": f"#/components/responses/Problem{status}"}
        else:
            yield str(status), _answer(answer, is_problem_too=status in problems)
    if item.any_answer:
        yield "default", {"description": item.any_answer}


def _problems(item: Operation) -> Sequence[int]:
    return sorted({*_ALWAYS, *item.problems, *(() if item.body is None else _WITH_BODY)})


def _answer(answer: Answer, *, is_problem_too: bool) -> dict[str, Any]:
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()}
    made: dict[str, Any] = {"description": answer.text, "headers": _headers() | headers}
    content = _content(answer.media) | ({PROBLEM_JSON: {"schema": ref("Problem")}} if is_problem_too else {})
    return made | ({"content": content} if content else {})


def _content(media: Media) -> dict[str, Any]:
    return {name: {"schema": schema} if schema else {} for name, schema in media.items()}


def _problem(status: int) -> dict[str, Any]:
    headers = _headers()
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        headers["Retry-After"] = {"description": "Seconds", "schema": {"type": "string"}}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = {"description": "Which credentials will do", "schema": {"type": "string"}}
    return {
        "description": PROBLEMS[status],
        "headers": headers,
        "content": {PROBLEM_JSON: {"schema": ref("Problem")}},
    }


def _headers() -> dict[str, Any]:
    return {"X-Request-ID": {"$ref": "#/components/headers/RequestId"}}
