"""What the OpenAPI document says of DICOMweb is what there is: no resource without a description, and none too many."""

from __future__ import annotations

from itertools import product

import pytest

from harmonyd.describe import segments_of
from harmonyd.errors import HarmonydError
from harmonyd.services.dicom import describing as dimse
from harmonyd.services.dicom.request import OPERATIONS
from harmonyd.services.dicomweb import describing
from harmonyd.services.dicomweb.endpoint import _GET, _POST
from harmonyd.services.dicomweb.resources import Resource, parse_path
from harmonyd.services.http import media

SAMPLES = {"study": "1.2", "series": "1.3", "instance": "1.4", "frames": "1,2", "tag": "7FE00010"}


def sample(path: str) -> str:
    return "/" + "/".join(SAMPLES[s[1:-1]] if s.startswith("{") else s for s in segments_of(path))


def test_each_resource_is_described() -> None:
    """Every method of every kind of resource, and nothing that is not served."""
    described = {(item.method, parse_path(sample(item.path)).kind) for item in describing.OPERATIONS}
    assert described == {("GET", kind) for kind in _GET} | {("POST", kind) for kind in _POST}


def test_each_path_is_described() -> None:
    """Whatever path is a resource has a description; that of bulk data may go on, into sequences."""
    words = sorted({word for item in describing.OPERATIONS for word in segments_of(item.path) if word[0] != "{"})
    above = ["", "/studies/1.2", "/studies/1.2/series/1.3", "/studies/1.2/series/1.3/instances/1.4"]
    below = ["", *(f"/{a}" for a in words), *(f"/{a}/{b}" for a, b in product(words, [*SAMPLES.values(), *words]))]
    below += [f"/{a}/1,2/{b}" for a, b in product(words, words)]
    found = 0
    for path in (start + end for start, end in product(above, below)):
        if resource := _resource(path):
            found += 1
            described = [item for item in describing.OPERATIONS if item.variables(segments_of(path)) is not None]
            assert described, path
            assert {parse_path(sample(item.path)).kind for item in described} == {resource.kind}, path
    assert found > 20


def _resource(path: str) -> Resource | None:
    try:
        return parse_path(path)
    except HarmonydError:
        return None


def test_each_operation_of_dimse_is_described() -> None:
    """At its own path, and with the media types that can be had."""
    described = {item.name: item for item in dimse.OPERATIONS}
    assert {f"/{name}" for name in OPERATIONS} == {item.path for item in dimse.OPERATIONS}
    for name, item in described.items():
        assert tuple(item.answers[200].media) == media.OFFERS[name]


@pytest.mark.parametrize("fixed", OPERATIONS)
def test_middleware_that_chooses_the_operation(fixed: str) -> None:
    """Only that one is offered, at the prefix."""
    (only,) = dimse.description("web", fixed).operations
    assert (only.name, only.path) == (fixed, "")
