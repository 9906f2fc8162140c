"""What an endpoint is said to offer follows from its service, the backend behind it, and middleware."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from harmonyd import config
from harmonyd.describe import Description
from harmonyd.services.describing import described
from harmonyd.services.http.describing import echoing
from harmonyd.testing.config_files import write_config
from harmonyd.web.openapi import PROBLEMS, openapi
from harmonyd.web.problem import STATUS

PACS = {"engine": "native", "aet": "PACS", "host": "127.0.0.1", "port": 104}
SERVER = {"service": "http", "base_url": "http://127.0.0.1:8888"}
FOLDER = {"service": "storage", "path": "kept"}
DIMSE = {"/echo", "/find", "/get", "/move", "/store", "/worklist", "/commit"}


def offered(folder: Path, backends: dict[str, Any], middleware: Any = None, **options: Any) -> Description:
    endpoint = {"service": "http", "path_prefix": "/x", **options}
    path = write_config(folder, http_port=8080, backends=backends, endpoints={"web": endpoint}, middleware=middleware)
    loaded = config.load(path)
    found = described(loaded, loaded.pipelines["test"], loaded.endpoints["web"])
    OpenAPIV31SpecValidator(openapi("t", [("/x", found)])).validate()
    return found


def operations(found: Description) -> set[tuple[str, str]]:
    return {(item.method, item.path) for item in found.operations}


@pytest.mark.parametrize(
    ("middleware", "options", "paths"),
    [
        (None, {}, DIMSE | {""}),
        (None, {"methods": ["POST"]}, DIMSE | {""}),
        (None, {"methods": ["GET"]}, set()),
        ({"m": {"type": "path_filter", "rules": ["/find", "/"]}}, {}, {"/find", ""}),
        ({"m": {"type": "metadata", "dimse_op": "find"}}, {}, {""}),
        ({"m": {"type": "metadata", "set": {"skip_backends": "true"}}}, {}, set()),
    ],
)
def test_operations_of_dimse(tmp_path: Path, middleware: Any, options: Any, paths: set[str]) -> None:
    """Those that methods and middleware leave."""
    found = offered(tmp_path, {"pacs": PACS}, middleware, **options)
    assert operations(found) == {("POST", path) for path in paths}


def test_a_fixed_operation_is_where_the_filter_lets_it_pass(tmp_path: Path) -> None:
    """With each method that the endpoint takes; what stands for a segment is a parameter, and a GET has no body."""
    middleware = {
        "f": {"type": "path_filter", "rules": ["/ImagingStudy", "/Patient/{id}"]},
        "m": {"type": "metadata", "dimse_op": "find"},
    }
    found = offered(tmp_path, {"pacs": PACS}, middleware, methods=["GET", "POST"])
    paths = ("/ImagingStudy", "/Patient/{id}")
    assert operations(found) == {(method, path) for method in ("GET", "POST") for path in paths}
    for item in found.operations:
        assert [each.name for each in item.parameters if each.place == "path"] == ["id"] * ("{" in item.path)
        assert (item.body is None) is (item.method == "GET")


def test_a_choice_of_backends(tmp_path: Path) -> None:
    """A client may choose where there are several, and middleware has not chosen."""
    found = offered(tmp_path, {"a": PACS, "b": PACS})
    assert all(item.parameters[-1].schema == {"enum": ["a", "b"]} for item in found.operations)
    assert all(403 in item.problems for item in found.operations)
    chosen = offered(tmp_path, {"a": PACS, "b": FOLDER}, {"m": {"type": "metadata", "backend": "b"}})
    assert operations(chosen) == {("POST", "")}
    assert chosen.operations[0].parameters == ()


@pytest.mark.parametrize("limit", [{"type": "rate_limit", "requests": 1}, {"type": "concurrency", "limit": 1}])
def test_limits_of_callers(tmp_path: Path, limit: dict[str, Any]) -> None:
    """Where there is one, each operation may be answered with 429; where there is none, none is."""
    assert all(429 in item.problems for item in offered(tmp_path, {"pacs": PACS}, {"m": limit}).operations)
    assert not any(429 in item.problems for item in offered(tmp_path, {"pacs": PACS}).operations)


def test_a_choice_by_header(tmp_path: Path) -> None:
    """The header field that names a backend is a parameter like the query's."""
    found = offered(tmp_path, {"a": PACS, "b": PACS}, backend_header="X-PACS")
    for item in found.operations:
        query, header = item.parameters[-2:]
        assert (query.name, header.name, header.place, header.schema) == ("backend", "X-PACS", "header", query.schema)


@pytest.mark.parametrize(
    ("options", "body", "answer"),
    [
        ({"apply": "left"}, {}, None),
        ({"apply": "right", "content_type": "application/x+json"}, None, {"application/x+json": {}}),
        ({"apply": "right", "per_record": True}, None, {"application/json": {}}),
    ],
)
def test_what_is_reshaped(tmp_path: Path, options: Any, body: Any, answer: Any) -> None:
    """Nothing is said about the shape of what a specification reads or makes."""
    link = {"type": "transform", "spec": '[{"operation": "sort"}]', **options}
    plain = {item.name: item for item in offered(tmp_path / "plain", {"a": PACS}).operations}
    found = {item.name: item for item in offered(tmp_path / "made", {"a": PACS}, {"m": link}).operations}
    assert plain["find"].body is not None and plain["find"].answers[200].media["application/json"]
    if body is None:
        assert found["find"].body == plain["find"].body
    else:
        assert found["find"].body == {"application/json": body}
    if answer is None:
        assert found["echo"].answers == plain["echo"].answers
    else:
        assert found["echo"].answers[200].media == answer


def test_other_backends(tmp_path: Path) -> None:
    """A server behind has every path; a folder takes objects."""
    found = offered(tmp_path, {"server": SERVER}, methods=["GET", "HEAD", "PROPFIND", "POST"])
    assert operations(found) == {(method, path) for method in ("GET", "POST") for path in ("", "/{path}")}
    assert operations(offered(tmp_path, {"folder": FOLDER})) == {("POST", "")}


def test_dicomweb(tmp_path: Path) -> None:
    """A bridge of Harmony's makes DICOMweb of an http endpoint."""
    bridge = {"m": {"type": "dicomweb_bridge"}}
    assert ("GET", "/studies/{study}/metadata") in operations(offered(tmp_path, {"pacs": PACS}, bridge))


def test_each_status_of_a_problem_has_its_words() -> None:
    """A service may describe any of them."""
    assert set(STATUS.values()) <= PROBLEMS.keys()


def test_two_endpoints_with_almost_the_same_name() -> None:
    """operationIds are words, and each is there once."""
    document = openapi("t", [("", echoing("a.b", ["GET"])), ("/x", echoing("a_b", ["GET"]))])
    OpenAPIV31SpecValidator(document).validate()
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert ids == ["a_b_echoGet", "a_b_echoGetBelow", "a_b_echoGet_2", "a_b_echoGetBelow_2"]
    assert list(document["paths"]) == ["/", "/{path}", "/x", "/x/{path}"]
