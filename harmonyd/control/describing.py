"""The management API, for the OpenAPI document. What is below ``/spool`` is served by this table."""

from __future__ import annotations

from collections.abc import Collection

from harmonyd.describe import Answer, Description, Operation, Parameter, Schema, list_of, path_parameter

_JSON = "application/json"
_OBJECT: Schema = {"type": "object"}
_ENTRY: Schema = {
    "type": "object",
    "required": ["id", "endpoint", "received_at", "size_bytes", "request_id", "metadata", "deliveries"],
    "properties": {"id": {"type": "integer"}, "size_bytes": {"type": "integer"}},
}
_ID = path_parameter("id", "Id of an entry", {"type": "integer", "minimum": 1, "maximum": 2**63 - 1})
_BACKEND: Schema = {
    "type": "object",
    "required": ["name", "service"],
    "properties": {
        "name": {"type": "string"},
        "service": {"type": "string"},
        "state": {"enum": ["closed", "open", "half_open"]},
        "in_flight": {"type": "integer"},
        "waiting": {"type": "integer"},
    },
}
_REFRESH = Parameter("refresh", "Ask them for a C-ECHO first", {"enum": ["", "true", "false"]})
_DOCUMENTS = {
    "info": ("getInfo", "The daemon itself", _OBJECT),
    "pipelines": ("getPipelines", "The configuration that runs", list_of(_OBJECT)),
    "routes": ("getRoutes", "What is served over HTTP, and where", list_of(_OBJECT)),
    "children": ("getChildren", "Child processes, and what they use", list_of(_OBJECT)),
    "operations": ("getOperations", "DIMSE operations under way", list_of(_OBJECT)),
}


def _answers(said: str, schema: Schema) -> dict[int, Answer]:
    return {200: Answer(said, {_JSON: schema})}


def _counted(key: str) -> Schema:
    return {"type": "object", "required": [key], "properties": {key: {"type": "integer"}}}


SPOOL = (
    Operation("GET", "/spool", "getSpool", "How much is in the spool", _answers("Counts and ages.", _OBJECT)),
    Operation(
        "GET",
        "/spool/entries",
        "listEntries",
        "Entries of the spool, in the order of their arrival",
        _answers(
            "Some of them.",
            {
                "type": "object",
                "required": ["entries", "next_after"],
                "properties": {"entries": list_of(_ENTRY), "next_after": {"type": ["integer", "null"]}},
            },
        ),
        parameters=(
            Parameter("state", "Only those", {"enum": ["WAITING", "QUARANTINED", "DAMAGED"]}),
            Parameter("endpoint", "Only those that it received", {"type": "string"}),
            Parameter("after", "Only those with larger ids", {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}),
            Parameter("limit", "Most of them", {"type": "integer", "minimum": 1, "maximum": 1000}),
        ),
    ),
    Operation(
        "GET",
        "/spool/entries/{id}",
        "getEntry",
        "One entry",
        _answers("It.", _ENTRY),
        parameters=(_ID,),
        problems=(404,),
    ),
    Operation(
        "DELETE",
        "/spool/entries/{id}",
        "discardEntry",
        "Remove an entry for good",
        _answers("It is gone.", _counted("discarded")),
        parameters=(_ID,),
        problems=(404,),
    ),
    Operation(
        "POST",
        "/spool/entries/{id}/retry",
        "retryEntry",
        "Try an entry now",
        _answers("How many deliveries that concerns.", _counted("deliveries")),
        parameters=(_ID,),
        problems=(404, 409),
    ),
    Operation(
        "POST",
        "/spool/retry",
        "retryAll",
        "Try all now that wait or are in quarantine",
        _answers("How many deliveries that concerns.", _counted("deliveries")),
    ),
)
BACKENDS = (
    Operation(
        "GET",
        "/backends",
        "listBackends",
        "Whether the remote nodes answer, and may be asked now",
        _answers("Each of them.", list_of(_BACKEND)),
        parameters=(_REFRESH,),
    ),
    Operation(
        "GET",
        "/backends/{name}",
        "getBackend",
        "One of them",
        _answers("It.", _BACKEND),
        parameters=(path_parameter("name", "Name of a backend", {"type": "string"}), _REFRESH),
        problems=(404,),
    ),
)
_RESOURCES = {"spool": SPOOL, "backends": BACKENDS}


def description(names: Collection[str]) -> Description:
    """What is offered below its path: documents and resources by their names. They answer this machine only."""
    documents = (
        Operation("GET", f"/{name}", operation, summary, _answers("It.", schema))
        for name, (operation, summary, schema) in _DOCUMENTS.items()
        if name in names
    )
    resources = (item for name, below in _RESOURCES.items() if name in names for item in below)
    found = Description("management", "Only for this machine, by its own names.", (*documents, *resources))
    return found.having(problems=[403])
