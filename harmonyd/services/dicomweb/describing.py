"""The resources of ``dicomweb``, for the OpenAPI document (PS3.18 section 10). ``resources.parse_path`` finds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harmonyd.describe import (
    BINARY,
    TEXT,
    Answer,
    Description,
    Media,
    Operation,
    Parameter,
    Schema,
    list_of,
    path_parameter,
    ref,
)
from harmonyd.services.dicom.describing import DATASET
from harmonyd.services.dicomweb.accept import DICOM, DICOM_JSON, DICOM_XML, JSON, OCTETS, ZIP, Offer

_REMOTE = (502, 504)
_UID: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)*$", "maxLength": 64}
STUDY = path_parameter("study", "Study Instance UID", _UID)
SERIES = path_parameter("series", "Series Instance UID", _UID)
INSTANCE = path_parameter("instance", "SOP Instance UID", _UID)
FRAMES = path_parameter(
    "frames",
    "Frame numbers, the first is 1, with commas between them",
    {"type": "string", "pattern": "^[1-9][0-9]{0,8}(,[1-9][0-9]{0,8})*$"},
    "1",
)
_TAG = path_parameter(
    "tag",
    "Tag of the attribute; inside of sequences the path goes on: item number, tag",
    {"type": "string", "pattern": "^[0-9A-Fa-f]{8}$"},
    "7FE00010",
)
_ABOVE = {
    "": (),
    "/studies/{study}": (STUDY,),
    "/studies/{study}/series/{series}": (STUDY, SERIES),
    "/studies/{study}/series/{series}/instances/{instance}": (STUDY, SERIES, INSTANCE),
}
_STUDY_PATH, _SERIES_PATH, _INSTANCE_PATH = list(_ABOVE)[1:]

SCHEMAS = {"DataSet": DATASET}
_DATASETS = list_of(ref("DataSet"))
_METADATA: Media = {DICOM_JSON: _DATASETS, JSON: _DATASETS, str(Offer(DICOM_XML, multipart=True)): BINARY}
_OBJECTS: Media = {str(Offer(DICOM, multipart=True)): BINARY, ZIP: BINARY, DICOM: BINARY}
_OCTETS: Media = {str(Offer(OCTETS, multipart=True)): BINARY, OCTETS: BINARY}
_COMPRESSED: Media = {
    str(Offer(name, multipart=True)): BINARY
    for name in ("image/jpeg", "image/jls", "image/jp2", "image/jphc", "image/dicom-rle")
}
_PICTURE: Media = {"image/jpeg": BINARY, "image/png": BINARY}
_PICTURES: Media = {str(Offer(name, multipart=True)): BINARY for name in _PICTURE}

_COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 999_999_999}
_SEARCHING = (
    Parameter("limit", "Most results", _COUNT),
    Parameter("offset", "Results that are skipped", _COUNT),
    Parameter(
        "includefield",
        "Attributes to return as well: keywords or tags, with commas or repeated; all: what is usual",
        {"type": "array", "items": TEXT},
    ),
    Parameter("fuzzymatching", "Ignored, with a warning", {"type": "boolean"}),
    Parameter(
        "attributes",
        "Matching: attributes (keyword, tag, or a path such as RequestAttributesSequence.ScheduledProcedureStepID) "
        "and values, with wildcards, ranges of dates, lists of UIDs: PatientName=Doe*&StudyDate=20240101-",
        {"type": "object", "additionalProperties": TEXT},
    ),
)
_SIDE = "([1-9][0-9]{0,2}|[1-7][0-9]{3})"
_RENDERING = (
    Parameter(
        "viewport",
        "Width and height that the picture fits into; then the part of the image, x,y,w,h",
        {"type": "string", "pattern": f"^{_SIDE},{_SIDE}(,[0-9]{{1,4}},[0-9]{{1,4}},-?[0-9]{{1,4}},-?[0-9]{{1,4}})?$"},
        example="512,512",
    ),
    Parameter("quality", "Of a JPEG", {"type": "integer", "minimum": 1, "maximum": 100}),
)
_WINDOW = (
    Parameter(
        "window",
        "Center, width, function",
        {"type": "string", "pattern": "^-?[0-9]{1,5},[1-9][0-9]{0,4}(,(linear|linear-exact|sigmoid))?$"},
        example="40,400,linear",
    ),
)
_WARNED = {"Warning": "299 and a text: what of the request had no effect, or what is left out of the answer"}
_TOLD = {**_WARNED, "X-Total-Count": "How many there are, before limit and offset; only where that is known"}
_WHILE_THEY_ARRIVE = "They are sent from the first that arrives on; an answer that is not whole is cut."


def _accept(media: Media) -> Parameter:
    return Parameter("accept", "Stands in for the header field Accept (PS3.18 section 8.3.3.1)", {"enum": list(media)})


def _searches() -> Iterator[Operation]:
    for above, kinds in (
        ("", ("studies", "series", "instances")),
        (_STUDY_PATH, ("series", "instances")),
        (_SERIES_PATH, ("instances",)),
    ):
        for kind in kinds:
            yield Operation(
                "GET",
                f"{above}/{kind}",
                f"searchFor{kind.capitalize()}{_of(above)}",
                f"Search for {kind}{_in(above)} (QIDO-RS)",
                {
                    200: Answer("The results.", _METADATA, _TOLD),
                    204: Answer("Nothing matches.", headers=_TOLD),
                },
                parameters=(*_ABOVE[above], *_SEARCHING, _accept(_METADATA)),
                problems=(406, *_REMOTE, 507),
            )


def _of(above: str) -> str:
    return {"": "", _STUDY_PATH: "OfStudy", _SERIES_PATH: "OfSeries"}[above]


def _in(above: str) -> str:
    return {"": "", _STUDY_PATH: " of a study", _SERIES_PATH: " of a series"}[above]


def _retrieves() -> Iterator[Operation]:
    for path, what in ((_STUDY_PATH, "study"), (_SERIES_PATH, "series"), (_INSTANCE_PATH, "instance")):
        name = what.capitalize()
        one = f"{'an' if what == 'instance' else 'a'} {what}"
        yield _get(
            path,
            f"retrieve{name}",
            "Retrieve an instance" if what == "instance" else f"Retrieve the instances of a {what}",
            {**_OBJECTS, **_METADATA},
            f"Instances. {_WHILE_THEY_ARRIVE}",
        )
        yield _get(f"{path}/metadata", f"retrieve{name}Metadata", f"Metadata of {one}", _METADATA, "Data sets.")
        yield _get(
            f"{path}/rendered",
            f"render{name}",
            f"A {what} as pictures" if what != "instance" else "An instance as a picture: its first frame",
            {**_PICTURE, **_PICTURES} if what == "instance" else _PICTURES,
            "JPEG or PNG.",
            (*_RENDERING, *_WINDOW),
        )
        yield _get(
            f"{path}/thumbnail",
            f"thumbnailOf{name}",
            f"A small picture of {one}",
            {**_PICTURE, **_PICTURES},
            "It.",
            _RENDERING,
        )
    yield _get(
        f"{_INSTANCE_PATH}/frames/{{frames}}",
        "retrieveFrames",
        "Frames: uncompressed, or as they are stored",
        {**_OCTETS, **_COMPRESSED},
        "Frames, a part each.",
        (FRAMES,),
    )
    yield _get(
        f"{_INSTANCE_PATH}/frames/{{frames}}/rendered",
        "renderFrames",
        "Frames as pictures",
        {**_PICTURE, **_PICTURES},
        "JPEG or PNG.",
        (FRAMES, *_RENDERING, *_WINDOW),
    )
    yield _get(
        f"{_INSTANCE_PATH}/frames/{{frames}}/thumbnail",
        "thumbnailOfFrames",
        "A small picture of a frame",
        {**_PICTURE, **_PICTURES},
        "It.",
        (FRAMES, *_RENDERING),
    )
    yield _get(
        f"{_INSTANCE_PATH}/bulkdata/{{tag}}",
        "retrieveBulkdata",
        "One value, where the BulkDataURI of the metadata leads",
        {**_OCTETS, **_COMPRESSED},
        "The bytes.",
        (_TAG,),
    )


def _get(
    path: str, name: str, summary: str, media: Media, said: str, parameters: Sequence[Parameter] = ()
) -> Operation:
    above = tuple(each for each in (STUDY, SERIES, INSTANCE) if f"{{{each.name}}}" in path)
    return Operation(
        "GET",
        path,
        name,
        f"{summary} (WADO-RS)",
        {
            200: Answer(said, media, {"ETag": "For If-None-Match and If-Range; only where the answer is known whole"}),
            206: Answer("The range that was asked for.", media, {"Content-Range": "Which bytes, of how many"}),
            304: Answer("It is what the client has (If-None-Match)."),
        },
        parameters=(*above, *parameters, _accept(media)),
        problems=(404, 406, 416, *_REMOTE, 507),
    )


def _stores() -> Iterator[Operation]:
    stored: Media = {DICOM_JSON: ref("DataSet"), JSON: ref("DataSet"), DICOM_XML: BINARY}
    for path, name, of_study in (("/studies", "storeInstances", ()), (_STUDY_PATH, "storeInstancesOfStudy", (STUDY,))):
        yield Operation(
            "POST",
            path,
            name,
            f"Store instances{' of this study' if of_study else ''} (STOW-RS)",
            {
                200: Answer("All are stored: the Store Instances Response (PS3.18 section 10.5.3).", stored),
                202: Answer("Some are stored, or the PACS had a warning: the response says which, and why.", stored),
                409: Answer("None is stored: the response says why.", stored),
            },
            parameters=(*of_study, _accept(stored)),
            body={DICOM: BINARY, str(Offer(DICOM, multipart=True)): BINARY},
            problems=(406, *_REMOTE, 507),
        )


OPERATIONS = (*_searches(), *_retrieves(), *_stores())


def description(tag: str) -> Description:
    """What a DICOMweb endpoint offers."""
    return Description(tag, "DICOMweb (PS3.18) over a DICOM node.", OPERATIONS, SCHEMAS)
