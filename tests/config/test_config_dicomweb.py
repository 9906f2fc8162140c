"""DICOMweb endpoints: their options, the backends they need, and Harmony's bridge."""

from __future__ import annotations

import pytest

from harmonyd.config.model import DicomwebEndpointOptions

ENDPOINT = "[endpoints.web]\nservice = 'dicomweb'\noptions = { path_prefix = '/web' }\n"
BACKEND = "[backends.pacs]\nservice = 'dicom'\noptions = { aet = 'A', host = 'h', port = 104 }\n"
HTTP_BACKEND = "[backends.other]\nservice = 'http'\noptions = { base_url = 'http://127.0.0.1:1' }\n"
NETWORK = "networks = ['default']\n"


def pipeline(endpoint: str, *backends: str, middleware: str = "") -> str:
    links = [middleware] if middleware else []
    return f"[pipelines.p]\n{NETWORK}endpoints = ['{endpoint}']\nbackends = {list(backends)}\nmiddleware = {links}\n"


def test_defaults(loaded):
    """Only the path has to be given."""
    config = loaded(pipeline("web", "pacs") + ENDPOINT + BACKEND)
    assert config.endpoints["web"].options == DicomwebEndpointOptions("/web")


def test_all_options(loaded):
    """Each option arrives, times in seconds and URLs without a slash at their end."""
    options = (
        "path_prefix = '/web/'\npublic_url = 'https://pacs.example.org/x/'\nmax_results = 5\nsearch_timeout_ms = 1500\n"
        "complete_attributes = false\ncors_origins = ['https://a.example.org', '*']\n"
    )
    text = f"[endpoints.web]\nservice = 'dicomweb'\n[endpoints.web.options]\n{options}"
    found = loaded(pipeline("web", "pacs") + text + BACKEND).endpoints["web"].options
    assert found == DicomwebEndpointOptions(
        path_prefix="/web",
        public_url="https://pacs.example.org/x",
        max_results=5,
        search_timeout_secs=1.5,
        complete_attributes=False,
        cors_origins=("https://a.example.org", "*"),
    )


@pytest.mark.parametrize("origin", ["viewer.example.org", "https://viewer.example.org/path", "https://a?b"])
def test_an_origin_is_scheme_host_and_port(problems, origin):
    """What no browser sends as Origin would never match."""
    text = ENDPOINT.replace("'/web'", f"'/web', cors_origins = ['{origin}']")
    assert "cors_origins" in problems(pipeline("web", "pacs") + text + BACKEND)[0].key


@pytest.mark.parametrize(
    ("backends", "definitions", "said"),
    [((), "", "no dicom backend"), (("pacs", "other"), BACKEND + HTTP_BACKEND, "is neither dicom nor dicomweb")],
)
def test_backends_are_dicom_ones(problems, backends, definitions, said):
    """Another backend would not understand what it is asked."""
    (problem,) = problems(pipeline("web", *backends) + ENDPOINT + definitions)
    assert (problem.table, problem.key) == ("pipelines.p", "backends")
    assert said in problem.what


@pytest.mark.parametrize("kind", ["dicomweb_bridge", "dicomweb"])
def test_the_bridge_makes_dicomweb_of_http(loaded, kind):
    """Harmony's configuration: an http endpoint, the bridge, a dicom backend."""
    http = ENDPOINT.replace("'dicomweb'", "'http'")
    bridge = f"[middleware.bridge]\ntype = '{kind}'\n"
    config = loaded(pipeline("web", "pacs", middleware="bridge") + http + BACKEND + bridge)
    endpoint = config.endpoints["web"]
    assert (endpoint.service, endpoint.options) == ("dicomweb", DicomwebEndpointOptions("/web"))


def test_the_bridge_needs_an_endpoint_and_a_dicom_backend(problems):
    """What it would do nothing for is a mistake."""
    bridge = "[middleware.bridge]\ntype = 'dicomweb_bridge'\n"
    echo = ENDPOINT.replace("'dicomweb'", "'echo'")
    assert problems(pipeline("web", "pacs", middleware="bridge") + echo + BACKEND + bridge)[0].key == "middleware"
    http = ENDPOINT.replace("'dicomweb'", "'http'")
    found = problems(pipeline("web", "other", middleware="bridge") + http + HTTP_BACKEND + bridge)
    assert [problem.key for problem in found] == ["backends"]


def test_methods_beside_the_bridge(problems):
    """A DICOMweb endpoint decides by itself which methods a resource has."""
    http = ENDPOINT.replace("'dicomweb'", "'http'").replace("'/web'", "'/web', methods = ['GET']")
    bridge = "[middleware.bridge]\ntype = 'dicomweb_bridge'\n"
    assert problems(pipeline("web", "pacs", middleware="bridge") + http + BACKEND + bridge)[0].key == "methods"


def test_a_backend_that_asks_by_patient(problems):
    """What would not be heeded is a mistake."""
    backend = BACKEND.replace("port = 104", "port = 104, query_model = 'patient'")
    assert problems(pipeline("web", "pacs") + ENDPOINT + backend)[0].key == "query_model"
