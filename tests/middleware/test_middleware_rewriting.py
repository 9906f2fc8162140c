"""``rewrite`` between a caller and backends that are fakes: what each of them sees, and what is never passed on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from middleware_kit import RESOURCES
from pydicom import dcmread

from harmonyd.bodies import BytesBody, EmptyBody, FilesBody, ObjectBody
from harmonyd.config.model import MiddlewareConfig
from harmonyd.envelope import Record, RequestEnvelope, ResponseEnvelope
from harmonyd.errors import RemoteError, UnsupportedMediaType
from harmonyd.middleware.base import Middleware
from harmonyd.middleware.registry import build
from harmonyd.pipeline.pipeline import Pipeline
from harmonyd.rewriting.errors import BadObject, CannotRewrite
from harmonyd.testing.data import MadeStudy, make_study

PATIENT = ((0x00100020,), False, "LO", "affix", ("A-", ""))
STATION = ((0x00081010,), False, "SH", "map", {"CT1": "CT-1"})
MULTIPART = 'multipart/related; type="application/dicom"; boundary=here'


def link(folder: Path, name: str = "mine", towards: str = "backend", **options: Any) -> Middleware:
    given = {"rules": (PATIENT, STATION), "uids": (b"k" * 32, 1000), "aets": {}, "regions": (), "report_path": None}
    config = MiddlewareConfig(name, "rewrite", {**given, "towards": towards, **options})
    return build(config, replace(RESOURCES, storage=folder))


@dataclass
class Match:
    text: bytes
    path: Path | None = None
    name: str = "match"
    backend: str = "pacs"

    async def json(self) -> bytes:
        return self.text


@dataclass(frozen=True)
class Shouted:
    """What a middleware behind made of a record."""

    record: Record
    path: Path | None = None
    name: str = "match"

    async def reshaped(self, text: bytes) -> bytes:
        return b'{"said":' + text + b"}"

    async def json(self) -> bytes:
        return await self.reshaped(await self.record.json())


@dataclass
class Answers:
    """Results of a backend."""

    operation: str
    records: list[Any]
    media_type: str = "application/json"
    items_key: str | None = "matches"
    failed_uids: tuple[str, ...] = ()
    closed: bool = False

    async def __aiter__(self) -> AsyncIterator[Any]:
        for record in self.records:
            yield record

    def summary(self) -> Mapping[str, Any]:
        return {"success": True, "complete": True, "count": len(self.records), "folder_path": "/secret", "debug": "x"}

    async def aclose(self) -> None:
        self.closed = True


@dataclass
class Backend:
    """Answers with what it is given; ``seen`` are the requests."""

    answer: ResponseEnvelope = field(default_factory=ResponseEnvelope)
    seen: list[RequestEnvelope] = field(default_factory=list)
    stored: list[Any] = field(default_factory=list)
    document: Any = None

    async def send(self, request: RequestEnvelope) -> ResponseEnvelope:
        self.seen.append(request)
        if isinstance(request.body, FilesBody):
            self.stored += [dcmread(path) for path in request.body.paths if path.stat().st_size]
            self.document = b"".join([chunk async for chunk in request.body.chunks()])
            told = [{"sop_instance_uid": ds.SOPInstanceUID, "study_instance_uid": "1.2"} for ds in self.stored]
            return ResponseEnvelope(results=Answers("store", [Match(json.dumps(each).encode()) for each in told]))
        if isinstance(request.body, ObjectBody):
            self.stored.append(dcmread(request.body.path))
        elif request.body.length:
            self.document = json.loads(await request.body.read(10_000))
        return self.answer


def question(document: Any, operation: str = "find") -> RequestEnvelope:
    body = BytesBody(json.dumps(document).encode()) if document is not None else EmptyBody()
    return RequestEnvelope("http", "POST", f"/p/{operation}", f"/{operation}", body)


def match(**elements: Any) -> bytes:
    tags = {"PatientID": ("00100020", "LO"), "StationName": ("00081010", "SH"), "StudyInstanceUID": ("0020000D", "UI")}
    return json.dumps({tags[k][0]: {"vr": tags[k][1], "Value": [v]} for k, v in elements.items()}).encode()


async def texts(response: ResponseEnvelope) -> list[Any]:
    assert response.results is not None
    return [json.loads(await record.json()) async for record in response.results]


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("dcmtk_*/*"))


@pytest.fixture
def study(tmp_path: Path) -> MadeStudy:
    return make_study(tmp_path / "made", 2, patient_id="7", size=8)


@pytest_twisted.ensureDeferred
async def test_a_find(tmp_path: Path) -> None:
    """The backend is asked in its view; matches come in the client's, but for those that were not asked for."""
    there = [match(PatientID="A-7", StationName="CT-1"), match(PatientID="A-8", StationName="XA")]
    answers = Answers("find", [Match(text) for text in there])
    backend = Backend(ResponseEnvelope(results=answers))
    pipeline = Pipeline("p", [link(tmp_path)], {"pacs": backend})
    response = await pipeline.handle(question({"PatientID": "?", "StationName": "CT*"}))
    assert backend.document == {"PatientID": "A-?", "StationName": ""}
    assert await texts(response) == [json.loads(match(PatientID="7", StationName="CT1"))]
    assert response.results is not None
    assert response.results.summary() == {
        "success": True, "complete": True, "count": 1, "folder_path": None, "debug": None,
    }  # fmt: skip
    await response.close()
    assert answers.closed


@pytest_twisted.ensureDeferred
async def test_a_question_over_dimse(tmp_path: Path) -> None:
    """Its identifier is in the normalised view; AE titles are those that later links are to see."""
    backend = Backend()
    aets = {"calling_aet": {"OLD": "NEW"}, "called_aet": {"X": "Y"}}
    pipeline = Pipeline("p", [link(tmp_path, aets=aets)], {"pacs": backend})
    request = RequestEnvelope("dicom", "C-FIND", "dicom://x", "/", EmptyBody())
    request.normalized = json.loads(match(PatientID="7"))
    request.metadata |= {"calling_aet": "OLD", "called_aet": "Z"}
    await pipeline.handle(request)
    assert backend.seen[0].normalized == json.loads(match(PatientID="A-7"))
    assert backend.seen[0].metadata == {"calling_aet": "NEW", "called_aet": "Z"}


@pytest_twisted.ensureDeferred
async def test_what_other_middleware_makes_of_records(tmp_path: Path, study: MadeStudy) -> None:
    """It is made of what was rewritten, of matches and of instances."""
    found = Backend(ResponseEnvelope(results=Answers("find", [Shouted(Match(match(PatientID="A-7")))])))
    added = ((0x00080080,), False, "LO", "set", ("X",))  # matches have what was asked for
    pipeline = Pipeline("p", [link(tmp_path, rules=(PATIENT, added))], {"pacs": found})
    response = await pipeline.handle(question({}))
    assert await texts(response) == [{"said": json.loads(match(PatientID="7"))}]
    got = Answers("get", [Shouted(Match(b"", path=study.files[0]))], items_key="instances")
    pipeline = Pipeline("p", [link(tmp_path, towards="client")], {"pacs": Backend(ResponseEnvelope(results=got))})
    response = await pipeline.handle(question({}, "get"))
    assert response.results is not None
    (record,) = [record async for record in response.results]
    assert record.path != study.files[0]
    assert json.loads(await record.json())["said"]["00100020"]["Value"] == ["A-7"]
    await response.close()


@pytest_twisted.ensureDeferred
async def test_instances(tmp_path: Path, study: MadeStudy) -> None:
    """Files of their own, which go with the answer; the originals stay as they are. So are UIDs of what failed."""
    before = study.files[0].read_bytes()
    answers = Answers("get", [Match(b"", path=path) for path in study.files], "x", "instances", (study.sop_uids[0],))
    pipeline = Pipeline("p", [link(tmp_path, towards="client")], {"pacs": Backend(ResponseEnvelope(results=answers))})
    response = await pipeline.handle(question(None, "get"))
    results: Any = response.results
    records = [record async for record in results]
    shown = [dcmread(record.path) for record in records]
    assert [ds.PatientID for ds in shown] == ["A-7", "A-7"]
    assert results.failed_uids == (shown[0].SOPInstanceUID,)
    assert records[0].name == shown[0].SOPInstanceUID
    await records[0].discard()
    left = files_in(tmp_path)
    assert left == [records[1].path] and study.files[0].read_bytes() == before
    await response.close()
    assert not records[1].path.exists() and answers.closed


@pytest_twisted.ensureDeferred
async def test_an_object_that_was_received(tmp_path: Path, study: MadeStudy) -> None:
    """It goes on as another one, which is removed after the delivery; what is known of it is told anew."""
    backend = Backend()
    pipeline = Pipeline("p", [link(tmp_path), link(tmp_path, "again", uids=None)], {"pacs": backend})
    request = RequestEnvelope(
        "dicom", "C-STORE", "dicom://x", "/", ObjectBody(study.files[0], 1), metadata={"sop_instance_uid": "1"}
    )
    request.normalized = {}
    assert await pipeline.deliver("pacs", [request]) == [None]
    (ds,) = backend.stored
    assert ds.PatientID == "A-A-7"
    assert request.metadata["sop_instance_uid"] == ds.SOPInstanceUID != study.sop_uids[0]
    assert request.normalized["00100020"]["Value"] == ["A-A-7"]
    await request.body.close()
    assert files_in(tmp_path) == []
    assert dcmread(study.files[0]).PatientID == "7"


def form(*parts: bytes) -> bytes:
    head = b"\r\n--here\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + part for part in parts) + b"\r\n--here--\r\n"


def upload(body: bytes, kind: str = MULTIPART, **metadata: str) -> RequestEnvelope:
    headers = {"content-type": kind, "content-length": str(len(body))}
    return RequestEnvelope("http", "POST", "/p/store", "/store", BytesBody(body), headers, {}, metadata)


@pytest_twisted.ensureDeferred
async def test_an_upload(tmp_path: Path, study: MadeStudy) -> None:
    """Of several objects or one; the body is there as files, and as bytes for other backends. UIDs come back."""
    body = form(*(path.read_bytes() for path in study.files))
    backend = Backend()
    pipeline = Pipeline("p", [link(tmp_path)], {"pacs": backend})
    response = await pipeline.handle(upload(body, store_study_instance_uid=study.study_uid))
    assert [ds.PatientID for ds in backend.stored] == ["A-7", "A-7"]
    assert backend.seen[0].metadata["store_study_instance_uid"] == backend.stored[0].StudyInstanceUID
    assert backend.document.count(b"DICM") == 2 and "content-length" not in backend.seen[0].headers
    assert [each["sop_instance_uid"] for each in await texts(response)] == list(study.sop_uids)
    await response.close()
    single = Backend()
    response = await Pipeline("p", [link(tmp_path)], {"x": single}).handle(
        upload(study.files[0].read_bytes(), "application/dicom")
    )
    assert single.document[128:132] == b"DICM" and len(single.document) == single.seen[0].body.length
    await response.close()


@pytest_twisted.ensureDeferred
async def test_what_is_no_object(tmp_path: Path, study: MadeStudy) -> None:
    """It is refused; where each object has its own verdict, it becomes a file that is none, and the others go on."""
    backend = Backend()
    pipeline = Pipeline("p", [link(tmp_path)], {"pacs": backend})
    for body, kind, error in (
        (form(b"nonsense"), MULTIPART, BadObject),
        (b"nonsense", "application/dicom", BadObject),
        (b"x", 'multipart/related; type="application/dicom+json"; boundary=x', UnsupportedMediaType),
    ):
        with pytest.raises(error):
            await pipeline.handle(upload(body, kind))
    request = upload(form(b"nonsense", study.files[0].read_bytes()), store_each="true")
    await pipeline.handle(request)
    assert isinstance(request.body, FilesBody)
    assert [path.stat().st_size > 0 for path in request.body.paths] == [False, True]
    assert [ds.PatientID for ds in backend.stored] == ["A-7"]


@pytest.mark.parametrize("status", [200, 201])
@pytest_twisted.ensureDeferred
async def test_an_answer_that_cannot_be_looked_into(tmp_path: Path, status: int) -> None:
    """It is not passed on; nothing at all is."""
    backend = Backend(ResponseEnvelope(status=status, body=BytesBody(b'{"PatientID": "A-7"}')))
    with pytest.raises(CannotRewrite, match="mine"):
        await Pipeline("p", [link(tmp_path)], {"pacs": backend}).handle(question({}))
    backend.answer = ResponseEnvelope(status=204)
    assert (await Pipeline("p", [link(tmp_path)], {"pacs": backend}).handle(question({}))).status == 204


@pytest_twisted.ensureDeferred
async def test_what_an_error_tells(tmp_path: Path, study: MadeStudy) -> None:
    """UIDs of instances that were refused are the client's."""

    class Refusing(Backend):
        async def send(self, request: RequestEnvelope) -> ResponseEnvelope:
            await super().send(request)
            raise RemoteError("no", instances=[{"sop_instance_uid": self.stored[0].SOPInstanceUID}], debug="x")

    pipeline = Pipeline("p", [link(tmp_path)], {"pacs": Refusing()})
    with pytest.raises(RemoteError) as raised:
        await pipeline.handle(upload(study.files[0].read_bytes(), "application/dicom"))
    assert raised.value.extra == {"instances": [{"sop_instance_uid": study.sop_uids[0]}]}


@pytest_twisted.ensureDeferred
async def test_an_instance_that_cannot_be_rewritten(tmp_path: Path) -> None:
    """It ends the answer with an error of ours: who asked for it did nothing wrong."""
    (tmp_path / "bad").write_bytes(b"nonsense")
    answers = Answers("get", [Match(b"", path=tmp_path / "bad")])
    pipeline = Pipeline("p", [link(tmp_path)], {"pacs": Backend(ResponseEnvelope(results=answers))})
    response = await pipeline.handle(question(None, "get"))
    with pytest.raises(CannotRewrite):
        await texts(response)
    await response.close()
