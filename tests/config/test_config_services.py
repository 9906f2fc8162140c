"""Endpoints and backends: which services there are, and the options of http and echo."""

from __future__ import annotations

import pytest

from harmonyd.config.model import EchoOptions, HttpBackendOptions, HttpEndpointOptions, StorageBackendOptions


@pytest.mark.parametrize(("written", "prefix"), [("/", ""), ("/a", "/a"), ("/a/", "/a"), ("/a/b", "/a/b")])
def test_prefixes_are_normalised(loaded, written, prefix):
    """No trailing slash, and nothing for the root."""
    config = loaded(f"[endpoints.e]\nservice = 'http'\noptions = {{ path_prefix = '{written}', methods = ['GET'] }}\n")
    assert config.endpoints["e"].options == HttpEndpointOptions(prefix, ("GET",))


@pytest.mark.parametrize("service", ["http", "echo"])
def test_a_prefix_is_required(problems, service):
    """An endpoint reached over HTTP says where."""
    assert problems(f"[endpoints.e]\nservice = '{service}'\n")[0].key == "path_prefix"


@pytest.mark.parametrize("methods", ["['get']", "['GET', 'GET']", "'GET'", "['G T']"])
def test_methods_that_are_wrong(problems, methods):
    """Methods are a list of tokens in upper case, each once."""
    text = f"[endpoints.e]\nservice = 'http'\noptions = {{ path_prefix = '/', methods = {methods} }}\n"
    assert [problem.key for problem in problems(text)] == ["methods"]


def test_an_http_backend(loaded):
    """A base URL is enough."""
    text = "options = { base_url = 'http://h:1/x', connect_timeout_ms = 500 }\n"
    config = loaded("[backends.b]\nservice = 'http'\n" + text)
    assert config.backends["b"].options == HttpBackendOptions("http://h:1/x", connect_timeout_secs=0.5)


def test_an_http_backend_needs_a_url(problems):
    """Without a URL, or with one that is none, it is refused."""
    text = "[backends.a]\nservice = 'http'\n[backends.b]\nservice = 'http'\noptions = { base_url = 'h' }\n"
    assert [(problem.table, problem.key) for problem in problems(text)] == [
        ("backends.a.options", "base_url"),
        ("backends.b.options", "base_url"),
    ]


def test_an_https_backend(loaded):
    """An https URL is accepted."""
    text = "[backends.b]\nservice = 'http'\noptions = { base_url = 'https://h' }\n"
    assert loaded(text).backends["b"].options.base_url == "https://h"


def test_an_echo_backend(loaded):
    """Harmony's path_prefix of an echo backend is accepted with a warning."""
    config = loaded("[backends.b]\nservice = 'echo'\noptions = { path_prefix = '/x' }\n")
    assert config.backends["b"].options == EchoOptions()
    assert any("path_prefix" in line for line in config.warnings)


@pytest.mark.parametrize("kind", ["endpoints", "backends"])
def test_an_unknown_service_gets_the_nearest(problems, kind):
    """A mistyped service is answered with the nearest."""
    problem = problems(f"[{kind}.x]\nservice = 'dicm'\n")[0]
    assert (problem.key, problem.nearest) == ("service", "dicom")


@pytest.mark.parametrize("kind", ["endpoints", "backends"])
@pytest.mark.parametrize("service", ["fhir", "jmix", "mock_dicom"])
def test_services_out_of_scope(problems, kind, service):
    """Services of Harmony that harmonyd will not have are said to be out of scope."""
    assert "out of scope" in problems(f"[{kind}.x]\nservice = '{service}'\noptions = {{ a = 1 }}\n")[0].what


@pytest.mark.parametrize("service", ["management"])
def test_services_not_built_yet(problems, service):
    """Services that will come are said to be not built yet."""
    assert "not built yet" in problems(f"[endpoints.x]\nservice = '{service}'\n")[0].what


def test_a_service_is_required(problems):
    """A definition says which service it is."""
    assert [(problem.key, problem.what) for problem in problems("[endpoints.x]\n")] == [("service", "missing")]


def test_an_option_outside_of_options(problems):
    """An option directly in the table is an unknown key there."""
    text = "[endpoints.x]\nservice = 'http'\npath_prefix = '/'\noptions = { path_prefix = '/' }\n"
    assert [(problem.table, problem.key) for problem in problems(text)] == [("endpoints.x", "path_prefix")]


def test_options_that_are_no_table(problems):
    """Options are a table; nothing more is said about those that are not."""
    assert [problem.what for problem in problems("[endpoints.x]\nservice = 'http'\noptions = 3\n")] == ["not a table"]


def test_a_storage_backend(loaded, tmp_path):
    """Its path is taken from the folder of config.toml."""
    config = loaded("[backends.b]\nservice = 'storage'\noptions = { path = 'kept' }\n")
    assert config.backends["b"].options == StorageBackendOptions(tmp_path / "kept")


@pytest.mark.parametrize(("options", "key"), [("", "path"), ("path = 3", "path"), ("path = 'x', dir = 'y'", "dir")])
def test_one_mistake_in_a_storage_backend(problems, options, key):
    """A path is all it has, and it needs one."""
    text = f"[backends.b]\nservice = 'storage'\noptions = {{ {options} }}\n"
    assert [(problem.table, problem.key) for problem in problems(text)] == [("backends.b.options", key)]
