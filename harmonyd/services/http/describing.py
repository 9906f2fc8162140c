"""What an ``http`` endpoint offers over a backend that takes every path: ``http``, ``storage`` and ``echo``."""

from __future__ import annotations

from collections.abc import Sequence

from harmonyd.describe import BINARY, Answer, Description, Operation, Schema, path_parameter

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
"""Those that are described where an endpoint takes all."""
_NO_BODY = frozenset({"GET", "HEAD", "DELETE", "OPTIONS", "TRACE"})
_DESCRIBED = frozenset({*_METHODS, "HEAD", "OPTIONS", "TRACE"})
"""OpenAPI has no place for other methods."""
_SEGMENT = path_parameter("path", "What follows, which may have several segments", {"type": "string", "minLength": 1})
_ECHOED: Schema = {
    "type": "object",
    "required": ["id", "protocol", "method", "path", "query", "headers", "metadata", "body"],
}
_KEPT: Schema = {"type": "object", "required": ["operation", "success", "kept"]}


def forwarding(tag: str, methods: Sequence[str]) -> Description:
    """Everything goes to another HTTP server, and its answers come back."""
    said = "What the server behind answers, with whatever status."
    operations = _everywhere("forward", "To the server behind", methods, {}, said, (502, 504))
    return Description(tag, "Passed on to an HTTP server.", operations)


def echoing(tag: str, methods: Sequence[str]) -> Description:
    """The answer is the request."""
    answers = {200: Answer("The request, as it got here.", {"application/json": _ECHOED})}
    return Description(tag, "Answers with what it got.", _everywhere("echo", "Echo", methods, answers, "", ()))


def keeping(tag: str, methods: Sequence[str]) -> Description:
    """Objects are kept in a folder; the path means nothing."""
    answers = {200: Answer("It is kept.", {"application/json": _KEPT})}
    kept = Operation(
        "POST",
        "",
        "keep",
        "Keep an object",
        answers,
        body={"application/dicom": BINARY},
        problems=(507,),
    )
    return Description(tag, "Keeps objects in a folder.", (kept,) if not methods or "POST" in methods else ())


def _everywhere(
    name: str,
    summary: str,
    methods: Sequence[str],
    answers: dict[int, Answer],
    any_answer: str,
    problems: tuple[int, ...],
) -> tuple[Operation, ...]:
    chosen = [method for method in methods or _METHODS if method in _DESCRIBED]
    return tuple(
        Operation(
            method,
            path,
            f"{name}{method.capitalize()}{more}",
            f"{summary}, at a path below" if path else summary,
            answers,
            parameters=(_SEGMENT,) if path else (),
            body=None if method in _NO_BODY else {"*/*": BINARY},
            body_is_required=False,
            problems=problems,
            any_answer=any_answer,
        )
        for path, more in (("", ""), ("/{path}", "Below"))
        for method in chosen
        if not (method == "HEAD" and "GET" in chosen)
    )
