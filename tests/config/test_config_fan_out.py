"""Several backends behind one endpoint, in the configuration."""

from __future__ import annotations

import pytest
from config_kit import Loaded, Problems

BACKENDS = """
[backends.lund]
service = "dicom"
options = { aet = "A", host = "h", port = 1 }
[backends.malmo]
service = "dicom"
options = { aet = "B", host = "h", port = 2 }
[backends.other]
service = "http"
options = { base_url = "http://h:1" }
[backends.find]
service = "dicom"
options = { aet = "C", host = "h", port = 3 }
[backends.operations]
service = "dicom"
options = { aet = "D", host = "h", port = 4 }
"""


def text(pipeline: str, options: str = "", service: str = "http") -> str:
    return f"""
    [pipelines.p]
    networks = ["default"]
    endpoints = ["e"]
    {pipeline}
    [endpoints.e]
    service = "{service}"
    options = {{ path_prefix = "/p"{options and ", "}{options} }}
    {BACKENDS}
    """


BOTH = 'backends = ["lund", "malmo"]'


@pytest.mark.parametrize("service", ["http", "dicomweb"])
def test_what_there_is(loaded: Loaded, service: str) -> None:
    """A pipeline may ask all, and an endpoint let its clients choose."""
    given = f"{BOTH}\nfan_out = true\nfan_out_timeout_ms = 5000"
    config = loaded(text(given, 'backend_in_path = true, backend_header = "X-PACS"', service))
    pipeline, options = config.pipelines["p"], config.endpoints["e"].options
    assert (pipeline.fan_out, pipeline.fan_out_timeout_secs) == (True, 5.0)
    assert (options.path_backends, options.backend_header) == (("lund", "malmo"), "X-PACS")
    plain = loaded(text(BOTH, "", service))
    assert (plain.pipelines["p"].fan_out, plain.endpoints["e"].options.path_backends) == (False, ())


@pytest.mark.parametrize(
    ("pipeline", "options", "key"),
    [
        ('backends = ["lund"]\nfan_out = true', "", "fan_out"),
        ('backends = ["lund", "other"]\nfan_out = true', "", "fan_out"),
        (f"{BOTH}\nfan_out = 1", "", "fan_out"),
        (f"{BOTH}\nfan_out_timeout_ms = 5000", "", "fan_out_timeout_ms"),
        (f"{BOTH}\nfan_out = true\nfan_out_timeout_ms = 5", "", "fan_out_timeout_ms"),
        ('backends = ["lund", "find"]', "backend_in_path = true", "backend_in_path"),
        ('backends = ["lund", "operations"]', "backend_in_path = true", "backend_in_path"),
        (BOTH, "backend_in_path = 1", "backend_in_path"),
        (BOTH, 'backend_header = "X PACS"', "backend_header"),
        (BOTH, 'backend_header = "Accept"', "backend_header"),
    ],
)
def test_mistakes(problems: Problems, pipeline: str, options: str, key: str) -> None:
    """Each is told at its key."""
    assert [problem.key for problem in problems(text(pipeline, options))] == [key]


def test_nobody_asks(problems: Problems) -> None:
    """A pipeline that only receives objects gives them to all backends in any case."""
    receiving = text(f"{BOTH}\nfan_out = true", service="dicom").replace('path_prefix = "/p"', "port = 11119")
    assert [problem.key for problem in problems(receiving)] == ["fan_out"]
