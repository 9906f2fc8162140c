"""What an ``http`` endpoint offers over a ``dicom`` backend: DIMSE operations, and each of them at its own path."""

from __future__ import annotations

from dataclasses import replace

from harmonyd.describe import BINARY, TEXT, Answer, Description, Media, Operation, Schema, list_of, ref
from harmonyd.services.http import media

_REMOTE = (502, 504)
_ELEMENT: Schema = {
    "type": "object",
    "required": ["vr"],
    "properties": {
        "vr": {"type": "string", "pattern": "^[A-Z]{2}$"},
        "Value": {"type": "array", "items": {"type": ["object", "string", "number", "null"]}},
        "BulkDataURI": TEXT,
        "InlineBinary": TEXT,
    },
}
DATASET: Schema = {
    "type": "object",
    "description": "A data set in the DICOM JSON Model (PS3.18 Annex F).",
    "patternProperties": {"^[0-9A-F]{8}$": _ELEMENT},
    "additionalProperties": False,
}
_LEVELS = ["PATIENT", "STUDY", "SERIES", "IMAGE"]
_UIDS: Schema = {"type": ["string", "array", "null"], "items": {"type": ["string", "null"]}}
_IDENTIFIER: Schema = {
    "type": "object",
    "description": "Query keys: DICOM keywords, the same in snake case, or tags (plain or in the DICOM JSON Model). "
    "They may stand in identifier or query, too. An empty value, null or [] asks for the attribute, a list is several "
    "values. Without QueryRetrieveLevel (or level) it follows from the keys. Keys that are unknown, and values that "
    "their VR does not allow, are 400.",
    "properties": {
        "QueryRetrieveLevel": {"enum": ["PATIENT", "STUDY", "SERIES", "IMAGE", None]},
        "query_model": {"enum": ["study", "patient", None]},
        "PatientID": {"type": ["string", "null"]},
        "StudyInstanceUID": _UIDS,
        "SeriesInstanceUID": _UIDS,
        "SOPInstanceUID": _UIDS,
    },
}
_OUTCOME = {
    "operation": {"type": "string"},
    "success": {"type": "boolean"},
    "complete": {"type": "boolean", "description": "Whether nothing is missing."},
    "incomplete_reason": {"type": "string"},
}
_SUBOPERATIONS = {name: {"type": ["integer", "null"]} for name in ("completed", "failed", "warning", "remaining")}


_REFERENCE: Schema = {
    "type": "object",
    "required": ["sop_class_uid", "sop_instance_uid"],
    "properties": {"sop_class_uid": TEXT, "sop_instance_uid": TEXT},
}


def _result(more: dict[str, Schema], *required: str) -> Schema:
    return {
        "type": "object",
        "required": ["operation", "success", "complete", *required],
        "properties": {**_OUTCOME, **more},
    }


SCHEMAS: dict[str, Schema] = {
    "DataSet": DATASET,
    "FindIdentifier": {
        **_IDENTIFIER,
        "type": ["object", "null"],
        "properties": {
            **_IDENTIFIER["properties"],
            "return": {"enum": ["default", "requested", None], "description": "requested: no keys beside those given."},
        },
        "examples": [{"PatientID": "77654033", "QueryRetrieveLevel": "STUDY"}],
    },
    "RetrieveIdentifier": {**_IDENTIFIER, "examples": [{"StudyInstanceUID": "1.2.840.113619.2.30.1"}]},
    "NamedOperation": {
        "type": "object",
        "description": "An identifier, and the operation.",
        "required": ["operation"],
        "properties": {"operation": {"enum": ["C-ECHO", "C-FIND", "C-GET", "C-MOVE"], "description": "Or echo …"}},
        "examples": [{"operation": "C-ECHO"}],
    },
    "EchoResult": _result(
        {"remote_aet": {"type": "string"}, "host": {"type": "string"}, "port": {"type": "integer"}},
        *("remote_aet", "host", "port"),
    ),
    "FindResult": _result({"matches": list_of(ref("DataSet")), "count": {"type": "integer"}}, "matches", "count"),
    "WorklistIdentifier": {
        "type": ["object", "null"],
        "description": "Query keys, spelt as those of a find; those of the step (Modality, ScheduledStationAETitle …) "
        "in ScheduledProcedureStepSequence, or beside it. There are no levels.",
        "properties": {"return": {"enum": ["default", "requested", None]}},
        "examples": [{"Modality": "CT", "ScheduledProcedureStepStartDate": "20240229"}],
    },
    "CommitRequest": {
        "type": "object",
        "description": "Either references, or the UIDs of a study (and series, and instance) that the PACS has.",
        "properties": {
            "references": list_of(_REFERENCE),
            "StudyInstanceUID": TEXT,
            "SeriesInstanceUID": TEXT,
            "SOPInstanceUID": TEXT,
            "wait_secs": {"type": "number", "exclusiveMinimum": 0, "description": "For the report; 60 unless given."},
        },
        "examples": [{"StudyInstanceUID": "1.2.840.113619.2.30.1"}],
    },
    "CommitResult": _result(
        {
            "transaction_uid": TEXT,
            "committed": list_of(_REFERENCE),
            "failed": list_of(
                {
                    **_REFERENCE,
                    "properties": {**_REFERENCE["properties"], "failure_reason": TEXT},
                }
            ),
        },
        *("transaction_uid", "committed", "failed"),
    ),
    "RetrieveResult": _result(
        {
            "instances": list_of(ref("DataSet")),
            "file_count": {"type": "integer", "description": "How many arrived."},
            "folder_id": {"type": ["string", "null"]},
            "folder_path": {"type": ["string", "null"]},
            "suboperations": {"type": "object", "properties": _SUBOPERATIONS, "description": "As the PACS counted."},
            "warnings": list_of({"type": "string"}),
        },
        *("instances", "file_count"),
    ),
    "StoreResult": _result(
        {
            "instances": list_of(
                {
                    "type": "object",
                    "required": ["sop_class_uid", "sop_instance_uid", "status", "status_text"],
                    "properties": {
                        "sop_class_uid": {"type": "string"},
                        "sop_instance_uid": {"type": "string"},
                        "status": {"type": ["string", "null"], "description": "0xHHHH; null: no answer."},
                        "status_text": {"type": "string"},
                        "dimse_comment": {"type": "string"},
                    },
                }
            ),
            "stored": {"type": "integer"},
            "failed": {"type": "integer"},
        },
        *("instances", "stored", "failed"),
    ),
}
_CUT = "Every form but application/json is cut where it is not complete: it never ends as if it were."
_SHAPES: dict[str, Media] = {
    "echo": {media.JSON: ref("EchoResult")},
    "find": {media.JSON: ref("FindResult"), media.DICOM_JSON: list_of(ref("DataSet")), media.NDJSON: BINARY},
    "get": {
        media.JSON: ref("RetrieveResult"),
        media.MULTIPART_DICOM: BINARY,
        media.ZIP: BINARY,
        media.DICOM: BINARY,
    },
    "store": {media.JSON: ref("StoreResult")},
    "commit": {media.JSON: ref("CommitResult")},
}
_FIND: Media = {media.JSON: ref("FindIdentifier")}
_RETRIEVE: Media = {media.JSON: ref("RetrieveIdentifier")}
OBJECTS: Media = {media.DICOM: BINARY, media.MULTIPART_DICOM: BINARY}

OPERATIONS = (
    Operation(
        "POST",
        "/echo",
        "echo",
        "C-ECHO: ask whether the PACS is there and accepts us",
        {200: Answer("It answered.", _SHAPES["echo"])},
        body={media.JSON: {}},
        body_is_required=False,
        problems=(406, *_REMOTE),
    ),
    Operation(
        "POST",
        "/find",
        "find",
        "C-FIND: the data sets that match an identifier",
        {200: Answer("The matches, none being an answer like any other.", _SHAPES["find"])},
        text=_CUT,
        body=_FIND,
        body_is_required=False,
        problems=(406, *_REMOTE, 507),
    ),
    Operation(
        "POST",
        "/worklist",
        "worklist",
        "C-FIND of the Modality Worklist: scheduled procedure steps",
        {200: Answer("The matches, none being an answer like any other.", _SHAPES["find"])},
        text=_CUT,
        body={media.JSON: ref("WorklistIdentifier")},
        body_is_required=False,
        problems=(406, *_REMOTE, 507),
    ),
    Operation(
        "POST",
        "/get",
        "get",
        "C-GET: retrieve instances over the association that asks for them",
        {200: Answer("The instances, sent while they arrive.", _SHAPES["get"])},
        text=f"Needs the unique keys of its level and of those above. {_CUT}",
        body=_RETRIEVE,
        problems=(404, 406, *_REMOTE, 507),
    ),
    Operation(
        "POST",
        "/move",
        "move",
        "C-MOVE: have the PACS send instances to harmonyd's own receiver, and return them",
        {200: Answer("The instances, sent while they arrive.", _SHAPES["get"])},
        text=f"Needs the unique keys of its level and of those above. {_CUT}",
        body=_RETRIEVE,
        problems=(404, 406, *_REMOTE, 507),
    ),
    Operation(
        "POST",
        "/store",
        "store",
        "C-STORE: send instances to the PACS",
        {200: Answer("What the PACS said about each; success is true only when it took all.", _SHAPES["store"])},
        body=OBJECTS,
        problems=(406, *_REMOTE, 507),
    ),
    Operation(
        "POST",
        "/commit",
        "commit",
        "Storage Commitment: have the PACS commit itself to keep instances",
        {200: Answer("What it reported about each; success is true only when all are committed.", _SHAPES["commit"])},
        text="Needs engine = \"native\" of the backend.",
        body={media.JSON: ref("CommitRequest")},
        problems=(404, 406, *_REMOTE),
    ),
)
ANY = Operation(
    "POST",
    "",
    "operate",
    "The operation that the body names, as Harmony's clients ask",
    {
        200: Answer(
            "As at the path of that operation.",
            {
                media.JSON: {"type": "object", "required": ["operation", "success", "complete"]},
                **{name: shape for name, shape in {**_SHAPES["find"], **_SHAPES["get"]}.items() if name != media.JSON},
            },
        )
    },
    body={media.JSON: ref("NamedOperation")},
    problems=(404, 406, *_REMOTE, 507),
)


def description(tag: str, fixed: str | None) -> Description:
    """What is offered; ``fixed``: the operation that middleware has chosen, whatever the request says."""
    text = "DIMSE operations at a DICOM node."
    if fixed is None:
        return Description(tag, text, (ANY, *OPERATIONS), SCHEMAS)
    chosen = (replace(item, path="") for item in OPERATIONS if item.name == fixed)
    return Description(tag, text, tuple(chosen), SCHEMAS)
