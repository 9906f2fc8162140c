"""The OpenAPI document and its page, of a real daemon over a real PACS; and schemathesis, which finds nothing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dicomweb_kit import pacs_options
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydicom import dcmread

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import Answer, RunningDaemon
from harmonyd.testing.data import make_ct, uid_for
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port, wait_until

VIEWER = "https://viewer.example.org"
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
HERE = ["default"]
ENDPOINTS = {
    "web": {"service": "dicomweb", "path_prefix": "/dicomweb", "cors_origins": [VIEWER]},
    "dimse": {"service": "http", "path_prefix": "/dicom"},
    "tryout": {"service": "echo", "path_prefix": "/echo"},
    "few": {"service": "http", "path_prefix": "/only{odd}", "methods": ["GET", "POST"]},
}
PIPELINES = {
    "dicom": {"networks": HERE, "endpoints": ["web", "dimse"], "backends": ["pacs"]},
    "echo": {"networks": HERE, "endpoints": ["tryout"], "backends": ["echo"]},
    "filtered": {"networks": HERE, "endpoints": ["few"], "middleware": ["finds"], "backends": ["pacs"]},
}
MIDDLEWARE = {"finds": {"type": "path_filter", "rules": ["/find", "/echo"]}}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "1.dcm"
    make_ct(path, study_uid=uid_for("s"), series_uid=uid_for("s/1"), instance_number=1, patient_id="1", size=16)
    return path


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, image: Path) -> Iterator[RunningDaemon]:
    folder = tmp_path_factory.mktemp("openapi")
    receiver = free_port()
    with RunningPacs(folder / "pacs", files=[image], destinations={"HARMONY_SCU": receiver}) as pacs:
        backends = {
            "pacs": pacs_options(pacs, "native", incoming_store_port=receiver),
            "echo": {"service": "echo"},
        }
        config = write_config(
            folder,
            http_port=free_port(),
            backends=backends,
            endpoints=ENDPOINTS,
            middleware=MIDDLEWARE,
            pipelines=PIPELINES,
            sections={"management": {"enabled": True, "network": "default"}},
        )
        with RunningDaemon(config) as running:
            yield running


def document_of(daemon: RunningDaemon) -> Any:
    return daemon.http("GET", "/openapi.json").json()


def test_it_is_openapi(daemon: RunningDaemon) -> None:
    """The document is a valid OpenAPI 3.1 document; each operation has an id of its own."""
    document = document_of(daemon)
    OpenAPIV31SpecValidator(document).validate()
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids)) > 50


def test_it_says_what_is_offered(daemon: RunningDaemon) -> None:
    """By service, middleware and methods; braces of a prefix are no variables; management, where it is served."""
    paths = document_of(daemon)["paths"]
    offered = {path: set(item) for path, item in paths.items()}
    assert offered["/dicom/find"] == {"post"}
    assert offered["/dicomweb/studies"] == {"get", "post"}
    assert offered["/echo/{path}"] == {"get", "post", "put", "patch", "delete"}
    only = {path.removeprefix("/only%7Bodd%7D") for path in offered if path.startswith("/only")}
    assert {path for path in only if not path.startswith("/operations/")} == {"/find", "/echo"}
    assert offered["/dicom/operations/{id}"] == {"get", "delete"}
    assert offered["/admin/spool/entries/{id}"] == {"get", "delete"}
    assert {"/livez", "/readyz", "/openapi.json", "/docs"} <= offered.keys()
    assert paths["/dicom/find"]["post"]["operationId"] == "dimse_find"


def test_it_is_cached_and_compressed(daemon: RunningDaemon) -> None:
    """HEAD, ETag and gzip, for the document and its page."""
    for path in ("/openapi.json", "/docs"):
        whole = daemon.http("GET", path)
        etag = whole.headers["ETag"]
        head = daemon.http("HEAD", path)
        assert (head.status, head.headers["ETag"], head.body) == (200, etag, b"")
        assert head.headers["Content-Length"] == str(len(whole.body))
        for known in (etag, f'"x", W/{etag}', "*"):
            again = daemon.http("GET", path, headers={"If-None-Match": known})
            assert (again.status, again.headers["ETag"], again.body) == (304, etag, b"")
        packed = daemon.http("GET", path, headers={"Accept-Encoding": "gzip"})
        assert gzip.decompress(packed.body) == whole.body
        assert packed.headers["ETag"] == f"W/{etag}"
        wrong = daemon.http("DELETE", path)
        assert (wrong.status, wrong.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")


def test_pages_of_other_sites(daemon: RunningDaemon) -> None:
    """The origins of the DICOMweb endpoints may read the document, refusals too; no other may."""
    for origin, allowed in ((VIEWER, VIEWER), ("https://other.example.org", None)):
        for method, path in (("GET", "/openapi.json"), ("DELETE", "/openapi.json"), ("DELETE", "/dicomweb/studies")):
            answer = daemon.http(method, path, headers={"Origin": origin})
            assert answer.headers["Access-Control-Allow-Origin"] == allowed, (method, path)
            assert "Origin" in answer.headers["Vary"]
    asking = {"Origin": VIEWER, "Access-Control-Request-Method": "GET"}
    asked = daemon.http("OPTIONS", "/openapi.json", headers=asking)
    assert (asked.status, asked.headers["Access-Control-Allow-Methods"]) == (204, "GET, HEAD")
    shown = daemon.http("GET", "/dicomweb/studies", headers={"Origin": VIEWER}).headers["Access-Control-Expose-Headers"]
    assert {"ETag", "Warning", "Location", "X-Request-ID"} <= set(shown.split(", "))


def test_the_page_needs_nothing_else(daemon: RunningDaemon) -> None:
    """No script and nothing from elsewhere; its policy allows its own style alone; links lead to what is there."""
    answer = daemon.http("GET", "/docs")
    html = answer.body.decode()
    style = html.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert not re.search(r"<script|<link|<img|\son\w+=|(src|href)=\"(?!#|/openapi.json\")", html)
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(re.findall(r'id="([^"]+)"', html))
    for item in document_of(daemon)["paths"].values():
        assert all(f'id="{operation["operationId"]}"' in html for operation in item.values())


# --- schemathesis


@pytest.mark.deadline(300)
def test_schemathesis_finds_nothing(daemon: RunningDaemon, tmp_path: Path, image: Path) -> None:
    """As the document says, so it is: statuses, types, schemas, headers and methods, whatever is sent."""
    document = _with_real_uids(document_of(daemon), image)
    (tmp_path / "openapi.json").write_text(json.dumps(document), "utf-8")
    (tmp_path / "schemathesis.toml").write_text(SETTINGS, "utf-8")
    argv = [*SCHEMATHESIS, "openapi.json", "--url", daemon.base_url]
    env = {**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS)}
    ran = subprocess.run(argv, check=False, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-2_000:]
    assert re.search(rf"Tested: {sum(map(len, document['paths'].values()))}\b", ran.stdout), ran.stdout[-3_000:]


SCHEMATHESIS = [
    *(sys.executable, "-m", "schemathesis.cli", "run", "--no-color", "--max-examples", "4", "--seed", "1"),
    *("--generation-deterministic", "--phases", "examples,coverage,fuzzing"),
    *("--continue-on-failure", "--warnings", "off", "--request-timeout", "60"),
]
SETTINGS = """
# What a schema cannot say: which keywords there are, what each VR allows, which keys go together.
[[operations]]
include-path-regex = "/(find|get|move|store)$|^/dicom$|/(studies|series|instances)$"
[operations.checks]
positive_data_acceptance.enabled = false

# Nor what an image has: frames in this or that form, a part that a viewport can show.
[[operations]]
include-path-regex = "/(rendered|thumbnail)$|/(frames|bulkdata)/"
[operations.checks]
positive_data_acceptance.enabled = false

# A body that is no DICOM object is told so.
[[operations]]
include-method = "POST"
include-path = "/dicomweb/studies/{study}"
[operations.checks]
positive_data_acceptance.enabled = false

# The PACS of these tests has no worklist, and does not commit: that it does not is answered with 502.
[[operations]]
include-path-regex = "/(worklist|commit)$"
[operations.checks]
positive_data_acceptance.enabled = false
not_a_server_error.enabled = false

# An endpoint that names no methods takes any, those too that OpenAPI has no place for.
[[operations]]
include-path-regex = "^/echo"
[operations.checks]
unsupported_method.enabled = false
"""


def _with_real_uids(document: Any, image: Path) -> Any:
    """Let it ask for what is there as often as not."""
    ds = dcmread(image)
    real = {"study": ds.StudyInstanceUID, "series": ds.SeriesInstanceUID, "instance": ds.SOPInstanceUID}
    for item in document["paths"].values():
        for operation in item.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in real:
                    parameter["example"] = str(real[parameter["name"]])
    return document


# --- reload, and off


def get(daemon: RunningDaemon, path: str) -> Answer:
    return daemon.http("GET", path)


def test_it_changes_with_the_configuration(tmp_path: Path) -> None:
    """A reload changes the document and its ETag, and can switch it off and on."""
    port = free_port()

    def write(prefix: str, *, documented: bool = True) -> Path:
        endpoints = {"tryout": {"service": "echo", "path_prefix": prefix}}
        sections = {"web": {"documentation": documented}}
        backends = {"echo": {"service": "echo"}}
        return write_config(tmp_path, http_port=port, backends=backends, endpoints=endpoints, sections=sections)

    with RunningDaemon(write("/before")) as daemon:
        before = get(daemon, "/openapi.json")
        assert "/before" in before.json()["paths"]
        for prefix, documented in (("/after", True), ("/after", False), ("/before", True)):
            write(prefix, documented=documented)
            os.kill(daemon.pid, signal.SIGHUP)
            status = 200 if documented else 404
            wait_until(lambda: get(daemon, "/docs").status == status, "the configuration is in force")  # noqa: B023
            if documented:
                wait_until(lambda: prefix in get(daemon, "/openapi.json").json()["paths"], "it is new")  # noqa: B023
        assert get(daemon, "/openapi.json").headers["ETag"] == before.headers["ETag"]
