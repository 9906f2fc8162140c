"""The built-in middleware types, built from their configuration."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from middleware_kit import RESOURCES

from harmonyd.bodies import EmptyBody
from harmonyd.config.model import MiddlewareConfig
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import HarmonydError, NotFound
from harmonyd.middleware.base import Middleware
from harmonyd.middleware.registry import build


def made(kind: str, **options: Any) -> Middleware:
    return build(MiddlewareConfig("mine", kind, options), RESOURCES)


def request(path: str = "/find", **metadata: str) -> RequestEnvelope:
    return RequestEnvelope("http", "POST", path, path, EmptyBody(), metadata=metadata)


@pytest_twisted.ensureDeferred
async def test_passthru_changes_nothing() -> None:
    """``passthru`` lets request and response pass as they are."""
    link = made("passthru")
    before, response = request(path="/x", a="b"), ResponseEnvelope()
    assert link.name == "mine"
    assert await link.on_request(before) is None
    assert before.metadata == {"a": "b"}
    assert await link.on_response(before, response) is response


@pytest.mark.parametrize("path", ["/ImagingStudy", "/ImagingStudy/", "/Patient/1", "/Patient/1/", "/Patient/{id}"])
@pytest_twisted.ensureDeferred
async def test_path_filter_lets_its_rules_pass(path: str) -> None:
    """A path that matches a rule passes; braces stand for any one segment, a trailing slash is ignored."""
    assert await made("path_filter", rules=("/ImagingStudy", "/Patient/{id}/")).on_request(request(path)) is None


@pytest.mark.parametrize(
    "path",
    ["/", "", "/imagingstudy", "/ImagingStudy/1", "/Patient", "/Patient/", "/Patient//", "/Patient/1/2", "//Patient/1"],
)
@pytest_twisted.ensureDeferred
async def test_path_filter_stops_what_no_rule_names(path: str) -> None:
    """Any other path, also one with an empty segment for the braces, is not found."""
    with pytest.raises(NotFound):
        await made("path_filter", rules=("/ImagingStudy", "/Patient/{id}")).on_request(request(path))


@pytest_twisted.ensureDeferred
async def test_path_filter_can_let_the_prefix_itself_pass() -> None:
    """The rule "/" stands for the prefix itself and nothing else."""
    link = made("path_filter", rules=("/",))
    assert await link.on_request(request("/")) is None
    with pytest.raises(NotFound):
        await link.on_request(request("/find"))


@pytest_twisted.ensureDeferred
async def test_metadata_sets_its_entries_over_others() -> None:
    """``set``, the shortcuts and ``identifier`` become metadata, and win over what is there."""
    link = made(
        "metadata",
        set={"path": "/get", "skip_backends": True, "limit": 5},
        dimse_op="get",
        backend="pacs",
        identifier={"PatientID": "42"},
    )
    changed = request(path="/find", dimse_op="find", other="kept")
    assert await link.on_request(changed) is None
    assert changed.metadata == {
        "other": "kept",
        "path": "/get",
        "skip_backends": "true",
        "limit": "5",
        "dimse_op": "get",
        "backend": "pacs",
        "identifier.PatientID": "42",
    }


def test_an_unknown_type_names_the_known_ones() -> None:
    """A type that is not built in is an error that lists those that are."""
    with pytest.raises(HarmonydError, match="'magic'") as error:
        made("magic")
    assert "path_filter" in str(error.value.hint)
