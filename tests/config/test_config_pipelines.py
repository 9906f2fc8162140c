"""Pipelines and the names in them."""

from __future__ import annotations

import pytest

PARTS = """
[endpoints.web]
service = "http"
options = { path_prefix = "/x" }
[endpoints.scp]
service = "dicom"
[backends.pacs]
service = "echo"
[backends.other]
service = "echo"
[middleware.pass]
type = "passthru"
[middleware.pick]
type = "metadata"
backend = "pacs"
"""


def pipeline(**keys):
    given = {"networks": ["default"], "endpoints": ["web"], "backends": ["pacs"], **keys}
    return PARTS + "[pipelines.p]\n" + "".join(f"{key} = {value}\n" for key, value in given.items())


def test_a_pipeline_reaches_the_model(loaded):
    """Names keep their order."""
    item = loaded(pipeline(backends=["pacs", "other"], middleware=["pick", "pass"], description='"d"')).pipelines["p"]
    assert (item.backends, item.middleware, item.description) == (("pacs", "other"), ("pick", "pass"), "d")


@pytest.mark.parametrize(
    ("key", "name", "near"),
    [
        ("networks", "defualt", "default"),
        ("endpoints", "wbe", "web"),
        ("backends", "pcas", "pacs"),
        ("middleware", "pas", "pass"),
    ],
)
def test_a_name_that_is_not_defined(problems, key, name, near):
    """An unknown name is told at its key, with the nearest and all that are defined."""
    found = problems(pipeline(**{key: [name]}))
    assert [(problem.table, problem.key, problem.nearest) for problem in found] == [("pipelines.p", key, near)]
    assert near in found[0].remedy


def test_endpoints_are_required(problems):
    """A pipeline says where its requests come from."""
    assert [(problem.key, problem.what) for problem in problems("[pipelines.p]\n")] == [("endpoints", "missing")]


def test_an_unknown_key_in_a_pipeline(problems):
    """A mistyped key is answered with the nearest."""
    assert problems(pipeline(backend=["pacs"]))[0].nearest == "backends"


@pytest.mark.parametrize("networks", [[], ["quiet"]])
def test_an_http_endpoint_needs_a_network_that_listens(problems, networks):
    """An endpoint that nobody could reach is refused."""
    found = problems(pipeline(networks=networks) + "[network.quiet]\n")
    assert [(problem.table, problem.key) for problem in found] == [("pipelines.p", "networks")]


def test_a_dicom_endpoint_needs_no_network(loaded):
    """An SCP listens without a network."""
    assert loaded(pipeline(networks=[], endpoints=["scp"]))


def test_middleware_may_choose_only_a_backend_of_its_pipeline(problems):
    """A choice outside of the pipeline is refused where the two meet."""
    found = problems(pipeline(backends=["other"], middleware=["pick"]))
    assert [(problem.table, problem.key) for problem in found] == [("pipelines.p", "middleware")]


def test_things_that_never_run_are_told(loaded):
    """No endpoint, no backend, or no pipeline that names it: a warning each."""
    told = "\n".join(loaded(pipeline(backends=[])).warnings)
    assert "[pipelines.p] backends: no backend" in told
    assert "[endpoints.scp]: no pipeline names it" in told
    assert "[endpoints.web]" not in told
    assert "no request ever reaches" in "\n".join(loaded(pipeline(endpoints=[])).warnings)
