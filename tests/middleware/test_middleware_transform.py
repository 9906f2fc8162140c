"""``transform``, ``metadata_transform`` and ``json_extractor``, on either side of a pipeline."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from middleware_kit import RESOURCES

from harmonyd.bodies import BytesBody, EmptyBody
from harmonyd.config.model import MiddlewareConfig
from harmonyd.envelope import Body, RequestEnvelope, ResponseEnvelope
from harmonyd.errors import BadRequest, PayloadTooLarge, RemoteError
from harmonyd.jolt import TransformFailed
from harmonyd.middleware.base import Middleware
from harmonyd.middleware.registry import build

Spec = list[dict[str, Any]]
RENAME: Spec = [{"operation": "shift", "spec": {"a": "b"}}]
FAILING: Spec = [{"operation": "shift", "spec": {"a": "b.&9"}}]
JSON = {"content-type": "application/json"}


def transform(spec: Spec, apply: str = "left", **options: Any) -> Middleware:
    defaults = {"fail_on_error": True, "inject_context": False, "per_record": False, "max_bytes": 10_000}
    given = {**defaults, "content_type": "application/json", "specification": spec, "apply": apply, **options}
    return build(MiddlewareConfig("mine", "transform", given), RESOURCES)


def metadata_transform(spec: Spec, apply: str = "left", **options: Any) -> Middleware:
    defaults = {"fail_on_error": True, "inject_context": False, "transform_target": "metadata"}
    given = {**defaults, "specification": spec, "apply": apply, **options}
    return build(MiddlewareConfig("mine", "metadata_transform", given), RESOURCES)


def request(body: bytes = b"", protocol: str = "http", **headers: str) -> RequestEnvelope:
    given: Body = BytesBody(body) if body else EmptyBody()
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    query = {"patient": ["7"], "_x": ["1", "2"]}
    return RequestEnvelope(protocol, "GET", "/p/find?patient=7", "/find", given, fields, query, {"path": "/find"})


async def text_of(body: Body | None) -> Any:
    assert body is not None
    return json.loads(await body.read(1_000_000))


@dataclass
class Record:
    text: bytes
    path: Path | None = None
    name: str = "x"

    async def json(self) -> bytes:
        return self.text


class Found:
    """Results of a find; an exception among them is raised."""

    operation = "find"
    media_type = "application/json"
    items_key: str | None = "matches"

    def __init__(self, *items: Any, **summary: Any) -> None:
        self.items = items
        self.closed = 0
        self._summary = {"success": True, "complete": True, "count": len(items), **summary}

    async def __aiter__(self) -> AsyncIterator[Record]:
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            yield Record(json.dumps(item).encode())

    def summary(self) -> Mapping[str, Any]:
        return self._summary

    async def aclose(self) -> None:
        self.closed += 1


# --- the request side


@pytest_twisted.ensureDeferred
async def test_a_request_body_is_replaced() -> None:
    """What the backend reads is the result, and its header describes that."""
    asked = request(b'{"a": 1, "z": 2}', content_type="application/fhir+json", content_length="16", x="kept")
    assert await transform(RENAME).on_request(asked) is None
    assert await text_of(asked.body) == asked.normalized == {"b": 1}
    assert asked.headers == {"content-type": "application/json", "x": "kept"}


@pytest_twisted.ensureDeferred
async def test_a_request_without_a_body_has_an_empty_object() -> None:
    """So a GET can get a body, out of its query: ``inject_context``."""
    spec: Spec = [
        {
            "operation": "shift",
            "spec": {"context": {"request_details": {"query_params": {"patient": {"0": "data.PatientID"}}}}},
        }
    ]
    asked = request()
    await transform(spec, inject_context=True).on_request(asked)
    assert await text_of(asked.body) == {"PatientID": "7"}
    asked = request(accept="text/plain")
    await transform(RENAME).on_request(asked)
    assert asked.body.length == 0 and asked.headers == {"accept": "text/plain"}


@pytest_twisted.ensureDeferred
async def test_the_context_has_no_credentials() -> None:
    """Everything that a specification may want to know of a request, but not the password."""
    spec: Spec = [{"operation": "shift", "spec": {"context": "data"}}]
    asked = request(authorization="Basic eDp5", Cookie="a=b", accept="text/plain")
    await transform(spec, inject_context=True).on_request(asked)
    assert asked.normalized == {
        "request_details": {
            "method": "GET",
            "uri": "/p/find?patient=7",
            "path": "/find",
            "headers": {"accept": "text/plain"},
            "query_params": {"patient": ["7"], "_x": ["1", "2"]},
            "metadata": {"path": "/find"},
        }
    }


@pytest_twisted.ensureDeferred
async def test_other_bodies_pass() -> None:
    """What is not JSON is not touched."""
    asked = request(b"DICM", content_type="application/dicom")
    body = asked.body
    await transform(RENAME).on_request(asked)
    assert asked.body is body and asked.normalized is None


@pytest.mark.parametrize(
    ("body", "error"), [(b"{", BadRequest), (b"[" * 9000, BadRequest), (b'"' + b"x" * 10_000 + b'"', PayloadTooLarge)]
)
@pytest_twisted.ensureDeferred
async def test_a_bad_request_is_the_clients(body: bytes, error: type[Exception]) -> None:
    """No JSON, or too much of it, is the client's fault."""
    with pytest.raises(error):
        await transform(RENAME).on_request(request(body, **{"content-type": "application/json"}))


@pytest_twisted.ensureDeferred
async def test_of_a_received_object_only_the_view_is_transformed() -> None:
    """The object itself is not JSON, and what becomes of it decides whether it is kept."""
    asked = request(b"DICM", protocol="dicom")
    body, asked.normalized = asked.body, {"a": 1}
    link = transform(RENAME, "both")
    await link.on_request(asked)
    assert asked.body is body and asked.normalized == {"b": 1}
    results = Found({"a": 1}, success=False)
    answered = await link.on_response(asked, ResponseEnvelope(results=results))
    assert answered.results is results and answered.body is None


@pytest_twisted.ensureDeferred
async def test_fail_on_error() -> None:
    """A specification that cannot be applied ends the request, or leaves it as it was."""
    with pytest.raises(TransformFailed, match="operation 1") as caught:
        await transform(FAILING).on_request(request(b'{"a": 1}', **{"content-type": "application/json"}))
    assert caught.value.extra["middleware"] == "mine"
    asked = request(b'{"a": 1}', content_type="application/json")
    await transform(FAILING, fail_on_error=False).on_request(asked)
    assert await text_of(asked.body) == {"a": 1}


@pytest_twisted.ensureDeferred
async def test_only_a_whole_answer_in_json_is_asked_for() -> None:
    """The backend is not asked for pieces, for compression, or for what the client would accept."""
    fields = {"accept": "application/fhir+json", "accept-encoding": "gzip", "range": "bytes=0-1", "if-none-match": "x"}
    asked = request(**fields)
    await transform(RENAME, "right").on_request(asked)
    assert asked.headers == {"accept": "application/json"}
    asked = request(**fields)
    await transform(RENAME, "right", per_record=True).on_request(asked)
    assert asked.headers == {"accept": "application/fhir+json"}
    asked = request(**fields)
    await transform(RENAME).on_request(asked)
    assert asked.headers["range"] == "bytes=0-1"


# --- the response side


@pytest_twisted.ensureDeferred
async def test_an_answer_is_replaced_as_a_whole() -> None:
    """The records and the summary of an operation are one document, and so is a body of JSON."""
    spec: Spec = [{"operation": "shift", "spec": {"matches": {"*": {"a": "ids[]"}}, "count": "n", "complete": "whole"}}]
    results = Found({"a": 1}, {"a": 2}, complete=False)
    link = transform(spec, "right", content_type="application/fhir+json")
    response = await link.on_response(request(), ResponseEnvelope(headers={"ETag": "x"}, results=results))
    assert response.results is None and results.closed
    assert await text_of(response.body) == {"ids": [1, 2], "n": 2, "whole": False}
    assert response.headers == {"content-type": "application/fhir+json", "cache-control": "no-store"}
    answer = ResponseEnvelope(headers={**JSON, "Content-Length": "8"}, body=BytesBody(b'{"a": 1}'))
    response = await transform(RENAME, "right").on_response(request(), answer)
    assert await text_of(response.body) == {"b": 1}
    assert response.headers == JSON


@pytest_twisted.ensureDeferred
async def test_an_echo_has_no_records() -> None:
    """What has no list of records is its summary."""
    results = Found(success=True)
    results.operation, results.items_key = "echo", None
    spec: Spec = [{"operation": "shift", "spec": {"operation": "did"}}]
    response = await transform(spec, "right").on_response(request(), ResponseEnvelope(results=results))
    assert await text_of(response.body) == {"did": "echo"}


@pytest_twisted.ensureDeferred
async def test_records_are_transformed_as_they_come() -> None:
    """``per_record``: the stream stays one, and what failed under way is still told at its place."""
    results = Found({"a": 1}, {"a": [2]}, RemoteError("gone"))
    link = transform(RENAME, "right", per_record=True)
    response = await link.on_response(request(), ResponseEnvelope(results=results))
    assert response.results is not None
    records = aiter(response.results)
    assert [json.loads(await (await anext(records)).json()) for _ in range(2)] == [{"b": 1}, {"b": [2]}]
    with pytest.raises(RemoteError):
        await anext(records)
    assert response.results.summary()["count"] == 3
    await response.results.aclose()
    assert results.closed == 1


@pytest_twisted.ensureDeferred
async def test_a_record_that_cannot_be_transformed() -> None:
    """It ends the stream, or passes as it is."""
    for fails in (True, False):
        link = transform(FAILING, "right", per_record=True, fail_on_error=fails)
        response = await link.on_response(request(), ResponseEnvelope(results=Found({"a": 1})))
        assert response.results is not None
        record = await anext(aiter(response.results))
        if fails:
            with pytest.raises(TransformFailed):
                await record.json()
        else:
            assert await record.json() == b'{"a": 1}'


@pytest_twisted.ensureDeferred
async def test_an_answer_has_a_bound() -> None:
    """What is too large to be transformed as a whole is refused, and the operation ended."""
    results = Found(*[{"a": "x" * 500}] * 40)
    with pytest.raises(TransformFailed, match="larger than 10000 bytes") as caught:
        await transform(RENAME, "right").on_response(request(), ResponseEnvelope(results=results))
    assert "per_record" in (caught.value.hint or "")
    assert results.closed == 1
    answer = ResponseEnvelope(headers=JSON, body=BytesBody(b'"' + b"x" * 20_000 + b'"'))
    with pytest.raises(TransformFailed, match="larger than"):
        await transform(RENAME, "right").on_response(request(), answer)


@pytest_twisted.ensureDeferred
async def test_an_operation_that_fails_under_way_is_a_failure() -> None:
    """Nothing was sent yet, so the client gets the error itself."""
    results = Found({"a": 1}, RemoteError("gone"))
    with pytest.raises(RemoteError, match="gone"):
        await transform(RENAME, "right").on_response(request(), ResponseEnvelope(results=results))
    assert results.closed == 1


@pytest.mark.parametrize(
    "answer",
    [
        ResponseEnvelope(status=404, headers=JSON, body=BytesBody(b'{"a": 1}')),
        ResponseEnvelope(headers={"content-type": "text/plain"}, body=BytesBody(b"a")),
        ResponseEnvelope(status=204),
        ResponseEnvelope(headers=JSON, body=BytesBody(b" ")),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_json_passes(answer: ResponseEnvelope) -> None:
    """Errors, other kinds of bodies and none at all are passed on."""
    headers = dict(answer.headers)
    assert await transform(RENAME, "right").on_response(request(), answer) is answer
    assert answer.headers == headers


@pytest.mark.parametrize(("body", "more"), [(b"{", {}), (b"{}", {"Content-Encoding": "br"})])
@pytest_twisted.ensureDeferred
async def test_a_body_that_is_not_what_it_says(body: bytes, more: dict[str, str]) -> None:
    """An upstream server that says JSON and sends something else is told about."""
    with pytest.raises(TransformFailed):
        await transform(RENAME, "right").on_response(
            request(), ResponseEnvelope(headers={**JSON, **more}, body=BytesBody(body))
        )


# --- metadata


@pytest.mark.parametrize("spec", [{"dimse_op": "find", "n": 5}, {"metadata": {"dimse_op": "find", "n": 5}}])
@pytest_twisted.ensureDeferred
async def test_metadata_gets_the_strings_of_the_result(spec: dict[str, Any]) -> None:
    """In either spelling; what there is stays, what is no string is left out."""
    asked = request()
    await metadata_transform([{"operation": "default", "spec": spec}]).on_request(asked)
    assert asked.metadata == {"path": "/find", "dimse_op": "find"}


@pytest_twisted.ensureDeferred
async def test_metadata_may_come_from_the_query() -> None:
    """With the context, what the client asked becomes a key of the identifier."""
    wanted = {"patient": {"0": "data.identifier\\.PatientID"}}
    spec: Spec = [{"operation": "shift", "spec": {"context": {"request_details": {"query_params": wanted}}}}]
    asked = request()
    await metadata_transform(spec, inject_context=True).on_request(asked)
    assert asked.metadata["identifier.PatientID"] == "7"


@pytest_twisted.ensureDeferred
async def test_target_details_change_the_request() -> None:
    """Method, path, query and header of what goes to the backend."""
    spec: Spec = [
        {"operation": "shift", "spec": {"query_params": {"patient": "query_params.PatientID"}, "#POST": "method"}},
        {"operation": "default", "spec": {"path": "/other", "headers": {"X-From": "here"}, "metadata": {"k": "v"}}},
    ]
    asked = request(accept="text/plain")
    await metadata_transform(spec, transform_target="target_details").on_request(asked)
    assert (asked.method, asked.path) == ("POST", "/other")
    assert asked.query == {"PatientID": ["7"]}
    assert asked.headers == {"accept": "text/plain", "x-from": "here"}
    assert asked.metadata == {"path": "/other", "k": "v"}


@pytest.mark.parametrize(
    "spec",
    [{"path": 5}, {"headers": {"x": "a\r\nb: c"}}, {"headers": []}, {"query_params": 1}, {"query_params": {"a": [1]}}],
)
@pytest_twisted.ensureDeferred
async def test_target_details_that_are_none(spec: dict[str, Any]) -> None:
    """A result of the wrong kind changes nothing at all."""
    names = dict.fromkeys(spec, "")
    asked = request()
    chain: Spec = [
        {"operation": "remove", "spec": names},
        {"operation": "default", "spec": {**spec, "metadata": {"k": "v"}}},
    ]
    with pytest.raises(TransformFailed):
        await metadata_transform(chain, transform_target="target_details").on_request(asked)
    assert asked.path == "/find" and "k" not in asked.metadata


@pytest_twisted.ensureDeferred
async def test_metadata_of_the_response() -> None:
    """On the right side it is the response's."""
    response = ResponseEnvelope(metadata={"a": "1"})
    link = metadata_transform(RENAME, "right")
    asked = request()
    await link.on_request(asked)
    await link.on_response(asked, response)
    assert response.metadata == {"a": "1", "b": "1"} and asked.metadata == {"path": "/find"}


# --- json_extractor


@pytest.mark.parametrize("kind", ["json_extractor", "json"])
@pytest_twisted.ensureDeferred
async def test_json_extractor_shows_bodies(kind: str) -> None:
    """JSON of request and answer becomes the normalised view; the bodies can still be read."""
    link = build(MiddlewareConfig("mine", kind, {}), RESOURCES)
    asked = request(b'{"a": 1}', content_type="application/json")
    await link.on_request(asked)
    assert asked.normalized == {"a": 1} and await text_of(asked.body) == {"a": 1}
    response = await link.on_response(asked, ResponseEnvelope(headers=JSON, body=BytesBody(b"[2]")))
    assert response.normalized == [2] and await text_of(response.body) == [2]
    other = request(b"DICM", content_type="application/dicom")
    other.normalized = {"00080060": {"vr": "CS", "Value": ["CT"]}}
    await link.on_request(other)
    assert other.normalized["00080060"]["Value"] == ["CT"]
    with pytest.raises(BadRequest):
        await link.on_request(request(b"nonsense", content_type="application/json"))
