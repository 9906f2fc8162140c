"""What is below ``/operations``, for the OpenAPI document."""

from __future__ import annotations

from dataclasses import replace

from harmonyd.describe import TEXT, Answer, Description, Operation, Schema, path_parameter, ref

_JSON = "application/json"
_ID = path_parameter("id", "Id of an operation", {"type": "string", "pattern": "^[0-9a-f]{32}$"})
_GONE = (404, 410)
_COUNT: Schema = {"type": ["integer", "null"]}
_STATE: Schema = {
    "type": "object",
    "required": ["id", "state", "created"],
    "properties": {
        "id": TEXT,
        "state": {"enum": ["queued", "running", "complete", "failed", "cancelled"]},
        "suboperations": {
            "type": ["object", "null"],
            "properties": dict.fromkeys(("completed", "failed", "warning", "remaining"), _COUNT),
        },
        "instances": {"type": "integer"},
        "bytes": {"type": "integer"},
    },
}
_TOLD = Answer("Its state and counts.", {_JSON: ref("LongOperation")})
_OPERATIONS = (
    Operation(
        "GET",
        "/operations/{id}",
        "getOperation",
        "How far an operation is that was asked for with Prefer: respond-async",
        {200: _TOLD},
        parameters=(_ID,),
        problems=_GONE,
    ),
    Operation(
        "DELETE",
        "/operations/{id}",
        "endOperation",
        "Cancel an operation, or remove one that has ended",
        {200: _TOLD, 204: Answer("It had ended, and is removed.")},
        parameters=(_ID,),
        problems=_GONE,
    ),
    Operation(
        "GET",
        "/operations/{id}/events",
        "watchOperation",
        "State and counts whenever they change, to the end",
        {200: Answer("Server-sent events.", {"text/event-stream": {}}), 204: Answer("You have had the last one.")},
        parameters=(_ID,),
        problems=_GONE,
    ),
    Operation(
        "GET",
        "/operations/{id}/result",
        "getResult",
        "What the request would have been answered with",
        {},
        parameters=(_ID,),
        problems=(*_GONE, 409),
        any_answer="The answer to the request, or the problem detail of its failure.",
    ),
)


def with_operations(description: Description) -> Description:
    """Return the description of an endpoint whose requests may be answered later."""
    text = "With Prefer: respond-async a request that may take long is answered with 202 and the Location of its state."
    return replace(
        description,
        text=f"{description.text} {text}".strip(),
        operations=(*description.operations, *_OPERATIONS),
        schemas={**description.schemas, "LongOperation": _STATE},
    )
